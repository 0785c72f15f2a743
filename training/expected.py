"""What a model expects of each token of a folder: the files beside its shards (training/expecting.py).

    train/00000.expected   a header of 4096 bytes (JSON, padded with spaces), then a row for each token of
                           00000.tokens: the ids that are most likely to follow it, uint16 (uint32 from a
                           vocabulary of 65537 on), and their probabilities, float16, little-endian

Probabilities of a row may add up to less than 1; a row of zeros says nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llama.errors import BadFileError
from llama.files import named, reading
from llama.formats.files import parse_json
from training.shards import HEADER_BYTES, Shard, checksum, token_type

VERSION = 1
TOP_MOST = 256
PROBABILITY = np.dtype("<f2")


def row_type(vocab_size: int, top: int) -> np.dtype:
    """A row: ids, and their probabilities."""
    return np.dtype([("ids", token_type(vocab_size), (top,)), ("probabilities", PROBABILITY, (top,))])


def path_of(shard: Shard) -> Path:
    return shard.path.with_suffix(".expected")


def facts_of(shard: Shard) -> dict[str, Any]:
    """What the file beside a shard says of it."""
    return {"vocab_size": shard.vocab_size, "n_tokens": len(shard.tokens), "tokens_crc32": shard.crc32}


def head_of(shard: Shard, model: str, top: int) -> dict[str, Any]:
    """What the file beside a shard says of itself, but for its checksum. model: a mark_of."""
    return {"version": VERSION, "model": model, "top": top, **facts_of(shard)}


def read_head(path: Path) -> dict[str, Any]:
    """Raises BadFileError."""
    with reading(path) as file:
        data = file.read(HEADER_BYTES)
    try:
        head = parse_json(data.decode(errors="replace"))
        numbers = [head[name] for name in ("version", "top", "vocab_size", "n_tokens", "crc32")]
        if not all(type(number) is int for number in numbers):
            raise ValueError("what has to be a number is none")
        _ = head["tokens_crc32"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadFileError(f"{path}: is not what dataset.py expect writes: its header ({error})") from None
    if head["version"] != VERSION or not 1 <= head["top"] <= TOP_MOST:
        found = f"version = {head['version']}, top = {head['top']}"
        raise BadFileError(f"{path}: {found}, allowed {VERSION}, and 1 to {TOP_MOST}")
    return head


def open_beside(shard: Shard) -> Shard:
    """A shard with what is expected of its tokens. Raises BadFileError."""
    path = path_of(shard)
    if not path.exists():
        folder = shard.path.parent.parent
        raise BadFileError(f"{path}: is missing; write it: python dataset.py expect {folder} --model MODEL")
    head = read_head(path)
    for name, wanted in facts_of(shard).items():
        if head[name] != wanted:
            raise BadFileError(f"{path}: {name} = {head[name]}, allowed {wanted}, that of {shard.path.name}")
    kind, n = row_type(shard.vocab_size, head["top"]), len(shard.tokens)
    if (size := path.stat().st_size) != (allowed := HEADER_BYTES + n * kind.itemsize):
        raise BadFileError(f"{path}: size = {size} bytes, allowed {allowed} by its header")
    with named(path):
        return replace(shard, expected=np.memmap(path, kind, "r", HEADER_BYTES, (n,)))


def check_beside(shard: Shard) -> None:
    """Reads all that is expected of a shard. Raises BadFileError where it is not what was written."""
    shard, path = open_beside(shard), path_of(shard)
    for start in range(0, len(shard.tokens), 1 << 16):
        shard.read_expected(start, start + (1 << 16))
    if (crc := checksum(path)) != (wanted := read_head(path)["crc32"]):
        raise BadFileError(f"{path}: crc32 = {crc}, allowed {wanted} by its header")
