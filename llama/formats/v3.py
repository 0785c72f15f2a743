"""Version 3 of the .bin files: one file with a model, its tokenizer and all that a run needs.

docs/format.md has the layout byte by byte; the engine's reader is llama/csrc/weights/checkpoint_v3.h. It is
asked to open a file that is read here too, so that what is wrong with a file is looked for in one place.
"""

from __future__ import annotations

import itertools
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llama.errors import BadFileError
from llama.files import check_room, reading
from llama.formats import tiles
from llama.formats.chat_templates import KINDS, Chat
from llama.formats.config import Config
from llama.formats.mapped import map_file
from llama.formats.pipeline import Flusher, Stage, pipeline, processors
from llama.formats.source import (
    CLASSIFIER,
    EMBEDDING,
    Source,
    checked_config,
    name_problems,
    refuse,
    tensor_shapes,
)
from llama.formats.strips import Strip, problem_of, read, strips
from llama.formats.tensor import Tensor, is_finite, to_floats
from llama.formats.tiles import Errors
from llama.formats.vocabulary import Vocabulary, checked_part, indexed_of, read_bin
from llama.progress import Bar

MAGIC, VERSION, HEADER_BYTES, ENTRY_BYTES, ALIGN = 0x616B3432, 3, 256, 32, 64
TYPES = {"fp32": 0, "int8": 1, "bf16": 2, "int4": 3}
ROPE = {None: 0, "linear": 1, "llama3": 2, "yarn": 3}
YARN = ("beta_fast", "beta_slow", "attention_factor")
NO_BOS, EOS = 1, 2  # flags of texts
MAX_STOPS = 8
MAX_TEXTS = {"chat template": 1 << 20, "system text": 1 << 16, "text in front of a system text": 1 << 16}
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

    tokenizer: the bytes of a tokenizer file, none for a model that is given one when it runs. bos: the id
    that begins a text where the tokenizer names none, -1 for none. stops: ids that end one, besides the
    tokenizer's EOS. add_bos, add_eos: what the model's tokenizer puts around a text. chat: its template.
    """

    tokenizer: bytes = b""
    bos: int = -1
    stops: tuple[int, ...] = ()
    chat: Chat = Chat()  # noqa: RUF009
    add_bos: bool = True
    add_eos: bool = False

    @property
    def texts(self) -> tuple[bytes, ...]:
        """The texts of chats, in the order of the file."""
        return tuple(text.encode() for text in (self.chat.text, self.chat.system, self.chat.preamble))

    @property
    def bytes(self) -> int:
        """What lies between the table and the tensors."""
        return len(self.tokenizer) + sum(map(len, self.texts))


def extras_of(source: Source, vocabulary: Vocabulary | None) -> Extras:
    """What a source says of texts, and its tokenizer."""
    data = indexed_of(source.name, vocabulary) if vocabulary else b""
    adds = (source.add_bos is not False, source.add_eos)
    return Extras(data, source.bos, source.stops, source.chat or Chat(), *adds)


def check_extras(name: str, extras: Extras) -> None:
    """Raises BadFileError, with name, for what a file has no room for."""
    if len(extras.stops) > MAX_STOPS:
        raise BadFileError(f"{name}: has {len(extras.stops)} stop ids, allowed {MAX_STOPS}")
    for (what, limit), text in zip(MAX_TEXTS.items(), extras.texts, strict=True):
        if len(text) > limit:
            raise BadFileError(f"{name}: {what} has {len(text)} bytes, allowed {limit}")


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

    @classmethod
    def unpack(cls, name: str, data: bytes) -> Entry:
        kind, rows, cols, crc, offset, size = struct.unpack("<3iI2Q", data)
        return cls(name, list(TYPES)[kind], rows, cols, size, offset, crc)

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
    data += struct.pack("<2i4x", KINDS.index(extras.chat.kind), n_tensors)
    data += struct.pack("<3Q", HEADER_BYTES + n_tensors * ENTRY_BYTES, len(extras.tokenizer), file_bytes)
    flags = (0 if extras.add_bos else NO_BOS) | (EOS if extras.add_eos else 0)
    data += struct.pack("<4I", flags, *map(len, extras.texts))
    if scaling and scaling.kind == "yarn":
        data += struct.pack("<3f", *(getattr(scaling, name) for name in YARN))
        data += struct.pack("<i", scaling.truncate)
    return data.ljust(HEADER_BYTES - 4, b"\0")


def packed(strip: Strip[Entry]) -> np.ndarray:
    """The bytes of a strip in the file. Raises ValueError for values that its type can't hold."""
    entry = strip.entry
    if entry.rows > 1:
        return tiles.pack(strip.values, entry.dtype, strip.errors, strip.begin, strip.tensor.scale_cols)
    norm = to_floats(strip.values, strip.dtype)
    if not is_finite(norm, "fp32"):
        raise ValueError("has values too large for fp32")
    return norm.reshape(-1).view(np.uint8)


