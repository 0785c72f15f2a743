"""Weights in tiles of 16 rows, as the engine reads them: llama/csrc/tiles.h draws the layout.

They are packed in C, on all processors: llama/csrc/pack_group.h says which scale 32 neighbouring weights of a
row share in int8 and int4. The C engine is imported when it is needed: training does without.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from training.command import BadInput

ROWS, GROUP = 16, 32
CHUNK_VALUES = 1 << 22  # packed at once: enough that threads rarely wait, little memory


@dataclass
class Errors:
    """Sums of squares over what was packed: of the weights, and of what quantisation took from them."""

    total: float = 0.0
    error: float = 0.0

    @property
    def relative(self) -> float:
        """rms of the error / rms of the weights."""
        return math.sqrt(self.error / self.total) if self.total else 0.0


def engine() -> ModuleType:
    """The part of the C engine that packs. Raises BadInput where it is not built."""
    try:
        import llama.pack
    except ImportError:
        raise BadInput("v3 files are packed by the C engine, build it with pip install -e .") from None
    return llama.pack


def packed_bytes(dtype: str, rows: int, cols: int) -> int:
    """Bytes of a matrix in tiles of "fp32", "bf16", "int8" or "int4"."""
    return engine().packed_bytes(dtype, rows, cols)


def pack(weight: Tensor, dtype: str, errors: Errors, first_row: int = 0) -> Iterator[memoryview]:
    """Bytes of a matrix (rows, cols) of float32 or bfloat16 in tiles, piece by piece, and adds to errors what
    it costs. A piece is good until the next one is asked for. first_row: the number of the first row, where
    the matrix is only a part of one.

    Raises ValueError for values that are not finite or too large, with their row.
    """
    rows, cols = weight.shape
    step = max(1, CHUNK_VALUES // (ROWS * cols)) * ROWS
    out = memoryview(bytearray(packed_bytes(dtype, min(step, rows), cols)))
    for first in range(0, rows, step):
        part = weight[first : first + step]
        values = (part.view(torch.int16) if part.dtype == torch.bfloat16 else part).numpy()
        piece = out[: packed_bytes(dtype, len(part), cols)]
        squares, error_squares = engine().pack(piece, values, dtype, first_row=first_row + first)
        errors.total += squares
        errors.error += error_squares
        yield piece
