"""How byte-level tokenizers split text: the engine against the tokenizers library, whose files say it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any
from unicodedata import category

import pytest

from llama import BadFileError, Tokenizer
from llama.formats import tokenizer_json, tokenizer_json_writer
from llama.formats import vocabulary as tokens
from llama.formats.spelling import LETTERS
from llama.formats.split_patterns import STEPS, steps_of

hf = pytest.importorskip("tokenizers")

# Each class of characters, their edges, and what single patterns treat on its own.
CHARACTERS = (
    "abzABZ019  \n\r\t'/.,-_!$+<=>^|~`[]\u00b5\u00e9\u00c9\u0130\u01c5\u02b0\u0301\u0308\u0345\u0416\u0436"
    "\u0531\u0561\u05d0\u0663\u0905\u093f\u10a0\u10d0\u1c90\u13a0\u00bd\u2167\u2460\u3007\u4e00\u4e8c\u9fa5"
    "\u9fa6\u07ff\u0800\uac00\ud7ff\ud7a4\u3000\u3001\u3002\u3003\u2018\u201c\u2020\uff01\uff21\uff41\uff5e"
    "\uff11\u00a0\u0085\u2028\u1680\u200b\ufeff\U0001f600\U00010400\U00010428\U0001e900\U0001d7ce\U00011de0"
    "\U00016ff4\U00010d40\U000e0100\U0010fffd\0"
)
WORDS = [
    "'s",
    "'LL",
    "'\u017f",
    "don't",
    "HelloWorld",
    "iPhone",
    "\u00c9COLE",
    "12345",
    "x\u0301y",
    "  ",
    " \n ",
]


def byte_level_json(pattern: int, prefix: bool = False, whole_words: bool = False) -> dict[str, Any]:
    """A tokenizer.json with this pattern, whose ids tell where its words end: any pair of bytes merges."""
    names = [LETTERS[byte] for byte in range(256)]
    pairs = [[a, b] for a in names for b in names]
    vocab = {name: i for i, name in enumerate([*names, *(a + b for a, b in pairs)])}
    steps = steps_of(pattern, prefix)
    model = {"type": "BPE", "vocab": vocab, "merges": pairs, "ignore_merges": whole_words}
    end = {"id": len(vocab), "content": "<|end|>", "special": True, "normalized": False}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return {
        "version": "1.0",
        "added_tokens": [end | plain],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model,
    }


def texts(n: int, seed: int) -> list[str]:
    """Hostile ones: runs of few characters, any characters, and words."""
    rng, made = random.Random(seed), list[str]()
    for _ in range(n):
        few = rng.choices(CHARACTERS, k=rng.randint(1, 4)) + rng.choices(WORDS, k=rng.randint(0, 2))
        every = [chr(code) for code in rng.choices(range(0x110000), k=2) if not 0xD800 <= code < 0xE000]
        made.append("".join(rng.choices([*few, *every, *CHARACTERS[:24]], k=rng.randint(1, 30))))
    return made


def both(data: dict[str, Any]) -> tuple[Any, Tokenizer, tokens.Vocabulary]:
    """The library's tokenizer and the engine's."""
    text = json.dumps(data)
    vocabulary = tokenizer_json.read(Path("tokenizer.json"), text.encode())
    return hf.Tokenizer.from_str(text), Tokenizer.from_bytes(vocabulary.indexed), vocabulary


@pytest.fixture(scope="module", params=[*STEPS, "prefix"])
def case(request) -> tuple[Any, Tokenizer, tokens.Vocabulary]:
    prefix = request.param == "prefix"
    return both(byte_level_json(tokens.GPT2 if prefix else request.param, prefix))


def test_equals_the_library(case):
    library, engine, _ = case
    for text in texts(3000, 1):
        assert engine.encode(text, bos=False) == library.encode(text).ids, ascii(text)


def test_every_character_is_of_the_library_s_class(case):
    """Between letters of both cases, a number and spaces. Of those far up, the ends of runs of a category."""
    library, engine, _ = case
    ends = {code for code in range(0x3000, 0x110000) if category(chr(code)) != category(chr(code - 1))}
    codes = sorted(ends | {end - 1 for end in ends} | {*range(0x3000)})
    codes = [code for code in codes if not 0xD800 <= code < 0xE000]
    for at in range(0, len(codes), 4096):
        text = "".join(f"aB{chr(code)}Ab 1{chr(code)} {chr(code)}\u4e00." for code in codes[at : at + 4096])
        assert engine.encode(text, bos=False) == library.encode(text).ids, hex(codes[at])


def test_special_tokens_part_the_text(case):
    library, engine, _ = case
    for text in ("<|end|>a", "x <|end|> y<|end|>", "<|end|><|end|>1", " <|end|>\n"):
        assert engine.encode(text, bos=False, special=True) == library.encode(text).ids, text


def test_comes_back_as_it_was_written(case):
    library, _, vocabulary = case
    files = tokenizer_json_writer.write_tokenizer("model", vocabulary)
    again = tokenizer_json.read(Path("tokenizer.json"), files["tokenizer.json"])
    assert (again.pattern, again.flags) == (vocabulary.pattern, vocabulary.flags)
    written = hf.Tokenizer.from_str(files["tokenizer.json"].decode())
    for text in texts(200, 2):
        assert written.encode(text).ids == library.encode(text).ids


@pytest.mark.parametrize(("pattern", "known"), [(tokens.LLAMA3, True), (tokens.DEEPSEEK_CODER, False)])
def test_what_lies_between_matches_may_be_left_out_where_nothing_does(pattern, known):
    """As in files made of tiktoken's, such as Phi-4's."""
    data = byte_level_json(pattern)
    for step in data["pre_tokenizer"]["pretokenizers"][:-1]:
        step.update({"behavior": "Removed", "invert": True} if step["type"] == "Split" else {})
    if known:
        library, engine, vocabulary = both(data)
        assert vocabulary.pattern == pattern
        assert all(engine.encode(text, bos=False) == library.encode(text).ids for text in texts(200, 3))
    else:
        with pytest.raises(BadFileError, match="pre_tokenizer = "):
            both(data)


def test_line_ends_may_be_escaped():
    data = byte_level_json(tokens.DEEPSEEK_CODER)
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"[\r\n]"
    assert both(data)[2].pattern == tokens.DEEPSEEK_CODER


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps_of(tokens.GPT2_DIGITS, True)}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps_of(tokens.LLAMA3, True)}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps_of(tokens.DEEPSEEK_LLM, False)[2:]}},
    ],
)
def test_what_the_engine_would_do_otherwise_is_refused(change):
    with pytest.raises(BadFileError, match=r"tokenizer.json: (normalizer|pre_tokenizer)"):
        both(byte_level_json(tokens.GPT2) | change)
