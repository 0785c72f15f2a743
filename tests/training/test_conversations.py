"""Conversations have the ids of transformers, what is learnt of them is what its assistant mask says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from helpers import ROOT, finish
from test_chat_templates import LLAMA3, folder_with

from llama.errors import BadFileError
from llama.formats.chat_templates import TEMPLATES
from llama.formats.tokenizers import load
from training.conversations import ROLES, Encoder, open_encoder, samples_of
from training.pretokenize import Batch, Chats, Selection, encode_records, pretokenize
from training.shards import documents, open_split
from training.text import RECORDS

# What a model says, and the token that ends it, stand in {% generation %} for transformers.
FAMILIES = {
    "ChatML": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}",
    ),
    "Llama 3": (
        TEMPLATES["llama3"],
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content | trim }}<|eot_id|>{% endgeneration %}"
        "{% else %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}",
    ),
}
TALKS = [
    [("user", "Hi"), ("assistant", "Hello, you.")],
    [
        ("system", "Be brief."),
        ("user", "the tin"),
        ("assistant", " odd  \n"),
        ("user", "2"),
        ("assistant", "é 🦙"),
    ],
    [
        ("user", "<|im_end|> <|eot_id|>"),
        ("assistant", "<|im_start|>user\nno"),
        ("user", ""),
        ("assistant", ""),
    ],
]


def said(talk: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in talk]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of transformers, for a model that the engine runs."""
    return folder_with(tmp_path_factory.mktemp("chat") / "folder", "none yet")


@pytest.fixture(scope="module")
def theirs(folder) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(folder)


def encoder_with(folder: Path, template: str) -> Encoder:
    (folder / "chat_template.jinja").write_text(template)
    return open_encoder(folder)


def encoded(encoder: Encoder, item: object) -> tuple[list[int], list[float]]:
    (found,) = encoder.encode_record(json.dumps(item), "x")
    return found


@pytest.mark.parametrize("marked", [False, True], ids=["by its texts", "by its marks"])
@pytest.mark.parametrize("name", FAMILIES)
def test_ids_and_what_is_learnt_are_those_of_transformers(folder, theirs, name, marked):
    encoder = encoder_with(folder, FAMILIES[name][marked])
    for messages in map(said, TALKS[:2]):
        expected = theirs.apply_chat_template(
            messages,
            chat_template=FAMILIES[name][1],
            return_assistant_tokens_mask=True,
            return_dict=True,
        )
        ids, weights = encoded(encoder, {"messages": messages})
        assert ids == expected["input_ids"]
        assert weights == expected["assistant_masks"]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_people_write_is_neither_a_token_nor_learnt(folder, name):
    encoder = encoder_with(folder, FAMILIES[name][0])
    ids, weights = encoded(encoder, {"messages": said(TALKS[2])})
    ends = [i for i, token in enumerate(ids) if encoder.tokenizer.name(token) in ("<|im_end|>", "<|eot_id|>")]
    assert len(ends) == 4
    assert [weights[i] for i in ends] == [0, 1, 0, 1]


def test_a_template_that_always_opens_an_answer_gives_way_to_the_one_built_in(folder):
    messages = {"messages": said(TALKS[1])}
    assert encoded(encoder_with(folder, LLAMA3), messages) == encoded(
        encoder_with(folder, TEMPLATES["llama3"]), messages
    )


def test_both_spellings_of_messages_are_the_same(folder):
    encoder = encoder_with(folder, FAMILIES["ChatML"][0])
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    for talk in TALKS:
        shared = [{"from": names[role], "value": content} for role, content in talk]
        assert encoded(encoder, {"conversations": shared}) == encoded(encoder, {"messages": said(talk)})


def test_each_message_counts_what_it_is_said_to(folder):
    encoder = encoder_with(folder, FAMILIES["ChatML"][0])
    messages = said([*TALKS[0], *TALKS[0], *TALKS[0]])
    messages[0]["weight"], messages[1]["weight"], messages[3]["weight"] = None, 0, 0.25
    _, weights = encoded(encoder, {"messages": messages})
    runs = [w for i, w in enumerate(weights) if w and w != weights[i - 1]]
    assert runs == [0.25, 1]


