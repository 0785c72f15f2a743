"""Strips of tensors on their way into a file: read, packed, summed up and written, all at the same time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from llama.formats import tiles
from llama.formats.source import Source, find, row_ranges
from llama.formats.tensor import Tensor, is_finite, to_floats

Entry = TypeVar("Entry")
PAGE = 4096  # bytes, or a part of what a page has


def nothing() -> np.ndarray:
    return np.empty(0, np.uint8)


@dataclass
class Strip(Generic[Entry]):
    """Rows [begin, end) of a tensor. values: once they are read, of dtype. data and errors: once packed."""

    entry: Entry  # what the file says of the tensor
    tensor: Tensor
    begin: int
    end: int
    dtype: str = ""
    values: np.ndarray = field(default_factory=nothing, repr=False)
    data: np.ndarray = field(default_factory=nothing, repr=False)
    errors: tiles.Errors = field(default_factory=tiles.Errors)

    @property
    def is_last(self) -> bool:
        return self.end == len(self.tensor)


def strips(source: Source, names: Iterable[tuple[Entry, str, tuple[int, ...]]]) -> Iterator[Strip[Entry]]:
    """All strips of tensors, each an entry, a name and a shape. Raises BadFileError for another shape."""
    for entry, name, shape in names:
        tensor = find(source, name, shape)
        for begin, end in row_ranges(shape, tiles.ROWS):
            yield Strip(entry, tensor, begin, end)


def read(strip: Strip[Entry]) -> Strip[Entry]:
    """Reads the values, in a type that can be packed. A byte of each page is looked at: then it is read."""
    values, dtype = strip.tensor.rows(strip.begin, strip.end), strip.tensor.dtype
    if dtype not in tiles.PACKABLE:
        values, dtype = to_floats(values, dtype), "fp32"
    strip.values, strip.dtype = np.require(values, requirements=("C", "A")), dtype
    strip.values.reshape(-1).view(np.uint8)[::PAGE].max()
    return strip


def problem_of(strip: Strip[Entry], otherwise: str) -> str:
    """What is wrong with values that can't be packed. otherwise: where they are finite."""
    values = strip.tensor.rows(strip.begin, strip.end)
    return otherwise if is_finite(values, strip.tensor.dtype) else "has values that are not finite"
