"""Llama, Tokenizer and Generation, the objects of the package: what they do, what they refuse, when they end.

The model is tiny and random: whether its text is right is for the tests of the engine.
"""

import dataclasses
import math
import re
import sys
import threading

import checkpoints
import numpy as np
import pytest
from checkpoints import Shape
from helpers import write_ranked

import llama
from llama import hub, native
from llama._engine import ffi, lib
from llama.batch import Batch

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), " ", *LETTERS]
SHAPE = Shape(dim=16, hidden_dim=32, n_heads=4, n_kv_heads=2, vocab_size=len(PIECES), max_seq_len=64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    checkpoints.write(path / "model.bin", SHAPE)
    write_ranked(path / "tokenizer.bin", PIECES)
    return path


@pytest.fixture
def model(folder):
    with llama.Llama(folder / "model.bin") as model:
        yield model


# --- opening


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(llama.BadFileError, match=r"nowhere\.bin: No such file or directory"):
        llama.Llama(tmp_path / "nowhere.bin")


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(llama.BadFileError, match="GGUF"):
        llama.Llama(path)


@pytest.mark.parametrize("path", [b"x", 5, "", "\ud800"])
def test_what_no_path_can_be_is_refused(path):
    with pytest.raises(llama.UsageError, match=r"^path(:| =).* allowed "):
        llama.Llama(path)
    with pytest.raises(llama.UsageError, match=r"^path(:| =).* allowed "):
        llama.Tokenizer(path)


def test_a_path_with_a_nul_is_refused():
    with pytest.raises(llama.UsageError, match="NUL"):
        llama.Llama("model.bin\0.txt")


def test_a_missing_tokenizer_matters_only_to_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints.write(tmp_path / "alone.bin", SHAPE)
    with llama.Llama(tmp_path / "alone.bin") as model:
        assert model.logits([1, 5]).shape == (2, SHAPE.vocab_size)
        with pytest.raises(llama.BadFileError, match=r"tokenizer\.bin"):
            model.generate("a")


# --- the model


def test_config_is_the_header(model):
    config = dataclasses.asdict(model.config)
    said = {name: value for name, value in dataclasses.asdict(SHAPE).items() if name != "group_size"}
    assert {name: config[name] for name in said} == said
    assert config["version"] == 0
    assert (config["head_dim"], config["weight_type"], config["group_size"]) == (4, "fp32", 0)
    assert config["rope_theta"] == 10000
    assert config["norm_eps"] == pytest.approx(1e-5)


def test_config_is_frozen(model):
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.config.dim = 1


def test_options_come_back(folder):
    isas = re.search(r"LLAMA_ISA=(\S+) ", ffi.string(lib.llama_run_help()).decode())[1]
    with llama.Llama(folder / "model.bin", threads=2, context=10) as model:
        assert (model.threads, model.context, model.kv) == (2, 10, "fp32")
        assert model.kernels in isas.split("|")
        assert f"context 10, 2 threads, {model.kernels}" in repr(model)


@pytest.mark.parametrize(
    "options",
    [
        *({"threads": value} for value in (-1, "two", "", True)),
        *({"context": value} for value in (65, 2**40, False, "", 1.0)),
        *({"sequences": value} for value in (True, None, "")),
        *({"kv": value} for value in ("int4", False, ["fp32"])),
        *({"exact": value} for value in ("no", 1, None)),
        *({"rope_theta": value} for value in ("", False, [])),
        *({"lora": value} for value in (5, False, ["x"], "")),
        *({"tokenizer": value} for value in (0, False, [], b"x", "")),
        {"dtype": ""},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(folder, options):
    with pytest.raises(llama.UsageError, match=next(iter(options))):
        llama.Llama(folder / "model.bin", **options)


def test_logits_do_not_depend_on_what_came_before(model):
    ids = [1, 260, 270, 280]
    first = model.logits(ids)
    model.logits([1, 5, 6, 7, 8])
    assert first.dtype == np.float32
    assert np.array_equal(model.logits(ids), first)
    assert np.array_equal(model.logits(np.array(ids[:2])), first[:2])
    assert model.logits([]).shape == (0, SHAPE.vocab_size)


NO_IDS = [b"ab", {1: 2}, {1, 2}, [True], np.array([1.5]), np.array([True]), 5, None]  # no ids in an order


@pytest.mark.parametrize("ids", NO_IDS, ids=repr)
def test_what_holds_no_ids_in_an_order_is_refused_everywhere(model, ids):
    batch = Batch(model, sequences=1)
    calls = (model.logits, model.logprobs, model.score, model.embed, model.generate, model.decode, batch.join)
    for call in calls:
        with pytest.raises(llama.UsageError, match=r"^(ids|text|prompt) = .*, allowed (text or )?token ids"):
            call(ids)
    assert not batch.busy


@pytest.mark.parametrize("kind", [tuple, np.array, np.int32, iter])
def test_ids_may_be_a_list_an_array_and_the_like(model, kind):
    assert model.decode(kind([1, 5])) == model.decode([1, 5])
    assert model.decode(range(1, 6, 4)) == model.decode([1, 5])


@pytest.mark.parametrize("ids", [[5000], [-1], [2**70], [1, 5000], [1, -1]])
def test_an_id_outside_the_vocabulary_has_no_probability(model, ids):
    for call in (model.logprobs, model.score):
        with pytest.raises(llama.UsageError, match=f"token = {ids[-1]}, allowed 0 to 285"):
            call(ids)
    with pytest.raises(llama.UsageError, match=f"token = {ids[-1]}, allowed 0 to 285"):
        model.tokenizer.is_special(ids[-1])


@pytest.mark.parametrize("ids", [[286], [-1], [2**40], ["a"], [1.5], [1] * 65])
def test_logits_of_wrong_ids_are_refused(model, ids):
    with pytest.raises(llama.UsageError):
        model.logits(ids)
    assert model.logits([1]).shape == (1, SHAPE.vocab_size)


# --- text


def test_tokenizer_may_be_a_path_or_an_object(folder):
    with llama.Tokenizer(folder / "tokenizer.bin") as tokenizer:
        by_object = llama.Llama(folder / "model.bin", tokenizer)
        by_path = llama.Llama(folder / "model.bin", folder / "tokenizer.bin")
        assert by_object.encode("abc") == by_path.encode("abc") == tokenizer.encode("abc")
        by_object.close()
        assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (286, 1, 2)


def test_encode_marks_begin_and_end(model):
    assert model.encode("", bos=True, eos=True) == [1, 2]
    assert model.encode("a", bos=False) == model.encode("a", eos=True)[1:-1]


@pytest.mark.parametrize("text", ["", "abc", " a  b ", "naïve ☃ 🙂", "a\0b", "\n\t"])
def test_decode_is_the_inverse_of_encode(model, text):
    assert model.decode(model.encode(text)) == text


def test_what_is_not_utf8_is_replaced(model):
    byte = 3  # byte b is token b + 3
    assert model.decode([1, 0x61 + byte, 0xE2 + byte, 0x98 + byte]) == "a\ufffd\ufffd"
    assert model.decode(model.encode("a\ud800b")) == "a\ufffdb"


def test_decode_of_an_unknown_id_is_refused(model):
    for token in (286, -1, 2**40, "a"):
        with pytest.raises(llama.UsageError):
            model.decode([token])


# --- generation


def test_generate_is_an_iterator_of_new_text(model):
    pieces = model.generate("hello", max_tokens=20, seed=3)
    assert iter(pieces) is pieces
    assert pieces.finish is None
    text = list(pieces)
    assert text
    assert all(isinstance(piece, str) and piece for piece in text)
    assert pieces.finish in ("length", "stop_token")
    assert next(pieces, None) is None


def test_a_seed_repeats_the_text_and_ids_equal_their_text(model):
    def write(prompt, **options):
        return "".join(model.generate(prompt, max_tokens=30, **options))

    assert write("hello", seed=7) == write("hello", seed=7) == write(model.encode("hello"), seed=7)
    assert write("hello", seed=7) != write("hello", seed=8)
    assert write("hello") != write("hello")


def test_seeds_that_follow_each_other_give_different_texts(model):
    """The generator has no state 0, so seed 0 has that of another one, which is far."""
    seeds = [2**64 - 2, 2**64 - 1, 0, 1, 2]
    assert len({"".join(model.generate("hello", max_tokens=30, seed=seed)) for seed in seeds}) == len(seeds)
    assert len({"".join(text) for text in model.generate_all(["hello"], samples=3, seed=2**64 - 1)}) == 3


@pytest.mark.parametrize("top_p", [1e-50, 5e-324, np.float64(1e-46)])
def test_a_top_p_that_is_no_float_of_c_is_not_off(model, top_p):
    greedy = "".join(model.generate("hello", max_tokens=30, temperature=0))
    assert "".join(model.generate("hello", max_tokens=30, top_p=top_p, seed=1)) == greedy


def test_max_tokens_counts_what_is_drawn(model):
    only_a = {model.encode("a", bos=False)[-1]: 1e9}
    for n in (0, 1, 2, 20):
        generation = model.generate("b", max_tokens=n, logit_bias=only_a)
        assert ("".join(generation), generation.finish) == ("a" * n, "length")
    # the context has room for 64 tokens, one more is drawn from the last of them
    prompt = model.encode("b")
    assert len("".join(model.generate("b", logit_bias=only_a))) == 65 - len(prompt)
    assert len("".join(model.generate("b", max_tokens=1000, logit_bias=only_a))) == 65 - len(prompt)


def test_stop_ends_the_text(model):
    only_a = {model.encode("a", bos=False)[-1]: 1e9}
    for stop in ("aaa", ["x", "aaa"]):
        generation = model.generate("b", stop=stop, logit_bias=only_a)
        assert ("".join(generation), generation.finish) == ("", "stop_string")


def test_end_of_text_token_ends_the_text(model):
    generation = model.generate("b", logit_bias={2: 1e9})
    assert ("".join(generation), generation.finish) == ("", "stop_token")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("prompt", value) for value in (5, None, [None], ["a"], [1.5], {"a": 1})),
        *(("prompt", value) for value in (b"x", {1}, [True])),
        *(("stop", value) for value in (5, None, [None], ["a", 1], b"x", b"", {"a": 1}, {"a"})),
        *(
            ("logit_bias", value)
            for value in (
                [],
                0,
                "",
                {1: True},
                {True: 1},
                [1],
                5,
                "x",
                {"a": 1},
                {1: "a"},
                {1: None},
                {1.5: 1},
            )
        ),
        *((name, "x") for name in ("max_tokens", "seed", "temperature", "top_p", "top_k", "min_p")),
        *((name, True) for name in ("max_tokens", "seed", "top_k", "temperature")),
        *((name, []) for name in ("max_tokens", "repeat_penalty", "presence_penalty", "frequency_penalty")),
    ],
)
def test_an_option_of_another_type_is_named(model, name, value):
    with pytest.raises(llama.UsageError, match=f"^{name} = {re.escape(repr(value))}"):
        model.generate(**{"prompt": "a", name: value})


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("text", lambda model: model.encode(5)),
        ("text", lambda model: model.tokenizer.encode(b"x")),
        ("user", lambda model: model.encode_turn(None)),
        ("system", lambda model: model.encode_turn("a", system=[])),
        ("template", lambda model: model.encode_turn("a", template=[])),
        ("prefix", lambda model: model.encode_infill(5, "a")),
        ("suffix", lambda model: model.encode_infill("a", None)),
        ("ids", lambda model: model.logits(5)),
        ("ids", lambda model: model.score(["a"])),
        ("top", lambda model: model.logprobs([1], top=True)),
        ("messages", lambda model: model.encode_chat("hello")),
        ("messages[0]", lambda model: model.encode_chat([{}])),
        ("messages[0]", lambda model: model.encode_chat(["hello"])),
        ("messages[1]", lambda model: model.chat([{"role": "user", "content": "a"}, {"role": "user"}])),
        ("content", lambda model: model.encode_chat([{"role": "user", "x": "a"}], template="plain")),
        ("llama", lambda _: Batch("x")),
        ("llama", lambda _: Batch(None)),
        ("context", lambda model: Batch(model, context="")),
        ("cache", lambda model: Batch(model, cache="")),
        ("threads", lambda model: Batch(model, threads="")),
        ("kv", lambda model: Batch(model, kv=False)),
        ("prefill", lambda model: Batch(model, prefill="x")),
        ("prefill", lambda model: Batch(model, prefill=-1)),
        ("name", lambda _: hub.download(None)),
        ("name", lambda _: hub.parse(5)),
    ],
)
def test_an_argument_of_another_type_is_named(model, name, call):
    with pytest.raises(llama.UsageError, match=f"^{re.escape(name)} = .*, allowed "):
        call(model)


