"""The .bin files of llama2.c: v0 and v1 fp32, v2 int8 in groups (their reader: csrc/weights/checkpoint.h)."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from llama.errors import BadFileError, UsageError
from llama.files import check_room
from llama.formats.config import Config
from llama.formats.mapped import map_file
from llama.formats.source import (
    CLASSIFIER,
    EMBEDDING,
    Source,
    checked_config,
    chunks,
    find,
    name_problems,
    refuse,
    tensor_shapes,
)
from llama.formats.tensor import Tensor, sum_of_squares
from llama.progress import Bar

# --- int8

QUANTISE_MIN = (
    1e-30  # a group whose largest value is smaller counts as zeros, as in llama/csrc/weights/quant.h
)


def quantise(weight: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int8 values (n, group_size), -127 to 127, float32 scales (n), and what they stand for, (n, group_size).

    Symmetric: scale = max |w| / 127, q = round(w * (1 / scale)), halves to even. weight: float32.
    """
    groups, one = weight.reshape(-1, group_size), np.float32(1)
    largest = np.abs(groups).max(1)
    scales = np.where(largest > QUANTISE_MIN, largest / np.float32(127), np.float32(0))
    inverse = np.divide(one, scales, out=np.zeros_like(scales), where=scales > 0)
    values = groups * inverse[:, None]
    np.rint(values, out=values)
    return values.astype(np.int8), scales, values * scales[:, None]


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


def holds(config: Config) -> bool:
    """Whether a .bin file of v0, v1 or v2 holds all of a model."""
    return config.head_dim * config.n_heads == config.dim and not lost_fields(config)


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


def parts_of(source: Source, name: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """A tensor as float32, in parts."""
    return chunks(source, name, find(source, name, shape))


def write_floats(file: BinaryIO, parts: Iterable[np.ndarray]) -> None:
    for part in parts:
        file.write(part.astype("<f4", copy=False).data)


def write_quantised(file: BinaryIO, parts: Iterable[np.ndarray], group_size: int) -> float:
    """Writes the int8 values of a weight, then its scales, and returns the relative error: rms of the
    difference / rms of the weights.
    """
    all_scales, total, error = [], 0.0, 0.0
    for part in parts:
        values, scales, rounded = quantise(part, group_size)
        file.write(values.data)
        all_scales.append(scales)
        total += sum_of_squares(part)
        error += sum_of_squares(rounded - part.reshape(rounded.shape))
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
    total = file_bytes(config, shapes, version, group_size)
    check_room(Path(file.name), total)
    file.write(header(config, version, group_size))
    with Bar("writing", total, bar) as progress:
        for name in tensor_order(config, version):
            if name == ROPE_TABLES:
                file.write(bytes(4 * config.max_seq_len * config.head_dim))
            elif version == 2 and len(shapes[name]) == 2:
                errors[name] = write_quantised(file, parts_of(source, name, shapes[name]), group_size)
            else:
                write_floats(file, parts_of(source, name, shapes[name]))
            progress.update(file.tell() - progress.done)
    return errors


# --- Reading


class BinTensors(Mapping[str, Tensor]):
    """The tensors of a .bin file, mapped; int8 rows become float32 when they are taken."""

    def __init__(self, data: np.ndarray, places: dict[str, tuple[int, tuple[int, ...], int]]) -> None:
        self._data, self._places = data, places  # name: offset, shape, group size (0: float32)

    def __getitem__(self, name: str) -> Tensor:
        offset, shape, group_size = self._places[name]
        n = math.prod(shape)
        if not group_size:
            return Tensor.of(self._data[offset : offset + 4 * n].view("<f4").reshape(shape))
        end = offset + n + 4 * (n // group_size)
        quants = self._data[offset : offset + n].view(np.int8).reshape(shape[0], -1, group_size)
        scales = self._data[offset + n : end].view("<f4").reshape(shape[0], -1, 1)

        def rows(begin: int, end: int) -> np.ndarray:
            values = quants[begin:end] * scales[begin:end].astype(np.float32)
            return values.reshape(end - begin, *shape[1:])

        return Tensor("fp32", shape, rows, group_size)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def check_shape(path: Path, shape: dict[str, int]) -> None:
    """Raises BadFileError for what the engine refuses, and a Config takes for the usual value or rounds."""
    for name, value in shape.items():
        if value < 1:
            raise BadFileError(f"{path}: {name} = {value}, allowed 1 or more")
    if shape["dim"] % shape["n_heads"]:
        raise BadFileError(f"{path}: n_heads = {shape['n_heads']} does not divide dim = {shape['dim']}")


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
    if version and raw[36] > 1:
        raise BadFileError(f"{path}: shared classifier = {raw[36]}, allowed 0 and 1")
    shape = dict(zip(HEADER, fields, strict=True))
    if version == 0:
        shape["vocab_size"] = abs(shape["vocab_size"])
    check_shape(path, shape)
    config = checked_config(str(path), **shape, tied=tied)
    if version == 2 and (group_size < 1 or math.gcd(config.dim, config.hidden_dim) % group_size):
        raise BadFileError(f"{path}: group_size = {group_size}, allowed divisors of dim and hidden_dim")
    return config, version, group_size, size


def open_bin(path: Path) -> Source:
    """A model in a .bin file of v0, v1 or v2. Raises BadFileError, OSError."""
    data = map_file(path)
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
