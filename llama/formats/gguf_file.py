"""An open GGUF file, or one in parts: its values, each checked as it is asked for, and its tensors, mapped.

gguf_header.py reads and checks the headers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from llama.errors import BadFileError
from llama.formats.gguf_header import BLOCKS, read
from llama.formats.gguf_quants import dequantise
from llama.formats.mapped import map_file
from llama.formats.tensor import NUMPY, Tensor

Value = TypeVar("Value", bool, int, float, str)
WORDS = {bool: "truth value", int: "whole number below 2^31", float: "finite number", str: "text"}
LIMITS = {bool: 2, int: 2**31, float: math.inf}  # of a single value: sizes do not overflow


def tensor_bytes(shape: tuple[int, ...], kind: str) -> int:
    """Bytes of a tensor of whole blocks."""
    block, block_bytes = BLOCKS[kind]
    return math.prod(shape) // block * block_bytes


class GgufFile:
    """Values by key, descriptions of tensors by name. Raises BadFileError, OSError."""

    def __init__(self, path: Path) -> None:
        parts = read(path, whole=True)
        self.path, self._values = path, parts[0].values
        self.tensors = {tensor.name: tensor for part in parts for tensor in part.tensors}
        if len(self.tensors) != sum(len(part.tensors) for part in parts):
            raise BadFileError(f"{path}: two of its parts have a tensor of one name")
        self._data = {
            tensor.name: data for part in parts for data in [map_file(part.path)] for tensor in part.tensors
        }

    def bytes_of(self, name: str) -> np.ndarray:
        """The bytes of a tensor, (rows, bytes of a row), mapped."""
        tensor = self.tensors[name]
        data = self._data[name][tensor.offset : tensor.offset + tensor.bytes]
        return data.reshape(*tensor.shape[:-1], -1)

    def tensor(self, name: str) -> Tensor:
        """A tensor: floats of any size as they lie in the file, rows of what is quantised as float32."""
        data, found = self.bytes_of(name), self.tensors[name]
        if found.type in NUMPY:
            return Tensor.of(data.view(NUMPY[found.type]), found.type)
        return Tensor("fp32", found.shape, lambda begin, end: dequantise(data[begin:end], found.type))

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
