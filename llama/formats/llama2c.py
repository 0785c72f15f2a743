"""The .bin files of llama2.c: v0 and v1 fp32, v2 int8 in groups (their reader: csrc/weights/checkpoint.h)."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from llama.errors import BadFileError, UsageError
from llama.files import check_room
from llama.formats.config import Config
from llama.formats.source import (
    CLASSIFIER,
    EMBEDDING,
    Source,
    chunks,
    find,
    name_problems,
    refuse,
    sum_of_squares,
    tensor_shapes,
)

# --- int8

QUANTISE_MIN = (
    1e-30  # a group whose largest value is smaller counts as zeros, as in llama/csrc/weights/quant.h
)


def quantise_groups(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 (n, group_size) and scales (n) that stand for groups (n, group_size).

    Symmetric: scale = max |w| / 127, q = round(w * (1 / scale)), halves to even.
    """
    largest = groups.abs().amax(dim=1)
    scales = torch.where(largest > QUANTISE_MIN, largest / 127, 0.0)
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    return (groups * inverse[:, None]).round_(), scales


def quantise(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """int8 values (n, group_size), float32 scales (n), and what they stand for, (n, group_size)."""
    values, scales = quantise_groups(weight.reshape(-1, group_size))
    return values.to(torch.int8), scales, values * scales[:, None]


# --- Files

MAGIC, HEADER_BYTES = 0x616B3432, 256  # of v1 and v2
GROUP_SIZE = 64  # of int8 where it divides dim and hidden_dim
ATTENTION = ("attention.wq", "attention.wk", "attention.wv", "attention.wo")
FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
ROPE_TABLES = "rope tables"  # of v0, which readers skip: (max_seq_len, head_dim / 2) twice
HEADER = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
ASSUMED = {"rope_theta": 10000.0, "norm_eps": 1e-5, "rope_scaling": None}  # no header holds them


def of_layers(config: Config, *parts: str) -> list[str]:
    """Names: the first part of every layer, then the second part of every layer, and so on."""
    return [f"layers.{layer}.{part}.weight" for part in parts for layer in range(config.n_layers)]


def tensor_order(config: Config, version: int) -> list[str]:
    """The names of the tensors of a .bin file, in its order."""
    if version == 0:
        parts = of_layers(config, "attention_norm", *ATTENTION, "ffn_norm", *FEED_FORWARD)
        names = [EMBEDDING, *parts, "norm.weight", ROPE_TABLES]
    else:
        norms = of_layers(config, "attention_norm", "ffn_norm")
        names = [*norms, "norm.weight", EMBEDDING, *of_layers(config, *ATTENTION, *FEED_FORWARD)]
    return names if config.tied else names + [CLASSIFIER]


def header(config: Config, version: int, group_size: int) -> bytes:
    """The bytes before the first tensor."""
    fields = {name: getattr(config, name) for name in HEADER}
    if version == 0:
        fields["vocab_size"] *= 1 if config.tied else -1
        return struct.pack("<7i", *fields.values())
    data = struct.pack("<Ii7iB", MAGIC, version, *fields.values(), config.tied)
    return (data + (struct.pack("<i", group_size) if version == 2 else b"")).ljust(HEADER_BYTES, b"\0")


def lost_fields(config: Config) -> tuple[str, ...]:
    """What a .bin file of v0, v1 or v2 would lose: readers would take another value."""
    lost = [(name, assumed) for name, assumed in ASSUMED.items() if getattr(config, name) != assumed]
    return tuple(f"{name} = {getattr(config, name)} (readers take {assumed})" for name, assumed in lost)


def check_format(path: Path, config: Config, version: int, force: bool) -> None:
    """Raises UsageError if the version can't hold the model; force lets go of what is not in its header."""
    if version not in (0, 1, 2):
        raise UsageError(f"version = {version}, allowed 0, 1 and 2")
    if config.head_dim * config.n_heads != config.dim:
        found = f"head_dim = {config.head_dim}, n_heads = {config.n_heads}, dim = {config.dim}"
        raise UsageError(f"{path}: {found}: v{version} can't hold a head_dim other than dim / n_heads")
    if (lost := lost_fields(config)) and not force:
        what = f"v{version} can't hold {', '.join(lost)}"
        raise UsageError(f"{path}: {what}; --version 3 can, --force drops it")


def fitting_group_size(config: Config, group_size: int | None) -> int:
    """group_size if it divides every row, for None the largest of 64, 32, 16 ... that does."""
    if group_size is None:
        return math.gcd(GROUP_SIZE, config.dim, config.hidden_dim)
    if group_size < 1 or config.dim % group_size or config.hidden_dim % group_size:
        allowed = f"divisors of dim = {config.dim} and hidden_dim = {config.hidden_dim}"
        raise UsageError(f"group_size = {group_size}, allowed {allowed}")
    return group_size


def parts_of(source: Source, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """A tensor as float32, in parts."""
    return chunks(source, name, find(source, name, shape), torch.float32)


def write_floats(file: BinaryIO, parts: Iterable[Tensor]) -> None:
    for part in parts:
        file.write(part.numpy().astype("<f4", copy=False).data)


def write_quantised(file: BinaryIO, parts: Iterable[Tensor], group_size: int) -> float:
    """Writes the int8 values of a weight, then its scales, and returns the relative error: rms of the
    difference / rms of the weights.
    """
    all_scales, total, error = [], 0.0, 0.0
    for part in parts:
        values, scales, rounded = quantise(part, group_size)
        file.write(values.numpy().data)
        all_scales.append(scales)
        total += sum_of_squares(part)
        error += sum_of_squares(rounded - part.view(rounded.shape))
    write_floats(file, all_scales)
    return math.sqrt(error / total) if total else 0.0


def file_bytes(config: Config, shapes: dict[str, tuple[int, ...]], version: int, group_size: int) -> int:
    """The size of a .bin file."""
    tables = 4 * config.max_seq_len * config.head_dim if version == 0 else 0
    size = len(header(config, version, group_size)) + tables
    for shape in shapes.values():
        n = math.prod(shape)
        size += n + 4 * (n // group_size) if version == 2 and len(shape) == 2 else 4 * n
    return size


def write_bin(file: BinaryIO, source: Source, version: int, group_size: int, bar: bool) -> dict[str, float]:
    """Writes a .bin file, tensor by tensor, and returns the relative errors of those that it quantised."""
    config, errors = source.config, {}
    shapes = tensor_shapes(config)
    refuse(source, name_problems(source, shapes))
    check_room(Path(file.name), file_bytes(config, shapes, version, group_size))
    file.write(header(config, version, group_size))
    for name in tqdm(tensor_order(config, version), unit="tensor", leave=False, disable=not bar):
        if name == ROPE_TABLES:
            file.write(bytes(4 * config.max_seq_len * config.head_dim))
            continue
        if version == 2 and len(shapes[name]) == 2:
            errors[name] = write_quantised(file, parts_of(source, name, shapes[name]), group_size)
        else:
            write_floats(file, parts_of(source, name, shapes[name]))
    return errors


# --- Reading


class BinTensors(Mapping[str, Tensor]):
    """The tensors of a .bin file, mapped; int8 ones become float32 when they are taken."""

    def __init__(self, data: np.ndarray, places: dict[str, tuple[int, tuple[int, ...], int]]) -> None:
        self._data, self._places = data, places  # name: offset, shape, group size (0: float32)

    def __getitem__(self, name: str) -> Tensor:
        offset, shape, group_size = self._places[name]
        n = math.prod(shape)
        if not group_size:
            values = np.frombuffer(self._data[offset : offset + 4 * n], "<f4")
            return torch.tensor(values, dtype=torch.float32).view(shape)
        quants = torch.tensor(np.frombuffer(self._data[offset : offset + n], np.int8))
        end = offset + n + 4 * (n // group_size)
        scales = torch.tensor(np.frombuffer(self._data[offset + n : end], "<f4"), dtype=torch.float32)
        return (quants.view(-1, group_size) * scales[:, None]).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def read_header(path: Path, data: np.ndarray) -> tuple[Config, int, int, int]:
    """Configuration, version, group size and the bytes of the header. Raises BadFileError."""
    raw = bytes(data[:HEADER_BYTES])
    if len(raw) < 28:
        raise BadFileError(f"{path}: has {len(raw)} bytes, the header alone has 28")
    magic, version = struct.unpack_from("<Ii", raw)
    if magic != MAGIC:
        version, fields, size = 0, struct.unpack_from("<7i", raw), 28
        tied, group_size = fields[5] > 0, 0
    elif version in (1, 2) and len(raw) == HEADER_BYTES:
        fields, size = struct.unpack_from("<7i", raw, 8), HEADER_BYTES
        tied, group_size = raw[36] == 1, struct.unpack_from("<i", raw, 37)[0] if version == 2 else 0
    else:
        raise BadFileError(f"{path}: version = {version}, allowed 0, 1, 2 and 3")
    shape = dict(zip(HEADER, fields, strict=True)) | {"vocab_size": abs(fields[5]), "tied": tied}
    try:
        config = Config(**shape)
    except ValueError as error:
        raise BadFileError(f"{path}: {error}") from None
    if version == 2 and (group_size < 1 or math.gcd(config.dim, config.hidden_dim) % group_size):
        raise BadFileError(f"{path}: group_size = {group_size}, allowed divisors of dim and hidden_dim")
    return config, version, group_size, size


def open_bin(path: Path) -> Source:
    """A model in a .bin file of v0, v1 or v2. Raises BadFileError, OSError."""
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    config, version, group_size, offset = read_header(path, data)
    shapes, places = tensor_shapes(config), {}
    for name in tensor_order(config, version):
        if name == ROPE_TABLES:
            offset += 4 * config.max_seq_len * config.head_dim
            continue
        groups, n = group_size if len(shapes[name]) == 2 else 0, math.prod(shapes[name])
        places[name] = (offset, shapes[name], groups)
        offset += n + 4 * (n // groups) if groups else 4 * n
    if offset != len(data):
        raise BadFileError(f"{path}: has {len(data)} bytes, its header asks for {offset}")
    return Source(str(path), config, BinTensors(data, places))
