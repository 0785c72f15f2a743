"""Tokenizers in GGUF files: they come back as they were, and llama.cpp splits text as they do."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import jinja2
import pytest
from gguf_files import SMALL, LlamaCpp, library_file, random_source, refuses
from helpers import TEXTS
from hypothesis import given
from hypothesis import strategies as st
from references import needs_llama_cpp
from torch_formats import open_gguf, write_gguf

from llama.errors import BadFileError
from llama.formats import gguf_vocabulary as vocabularies
from llama.formats import tokenizers
from llama.formats.chat_templates import TEMPLATES, Chat
from llama.formats.gguf_file import GgufFile
from llama.formats.gguf_vocabulary import SPLITS, notes_of
from llama.formats.source import Source
from llama.formats.spelling import merges_of, pairs_of, spellings
from llama.formats.tokenizer_json import BYTE_OF, merges_any_pair
from llama.formats.vocabulary import (
    BYTE,
    BYTES,
    CONTROL,
    LLAMA3,
    LLAMACPP_DEFAULT,
    TEXT,
    UNIGRAM,
    USER,
    USER_FIRST,
    Vocabulary,
)
from model import Config


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.gguf"


KINDS = ("trained", "llama3", "gpt2")


@pytest.fixture(params=KINDS)
def known(request) -> tokenizers.Tokenizer:
    return request.getfixturevalue(request.param)


def source_for(vocabulary: Vocabulary, **said: Any) -> Source:
    """A random model with so many tokens, and what is said besides."""
    return replace(random_source(Config(**SMALL | {"vocab_size": len(vocabulary)})), **said)


def there_and_back(path: Path, vocabulary: Vocabulary, **said: Any) -> Source:
    write_gguf(path, source_for(vocabulary, **said), "int8", vocabulary=vocabulary)
    return open_gguf(path)


def merge_order(vocabulary: Vocabulary) -> list[bytes]:
    """The pieces that merges make, the first first: what scores say, and no more."""
    typed = zip(vocabulary.pieces, vocabulary.types, vocabulary.scores, strict=True)
    made = [(-score, piece) for piece, kind, score in typed if kind == TEXT and len(piece) > 1]
    return [piece for _, piece in sorted(made)]


def test_a_vocabulary_comes_back_as_it_was(path, known):
    expected = known.vocabulary
    found = there_and_back(path, expected).vocabulary()
    assert merge_order(found) == merge_order(expected)
    flags = expected.flags if USER in expected.types else expected.flags & ~USER_FIRST
    scores = expected.scores if expected.kind == BYTES else found.scores
    assert replace(found, scores=scores).indexed == replace(expected, flags=flags).indexed


def test_pairs_that_no_scores_stand_for_come_back_as_they_were(path, gpt2):
    pairs = [pair.split(" ") for pair in reversed(merges_of(gpt2.vocabulary))]
    merges = [tuple(bytes(BYTE_OF[letter] for letter in part) for part in pair) for pair in pairs]
    vocabulary = replace(gpt2.vocabulary, merges=merges, scores=[0.0] * len(gpt2.vocabulary))
    assert there_and_back(path, vocabulary).vocabulary().indexed == replace(vocabulary, flags=0).indexed


@pytest.mark.parametrize(("pattern", "flags"), SPLITS)
def test_a_pattern_comes_back_by_each_of_its_names(path, gpt2, pattern, flags):
    vocabulary = replace(gpt2.vocabulary, pattern=pattern, flags=flags)
    found = there_and_back(path, vocabulary).vocabulary()
    assert (found.pattern, found.flags) == (pattern, flags)
    assert bool(found.notes) == (pattern == LLAMACPP_DEFAULT)
    data = path.read_bytes()
    written, *others = SPLITS[pattern, flags]
    for name in (name for name in others if len(name) == len(written)):
        path.write_bytes(data.replace(written.encode(), name.encode()))
        assert open_gguf(path).vocabulary().pattern == pattern


def test_a_list_of_pairs_of_characters_is_written_as_scores(path, trained):
    """The first pair that makes a token counts, and the user is told."""
    v = trained.vocabulary
    listed = replace(v, merges=pairs_of(v), scores=[0.0] * len(v))
    assert merge_order(there_and_back(path, listed).vocabulary()) == merge_order(v)
    assert "in the order of what they make" in notes_of(listed)[0]


@pytest.mark.parametrize(
    "chat", [Chat(), Chat("llama2"), Chat("zephyr", "as it is"), Chat("other", "{{ x }}")]
)
def test_what_is_said_of_texts_comes_back(path, trained, chat):
    back = there_and_back(path, trained.vocabulary, bos=5, stops=(2, 7, 9), chat=chat)
    text = TEMPLATES["llama2"] if chat.kind == "llama2" else chat.text
    assert (back.bos, back.stops, back.chat) == (5, (2, 7, 9), Chat("other", text) if text else Chat())
    assert back.vocabulary() == replace(back.vocabulary(), bos=5, eos=2)


def test_the_file_spells_tokens_as_llama_cpp_does(path, trained, llama3):
    there_and_back(path, trained.vocabulary)
    file = GgufFile(path)
    assert file.get("tokenizer.ggml.tokens")[:4] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert file.get("tokenizer.ggml.token_type")[:4] == [2, 3, 3, 6]
    assert any(piece.startswith("\u2581") for piece in file.get("tokenizer.ggml.tokens"))
    there_and_back(path, llama3.vocabulary)
    file = GgufFile(path)
    assert file.get("tokenizer.ggml.merges")[:5] == ["t h", "h e", "\u0120 t", "t he", "th e"]
    assert file.get("tokenizer.ggml.tokens")[256 + 10] == "\u00c3\u00b9"


def test_scores_and_types_may_be_missing_and_rows_may_have_no_token(path, trained):
    """All is text then but bytes and </s>, and tokens merge in the order of their ids."""
    v, n = trained.vocabulary, len(trained.vocabulary)
    keys = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": spellings(v)}
    library_file(path, random_source(Config(**SMALL | {"vocab_size": n + 3})), keys=keys)
    found = open_gguf(path).vocabulary()
    usual = [BYTE if of == BYTE else TEXT for of in v.types]
    assert list(found.types) == [*usual[:2], CONTROL, *usual[3:], *[CONTROL] * 3]
    assert found.pieces[3:] == [*v.pieces[3:], b"", b"", b""]
    assert set(merge_order(v)) <= set(merge_order(replace(found, types=[*v.types, *[CONTROL] * 3])))
    write_gguf(path.with_name("again.gguf"), open_gguf(path), "fp32", vocabulary=found)
    assert open_gguf(path.with_name("again.gguf")).vocabulary().pieces == found.pieces


def test_a_text_without_bos_stays_without(path, trained):
    back = there_and_back(path, replace(trained.vocabulary, bos=-1))
    assert (back.bos, back.vocabulary().bos, back.stops) == (-1, -1, (2,))


def test_all_that_ends_a_text_of_an_instruct_model_is_found(path, llama3):
    """Their files have <|eot_id|> as EOS."""
    end, eom, eot = (llama3.special[name] for name in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"))
    back = there_and_back(path, replace(llama3.vocabulary, eos=eot))
    assert (back.vocabulary().eos, back.stops) == (eot, (eot, end, eom))


PIECES = st.lists(st.text("ab", min_size=2, max_size=5).map(str.encode), unique=True, max_size=12)


@given(PIECES)
def test_derived_pairs_merge_as_any_two_tokens_do_if_pairs_can(pieces):
    """They can't for a piece that is x y and y x, or that is made before its parts."""
    pieces = [bytes([byte]) for byte in range(256)] + sorted(pieces, key=len)
    n = len(pieces)
    vocabulary = Vocabulary(BYTES, pieces, [-float(i) for i in range(n)], [TEXT] * n, pattern=LLAMA3)
    pairs = [tuple(part.encode() for part in pair.split(" ")) for pair in merges_of(vocabulary)]
    both_ways = any(left + right == right + left and left != right for left, right in pairs)
    assert merges_any_pair(set(pieces), pairs, True) != both_ways


