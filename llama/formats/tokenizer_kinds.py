"""Which kind of tokenizer a file is, by its first bytes: told before anything large is imported."""

from __future__ import annotations

import os
import re
from pathlib import Path

from llama.files import reading

BEGINNING = 4096  # bytes that are looked at
MODELS = (b"GGUF", b"24ka\3\0\0\0")  # what files begin with that may hold one, GGUF and v3
TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")  # the first line of a file of ranks


def is_model(data: bytes) -> bool:
    return data.startswith(MODELS)


def is_tiktoken(data: bytes) -> bool:
    return TIKTOKEN.match(data) is not None


def is_sentencepiece(data: bytes) -> bool:
    """Whether data begins as a model does: with a first piece, whose name comes first."""
    return len(data) > 4 and data[0] == data[2] == 0x0A and data[1] >= data[3] + 2


def is_json(path: Path, data: bytes) -> bool:
    return path.suffix == ".json" and data.lstrip()[:1] == b"{"


def is_foreign(path: Path) -> bool:
    """Whether a file is a tokenizer of a kind that tokenizers.py reads and the engine does not."""
    if not os.path.isfile(path):  # noqa: PTH113, which is silent about a path that is too long
        return False
    with reading(path) as file:
        data = file.read(BEGINNING)
    return is_model(data) or is_json(path, data) or is_tiktoken(data) or is_sentencepiece(data)