def test_of_prompt_and_completion_the_completion_is_learnt(folder):
    encoder = encoder_with(folder, FAMILIES["ChatML"][0])
    ids, weights = encoded(encoder, {"prompt": "the", "completion": " tin"})
    assert ids == encoder.tokenizer.encode("the tin", bos=True, eos=True)
    begin = len(encoder.tokenizer.encode("the", bos=True))
    assert weights == [0] * begin + [1] * (len(ids) - begin)
    split = {"prompt": said(TALKS[1][:3]), "completion": said(TALKS[1][3:])}
    ids, weights = encoded(encoder, split)
    whole, of_whole = encoded(encoder, {"messages": said(TALKS[1])})
    assert ids == whole
    assert 0 < sum(weights) < sum(of_whole)


def test_of_a_pair_what_differs_is_learnt(folder):
    encoder = encoder_with(folder, FAMILIES["ChatML"][0])
    talks = [said([*TALKS[0], ("user", "and"), ("assistant", answer)]) for answer in ("good", "bad")]
    whole = encoder.encode_record(json.dumps({"chosen": talks[0], "rejected": talks[1]}), "x")
    parts = {"prompt": talks[0][:3], "chosen": talks[0][3:], "rejected": talks[1][3:]}
    assert encoder.encode_record(json.dumps(parts), "x") == whole
    told_again = {"prompt": "and", "chosen": talks[0], "rejected": talks[1]}
    assert encoder.encode_record(json.dumps(told_again), "x") == whole
    for (ids, weights), answer in zip(whole, ("good", "bad"), strict=True):
        learnt = [token for token, weight in zip(ids, weights, strict=True) if weight]
        assert encoder.tokenizer.decode(learnt) == answer


@pytest.mark.parametrize("kind", ["messages", "conversations", "completion", "pair", "told again"])
def test_a_system_of_its_own_is_the_first_message_and_not_learnt(folder, kind):
    encoder = encoder_with(folder, FAMILIES["ChatML"][0])
    system, *rest = said(TALKS[1])
    shared = [{"from": m["role"], "value": m["content"]} for m in rest]
    pair = [rest, [*rest[:-1], {"role": "assistant", "content": "no"}]]
    item = {
        "messages": {"messages": rest},
        "conversations": {"conversations": shared},
        "completion": {"prompt": rest[:3], "completion": rest[3:]},
        "pair": {"prompt": rest[:3], "chosen": rest[3:], "rejected": pair[1][3:]},
        "told again": {"prompt": "2", "chosen": pair[0], "rejected": pair[1]},
    }[kind]
    lists = [name for name, value in item.items() if isinstance(value, list)]
    first = {"from": "system", "value": "Be brief."} if kind == "conversations" else system
    begun = lists if kind == "told again" else lists[:1]
    inside = item | {name: [first, *item[name]] for name in begun}
    expected = encoder.encode_record(json.dumps(inside), "x")
    for record in (item, inside):  # a message that says it again is not told twice
        assert encoder.encode_record(json.dumps(record | {"system": "Be brief."}), "x") == expected
    bare = encoder.encode_record(json.dumps(item), "x")
    assert bare != expected
    for empty in ({"system": ""}, {"system": None}, {"tools": []}, {"id": 7, "source": "x", "score": 0.5}):
        assert encoder.encode_record(json.dumps(item | empty), "x") == bare


def test_tools_are_what_transformers_renders(folder, theirs):
    template = "{% for t in tools or [] %}{{ t.function.name }}\n{% endfor %}" + FAMILIES["ChatML"][0]
    messages, tools = said(TALKS[0]), [{"type": "function", "function": {"name": "tin", "parameters": {}}}]
    ids, _ = encoded(encoder_with(folder, template), {"messages": messages, "tools": tools})
    expected = theirs.apply_chat_template(messages, tools=tools, chat_template=template, return_dict=True)
    assert ids == expected["input_ids"]