MESSAGES = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hello "},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Go on"},
]
CHATS = {
    "llama2": "<s>[INST] <<SYS>>\n Be brief. \n<</SYS>>\n\nHello [/INST] Hi. </s><s>[INST] Go on [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nGo on<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
}


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_template_renders_as_its_model_was_trained(name):
    template = jinja2.Template(TEMPLATES[name])
    text = template.render(messages=MESSAGES, bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
    assert text == CHATS[name]


@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("add_eos", [True, False])
def test_what_is_put_around_a_text_comes_back(path, trained, add_bos, add_eos):
    back = there_and_back(path, trained.vocabulary, add_bos=add_bos, add_eos=add_eos)
    assert (back.add_bos, back.add_eos) == (add_bos is not False, add_eos)
    assert back.vocabulary().bos == trained.bos_id  # a text may still begin with it


@pytest.mark.parametrize(
    ("model", "pre", "expected"),
    [
        ("llama", "default", True),
        ("gpt2", "llama-bpe", True),
        ("gpt2", "smollm", False),
        ("gpt2", "gpt-2", False),
    ],
)
def test_a_file_that_does_not_say_begins_a_text_as_in_llama_cpp(path, model, pre, expected):
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    assert vocabularies.find_add_bos(GgufFile(path)) is expected


# --- llama.cpp


@needs_llama_cpp
def test_llama_cpp_splits_text_as_the_tokenizer_does(path, known):
    there_and_back(path, known.vocabulary)
    model = LlamaCpp(path)
    for text in [*TEXTS, " the  hello  12 thellothe \n\n <s> <|eot_id|>"]:
        assert model.ids(text) == known.encode(text), text


# --- What is refused

VOCABULARIES = {
    "another kind": (
        {"tokenizer.ggml.model": "bert"},
        r"tokenizer\.ggml\.model = 'bert', allowed 'llama' and 'gpt2'",
    ),
    "another pattern": (
        {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "bloom"},
        r"tokenizer\.ggml\.pre = 'bloom', allowed 'llama-bpe' and 'llama3' and 'llama-v3'",
    ),
    "no tokens": ({"tokenizer.ggml.tokens": None}, r"tokenizer\.ggml\.tokens is missing"),
    "too few scores": ({"tokenizer.ggml.scores": [0.5]}, r"tokenizer\.ggml\.scores has 1 values, allowed 3"),
    "scores that are none": (
        {"tokenizer.ggml.scores": ["a", "b", "c"]},
        r".*scores = \['a', 'b', 'c'\], allowed a list",
    ),
    "a score that is no number": (
        {"tokenizer.ggml.scores": [0.0, math.nan, 1.0]},
        r"tokenizer\.ggml\.scores of token 1 = nan, allowed finite numbers of 32 bits",
    ),
    "EOS that is none": (
        {"tokenizer.ggml.eos_token_id": 3},
        r"tokenizer\.ggml\.eos_token_id = 3, allowed 0 to 2",
    ),
    "a space in front that is none": (
        {"tokenizer.ggml.add_space_prefix": "x"},
        r"tokenizer\.ggml\.add_space_prefix = 'x', allowed True and False",
    ),
    "a type that is none": (
        {"tokenizer.ggml.token_type": [1, 7, 1]},
        r"tokenizer\.ggml\.token_type = 7 of 'b', allowed 1 to 6",
    ),
    "a byte that is none": (
        {"tokenizer.ggml.token_type": [1, 6, 1]},
        r"tokenizer\.ggml\.tokens = \"b\", allowed <0x00> to <0xFF>",
    ),
    "a plain space": (
        {"tokenizer.ggml.tokens": ["a", "b c", "d"]},
        r"tokenizer\.ggml\.tokens = \"b c\", allowed pieces",
    ),
    "no bytes": (
        {},
        r"tokenizer\.ggml\.tokens = \"256 bytes without a token\", allowed all 256, or an unknown token",
    ),
    "letters that are no bytes": (
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": ["a", " ", "c"],
        },
        r"tokenizer\.ggml\.tokens = \" \", allowed byte-level pieces",
    ),
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_a_vocabulary_that_the_engine_cannot_have_is_refused(path, case):
    keys, message = VOCABULARIES[case]
    usual = {"model": "llama", "tokens": ["a", "b", "c"], "scores": [0.0, 0.5, 1.0], "token_type": [1, 1, 1]}
    usual = {f"tokenizer.ggml.{key}": value for key, value in usual.items()}
    library_file(path, random_source(Config(**SMALL)), keys=usual | keys)
    refuses(path, message, lambda path: open_gguf(path).vocabulary())


def test_merges_that_make_no_token_are_refused(path, llama3, monkeypatch):
    monkeypatch.setattr(vocabularies, "merges_of", lambda vocabulary: ["t h", "q q"])
    there_and_back(path, llama3.vocabulary)
    refuses(
        path,
        r'tokenizer\.ggml\.merges = "q q", allowed two tokens that make one',
        lambda path: open_gguf(path).vocabulary(),
    )


CHANGES = {
    "EOS": ("trained", {"eos": -1}, "eos = -1, allowed is one of its tokens"),
    "another split": ("llama3", {"pattern": 0}, "pattern = 0, allowed 1, 2, 3"),
    "a space in front of words": ("llama3", {"flags": 7}, "flags = 7, allowed 8 and 0 with pattern 1"),
    "words that are not": ("gpt2", {"flags": 8}, "flags = 8, allowed 0 with pattern 3"),
    "a space at times": ("trained", {"flags": 7}, "flags = 7, pattern = 0, allowed 0 and 67"),
    "sums": ("trained", {"kind": UNIGRAM}, "kind = Unigram, allowed pieces that merge"),
    "no bytes": ("trained", {"types": [0] * 330}, "byte tokens = 0, allowed all 256"),
    "half a character": ("trained", {"pieces": [b"\xc3"] * 330}, r"token 0 = b'\\xc3', allowed is UTF-8"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_vocabulary_that_the_file_cannot_hold_is_refused_by_field(path, case, request):
    kind, fields, message = CHANGES[case]
    vocabulary = replace(request.getfixturevalue(kind).vocabulary, **fields)
    path.write_bytes(b"old")
    with pytest.raises(BadFileError, match=f"random: GGUF can't hold the tokenizer: {message}"):
        there_and_back(path, vocabulary)
    assert path.read_bytes() == b"old"


def test_more_stops_than_there_are_keys_are_refused(path, trained):
    with pytest.raises(BadFileError, match=r"ids that end a text = \[5, 6, 7\], allowed are two besides EOS"):
        there_and_back(path, trained.vocabulary, stops=(2, 5, 6, 7))
