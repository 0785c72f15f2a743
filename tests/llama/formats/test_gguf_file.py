"""Whatever bytes a GGUF file has, its header is read or refused in one line."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf_files import SMALL, random_source, refuses, tokenizer_bin
from torch_formats import open_gguf, write_gguf

from llama.errors import BadFileError
from llama.formats.vocabulary import read_llama2c
from model import Config


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.gguf"


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words)) + words.encode()


def head(n_tensors: int, n_values: int, rest: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<I2Q", version, n_tensors, n_values) + rest


U32, STRING, ARRAY = 4, 8, 9
BYTES = {
    "nothing": (b"", "begins with b'', allowed b'GGUF'"),
    "another magic": (b"GGML" + bytes(60), "begins with b'GGML'"),
    "an old version": (head(0, 0, b"", 1), "version = 1, allowed 2 and 3"),
    "a big-endian file": (
        b"GGUF" + struct.pack(">I2Q", 3, 0, 0),
        "is of a big-endian machine, allowed are lit",
    ),
    "a header alone": (head(2**60, 0, b""), "has 24 bytes, too few for the 8 that begin at byte 24"),
    "a long name": (
        head(0, 1, struct.pack("<Q", 2**63)),
        "has 32 bytes, too few for the 9223372036854775808",
    ),
    "a long list": (
        head(0, 1, text("a") + struct.pack("<2IQ", ARRAY, U32, 2**61) + bytes(64)),
        "has 113 bytes, too few",
    ),
    "a long list of words": (
        head(0, 1, text("a") + struct.pack("<2IQ", ARRAY, STRING, 2**61)),
        "has 49 bytes, too few",
    ),
    "a list of lists": (
        head(0, 1, text("a") + struct.pack("<2IQ", ARRAY, ARRAY, 1)),
        "has a value of type 9 at byte 49",
    ),
    "a value of no kind": (
        head(0, 1, text("a") + struct.pack("<I", 77)),
        "has a value of type 77 at byte 37, allowed 0 to 12",
    ),
    "letters that are none": (
        head(0, 1, struct.pack("<Q", 2) + b"\xff\xff"),
        "what ends at byte 34 is not UTF-8",
    ),
    "one key twice": (
        head(0, 2, 2 * (text("a") + struct.pack("<2I", U32, 1))),
        "has two keys or tensors of one name",
    ),
    "one tensor twice": (
        head(2, 0, 2 * (text("a") + struct.pack("<IQIQ", 1, 1, 0, 0)) + bytes(64)),
        "has two keys or",
    ),
    "no dimension": (
        head(1, 0, text("a") + struct.pack("<2IQ", 0, 0, 0) + bytes(64)),
        "a has a shape that can't be",
    ),
    "half a block": (
        head(1, 0, text("a") + struct.pack("<IQIQ", 1, 33, 8, 0) + bytes(64)),
        r".*allowed are rows of 32 n values",
    ),
    "a crooked place": (
        head(1, 0, text("a") + struct.pack("<IQIQ", 1, 1, 0, 4) + bytes(64)),
        "a has the offset 4, allowed multiples of 32",
    ),
    "a place far off": (
        head(1, 0, text("a") + struct.pack("<IQIQ", 1, 1, 0, 2**63)),
        "a ends at byte 9223372036854775876, the file at 57",
    ),
    "more than bytes": (
        head(1, 0, text("a") + struct.pack("<I2QIQ", 2, 2**63, 2**63, 0, 0)),
        "a has a shape that can't be",
    ),
}


@pytest.mark.parametrize("case", BYTES)
def test_bytes_that_are_no_model_are_refused(path, case):
    data, message = BYTES[case]
    path.write_bytes(data)
    refuses(path, message)


def write_small(path: Path) -> bytes:
    """Writes a model with a tokenizer."""
    vocabulary = read_llama2c(path, tokenizer_bin(path.parent))
    write_gguf(path, random_source(Config(**SMALL)), "fp32", vocabulary=vocabulary)
    return path.read_bytes()


def test_a_file_that_is_cut_off_is_refused_wherever_that_is(path):
    data = write_small(path)
    for end in [*range(200), *range(200, len(data) - 32, 4999), len(data) - 33]:
        path.write_bytes(data[:end])
        refuses(path, "begins with|has|.* ends at byte")


def test_whatever_a_header_says_it_is_read_or_refused(path):
    data, random = write_small(path), np.random.default_rng(0)
    header = data.index(b"output_norm.weight") + 64
    for _ in range(200):
        changed = bytearray(data)
        for at in random.integers(0, header, random.integers(1, 4)):
            changed[at] = random.choice([0, 1, 2, 0x7F, 0xFF, random.integers(256)])
        path.write_bytes(changed)
        for read in (lambda source: dict(source.tensors), lambda source: source.vocabulary()):
            try:
                read(open_gguf(path))
            except BadFileError as error:
                assert str(error).startswith(f"{path}: ")  # noqa: PT017
