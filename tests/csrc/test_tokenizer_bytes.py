"""The engine's byte-level BPE (split.h, merge.h) against tiktoken, on Llama 3's vocabulary or one like it."""

import base64
import random
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_linear
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from references import llama3_tokenizer_path
from test_tokenizer import NOT_UTF8, SCRIPTS, TRICKY, encode_c

from llama import LlamaError, Tokenizer
from llama.formats import tokenizers
from llama.formats import vocabulary as tokens
from llama.formats.split_patterns import GPT2_PATTERN, LLAMA3_PATTERN
from llama.native import whole_text

tiktoken = pytest.importorskip("tiktoken")

MILLION = 1_000_000
EDGES = [  # of the patterns: contractions in every case, numbers, newlines, whitespace of all kinds
    *[
        "'s",
        "'S",
        "'\u017f",
        "'\u017fs",
        "'re",
        "'rE",
        "'LL",
        "'d'D",
        "x's",
        "''s",
        " 's",
        "'",
        "'x",
        "'é",
        "'\u017f",
    ],
    *["1", "12", "123", "1234567", " 1", "1a", "a1", "½", "٣٤٥٦", "Ⅷ", "12 345", "二", "x\u0301y", "\u0301x"],
    *[
        "\n",
        "\r\n",
        "a\n",
        "a\n\nb",
        " \n",
        "\n ",
        "  \n  x",
        "a \n\n  b",
        "!\n\n",
        "!!\r\nx",
        " !",
        "  !",
        "\n\n\n",
    ],
    *[
        " ",
        "   ",
        "a  b",
        "a   b",
        "\t",
        "\ta",
        " \ta",
        "\u3000x",
        "\u3000\u3000x",
        "\x85a",
        "\u2028\n",
        "\x1c\x1f",
        "\u200b",
    ],
    *[
        "\ufeffa",
        "_a",
        "a_b",
        "-a",
        "\u00a0a",
        " \u00a0a",
        "#\n#",
        ".\r.",
        "a\0b",
        "\0",
        "\U0001f600\U0001f600",
        "e\u0301",
    ],
]
NAMES = ["<|begin_of_text|>", "<|eot_id|>", "<|eot_id", "|>", "<|", "<|eot_id|><|eot_id|>"]
characters = st.characters(exclude_categories=["Cs"]) | st.sampled_from(sorted(set(SCRIPTS)))
texts = st.one_of(
    st.lists(characters | st.sampled_from(SCRIPTS.split() + TRICKY + EDGES + NAMES), max_size=40).map(
        "".join
    ),
    st.text(st.sampled_from("ab'sSl \n\r\t1é世\u017f½.\u3000"), max_size=60),
)
thorough = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


def made_here() -> tokens.Vocabulary:
    """A vocabulary as Llama 3's: the bytes, then what is frequent in SCRIPTS, each of two earlier pieces."""
    pieces = {bytes([byte]): byte for byte in range(256)}
    words = [word.encode() for word in re.split("(?<= )|(?= )", SCRIPTS)] * 2 + [
        b"    ",
        b"\n\n\n\n",
        b"!!!!",
    ]
    rng = random.Random(1)
    while len(pieces) < 1500:
        word = rng.choice(words)
        begin = rng.randrange(len(word))
        for at in range(begin + 1, len(word)):
            if word[begin:at] in pieces and word[at : at + 1] in pieces:
                pieces.setdefault(word[begin : at + 1], len(pieces))
    lines = (f"{base64.b64encode(piece).decode()} {i}\n" for piece, i in pieces.items())
    return tokenizers.read_llama3(Path("made"), "".join(lines).encode())


def llama3() -> tokens.Vocabulary:
    return tokenizers.load(llama3_tokenizer_path()).vocabulary


@dataclass
class Pair:
    """One vocabulary, read by the two that must agree."""

    library: Any
    engine: Tokenizer
    special: dict[str, int]


def make_pair(vocabulary: tokens.Vocabulary, pattern: str = LLAMA3_PATTERN) -> Pair:
    ranks = {piece: i for i, piece in enumerate(vocabulary.pieces) if vocabulary.types[i] == tokens.TEXT}
    library = tiktoken.Encoding(
        "test", pat_str=pattern, mergeable_ranks=ranks, special_tokens=vocabulary.special
    )
    return Pair(library, Tokenizer.from_bytes(vocabulary.indexed), vocabulary.special)


