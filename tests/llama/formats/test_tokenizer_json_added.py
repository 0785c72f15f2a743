"""Added tokens of a tokenizer.json that are words too, have one byte, or are found in a second pass."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from test_gguf_vocabulary import source_for
from test_special_tokens import EDGES, both, encoded, token
from test_tokenizer_json import SCRIPTS, SPACE, gpt2, llama2, llama3, unigram
from torch_formats import write_gguf

from llama.errors import BadFileError
from llama.formats import vocabulary as tokens
from llama.formats.gguf_file import GgufFile
from llama.formats.gguf_vocabulary import find_vocabulary
from llama.formats.tokenizer_json_writer import write_tokenizer
from llama.native import c_bytes, encode_spans

hf = pytest.importorskip("tokenizers")


def spaced() -> dict[str, Any]:
    data = gpt2()
    return data | {"pre_tokenizer": data["pre_tokenizer"] | {"add_prefix_space": True}}


def replaced() -> dict[str, Any]:
    """A normalizer that spells spaces, and puts none in front."""
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return llama2(scheme="never") | {"normalizer": spaces}


MAKERS = {
    "prepend": llama2,
    "replace": replaced,
    "metaspace": lambda: llama2(normal=False),
    "always": lambda: llama2(normal=False, scheme="always", split=True),
    "never": lambda: llama2(normal=False, scheme="never"),
    "unknown": lambda: llama2(all_bytes=False),
    "bytes": llama3,
    "words": gpt2,
    "spaced": spaced,
    "some_bytes": lambda: gpt2(all_bytes=False),
    "unigram": unigram,
    "unigram_split": lambda: unigram(normal=False, split=True),
}
NEW = ["!<", "<<", "></", "abc", "\n", "\n\n", "\t", "  ", " a", "a ", "日本", "</s>x", "x</s>", "foo bar"]
BESIDE = [*"ab \n<.!_é鿿閉", SPACE, "  ", "the", "other", "<s>", "</s>", "<|eot|>"]


def ids_of(data: dict[str, Any]) -> dict[str, int]:
    vocab = data["model"]["vocab"]
    return vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}


def adding(data: dict[str, Any], **names: dict[str, Any]) -> dict[str, Any]:
    """The file with tokens added, as the library's add_tokens does; names: what is true of each."""
    ids = dict(ids_of(data))
    for name in (*(known["content"] for known in data["added_tokens"]), *names):
        ids.setdefault(name, len(ids))
    usual = {"special": False, "normalized": True}
    added = [token(ids[name], name, **usual | fields) for name, fields in names.items()]
    return data | {"added_tokens": data["added_tokens"] + added}


def words(rng: random.Random, data: dict[str, Any]) -> list[str]:
    """Words and letters of a vocabulary, spelt as they are in a text."""
    return rng.sample([piece for piece in ids_of(data) if re.fullmatch("[!-;=-~]+", piece)], 4)