def test_a_label_that_is_true_and_messages_told_again_change_nothing():
    talk = said(TALKS[0])
    plain = {"prompt": "x", "completion": "y"}
    assert samples_of(plain | {"label": True}, "x") == samples_of(plain | {"messages": None}, "x")
    pair = {"chosen": talk, "rejected": said([*TALKS[0], *TALKS[0]])}
    assert samples_of(pair | {"messages": talk}, "x") == samples_of(pair, "x")
    assert samples_of({"prompt": "Hi", "messages": talk}, "x") == samples_of({"messages": talk}, "x")


def weighed(weight: object) -> dict[str, object]:
    return {"messages": [{"role": "assistant", "content": "x", "weight": weight}]}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([], "is a list, allowed an object"),
        ({"text": "x"}, "fields = text, allowed messages, conversations"),
        ({"messages": []}, "messages = [], allowed a list of them"),
        ({"messages": [{"content": "x"}]}, "allowed an object with role and content"),
        ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "weight = 1 of 'user', allowed none"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": -1}]}, "weight = -1 of 'assistant'"),
        (weighed(1e300), "weight = 1e+300 of 'assistant', allowed 0, or a number from 6.103515625e-05 to"),
        (weighed(65505), "weight = 65505 of 'assistant', allowed 0, or a number from"),
        (weighed(10**400), "weight = 1000"),
        (weighed(1e-9), "weight = 1e-09 of 'assistant', allowed 0, or a number from"),
        (weighed(float("nan")), "weight = nan of 'assistant'"),
        (weighed(True), "weight = True of 'assistant'"),
        (weighed("1"), "weight = '1' of 'assistant'"),
        ({"messages": [{"role": "assistent", "content": "x"}]}, "role = 'assistent', allowed system, develo"),
        (
            {"messages": [{"role": "human", "content": "x"}]},
            "role = 'human', allowed system, developer, user",
        ),
        ({"messages": [{"role": 5, "content": "x"}]}, "role = 5, allowed system"),
        ({"messages": [{"role": None, "content": "x"}]}, "role = None, allowed system"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "from = ['human'], allowed system"),
        ({"conversations": [{"from": "me", "value": "x"}]}, "from = 'me', allowed system"),
        ({"prompt": "x", "completion": []}, "are str and list, allowed two texts or two lists"),
        (
            {"system": "a", "messages": said([("system", "b"), ("user", "x")])},
            "system = 'a' beside a system message = 'b', allowed one of the two",
        ),
        (
            {"system": "a", "messages": said([("developer", "a"), ("user", "x")])},
            "system = 'a' beside a developer message = 'a', allowed one of the two",
        ),
        ({"system": 0, "messages": said(TALKS[0])}, "system = 0, allowed a text"),
        ({"system": ["a"], "messages": said(TALKS[0])}, "system = ['a'], allowed a text"),
        (
            {"system": "a", "prompt": "x", "completion": "y"},
            "system beside a prompt that is a text, and so has no template, allowed beside lists of messages",
        ),
        ({"system": "a", "prompt": "x", "chosen": "y", "rejected": "z"}, "system beside a prompt that is"),
        ({"tools": [{}], "prompt": "x", "completion": "y"}, "tools beside a prompt that is a text"),
        ({"tools": "[{}]", "messages": said(TALKS[0])}, "tools = '[{}]', allowed a list of objects"),
        ({"tools": ["a"], "messages": said(TALKS[0])}, "tools = ['a'], allowed a list of objects"),
        ({"functions": [{}], "messages": said(TALKS[0])}, "functions = [{}], allowed none"),
        (
            {"chat_template_kwargs": {"enable_thinking": False}, "messages": said(TALKS[0])},
            "chat_template_kwargs = {'enable_thinking': False}, allowed none",
        ),
        (
            {"label": False, "prompt": "x", "completion": "y"},
            "label = False, an answer that is not to be learnt, allowed true",
        ),
        (
            {"conversations": [{"from": "gpt", "value": "x", "train": False}]},
            "train = False of a message, allowed weight = 0 instead",
        ),
        ({"messages": [{"role": "assistant", "content": "x", "loss": False}]}, "loss = False of a message"),
        ({"label": 0, "messages": said(TALKS[0])}, "label = 0, an answer that is not to be learnt"),
        (
            {"prompt": "x", "completion": "y", "messages": said(TALKS[0])},
            "fields = prompt and completion beside messages, allowed one of messages, conversations, prompt",
        ),
        ({"messages": said(TALKS[0]), "conversations": []}, "fields = messages beside conversations, allowe"),
        (
            {"prompt": "x", "chosen": "y", "rejected": "z", "messages": said(TALKS[0])},
            "fields = chosen and rejected beside messages, allowed one of",
        ),
    ],
)
def test_what_is_no_conversation_is_refused_by_name(item, message):
    with pytest.raises(BadFileError) as error:
        samples_of(item, "chats.jsonl")
    assert str(error.value).startswith("chats.jsonl: ")
    assert message in str(error.value)


