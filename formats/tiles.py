"""Weights in tiles of 16 rows, as the engine reads them: llama/csrc/tiles.h draws the layout.

In int8 and int4 groups of 32 neighbouring weights of a row share a scale, which is a half-precision float.
int8: whole numbers from -127 to 127. int4: from -8 to 7; the scale is the best of several for the squares of
the errors, since with 16 steps the largest weight of a group is not always worth its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS, GROUP, SCALE_BYTES = 16, 32, 64
CHUNK_VALUES = 1 << 22  # packed at once: bounds the memory beside the tensor
LARGEST_HALF = 65504.0


@dataclass
class Errors:
    """Sums of squares over what was packed: of the weights, and of what quantisation took from them."""

    total: float = 0.0
    error: float = 0.0

    @property
    def relative(self) -> float:
        """rms of the error / rms of the weights."""
        return math.sqrt(self.error / self.total) if self.total else 0.0


def group_bytes(bits: int) -> int:
    """Bytes of a group of a tile without its scales."""
    return ROWS * GROUP * bits // 8


def tile_bytes(cols: int, bits: int) -> int:
    groups = math.ceil(cols / GROUP)
    return math.ceil(groups / 2) * SCALE_BYTES + groups * group_bytes(bits)


def packed_bytes(rows: int, cols: int, bits: int) -> int:
    """Bytes of a matrix in tiles."""
    return math.ceil(rows / ROWS) * tile_bytes(cols, bits)


def half(scales: Tensor) -> Tensor:
    """Scales as they are stored and read back. Raises ValueError for what half precision can't hold."""
    if not (scales.abs() <= LARGEST_HALF).all():
        raise ValueError("has groups that are not finite, or larger than a half-precision scale can hold")
    return scales.half().float()


def with_scales(groups: Tensor, scales: Tensor, low: int, high: int) -> Tensor:
    """The whole numbers nearest to groups (..., 32) / scales (...), within low and high."""
    inverse = torch.where(scales != 0, 1 / scales, 0.0)
    return (groups * inverse[..., None]).round_().clamp_(low, high)


def quantise_int8(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers and scales of groups (..., 32)."""
    scales = half(groups.abs().amax(dim=-1) / 127)
    return with_scales(groups, scales, -127, 127), scales


def quantise_int4(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers and scales of groups (..., 32): of the scales tried, those of the least squared error."""
    largest = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True)).squeeze(-1)
    best_scales = half(largest / -8)  # the largest weight becomes -8, the end that reaches further
    best = with_scales(groups, best_scales, -8, 7)
    least = (best * best_scales[..., None] - groups).square().sum(dim=-1)
    for steps in (-9.0, -8.6, -8.3, -7.7, -7.4, -7.0, -6.6, -6.2, 6.2, 6.6, 7.0, 7.4, 7.8):
        scales = half(largest / steps)
        values = with_scales(groups, scales, -8, 7)
        error = (values * scales[..., None] - groups).square().sum(dim=-1)
        better = error < least
        best = torch.where(better[..., None], values, best)
        best_scales, least = torch.where(better, scales, best_scales), torch.where(better, error, least)
    squares = best.square().sum(dim=-1)  # for these whole numbers the best scale is known
    fitted = half(torch.where(squares > 0, (best * groups).sum(dim=-1) / squares, 0.0))
    return with_scales(groups, fitted, -8, 7), fitted


def interleave(values: Tensor, bits: int) -> Tensor:
    """Whole numbers (tiles, 16, groups, 32) as bytes (tiles, groups, group_bytes)."""
    tiles, _, groups, _ = values.shape
    if bits == 8:
        chunks = (values + 128).to(torch.uint8).view(tiles, ROWS, groups, 8, 4)
    else:
        halves = (values + 8).to(torch.uint8).view(tiles, ROWS, groups, 4, 2, 4)
        chunks = halves[..., 0, :] | halves[..., 1, :] << 4
    return chunks.permute(0, 2, 3, 1, 4).reshape(tiles, groups, group_bytes(bits))


def assemble(scales: Tensor, weights: Tensor) -> Tensor:
    """Scales (tiles, 16, groups) and bytes (tiles, groups, n) as tiles (tiles, tile_bytes)."""
    tiles, groups, n = weights.shape
    scale_bytes = scales.permute(0, 2, 1).contiguous().half().view(torch.uint8)  # (tiles, groups, 32)
    pairs = groups // 2
    head = torch.cat(
        (
            scale_bytes[:, : 2 * pairs].reshape(tiles, pairs, SCALE_BYTES),
            weights[:, : 2 * pairs].reshape(tiles, pairs, 2 * n),
        ),
        dim=2,
    ).reshape(tiles, -1)
    if groups % 2 == 0:
        return head
    unused = torch.zeros(tiles, SCALE_BYTES // 2, dtype=torch.uint8)
    return torch.cat((head, scale_bytes[:, -1], unused, weights[:, -1]), dim=1)


def float_bytes(rows: int, cols: int, size: int) -> int:
    """Bytes of a matrix of floats of `size` bytes in tiles."""
    return math.ceil(rows / ROWS) * ROWS * math.ceil(cols * size / 4) * 4


def pack_floats(weight: Tensor, dtype: torch.dtype, errors: Errors) -> Iterator[Tensor]:
    """Bytes of a matrix (rows, cols) of float32 in tiles of dtype, float32 or bfloat16, as pack does it."""
    cols = weight.shape[1]
    together = 4 // dtype.itemsize  # columns in four bytes
    step = max(1, CHUNK_VALUES // (ROWS * cols)) * ROWS
    for part in weight.split(step):
        tiles, places = math.ceil(len(part) / ROWS), math.ceil(cols / together)
        padded = torch.zeros(tiles * ROWS, places * together, dtype=dtype)
        padded[: len(part), :cols] = part
        if dtype != torch.float32:
            errors.total += part.double().square().sum().item()
            errors.error += (padded[: len(part), :cols].double() - part).square().sum().item()
        columns = padded.view(tiles, ROWS, places, together).transpose(1, 2).contiguous()
        yield columns.view(torch.uint8)


def pack(weight: Tensor, bits: int, errors: Errors) -> Iterator[Tensor]:
    """Bytes of a matrix (rows, cols) of float32 in tiles, piece by piece, and adds to errors what it costs.

    Raises ValueError for values that are not finite or too large.
    """
    rows, cols = weight.shape
    groups = math.ceil(cols / GROUP)
    quantise = quantise_int8 if bits == 8 else quantise_int4
    step = max(1, CHUNK_VALUES // (ROWS * cols)) * ROWS
    for start in range(0, rows, step):
        part = weight[start : start + step]
        tiles = math.ceil(len(part) / ROWS)
        padded = torch.zeros(tiles * ROWS, groups * GROUP)
        padded[: len(part), :cols] = part
        padded = padded.view(tiles, ROWS, groups, GROUP)
        values, scales = quantise(padded)
        errors.total += padded.double().square().sum().item()
        errors.error += (values * scales[..., None] - padded).double().square().sum().item()
        yield assemble(scales, interleave(values, bits))
