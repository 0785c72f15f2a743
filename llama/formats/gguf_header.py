"""The header of a GGUF file: values by key, and where its tensors lie; of one in parts, those of all parts.

The format: magic, version, the numbers of tensors and of values; keys with their values; names, shapes, types
and places of the tensors; their data. docs/gguf.md of ggml describes it. Only headers are read here, without
numpy: gguf_file.py has the tensors themselves.

The gguf library has a reader too. It trusts a file, also one that claims 2^60 numbers, and takes twenty
times as long for the vocabulary of a Llama 3.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from llama.errors import BadFileError
from llama.files import reading
from llama.formats.header import MAX_DIMENSIONS, MAX_SIZE, Tensor, printable
from llama.formats.kinds import checked_start

VERSIONS = (2, 3)
SWAPPED = [version << 24 for version in VERSIONS]
SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))) | {10: "Q", 11: "q", 12: "d"}
TEXT, LIST, FLOAT = 8, 9, 6
TYPES = {  # of tensors: name, values and bytes of a block
    0: ("fp32", 1, 4),
    1: ("fp16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("bf16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}
BLOCKS = {name: (values, size) for name, values, size in TYPES.values()}
ALIGNMENT = 32  # of tensors, where a file does not say
PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
MAX_PARTS = 9999
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Placed(Tensor):
    """A tensor of a file. shape: rows first, as PyTorch has it. offset: where its data begin in the file."""

    offset: int = field(repr=False)


@dataclass(frozen=True)
class Header:
    """What a file says of itself. values: by key."""

    path: Path
    values: dict[str, Any]
    tensors: list[Placed]


def shortest(value: float) -> float:
    """A float of 32 bits as its shortest decimal number: 1e-05, not 9.99999974e-06."""
    guesses = (float(f"{value:.{digits}g}") for digits in range(6, 10))
    return next((guess for guess in guesses if struct.pack("<f", guess) == struct.pack("<f", value)), value)


class Cursor:
    """Reads the bytes of a file one after the other. Raises BadFileError where they end."""

    def __init__(self, path: Path, data: mmap.mmap | bytes) -> None:
        self.path, self.data, self.at = path, data, 0

    def fail(self, message: str) -> NoReturn:
        raise BadFileError(f"{self.path}: {message}")

    def skip(self, n: int) -> int:
        """Goes on by n bytes, and returns where they begin."""
        if n > len(self.data) - self.at:
            self.fail(f"has {len(self.data)} bytes, too few for the {n} that begin at byte {self.at}")
        self.at += n
        return self.at - n

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack_from(f"<{form}", self.data, self.skip(struct.calcsize(f"<{form}")))

    def number(self, form: str) -> Any:
        return self.numbers(form)[0]

    def length(self) -> int:
        """Of a text: as number("Q"), for lists of hundreds of thousands of them."""
        return LENGTH.unpack_from(self.data, self.skip(8))[0]

    def text(self) -> str:
        n = self.length()
        begin = self.skip(n)
        try:
            return str(self.data[begin : begin + n], "utf-8")
        except UnicodeDecodeError:
            self.fail(f"what ends at byte {self.at} is not UTF-8")

    def list(self, whole: bool) -> Any:
        kind, n = self.numbers("IQ")
        if kind == TEXT and whole:
            return [self.text() for _ in range(n)]
        if kind == TEXT:
            for _ in range(n):
                self.skip(self.length())
            return range(n)
        form = self.scalar(kind)
        if whole and n * struct.calcsize(form) <= len(self.data) - self.at:
            return list(self.numbers(f"{n}{form}"))
        self.skip(n * struct.calcsize(form))
        return range(n)

    def scalar(self, kind: int) -> str:
        if kind not in SCALARS:
            allowed = f"0 to {max(SCALARS)}, and no list in a list"
            self.fail(f"has a value of type {kind} at byte {self.at}, allowed {allowed}")
        return SCALARS[kind]

    def value(self, whole: bool) -> Any:
        """A value of any kind. whole: lists as they are; else range(n) for n values."""
        kind = self.number("I")
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            return self.list(whole)
        number = self.number(self.scalar(kind))
        return shortest(number) if kind == FLOAT else number

    def tensor(self) -> Placed:
        """A tensor; its offset is from the first one's data."""
        name, n = self.text(), self.number("I")
        sizes = self.numbers(f"{min(n, MAX_DIMENSIONS)}Q")[::-1]
        if n != len(sizes) or n == 0 or max(sizes) >= MAX_SIZE:
            self.fail(f"{printable(name)} has a shape that can't be")
        shape = tuple(sizes)
        kind, offset = self.numbers("IQ")
        type_, block, size = TYPES.get(kind, (f"#{kind}", 1, 0))
        if shape[-1] % block:
            found = f"{printable(name)} has the type {type_} and the shape {shape}"
            self.fail(f"{found}, allowed are rows of {block} n values")
        return Placed(name, type_, shape, math.prod(shape) // block * size, offset)


def placed(cursor: Cursor, values: dict[str, Any], tensors: list[Placed]) -> list[Placed]:
    """Tensors with their places in the file. Raises BadFileError for one that does not lie in it."""
    align = values.get("general.alignment", ALIGNMENT)
    if type(align) is not int or align < 8 or align & (align - 1):
        cursor.fail(f"general.alignment = {align!r:.80}, allowed powers of two from 8")
    begin = -(-cursor.at // align) * align
    for tensor in tensors:
        if tensor.offset % align:
            found = f"{printable(tensor.name)} has the offset {tensor.offset}"
            cursor.fail(f"{found}, allowed multiples of {align}")
        if (end := begin + tensor.offset + tensor.bytes) > len(cursor.data):
            cursor.fail(f"{printable(tensor.name)} ends at byte {end}, the file at {len(cursor.data)}")
    return [replace(tensor, offset=begin + tensor.offset) for tensor in tensors]


def map_bytes(path: Path) -> mmap.mmap | bytes:
    """The bytes of a file. Raises BadFileError."""
    if not checked_start(path):
        return b""
    try:
        with reading(path) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise BadFileError(f"{path}: {error.strerror}") from None


def read_file(path: Path, whole: bool) -> Header:
    """The header of one file. whole: with lists, such as that of the tokens; else range(n) for n values.

    Raises BadFileError.
    """
    cursor = Cursor(path, map_bytes(path))
    if (start := bytes(cursor.data[:4])) != b"GGUF":
        cursor.fail(f"begins with {start!r}, allowed b'GGUF'")
    _, version, n_tensors, n_values = cursor.numbers("2I2Q")
    if version in SWAPPED:
        cursor.fail("is of a big-endian machine, allowed are little-endian files")
    if version not in VERSIONS:
        cursor.fail(f"version = {version}, allowed {' and '.join(map(str, VERSIONS))}")
    values = {cursor.text(): cursor.value(whole) for _ in range(n_values)}
    tensors = [cursor.tensor() for _ in range(n_tensors)]
    if len({tensor.name for tensor in tensors}) != n_tensors or len(values) != n_values:
        cursor.fail("has two keys or tensors of one name")
    return Header(path, values, placed(cursor, values, tensors))


def part_paths(path: Path, n: int) -> list[Path]:
    """The files of a model in n parts, of which path is one. Raises BadFileError."""
    match = PART.fullmatch(path.name)
    if not match or int(match[3]) != n or n > MAX_PARTS:
        wanted = f"a name that ends in -00001-of-{n:05}.gguf"
        raise BadFileError(f"{path}: split.count = {n}, allowed with {wanted}")
    return [path.with_name(f"{match[1]}-{i + 1:05}-of-{n:05}.gguf") for i in range(n)]


def read(path: Path, whole: bool = False) -> list[Header]:
    """The headers of a file, or of all parts of one that is split, the first of which has the values.

    Raises BadFileError for parts that do not belong together.
    """
    first = read_file(path, whole)
    n = first.values.get("split.count", 0)
    if type(n) is not int or n < 2:
        return [first]
    parts = [read_file(part, whole) for part in part_paths(path, n)]
    for i, part in enumerate(parts):
        for key, allowed in (("split.count", n), ("split.no", i)):
            if (found := part.values.get(key)) != allowed:
                raise BadFileError(f"{part.path}: {key} = {found!r:.80}, allowed {allowed}")
    total, said = sum(len(part.tensors) for part in parts), parts[0].values.get("split.tensors.count")
    if said is not None and said != total:
        raise BadFileError(f"{parts[0].path}: split.tensors.count = {said!r:.80}, its parts have {total}")
    return parts


# --- For llama.info

FIELDS = {  # under the names of LlamaConfig; the architecture's name comes before them
    "embedding_length": "dim",
    "feed_forward_length": "hidden_dim",
    "block_count": "n_layers",
    "attention.head_count": "n_heads",
    "attention.head_count_kv": "n_kv_heads",
    "attention.key_length": "head_dim",
    "vocab_size": "vocab_size",
    "context_length": "max_seq_len",
    "attention.layer_norm_rms_epsilon": "norm_eps",
    "rope.freq_base": "rope_theta",
}


def configuration(values: dict[str, Any], tensors: Sequence[Tensor]) -> dict[str, Any]:
    """Fields under the names of LlamaConfig, those that are known."""
    model = values.get("general.architecture")
    said = {ours: values.get(f"{model}.{key}") for key, ours in FIELDS.items()}
    found = {name: value for name, value in said.items() if isinstance(value, (int, float))}
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    embedding = shapes.get("token_embd.weight", (0,))
    if embedding[0]:
        found["vocab_size"], found["tied"] = embedding[0], "output.weight" not in shapes
    dim, n_heads = found.get("dim"), found.get("n_heads")
    if isinstance(dim, int) and isinstance(n_heads, int) and n_heads > 0:
        if f"{model}.attention.head_count_kv" not in values:  # which may be a list, for each layer
            found["n_kv_heads"] = n_heads
        found.setdefault("head_dim", dim // n_heads)
    kind = values.get(f"{model}.rope.scaling.type", "none")
    if kind != "none":
        found["rope_scaling"] = {"kind": kind, "factor": values.get(f"{model}.rope.scaling.factor")}
        if original := values.get(f"{model}.rope.scaling.original_context_length"):
            found["rope_scaling"]["original_max_seq_len"] = original
    if "rope_freqs.weight" in shapes:
        found["rope_scaling"] = {"kind": "llama3"}  # its factors are a tensor
    return found


def tokenizer(values: dict[str, Any]) -> dict[str, Any] | None:
    """What the file says of its tokenizer, None for nothing."""
    tokens = values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, range):
        return None
    ids = {name: values.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    kind = f"{values.get('tokenizer.ggml.model', 'unknown')} of llama.cpp"
    found = {"file": "in the file", "kind": kind, "vocab_size": len(tokens)}
    return found | {name: i for name, i in ids.items() if isinstance(i, int)}