def test_ids_may_be_of_numpy(model):
    ids = np.array([1, 2, 3])
    assert model.score(ids) == model.score([1, 2, 3])
    assert "".join(model.generate(ids, max_tokens=np.int64(2), seed=1)) == "".join(
        model.generate([1, 2, 3], max_tokens=2, seed=1)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": "hot"},
        {"top_p": 1.5},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 2**64},
        {"max_tokens": -1},
        {"stop": [""]},
        {"stop": "a\0b"},
        {"logit_bias": {286: 1.0}},
        {"logit_bias": {1: math.nan}},
        {"prompt": []},
        {"prompt": [2**40]},
        {"prompt": [286]},
        {"prompt": "a" * 65},
    ],
)
def test_wrong_options_are_refused_at_once(model, options):
    with pytest.raises(llama.UsageError):
        model.generate(**{"prompt": "a", **options})


def test_a_second_text_ends_the_first(model):
    first = model.generate("a", max_tokens=30, logit_bias={1: -math.inf, 2: -math.inf})
    next(first)
    second = model.generate("a", max_tokens=5, seed=5)
    with pytest.raises(llama.ClosedError, match="another one was begun"):
        next(first)
    text = "".join(second)
    assert text == "".join(model.generate("a", max_tokens=5, seed=5))