@pytest.mark.parametrize("weight", [0, 0.0, 2**-14, 1, 65504])
def test_a_weight_that_float16_holds_is_kept(weight):
    (sample,) = samples_of(weighed(weight), "x")
    assert sample.weights == (weight,) == (float(np.float16(weight)),)


@pytest.mark.parametrize("role", ROLES)
def test_every_role_is_taken_in_both_spellings(role):
    for item in ({"messages": [{"role": role}]}, {"conversations": [{"from": role}]}):
        (sample,) = samples_of(item, "x")
        assert [message["role"] for message in sample.messages] == [role]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("first", "bad"), [(0, 1), (3, 4)])
def test_an_error_names_the_file_and_the_record(folder, tmp_path, workers, first, bad):
    encoder_with(folder, FAMILIES["ChatML"][0])
    (tmp_path / "a.jsonl").write_text((json.dumps({"messages": said(TALKS[0])}) + "\n") * 2)
    records = [{"messages": said(TALKS[0])}] * 4
    records[first] = {"messages": [{"role": "assistent", "content": "x"}]}
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, records)))
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    chats = Chats(folder, "chat")
    with pytest.raises(BadFileError, match=rf"^{files[1]}: record {bad}: role = 'assistent', allowed"):
        pretokenize(
            tmp_path / "out", load(folder), Selection(files), Selection(files), RECORDS, workers, chats=chats
        )


def test_a_pair_among_conversations_is_named(folder, tmp_path):
    encoder = encoder_with(folder, FAMILIES["ChatML"][0])
    batch = Batch([json.dumps({"prompt": "x", "chosen": "y", "rejected": "z"})], ["a.jsonl: record 7"])
    with pytest.raises(BadFileError, match=r"^a\.jsonl: record 7: is a pair, allowed in a folder of chat: 1"):
        encode_records(encoder, "chat", batch)


def test_a_template_that_writes_an_answer_otherwise_later_is_refused(folder):
    template = "{% for m in messages %}{{ m.role if loop.last else '' }}{{ m.content }}{% endfor %}"
    with pytest.raises(BadFileError, match="so what to learn is not clear"):
        encoded(encoder_with(folder, template), {"messages": said([*TALKS[0], *TALKS[0]])})


def test_dataset_chat_writes_what_is_encoded_and_shows_it_in_colour(folder, tmp_path):
    encoder = encoder_with(folder, FAMILIES["ChatML"][0])
    records = [{"messages": said(talk)} for talk in TALKS]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, records)))
    line = [sys.executable, ROOT / "dataset.py", "chat", "--input", tmp_path / "chats.jsonl", "--val_every=3"]
    line += ["--model", folder, "--output", tmp_path / "data", "--show=1", "--workers=2"]
    result = finish(line, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = [
        (ids.tolist(), weights.tolist()) for ids, weights in documents(open_split(tmp_path / "data", "train"))
    ]
    assert found == [encoded(encoder, record) for record in records[1:]]
    assert "assistant\n\x1b[32m odd  \n<|im_end|>\x1b[0m" in result.stdout
    assert np.concatenate([s.weights for s in open_split(tmp_path / "data", "val")]).sum() > 0
