"""Version 3 of the .bin files: one file with a model, its tokenizer and all that a run needs.

docs/format.md has the layout byte by byte; the reader is llama/csrc/checkpoint_v3.h.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from tqdm import tqdm

from formats import tiles
from formats.source import (
    CLASSIFIER,
    EMBEDDING,
    Source,
    chunks,
    find,
    name_problems,
    refuse,
    tensor_shapes,
)
from formats.tiles import Errors
from formats.vocabulary import checked_part
from model import Config
from training.command import check_room

MAGIC, VERSION, HEADER_BYTES, ENTRY_BYTES, ALIGN = 0x616B3432, 3, 256, 32, 64
TYPES = {"fp32": 0, "int8": 1, "bf16": 2, "int4": 3}
ROPE = {None: 0, "linear": 1, "llama3": 2}
TEMPLATES = {"none": 0, "llama2": 1, "llama3": 2}
MAX_STOPS = 8
NORM = "norm.weight"
LAYER = (  # in the order in which a pass uses them
    "attention_norm",
    "attention.wq",
    "attention.wk",
    "attention.wv",
    "attention.wo",
    "ffn_norm",
    "feed_forward.w1",
    "feed_forward.w3",
    "feed_forward.w2",
)


@dataclass(frozen=True)
class Extras:
    """What a file holds besides the weights.

    tokenizer: the bytes of a tokenizer file, none for a model that is given one when it runs. stops: ids that
    end a text, besides the tokenizer's EOS. bos: -1 where the tokenizer knows. template: of chats.
    """

    tokenizer: bytes = b""
    bos: int = -1
    stops: tuple[int, ...] = ()
    template: str = "none"


@dataclass
class Entry:
    """A row of the table of tensors."""

    name: str
    dtype: str
    rows: int
    cols: int
    bytes: int
    offset: int = 0
    crc: int = 0
    errors: Errors = field(default_factory=Errors)

    def pack(self) -> bytes:
        numbers = (TYPES[self.dtype], self.rows, self.cols, self.crc, self.offset, self.bytes)
        return struct.pack("<3iI2Q", *numbers)


def tensor_bytes(dtype: str, rows: int, cols: int) -> int:
    """Bytes of a tensor in the file."""
    if rows == 1:
        return cols * 4
    return tiles.packed_bytes(dtype, rows, cols)


def names(config: Config) -> list[str]:
    """The tensors of a file, in its order."""
    layers = [f"layers.{layer}.{part}.weight" for layer in range(config.n_layers) for part in LAYER]
    return [EMBEDDING, *layers, NORM, *([] if config.tied else [CLASSIFIER])]


def plan(
    config: Config, shapes: dict[str, tuple[int, ...]], dtype: str, ends_dtype: str, begin: int
) -> list[Entry]:
    """The table: types and places of all tensors. begin: bytes before the first."""
    entries, offset = [], begin
    for name in names(config):
        rows, cols = shapes[name] if len(shapes[name]) == 2 else (1, *shapes[name])
        kind = "fp32" if rows == 1 else ends_dtype if name in (EMBEDDING, CLASSIFIER) else dtype
        offset = -(-offset // ALIGN) * ALIGN
        entries.append(Entry(name, kind, rows, cols, tensor_bytes(kind, rows, cols), offset))
        offset += entries[-1].bytes
    return entries


def header(config: Config, dtype: str, extras: Extras, n_tensors: int, file_bytes: int) -> bytes:
    """The first 252 bytes; the checksum follows them."""
    scaling = config.rope_scaling
    rope = (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor) if scaling else (1.0, 1.0, 4.0)
    shape = (config.dim, config.hidden_dim, config.n_layers, config.n_heads, config.n_kv_heads)
    data = struct.pack("<Ii7iB3x", MAGIC, VERSION, *shape, config.vocab_size, config.max_seq_len, config.tied)
    data += struct.pack("<i2f", config.head_dim, config.norm_eps, config.rope_theta)
    data += struct.pack("<i3f", ROPE[scaling.kind if scaling else None], *rope)
    data += struct.pack("<i", scaling.original_max_seq_len if scaling else 0)
    stops = (*extras.stops, *[-1] * MAX_STOPS)[:MAX_STOPS]
    data += struct.pack("<3i8i", TYPES[dtype], extras.bos, len(extras.stops), *stops)
    data += struct.pack("<2i4x", TEMPLATES[extras.template], n_tensors)
    data += struct.pack("<3Q", HEADER_BYTES + n_tensors * ENTRY_BYTES, len(extras.tokenizer), file_bytes)
    return data.ljust(HEADER_BYTES - 4, b"\0")


def pieces(weight: Tensor, entry: Entry) -> Iterator[memoryview]:
    """The bytes of a matrix of float32 or bfloat16, or of a norm of float32.

    Raises ValueError for values that its type can't hold.
    """
    if entry.rows == 1:
        yield weight.numpy().data.cast("B")
    else:
        yield from tiles.pack(weight, entry.dtype, entry.errors)


def write_tensor(file: BinaryIO, source: Source, entry: Entry, shape: tuple[int, ...]) -> None:
    """Writes a tensor at its place and notes its checksum. Raises BadInput."""
    file.write(bytes(entry.offset - file.tell()))
    tensor = find(source, entry.name, shape)
    mapped = tensor.dtype == torch.bfloat16 and entry.rows > 1  # is packed as it lies
    for part in chunks(source, entry.name, tensor, tensor.dtype if mapped else torch.float32, tiles.ROWS):
        try:
            for piece in pieces(part, entry):
                entry.crc = zlib.crc32(piece, entry.crc)
                file.write(piece)
        except ValueError as error:
            refuse(source, [f"{entry.name} {error}"])
    if not math.isfinite(entry.errors.error):
        refuse(source, [f"{entry.name} has values too large for {entry.dtype}"])


def write_bin(
    file: BinaryIO, source: Source, dtype: str, ends_dtype: str, extras: Extras, bar: bool
) -> dict[str, float]:
    """Writes a file, tensor by tensor, and returns the relative errors of those that were rounded.

    Raises BadInput for weights that do not fit the configuration or their type, OSError.
    """
    shapes, n_tensors = tensor_shapes(source.config), len(names(source.config))
    refuse(source, name_problems(source, shapes))
    begin = HEADER_BYTES + n_tensors * ENTRY_BYTES + len(extras.tokenizer)
    entries = plan(source.config, shapes, dtype, ends_dtype, begin)
    file_bytes = entries[-1].offset + entries[-1].bytes
    check_room(Path(file.name), file_bytes)
    file.write(bytes(begin))  # what comes here is known in the end
    with tqdm(total=file_bytes, unit="B", unit_scale=True, leave=False, disable=not bar) as progress:
        for entry in entries:
            write_tensor(file, source, entry, shapes[entry.name])
            progress.update(file.tell() - progress.n)
    head = header(source.config, dtype, extras, n_tensors, file_bytes)
    rest = b"".join(entry.pack() for entry in entries)
    checked = rest + checked_part(extras.tokenizer)
    file.seek(0)
    file.write(head + struct.pack("<I", zlib.crc32(checked, zlib.crc32(head))) + rest + extras.tokenizer)
    return {entry.name: entry.errors.relative for entry in entries if entry.dtype != "fp32"}
