"""The toy task: reverse a string, hello=olleh.

A string's checksum says of which split it is, so none is in both.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from llama.errors import BadFileError, UsageError
from llama.files import read, write_aside
from training import tokenizers
from training.pretokenize import Selection, pretokenize
from training.shards import SPLITS
from training.text import Format

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def reverse_lines(count: int, val: bool, seed: int) -> list[str]:
    """count lines such as hello=olleh, of 3 to 12 letters, of one split."""
    rng, lines = np.random.default_rng([seed, val]), []
    while len(lines) < count:
        word = "".join(LETTERS[i] for i in rng.integers(0, 26, rng.integers(3, 13)))
        if (zlib.crc32(word.encode()) % 16 == 0) == val:
            lines.append(f"{word}={word[::-1]}")
    return lines


def write_lines(path: Path, lines: list[str]) -> None:
    """Writes lines as .jsonl.

    Raises BadFileError if there are others, which a folder of tokens was made from.
    """
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    if path.exists() and read(path) != data:
        raise BadFileError(f"{path}: was made with other options; name another folder or delete it")
    with write_aside(path) as file:
        file.write(data)


def make_reverse(folder: Path, count: int, val_count: int, seed: int, workers: int = 1) -> dict[str, Any]:
    """Writes the toy task: a folder of tokens with its lines in text/train.jsonl and text/val.jsonl.

    Raises UsageError, and what pretokenize does.
    """
    for name, n in (("count", count), ("val_count", val_count)):
        if not 1 <= n < 2**31:
            raise UsageError(f"{name} = {n}, allowed 1 to {2**31 - 1}")
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed = {seed}, allowed 0 to {2**64 - 1}")
    files = {split: folder / "text" / f"{split}.jsonl" for split in SPLITS}
    for split, n in zip(SPLITS, (count, val_count), strict=True):
        write_lines(files[split], reverse_lines(n, split == "val", seed))
    vocab_size = 3 + 256 + len(LETTERS) + 2  # special tokens, bytes, letters, = and the space: no merges
    tokenizer = tokenizers.train([LETTERS + "="], vocab_size, folder / "text" / "tokenizer.model")
    train, val = Selection([files["train"]]), Selection([files["val"]])
    return pretokenize(folder, tokenizer, train, val, Format(), workers)
