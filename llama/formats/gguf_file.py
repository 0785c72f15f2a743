"""The header of a GGUF file: values by key, and where its tensors lie.

The format: magic, version, the numbers of tensors and of values; keys with their values; names, shapes, types
and places of the tensors; their data. Its description is docs/gguf.md of ggml.

The gguf library, through which all else goes, has a reader too. It trusts a file, also one that says it holds
2^60 numbers, and takes twenty times as long for the vocabulary of a Llama 3.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from llama.errors import BadFileError

try:
    import gguf
except ImportError:
    raise BadFileError("GGUF files are read and written by a library: pip install gguf") from None

Kind, Type = gguf.GGUFValueType, gguf.GGMLQuantizationType
Value = TypeVar("Value", bool, int, float, str)
WORDS = {bool: "truth value", int: "whole number below 2^31", float: "finite number", str: "text"}
LIMITS = {bool: 2, int: 2**31, float: math.inf}  # of a single value: sizes do not overflow
VERSIONS = (2, 3)
SCALARS = {
    Kind.UINT8: "<u1",
    Kind.INT8: "<i1",
    Kind.UINT16: "<u2",
    Kind.INT16: "<i2",
    Kind.UINT32: "<u4",
    Kind.INT32: "<i4",
    Kind.FLOAT32: "<f4",
    Kind.BOOL: "?",
    Kind.UINT64: "<u8",
    Kind.INT64: "<i8",
    Kind.FLOAT64: "<f8",
}


def tensor_bytes(shape: tuple[int, ...], kind: Type) -> int:
    """Bytes of a tensor of whole blocks."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * block_bytes


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file. shape: rows first, as PyTorch has it. offset: from the first tensor's data."""

    name: str
    shape: tuple[int, ...]
    kind: Type
    offset: int

    @property
    def bytes(self) -> int:
        return tensor_bytes(self.shape, self.kind)


