"""Weights in tiles of 16 rows, as the engine reads them: llama/csrc/weights/tiles.h draws the layout.

They are packed in C: llama/csrc/weights/pack_group.h says which scale 32 neighbouring
weights of a row share in int8 and int4. The way back is reshaping, in numpy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from llama.errors import BadFileError

ROWS, GROUP = 16, 32
SCALES = 32  # bytes of the scales of a group, of all rows of a tile
GROUP_BYTES = {"int8": 512, "int4": 256}  # of its weights
ZERO = {"int8": 128, "int4": 8}  # what stands for 0
PACKABLE = ("fp32", "bf16", "fp16")  # as they lie


@dataclass
class Errors:
    """Sums of squares over what was packed: of the weights, and of what quantisation took from them."""

    total: float = 0.0
    error: float = 0.0

    def add(self, other: Errors) -> None:
        """Adds the sums of other weights."""
        self.total += other.total
        self.error += other.error

    @property
    def relative(self) -> float:
        """rms of the error / rms of the weights."""
        return math.sqrt(self.error / self.total) if self.total else 0.0


def engine() -> ModuleType:
    """The part of the C engine that packs. Raises BadFileError where it is not built."""
    try:
        import llama.pack
    except ImportError:
        raise BadFileError("tiles of weights need the C engine, build it with pip install -e .") from None
    return llama.pack


def packed_bytes(dtype: str, rows: int, cols: int) -> int:
    """Bytes of a matrix in tiles of "fp32", "bf16", "int8" or "int4"."""
    return engine().packed_bytes(dtype, rows, cols)


def pack(
    values: np.ndarray, dtype: str, errors: Errors, first_row: int = 0, scale_cols: int = 0
) -> np.ndarray:
    """The bytes of rows of a matrix, of float32, float16 or the bits of bfloat16, in tiles; adds to errors
    what they cost. first_row: the number of the first of them in the matrix, a multiple of 16. scale_cols:
    columns that shared a scale where they come from (Tensor.scale_cols). It takes one thread: who has many
    strips gives each to another, which saves waiting for each other.

    Raises ValueError for values that are not finite or too large, with their row.
    """
    out = np.empty(packed_bytes(dtype, *values.shape), np.uint8)
    scale_cols = 0 if scale_cols % GROUP else scale_cols  # of fewer, or others, each group gets its own
    place = {"first_row": first_row, "scale_cols": scale_cols}
    squares, error_squares = engine().pack(out, values, dtype, **place, threads=1)
    errors.total += squares
    errors.error += error_squares
    return out


# --- The way back


def group_parts(data: np.ndarray, dtype: str, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """The half-precision scales (rows, groups) and the whole numbers (rows, groups, 32) of a matrix of int8
    or int4 in tiles: 0 to 255 or to 15, with the columns that fill up the last group.
    """
    n, groups = GROUP_BYTES[dtype], -(-cols // GROUP)
    tiles, even = data.reshape(-(-rows // ROWS), -1), groups // 2 * 2 * (SCALES + n)
    scales, numbers = [], []
    for part, together in ((tiles[:, :even], 2), (tiles[:, even:], 1)):  # groups of a block
        blocks = part.reshape(len(tiles), -1, 2 * SCALES + together * n)
        if blocks.shape[1]:
            halves = blocks[:, :, : together * SCALES].view("<f2")
            fours = blocks[:, :, 2 * SCALES :].view("<u4")
            scales.append(halves.reshape(len(tiles), -1, ROWS))  # (tiles, groups, 16)
            numbers.append(fours.reshape(len(tiles), -1, n // 64, ROWS))  # of 4 columns: faster to move
    weights = np.concatenate(numbers, 1).transpose(0, 3, 1, 2)  # (tiles, 16, groups, chunks)
    if dtype == "int4":
        both = np.ascontiguousarray(weights)
        weights = np.stack((both & 0x0F0F0F0F, both >> 4 & 0x0F0F0F0F), 4)  # (tiles, 16, groups, chunks, 2)
    weights = np.ascontiguousarray(weights).view(np.uint8).reshape(-1, groups, GROUP)
    return np.concatenate(scales, 1).transpose(0, 2, 1).reshape(-1, groups)[:rows], weights[:rows]


def unpack(data: np.ndarray, dtype: str, rows: int, cols: int) -> np.ndarray:
    """A matrix (rows, cols) from its bytes in tiles: the bits of bfloat16 as they are, any other type as the
    float32 values that it stands for.
    """
    if dtype in GROUP_BYTES:
        scales, weights = group_parts(data, dtype, rows, cols)
        values = weights.astype(np.float32)
        values -= ZERO[dtype]
        values *= scales[:, :, None]
        return np.ascontiguousarray(values.reshape(rows, -1)[:, :cols])
    kind, together = ("<u2", 2) if dtype == "bf16" else ("<f4", 1)  # columns side by side
    tiles = data.view(kind).reshape(-(-rows // ROWS), -1, ROWS, together)
    values = tiles.transpose(0, 2, 1, 3).reshape(len(tiles) * ROWS, -1)[:rows, :cols]
    return np.ascontiguousarray(values)
