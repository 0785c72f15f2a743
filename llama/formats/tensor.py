"""A tensor to be read: its type and shape, and rows that are made when somebody asks for them.

Most lie in a mapped file, and asking for rows gives a view of it. Others are put together for each request,
such as slices of several shards or quantised weights, so that no tensor is ever whole in memory. A bf16, for
which numpy has no type, is held as its 16 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

NUMPY = {"fp64": "<f8", "fp32": "<f4", "fp16": "<f2", "bf16": "<u2"}
NAMES = {np.dtype(kind): name for name, kind in NUMPY.items() if name != "bf16"}


@dataclass(frozen=True, eq=False)
class Tensor:
    """dtype: a key of NUMPY, or the name of a type that nothing here reads. shape: (rows, ...).

    rows: a function of begin and end that gives the rows in between, (end - begin, ...) in NUMPY[dtype].
    scale_cols: columns that share a scale, of which they are whole multiples; 0 where that is not said.
    """

    dtype: str
    shape: tuple[int, ...]
    rows: Callable[[int, int], np.ndarray]
    scale_cols: int = 0

    @classmethod
    def of(cls, values: np.ndarray, dtype: str | None = None) -> Tensor:
        """The tensor that an array is, which is not copied. dtype: "bf16" for an array of their bits."""
        return cls(dtype or NAMES[values.dtype], values.shape, lambda begin, end: values[begin:end])

    def __len__(self) -> int:
        return self.shape[0]

    def values(self) -> np.ndarray:
        """All rows, as they are."""
        return self.rows(0, len(self))

    def floats(self) -> np.ndarray:
        """All rows in float32."""
        return to_floats(self.values(), self.dtype)


def to_floats(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values of a type in contiguous float32, a copy if they are not that already."""
    if dtype == "bf16":
        bits = np.left_shift(values, 16, dtype=np.uint32)
        return np.ascontiguousarray(bits).view(np.float32)
    with np.errstate(over="ignore"):  # who takes the values finds what is not finite
        return np.require(values, np.float32, ("C", "A"))


def to_bf16(values: np.ndarray) -> np.ndarray:
    """The bits of what bf16 has nearest to float32 values, to even among two; NaN is not among them."""
    bits = values.view(np.uint32)
    odd = bits >> 16 & 1
    odd += 0x7FFF
    odd += bits
    odd >>= 16
    return odd.astype(np.uint16)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """What a type of 16 bits has nearest to float32 values; infinity where they are too large for it."""
    if dtype == "bf16":
        return to_bf16(values)
    with np.errstate(over="ignore"):
        return values.astype(NUMPY[dtype])


def is_finite(values: np.ndarray, dtype: str) -> bool:
    """Whether all values are: a sum shows it in one pass, and only one that overflows needs another look."""
    if dtype == "bf16":
        return not len(values) or int((values & 0x7FFF).max()) < 0x7F80
    with np.errstate(all="ignore"):
        return bool(np.isfinite(values.sum(dtype=values.dtype))) or bool(np.isfinite(values).all())


def sum_of_squares(values: np.ndarray) -> float:
    """Of contiguous float32, in one pass: of the few million values of a chunk it is right to 1e-5."""
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))


def are_equal(a: Tensor, b: Tensor, rows: int = 256) -> bool:
    """Whether two tensors are the same one, or hold the same. Most that do not differ in their first rows."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    steps = range(0, len(a), rows)
    parts: Any = ((a.rows(at, min(at + rows, len(a))), b.rows(at, min(at + rows, len(a)))) for at in steps)
    return all(x.ctypes.data == y.ctypes.data or np.array_equal(x, y) for x, y in parts)
