"""Writes unicode.h, deepseek.h and words.h: what characters are to patterns (split.h) and names (specials.h).

    python llama/csrc/text/unicode.py
    clang-format -i llama/csrc/text/unicode.h llama/csrc/text/deepseek.h llama/csrc/text/words.h

The tiktoken library is asked about every character, so that the table is the one it matches with, whatever
version of Unicode Python itself knows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import tiktoken

from llama.formats.split_patterns import DEEPSEEK_LETTERS

SURROGATES = range(0xD800, 0xE000)
EVERY = "".join(chr(code) for code in range(0x110000) if code not in SURROGATES)
CLASSES = {  # their numbers; 0: none of these
    1: r"[\p{Lu}\p{Lt}]",
    2: r"\p{Ll}",
    3: r"[\p{Lm}\p{Lo}]",
    4: r"\p{M}",
    5: r"\p{N}",
    6: r"\s",
    7: r"\p{P}",
}

HEAD = """\
// {name}.h: {what}.
// Written by unicode.py, not by hand.
#ifndef LLAMA_{guard}_H
#define LLAMA_{guard}_H

#include <stdint.h> // uint32_t

"""
TABLE = """\
// Where the class changes: 8 * character + class, ascending. Classes: 0 other, 1 upper or title case, 2 lower
// case, 3 another letter, 4 mark, 5 number, 6 whitespace, 7 punctuation.
static const uint32_t unicode_ranges[] = {"""
ASCII = """
// The same of ASCII characters, as 1 << class.
static const uint8_t unicode_ascii[128] = {"""
RANGES = """\
// With both ends in them.
static const uint32_t {name}[][2] = {{"""
ASSIGNED = {  # a letter or number that came with each version, and is none before
    "15.1": 0x2EBF0,
    "16.0": 0x10D40,
    "17.0": 0x323B0,
}


def matched(pattern: str) -> set[str]:
    """The characters that a pattern for one character matches."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("class", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return set(bytes(encoding.encode_ordinary(EVERY)).decode())


def class_numbers() -> list[int]:
    """The class of each character."""
    classes = {c: number for number, pattern in CLASSES.items() for c in matched(pattern)}
    return [classes.get(chr(code), 0) for code in range(0x110000)]


def changes(classes: list[int]) -> list[int]:
    """The table of classes."""
    before = [-1, *classes[:-1]]
    return [8 * code + of for code, of in enumerate(classes) if of != before[code]]


def ranges(characters: set[str]) -> list[tuple[int, int]]:
    """The ranges of a set of characters, with both ends in them."""
    codes = sorted(map(ord, characters))
    runs = itertools.groupby(enumerate(codes), key=lambda entry: entry[1] - entry[0])
    found = [[code for _, code in run] for _, run in runs]
    return [(run[0], run[-1]) for run in found]


def array(head: str, values: Iterable[object]) -> str:
    return f"{head}{', '.join(map(str, values))}}};\n"


def header(name: str, what: str, *arrays: str) -> str:
    """The text of a header."""
    return HEAD.format(name=name, guard=name.upper(), what=what) + "".join(arrays) + "\n#endif\n"


def unicode_header() -> str:
    classes = class_numbers()
    version = max(name for name, code in ASSIGNED.items() if classes[code])
    what = f"what characters are in Unicode {version}, as tiktoken {tiktoken.__version__} has it"
    ascii_classes = array(ASCII, (1 << of for of in classes[:128]))
    return header("unicode", what, array(TABLE, changes(classes)), ascii_classes)


def ranges_array(name: str, characters: set[str]) -> str:
    pairs = (f"{{{first:#x}, {last:#x}}}" for first, last in ranges(characters))
    return array(RANGES.format(name=name), pairs)


def deepseek_header() -> str:
    what = "the letters of DeepSeek's pattern (llama/formats/split_patterns.py), as ranges"
    return header("deepseek", what, ranges_array("deepseek_letters", matched(DEEPSEEK_LETTERS)))


def words_header() -> str:
    what = r"what the characters of words, \w, are besides letters and marks"
    others = matched(r"\w") - matched(r"[\p{L}\p{M}]")
    return header("words", what, ranges_array("word_codes", others))


if __name__ == "__main__":
    Path(__file__).with_name("unicode.h").write_text(unicode_header())
    Path(__file__).with_name("deepseek.h").write_text(deepseek_header())
    Path(__file__).with_name("words.h").write_text(words_header())
