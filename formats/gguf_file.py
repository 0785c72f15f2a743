"""A GGUF file as the gguf library reads it: values by key, and what describes the tensors.

The library trusts a file; what it says is checked here, and where its values are asked for.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from training.command import BadInput

try:
    import gguf
except ImportError:
    raise BadInput("GGUF files are read and written by a library: pip install gguf") from None

Value = TypeVar("Value", int, float, str)
KINDS = {int: "whole number", float: "number", str: "text"}


class WholeReader(gguf.GGUFReader):
    """The library's reader, which by itself takes what there is where a file ends too early."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
        self.data = np.asarray(self.data)  # to take a slice of a memmap is slower by far
        values = super()._get(offset, dtype, count, override_order)
        if len(values) < count:
            raise ValueError(f"it ends at byte {len(self.data)}, within what begins at byte {offset}")
        return values


class GgufFile:
    """An open file. tensors: the library's descriptions, by name. Raises BadInput, OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb"):  # the library does not name what is wrong with a folder
            pass
        try:
            self._reader = WholeReader(path, "c")  # a page is copied if somebody changes a tensor in it
        except (ValueError, LookupError, OverflowError, RecursionError) as error:
            raise BadInput(f"{path}: is not a whole GGUF file: {error}") from None
        if self._reader.byte_order != "I":
            raise BadInput(f"{path}: is big-endian, allowed little-endian")
        self.tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def get(self, key: str, default: Any = None) -> Any:
        """A value, or default where there is none. A float32 is its shortest decimal number, 1e-05."""
        field = self._reader.get_field(key)
        if field is None:
            return default
        if field.types[0] in (gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.FLOAT64):
            return float(str(field.parts[-1][0]))
        return field.contents()

    def one(self, key: str, kind: type[Value], default: Value | None = None) -> Value:
        """A value of a kind. Raises BadInput where it is of another, or missing and there is no default."""
        value = self.get(key, default)
        if value is None:
            raise BadInput(f"{self.path}: {key} is missing")
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            raise self.wrong(key, f"one {KINDS[kind]}")
        return value

    def many(self, key: str, kind: type[Value], n: int | None = None) -> list[Value]:
        """A list of n values of a kind, for None of any number. Raises BadInput."""
        values = self.get(key)
        if values is None:
            raise BadInput(f"{self.path}: {key} is missing")
        if not isinstance(values, list) or any(type(value) is not kind for value in values):
            raise self.wrong(key, f"a list, each a {KINDS[kind]}")
        if n is not None and len(values) != n:
            raise BadInput(f"{self.path}: {key} has {len(values)} values, allowed {n}")
        return values

    def wrong(self, key: str, allowed: str) -> BadInput:
        """The error for a value that can't be used."""
        return BadInput(f"{self.path}: {key} = {self.get(key)!r:.80}, allowed {allowed}")
