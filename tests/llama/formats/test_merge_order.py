"""formats/merge_order.py: vocabularies without the order of their merges, against the files that have it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_files import SMALL, library_file, random_source
from helpers import TEXTS, assert_linear
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tokenizer_json import llama2

from llama import Tokenizer
from llama.formats import tokenizers
from llama.formats import vocabulary as tokens
from llama.formats.gguf import open_gguf
from llama.formats.merge_order import UNKNOWN_ORDER, pairs_by_order, with_order
from llama.formats.spelling import merges_of, spellings
from llama.formats.vocabulary import Vocabulary
from model import Config

hf = pytest.importorskip("tokenizers")
thorough = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
texts = st.text(st.sampled_from("abehlotrs \u00f9\u4e16.\n12"), max_size=60)


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> tuple[hf.Tokenizer, Vocabulary]:
    """A tokenizer of the library that merges listed pairs, and its vocabulary with one score for all."""
    path = tmp_path_factory.mktemp("listed") / "tokenizer.json"
    path.write_text(json.dumps(llama2()))
    vocabulary = tokenizers.load(path).vocabulary
    return hf.Tokenizer.from_file(str(path)), replace(
        vocabulary, scores=[-1000.0] * len(vocabulary), merges=None
    )


@pytest.fixture(scope="module")
def ordered(listed) -> Tokenizer:
    return Tokenizer.from_bytes(with_order(listed[1]).indexed)


@thorough
@given(texts | st.sampled_from(TEXTS))
def test_the_order_of_ids_merges_as_the_list_that_was_trained(listed, ordered, text):
    assert ordered.encode(text, bos=False) == listed[0].encode(text, add_special_tokens=False).ids


def test_a_model_of_sentencepiece_has_its_order_in_its_ids(trained):
    flat = replace(trained.vocabulary, scores=[0.0] * trained.vocab_size)
    ours = Tokenizer.from_bytes(with_order(flat).indexed)
    for text in TEXTS:
        assert ours.encode(text, bos=False) == trained.encode(text)


def test_runs_of_spaces_merge_last_as_in_llama_2(trained):
    """Whose scores are -1e9, wherever their ids are."""
    v = trained.vocabulary
    runs = [b" " * n for n in (2, 4, 8, 5, 16, 6, 12, 13, 10, 14, 3, 9, 7, 11)]
    at = next(i for i, of in enumerate(v.types) if of == tokens.TEXT)
    pieces, scores = [*v.pieces], [*v.scores]
    pieces[at:at], scores[at:at] = runs, [-1e9] * len(runs)
    whole = replace(v, pieces=pieces, scores=scores, types=[*v.types, *[tokens.TEXT] * len(runs)])
    expected = Tokenizer.from_bytes(whole.indexed)
    found = Tokenizer.from_bytes(with_order(replace(whole, scores=[0.0] * len(whole))).indexed)
    for text in (*TEXTS, "  the   big    ball", " " * 37, "a" + " " * 9 + "the"):
        assert found.encode(text, bos=False) == expected.encode(text, bos=False), text


def test_a_long_token_takes_time_by_its_length():
    powers = [b"a" * 2**i for i in range(8)]
    assert_linear(lambda n: pairs_by_order([*powers, b"a" * n]), 1 << 18)


def test_ids_that_are_in_no_order_of_merges_leave_a_note():
    assert pairs_by_order([b"a", b"b", b"c", b"ab", b"abc"]) == [(b"a", b"b"), (b"ab", b"c")]
    assert pairs_by_order([b"a", b"b", b"c", b"abc", b"ab"]) is None
    pieces = [b"<unk>", b"</s>", b"a", b"b", b"c", b"abc", b"ab"]
    types = [tokens.UNKNOWN, tokens.CONTROL, *[tokens.TEXT] * 5]
    flat = Vocabulary(tokens.CHARACTERS, pieces, [0.0] * 7, types, -1, 1, 0)
    assert with_order(flat) == replace(flat, notes=(UNKNOWN_ORDER,))


@pytest.mark.parametrize("says", ["nothing", "merges"])
def test_a_gguf_file_with_one_score_merges_as_its_model(tmp_path, listed, says):
    library, flat = listed
    path, sizes = tmp_path / "flat.gguf", SMALL | {"vocab_size": len(flat)}
    source = random_source(Config(**sizes))
    keys = {
        "model": "llama",
        "tokens": spellings(flat),
        "scores": [0.0] * len(flat),
        "token_type": [{tokens.TEXT: 1, tokens.CONTROL: 3, tokens.BYTE: 6}[of] for of in flat.types],
    }
    if says == "merges":
        keys["merges"] = merges_of(tokenizers.load(write(tmp_path, llama2())).vocabulary)
    library_file(path, source, keys={f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    ours = Tokenizer.from_bytes(open_gguf(path).vocabulary().indexed)
    for text in (*TEXTS, "the  big ball", "\u00f9 12"):
        assert ours.encode(text, bos=False) == library.encode(text, add_special_tokens=False).ids


def write(folder: Path, data: dict) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(data))
    return path