class Cursor:
    """Reads the bytes of a file one after the other. Raises BadFileError where they end."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self.data, self.at = path, memoryview(data), 0

    def fail(self, message: str) -> NoReturn:
        raise BadFileError(f"{self.path}: {message}")

    def bytes(self, n: int) -> memoryview:
        if n > len(self.data) - self.at:
            self.fail(f"has {len(self.data)} bytes, too few for the {n} that begin at byte {self.at}")
        self.at += n
        return self.data[self.at - n : self.at]

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.bytes(struct.calcsize(form)))

    def text(self) -> str:
        try:
            return str(self.bytes(self.numbers("<Q")[0]), "utf-8")
        except UnicodeDecodeError:
            self.fail(f"what ends at byte {self.at} is not UTF-8")

    def scalars(self, kind: int, n: int) -> np.ndarray:
        if kind not in SCALARS:
            allowed = f"0 to {max(Kind)}, and no list in a list"
            self.fail(f"has a value of type {kind} at byte {self.at}, allowed {allowed}")
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self.bytes(n * dtype.itemsize), dtype)

    def value(self) -> Any:
        """A value of any kind. A single float is its shortest decimal number: 1e-05, not 9.99999974e-06."""
        (kind,) = self.numbers("<I")
        if kind == Kind.STRING:
            return self.text()
        if kind == Kind.ARRAY:
            kind, n = self.numbers("<IQ")
            return [self.text() for _ in range(n)] if kind == Kind.STRING else self.scalars(kind, n).tolist()
        number = self.scalars(kind, 1)[0]
        return float(str(number)) if number.dtype.kind == "f" else number.item()

    def tensor(self) -> TensorInfo:
        name, (n,) = self.text(), self.numbers("<I")
        shape = tuple(int(size) for size in self.scalars(Kind.UINT64, n)[::-1])
        kind, offset = self.numbers("<IQ")
        if kind not in list(Type):
            self.fail(f"{name} has the type {kind}, which is unknown")
        return TensorInfo(name, shape, Type(kind), offset)


class GgufFile:
    """An open file: values by key, descriptions of tensors by name. Raises BadFileError, OSError."""

    def __init__(self, path: Path) -> None:
        self.path, size = path, path.stat().st_size
        # "c": where somebody changes a tensor in place, its page is copied.
        self._data = np.asarray(np.memmap(path, np.uint8, "c")) if size else np.empty(0, np.uint8)
        cursor = Cursor(path, self._data)
        if bytes(self._data[:4]) != b"GGUF":
            cursor.fail(f"begins with {bytes(self._data[:4])!r}, allowed b'GGUF'")
        _, version, n_tensors, n_values = cursor.numbers("<2I2Q")
        if version not in VERSIONS:
            cursor.fail(f"version = {version}, allowed {' and '.join(map(str, VERSIONS))}")
        self._values = {cursor.text(): cursor.value() for _ in range(n_values)}
        tensors = [cursor.tensor() for _ in range(n_tensors)]
        self.tensors = {tensor.name: tensor for tensor in tensors}
        if len(self.tensors) != n_tensors or len(self._values) != n_values:
            cursor.fail("has two keys or tensors of one name")
        align = self.one("general.alignment", int, gguf.GGUF_DEFAULT_ALIGNMENT)
        if align < 8 or align & (align - 1):
            raise self.wrong("general.alignment", "powers of two from 8")
        self._begin = -(-cursor.at // align) * align
        for tensor in tensors:
            self._check(tensor, align)

    def _check(self, tensor: TensorInfo, align: int) -> None:
        """Raises BadFileError for a tensor that does not lie in the file."""
        block, end = gguf.GGML_QUANT_SIZES[tensor.kind][0], self._begin + tensor.offset + tensor.bytes
        if not tensor.shape or tensor.shape[-1] % block:
            found = f"{tensor.name} has the type {tensor.kind.name} and the shape {tensor.shape}"
            raise BadFileError(f"{self.path}: {found}, allowed are rows of {block} n values")
        if tensor.offset % align:
            found = f"{tensor.name} has the offset {tensor.offset}"
            raise BadFileError(f"{self.path}: {found}, allowed multiples of {align}")
        if end > len(self._data):
            raise BadFileError(
                f"{self.path}: {tensor.name} ends at byte {end}, the file at {len(self._data)}"
            )

    def bytes_of(self, name: str) -> np.ndarray:
        """The bytes of a tensor, (rows, bytes of a row), mapped."""
        tensor = self.tensors[name]
        begin = self._begin + tensor.offset
        return self._data[begin : begin + tensor.bytes].reshape(*tensor.shape[:-1], -1)

    def get(self, key: str, default: Any = None) -> Any:
        return self._values.get(key, default)

    def one(self, key: str, kind: type[Value], default: Value | None = None) -> Value:
        """A value of a kind.

        Raises BadFileError where it is of another, or missing and there is no default.
        """
        value = self.get(key, default)
        if value is None:
            raise BadFileError(f"{self.path}: {key} is missing")
        if type(value) is not kind or (kind is not str and not abs(value) < LIMITS[kind]):
            raise self.wrong(key, f"one {WORDS[kind]}")
        return value

    def many(self, key: str, kind: type[Value], n: int | None = None) -> list[Value]:
        """A list of n values of a kind, for None of any number. Raises BadFileError."""
        values = self.get(key)
        if values is None:
            raise BadFileError(f"{self.path}: {key} is missing")
        if not isinstance(values, list) or any(type(value) is not kind for value in values):
            raise self.wrong(key, f"a list, each a {WORDS[kind]}")
        if n is not None and len(values) != n:
            raise BadFileError(f"{self.path}: {key} has {len(values)} values, allowed {n}")
        return values

    def wrong(self, key: str, allowed: str) -> BadFileError:
        """The error for a value that can't be used."""
        return BadFileError(f"{self.path}: {key} = {self.get(key)!r:.80}, allowed {allowed}")