def test_logits_end_a_text(model):
    generation = model.generate("a", max_tokens=30)
    model.logits([1])
    with pytest.raises(llama.ClosedError):
        next(generation)


def test_threads_take_turns(model):
    expected, wrong = model.logits(range(60)), []

    def work():
        for _ in range(20):
            if not np.array_equal(model.logits(range(60)), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- closing


def test_closed_objects_say_so(folder):
    model = llama.Llama(folder / "model.bin")
    generation = model.generate("a")
    tokenizer = model.tokenizer
    model.close()
    model.close()
    for use in (
        lambda: model.generate("a"),
        lambda: model.logits([1]),
        lambda: model.encode("a"),
        lambda: next(generation),
    ):
        with pytest.raises(llama.ClosedError, match="closed"):
            use()
    assert "closed" in repr(model)
    assert tokenizer.encode("a")
    tokenizer.close()
    with pytest.raises(llama.ClosedError, match="this tokenizer is closed"):
        tokenizer.encode("a")


def test_closing_a_tokenizer_ends_the_texts_that_use_it(folder):
    tokenizer = llama.Tokenizer(folder / "tokenizer.bin")
    model = llama.Llama(folder / "model.bin", tokenizer)
    generation = model.generate("a")
    tokenizer.close()
    with pytest.raises(llama.ClosedError):
        next(generation)


def test_what_lives_to_the_end_of_the_program_ends_in_silence(folder, monkeypatch):
    """Modules lose their names then, before their objects end."""
    said, tokenizer = [], llama.Tokenizer(folder / "tokenizer.bin")
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    monkeypatch.setattr(native, "FREE", None)
    del tokenizer
    assert said == []


def test_with_closes(folder):
    with llama.Llama(folder / "model.bin") as model, model.tokenizer as tokenizer:
        assert next(model.generate("a", logit_bias={1: -math.inf, 2: -math.inf}))
    for closed in (model, tokenizer):
        with pytest.raises(llama.ClosedError):
            closed.encode("a")


def test_a_generation_keeps_what_it_needs(folder):
    generation = llama.Llama(folder / "model.bin").generate("a", max_tokens=20, seed=1)
    with llama.Llama(folder / "model.bin") as model:
        assert "".join(generation) == "".join(model.generate("a", max_tokens=20, seed=1))
