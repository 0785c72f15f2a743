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
from training.conversations import Encoder, open_encoder, samples_of
from training.shards import documents, open_split

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
    (found,) = encoder.encode_record(json.dumps(item))
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
    whole = encoder.encode_record(json.dumps({"chosen": talks[0], "rejected": talks[1]}))
    parts = {"prompt": talks[0][:3], "chosen": talks[0][3:], "rejected": talks[1][3:]}
    assert encoder.encode_record(json.dumps(parts)) == whole
    told_again = {"prompt": "and", "chosen": talks[0], "rejected": talks[1]}
    assert encoder.encode_record(json.dumps(told_again)) == whole
    for (ids, weights), answer in zip(whole, ("good", "bad"), strict=True):
        learnt = [token for token, weight in zip(ids, weights, strict=True) if weight]
        assert encoder.tokenizer.decode(learnt) == answer


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([], "is a list, allowed an object"),
        ({"text": "x"}, "fields = text, allowed messages, conversations"),
        ({"messages": []}, "messages = [], allowed a list of them"),
        ({"messages": [{"content": "x"}]}, "allowed an object with role and content"),
        ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "weight = 1 of 'user', allowed none"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": -1}]}, "weight = -1 of 'assistant'"),
        ({"prompt": "x", "completion": []}, "are str and list, allowed two texts or two lists"),
    ],
)
def test_what_is_no_conversation_is_refused_by_name(item, message):
    with pytest.raises(BadFileError) as error:
        samples_of(item, "chats.jsonl")
    assert str(error.value).startswith("chats.jsonl: ")
    assert message in str(error.value)


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
