"""Writes unicode.h: which characters are letters, numbers or whitespace to the split patterns (split.h).

    python llama/csrc/text/unicode.py > llama/csrc/text/unicode.h

The tiktoken library is asked about every character, so that the table is the one it matches with, whatever
version of Unicode Python itself knows.
"""

from __future__ import annotations

import tiktoken

SURROGATES = range(0xD800, 0xE000)
CLASSES = {1: r"\p{L}", 2: r"\p{N}", 3: r"\s"}  # 0: none of these
COLUMNS = 11

HEAD = """\
// unicode.h: letters, numbers and whitespace of Unicode {version}, as tiktoken {library} has them.
// Written by unicode.py, not by hand.
#ifndef LLAMA_UNICODE_H
#define LLAMA_UNICODE_H

#include <stdint.h> // uint32_t

// Where the class changes: 4 * character + class (0 other, 1 letter, 2 number, 3 whitespace), ascending.
static const uint32_t unicode_ranges[] = {{
"""
TAIL = """};

#endif"""
ASSIGNED = {  # a letter or number that came with each version, and is none before
    "15.1": 0x2EBF0,
    "16.0": 0x10D40,
    "17.0": 0x323B0,
}


def matched(pattern: str, text: str) -> set[str]:
    """The characters of text that a pattern for one character matches."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("class", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return set(bytes(encoding.encode_ordinary(text)).decode())


def ranges() -> list[int]:
    """What the table holds."""
    every = "".join(chr(code) for code in range(0x110000) if code not in SURROGATES)
    classes = {c: number for number, pattern in CLASSES.items() for c in matched(pattern, every)}
    table, last = [], -1
    for code in range(0x110000):
        if (number := classes.get(chr(code), 0)) != last:
            table.append(4 * code + number)
            last = number
    return table


def header() -> str:
    """The text of unicode.h."""
    table = ranges()
    version = max(name for name, code in ASSIGNED.items() if class_of(table, code))
    rows = [table[i : i + COLUMNS] for i in range(0, len(table), COLUMNS)]
    lines = "".join(f"    {', '.join(f'{entry:#08x}' for entry in row)},\n" for row in rows)
    return HEAD.format(version=version, library=tiktoken.__version__) + lines + TAIL


def class_of(table: list[int], code: int) -> int:
    """The class of a character, as split.h finds it."""
    return max(entry for entry in table if entry >> 2 <= code) & 3


if __name__ == "__main__":
    print(header())