def drawn(rng: random.Random, data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Tokens to add, with anything true of them."""
    names = {name: {edge: rng.random() < 0.25 for edge in EDGES} for name in words(rng, data)}
    names |= {name: {edge: rng.random() < 0.25 for edge in EDGES} for name in rng.sample(NEW, 3)}
    for name, fields in names.items():
        fields["normalized"] = rng.random() < 0.5
        fields["lstrip"] &= name.strip() != ""  # the library panics where it went with the token before
    return names


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("make", MAKERS)
def test_ids_equal_the_library_s_whatever_is_added(make, seed):
    rng, data = random.Random(f"{make} {seed}"), MAKERS[make]()
    names = drawn(rng, data)
    library, engine, vocabulary = both(adding(data, **names))
    assert tokens.read_indexed("x", vocabulary.indexed).textual == vocabulary.textual
    parts = [*names, *names, *BESIDE, *SCRIPTS.split()]
    for _ in range(60):
        text = "".join(rng.choices([*parts, *rng.choices(parts, k=3) * 30], k=rng.randint(1, 12)))
        assert engine.encode(text, bos=False, special=True) == encoded(library, text), (names, text)


@pytest.mark.parametrize("make", ["bytes", "words", "metaspace", "never", "replace"])
def test_texts_come_back(make):
    """But where the library drops white space."""
    rng, data = random.Random(make), MAKERS[make]()
    names = drawn(rng, data)
    library, engine, _ = both(adding(data, **{name: {"normalized": False} for name in names}))
    for _ in range(300):
        ids = encoded(library, "".join(rng.choices([*names, *SCRIPTS.split(), "a", "鿿", "閉"], k=5)))
        assert engine.decode(ids) == library.decode(ids)


@pytest.mark.parametrize(
    ("make", "name", "fields", "text"),
    [
        ("words", "the", {"single_word": True}, "other the"),
        ("prepend", "the", {}, "other the"),
        ("unigram", "the", {"single_word": True}, "other the"),
        ("words", "e", {"single_word": True}, "e there"),
        ("words", "!<", {}, "Hi!<|eot|>"),
        ("words", "!<", {"special": True}, "Hi!<|eot|>"),
        ("metaspace", "!<", {}, "Hi!<|eot|> a"),
        ("always", "\n", {}, "a\nb"),
        ("prepend", "\n", {"special": True, "normalized": False}, "a\nb"),
        ("bytes", "\t", {}, "a\tb"),
        ("replace", "\u2581zz", {}, "a zz\u2581zz"),
        ("prepend", "\u2581zz", {}, "  zz </s> zz"),
        ("never", "\u2581zz", {}, "a zz\u2581zz"),
        ("words", "b", {}, "a b bb"),
    ],
)
def test_a_word_a_byte_and_what_overlaps_a_special_token(make, name, fields, text):
    library, engine, _ = both(adding(MAKERS[make](), **{name: fields}))
    assert engine.encode(text, bos=False, special=True) == encoded(library, text)


@pytest.mark.parametrize(
    ("make", "names", "allowed"),
    [
        ("words", {"é": {}}, "user-defined tokens that, as pieces of text, spell their own name"),
        ("words", {"\u00c3": {}}, "user-defined tokens that, as pieces of text, spell"),
        ("always", {"\u2581the": {}}, "user-defined tokens that, as pieces of text, spell"),
        ("words", {"é": {"special": True}}, "special tokens other than those of bytes"),
        ("words", {"a": {"special": True}}, "special tokens other than those of bytes"),
        ("words", {"the": {"special": True, "single_word": True}}, "that model.merges do not make"),
        ("prepend", {"e": {"special": True}}, "that model.merges do not make"),
        ("metaspace", {"er": {"special": True}, "x": {"single_word": True}}, "that model.merges do not make"),
    ],
)
def test_what_would_be_lost_or_come_of_text_is_refused(make, names, allowed):
    with pytest.raises(BadFileError) as caught:
        both(adding(MAKERS[make](), **names))
    name = json.dumps(next(iter(names)), ensure_ascii=False)
    assert f"tokenizer.json: added_tokens = {name}, allowed " in str(caught.value)
    assert allowed in str(caught.value)


def test_a_special_word_is_no_text_in_a_text_that_does_not_ask_for_it():
    library, engine, vocabulary = both(adding(gpt2(), the={"special": True, "normalized": False}))
    assert engine.encode("the other", bos=False, special=True) == encoded(library, "the other")
    assert vocabulary.special["the"] not in engine.encode("the other", bos=False)


@pytest.mark.parametrize("make", MAKERS)
def test_what_was_read_is_written_and_read_again(make):
    rng, data = random.Random(make), MAKERS[make]()
    names = drawn(rng, data)
    library, _, vocabulary = both(adding(data, **names))
    written, engine, again = both(json.loads(write_tokenizer("model", vocabulary)["tokenizer.json"]))
    assert (again.textual, again.late, again.flags) == (vocabulary.textual, vocabulary.late, vocabulary.flags)
    for _ in range(100):
        text = "".join(rng.choices([*names, *BESIDE, *SCRIPTS.split()], k=6))
        expected = encoded(library, text)
        assert engine.encode(text, bos=False, special=True) == encoded(written, text) == expected, text


def test_a_gguf_keeps_words_that_are_added(tmp_path):
    names = {"the": {"normalized": False}, "e": {"normalized": False}}
    library, _, vocabulary = both(adding(gpt2(digits=True), **names))
    write_gguf(tmp_path / "m.gguf", source_for(vocabulary), "int8", vocabulary=vocabulary)
    found = find_vocabulary(GgufFile(tmp_path / "m.gguf"))
    assert found.textual == vocabulary.textual == {library.token_to_id(name) for name in names}


@pytest.mark.parametrize("make", ["words", "always"])
def test_what_people_wrote_forges_no_token_of_the_second_pass(make):
    names = {"<|end|>": {"special": True}, "<|tool|>": {}, "ab": {}}
    library, engine, _ = both(adding(MAKERS[make](), **names))
    end, tool, ab = (library.token_to_id(name) for name in names)
    text = "a<|end|>ab<|end|><|tool|>ab</s>b<|tool|>"  # from the first ab on, but for the last
    ids = encode_spans(engine._handle, c_bytes(text), [(8, 25, -1), (27, 31, -1)])
    assert [i for i in ids if i in (end, tool, ab)] == [end, ab, ab, tool]