def pack(source: Source, strip: Strip[Entry]) -> Strip[Entry]:
    """Makes the bytes of a strip of its values. Raises BadFileError for values that its type can't hold."""
    try:
        strip.data, strip.values = packed(strip), strip.data
    except ValueError as error:
        refuse(source, [f"{strip.entry.name} {problem_of(strip, str(error))}"])
    if not math.isfinite(strip.errors.error):
        refuse(source, [f"{strip.entry.name} has values too large for {strip.entry.dtype}"])
    return strip


def add_up(strip: Strip[Entry]) -> Strip[Entry]:
    """Goes on with the checksum and the errors of a strip's tensor: one strip after the other, in order."""
    strip.entry.crc = zlib.crc32(strip.data, strip.entry.crc)
    strip.entry.errors.add(strip.errors)
    return strip


def write_tensors(
    file: BinaryIO, source: Source, entries: list[Entry], shapes: dict[str, tuple[int, ...]], progress: Bar
) -> None:
    """Writes all tensors at their places and notes their checksums. Raises BadFileError."""
    pieces = strips(source, ((entry, entry.name, shapes[entry.name]) for entry in entries))
    stages = (Stage(read), Stage(partial(pack, source), processors()), Stage(add_up))
    with closing(pipeline(pieces, *stages)) as finished, Flusher(file) as flusher:
        for strip in finished:
            if strip.begin == 0:
                file.write(bytes(strip.entry.offset - file.tell()))
            file.write(strip.data)
            flusher.wrote(len(strip.data))
            progress.update(file.tell() - progress.done)


def write_bin(
    file: BinaryIO, source: Source, dtype: str, ends_dtype: str, extras: Extras, bar: bool
) -> dict[str, float]:
    """Writes a file, tensor by tensor, and returns the relative errors of those that were rounded.

    Raises BadFileError for weights that do not fit the configuration or their type, OSError.
    """
    shapes, n_tensors = tensor_shapes(source.config), len(names(source.config))
    refuse(source, name_problems(source, shapes))
    begin = HEADER_BYTES + n_tensors * ENTRY_BYTES + extras.bytes
    entries = plan(source.config, shapes, dtype, ends_dtype, begin)
    file_bytes = entries[-1].offset + entries[-1].bytes
    check_room(Path(file.name), file_bytes)
    file.write(bytes(begin))  # what comes here is known in the end
    with Bar("writing", file_bytes, bar) as progress:
        progress.update(begin)
        write_tensors(file, source, entries, shapes, progress)
    head = header(source.config, dtype, extras, n_tensors, file_bytes)
    rest = b"".join(entry.pack() for entry in entries)
    texts = b"".join(extras.texts)
    checked = rest + checked_part(extras.tokenizer) + texts
    file.seek(0)
    file.write(
        head + struct.pack("<I", zlib.crc32(checked, zlib.crc32(head))) + rest + extras.tokenizer + texts
    )
    return {entry.name: entry.errors.relative for entry in entries if entry.dtype != "fp32"}


# --- Reading

SHAPE = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")


def is_v3(path: Path) -> bool:
    with reading(path) as file:
        return file.read(8) == struct.pack("<Ii", MAGIC, VERSION)


def floats_at(data: bytes, at: int, n: int) -> list[float]:
    """Floats of a header, each as its shortest decimal number: 1e-05, not 9.99999974e-06."""
    return [float(str(value)) for value in np.frombuffer(data, "<f4", n, at)]


