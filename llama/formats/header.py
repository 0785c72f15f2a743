"""What the readers of headers share: descriptions of tensors, shapes that can be, text fit for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

MAX_HEADER = 1 << 27  # bytes of a header or a pickle; those of the largest models have a few MB
MAX_SIZE, MAX_DIMENSIONS = 1 << 63, 8  # of a shape


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file. bytes: those it takes there."""

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def values(self) -> int:
        return math.prod(self.shape)


def printable(text: object, limit: int = 200) -> str:
    """What a file says, fit for a line of a terminal."""
    said = str(text)[:limit]
    return said if said.isprintable() else "".join(c if c.isprintable() else "?" for c in said)


def checked_shape(shape: Iterable[Any]) -> tuple[int, ...]:
    """Raises ValueError for what is no shape, and for one whose product could not be printed."""
    sizes = tuple(shape)
    if len(sizes) > MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < MAX_SIZE for n in sizes):
        raise ValueError("a shape that can't be")
    return sizes