@pytest.fixture(scope="module", params=[made_here, llama3])
def pair(request) -> Pair:
    return make_pair(request.param())


@pytest.fixture(scope="module")
def small() -> Pair:
    return make_pair(made_here())


@pytest.fixture(scope="module")
def gpt2() -> Pair:
    return make_pair(replace(made_here(), pattern=tokens.GPT2), GPT2_PATTERN)


# --- Encoding


@pytest.mark.parametrize("text", [*TRICKY, *EDGES, *NAMES, *SCRIPTS.split("\n"), SCRIPTS], ids=ascii)
def test_encode_equals_tiktoken_on_tricky_text(pair, text):
    assert pair.engine.encode(text, bos=False) == pair.library.encode_ordinary(text)


@thorough
@given(texts)
def test_encode_equals_tiktoken_on_any_text(pair, text):
    assert pair.engine.encode(text, bos=False) == pair.library.encode_ordinary(text)
    special = pair.library.encode(text, allowed_special="all")
    assert pair.engine.encode(text, bos=False, special=True) == special


def random_text(rng: random.Random, length: int) -> str:
    """Words of many scripts, edges of the patterns, and characters from anywhere in Unicode."""
    parts, text, n = SCRIPTS.split(" ") + TRICKY + EDGES, [], 0
    while n < length:
        last = rng.choice([0x7F, 0x7FF, 0x2FFF, 0xD7FF, 0x10FFFF])
        odd = (chr(rng.randint(0, last)) for _ in range(rng.randrange(8)))
        odd = "".join(c for c in odd if not "\ud800" <= c <= "\udfff")
        text.append(rng.choice(parts) + rng.choice(["", " ", "\n"]) + odd)
        n += len(text[-1])
    return "".join(text)[:length]


@pytest.mark.parametrize("seed", range(2))
def test_encode_equals_tiktoken_on_a_hundred_thousand_characters(pair, seed):
    text = random_text(random.Random(seed), MILLION // 10)
    assert pair.engine.encode(text, bos=False) == pair.library.encode_ordinary(text)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_encode_equals_tiktoken_on_millions_of_characters(pair, seed):
    text = random_text(random.Random(seed), MILLION)
    assert pair.engine.encode(text, bos=False) == pair.library.encode_ordinary(text)


def test_every_character_has_the_class_that_tiktoken_gives_it(small):
    text = "".join(
        f"a{chr(code)}1 {chr(code)}!\n" for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF
    )
    assert small.engine.encode(text, bos=False) == small.library.encode_ordinary(text)


@thorough
@given(texts)
def test_gpt2s_pattern_equals_tiktoken(gpt2, text):
    assert gpt2.engine.encode(text, bos=False) == gpt2.library.encode_ordinary(text)


@pytest.mark.parametrize("data", NOT_UTF8, ids=ascii)
def test_a_byte_that_is_not_utf8_counts_as_a_replacement_character(small, data):
    """As sentencepiece has it; Python's own decoder has one for several bytes."""
    assert encode_c(small.engine.handle, data) == small.library.encode_ordinary(whole_text(data))


def test_lone_surrogates_count_as_in_tiktoken(small):
    text = "a\ud800b\udfff"
    assert small.engine.encode(text, bos=False) == small.library.encode_ordinary(text)


# --- Decoding and names


@thorough
@given(texts)
def test_decode_undoes_encode(pair, text):
    assert pair.engine.decode(pair.engine.encode(text, eos=True)) == text


def test_special_tokens_print_nothing_and_have_names(small):
    ids = small.engine.encode("a<|eot_id|>b", special=True)
    assert small.engine.decode(ids) == "ab"
    assert [small.engine.name(i) for i in ids] == ["<|begin_of_text|>", "a", "<|eot_id|>", "b"]
    assert [small.engine.is_special(i) for i in ids] == [True, False, True, False]
    with pytest.raises(LlamaError, match="token = -1, allowed 0 to"):
        small.engine.is_special(-1)
    with pytest.raises(LlamaError, match="token id 9999 is not in the vocabulary"):
        small.engine.name(9999)


# --- Time


@pytest.mark.parametrize(
    "text", ["a", " ", "\n", "'", "1", "é", "ab", "\U0001f600", "<|", "<|eot_id|", "the cat. "]
)
def test_the_cost_is_linear_whatever_the_text(pair, text):
    text *= MILLION // len(text.encode())
    assert_linear(lambda n: pair.engine.encode(text[:n], bos=False, special=True), len(text))