def read_config(path: Path, data: bytes) -> Config:
    """The configuration in a header that the engine has checked."""
    shape = dict(zip(SHAPE, struct.unpack_from("<7i", data, 8), strict=True))
    (kind,), (original,) = struct.unpack_from("<i", data, 52), struct.unpack_from("<i", data, 68)
    scaling: dict[str, Any] | None = None
    if kind:
        names = ("factor", "low_freq_factor", "high_freq_factor")
        scaling = dict(zip(names, floats_at(data, 56, 3), strict=True)) | {"kind": list(ROPE)[kind]}
        scaling |= {"original_max_seq_len": original} if original else {}
    if kind == ROPE["yarn"]:
        scaling |= dict(zip(YARN, floats_at(data, 168, 3), strict=True)) | {"truncate": data[180] == 1}
    norm_eps, rope_theta = floats_at(data, 44, 2)
    fields = {"tied": bool(data[36]), "head_dim": struct.unpack_from("<i", data, 40)[0]}
    rope = {"norm_eps": norm_eps, "rope_theta": rope_theta, "rope_scaling": scaling}
    return checked_config(str(path), **shape, **fields, **rope)


def read_extras(data: np.ndarray) -> Extras:
    """What a file holds besides the weights, of one that the engine has checked."""
    head = bytes(data[:HEADER_BYTES])
    bos, n, *stops = struct.unpack_from("<10i", head, 76)
    (kind,), (begin, size) = struct.unpack_from("<i", head, 116), struct.unpack_from("<2Q", head, 128)
    flags, *lengths = struct.unpack_from("<4I", head, 152)
    ends = list(itertools.accumulate(lengths, initial=begin + size))
    texts = (bytes(data[at:end]).decode(errors="replace") for at, end in itertools.pairwise(ends))
    chat, adds = Chat(KINDS[kind], *texts), (not flags & NO_BOS, bool(flags & EOS))
    return Extras(bytes(data[begin : begin + size]), bos, tuple(stops[:n]), chat, *adds)


class V3Tensors(Mapping[str, Tensor]):
    """The tensors of a file, mapped: rows are put in order, and int8 and int4 made float32, when taken.

    Taking a tensor raises BadFileError if it is not what was written.
    """

    def __init__(self, path: Path, data: np.ndarray, entries: list[Entry]) -> None:
        self._path, self._data, self._entries = path, data, {entry.name: entry for entry in entries}

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        data = self._data[entry.offset : entry.offset + entry.bytes]
        if zlib.crc32(data) != entry.crc:
            raise BadFileError(f"{self._path}: checksum of {name} is not the one stored in the file")
        if entry.rows == 1:
            values = data.view("<f4")
            return Tensor.of(values[None] if name in (EMBEDDING, CLASSIFIER) else values)
        tile_bytes = tensor_bytes(entry.dtype, tiles.ROWS, entry.cols)

        def rows(begin: int, end: int) -> np.ndarray:
            """Those of whole tiles, without those before begin."""
            first = begin // tiles.ROWS
            part = data[first * tile_bytes : -(-end // tiles.ROWS) * tile_bytes]
            skipped = begin - first * tiles.ROWS
            return tiles.unpack(part, entry.dtype, end - begin + skipped, entry.cols)[skipped:]

        return Tensor("bf16" if entry.dtype == "bf16" else "fp32", (entry.rows, entry.cols), rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def check(path: Path) -> None:
    """Raises BadFileError for a file that the engine does not open: it looks at header, table and size."""
    tiles.engine()
    from llama.errors import BadFileError
    from llama.native import model_open

    try:
        model_open(path)
    except BadFileError as error:
        raise BadFileError(str(error)) from None


def open_bin(path: Path) -> Source:
    """The model in a file. Raises BadFileError, OSError."""
    check(path)
    data = map_file(path)
    config, extras = read_config(path, bytes(data[:HEADER_BYTES])), read_extras(data)
    places = ((name, HEADER_BYTES + i * ENTRY_BYTES) for i, name in enumerate(names(config)))
    entries = [Entry.unpack(name, bytes(data[at : at + ENTRY_BYTES])) for name, at in places]
    return Source(
        str(path),
        config,
        V3Tensors(path, data, entries),
        bos=extras.bos,
        stops=extras.stops,
        add_bos=extras.add_bos,
        add_eos=extras.add_eos,
        chat=extras.chat,
        vocabulary=cache(lambda: read_bin(path, extras.tokenizer) if extras.tokenizer else None),
    )
