"""The quantised types of GGUF files as floats, in numpy: what ggml's blocks hold.

A block stands for 32, 64 or 256 neighbouring weights of a row: scales, and whole numbers of a few bits. Each
function takes blocks (n, bytes of a block) of uint8 and gives their values (n, values of a block) of float32,
computed in ggml's order, so that they are the same bits. d is the scale of a block, m goes with its minimum.

Types with tables of grid points (IQ1 to IQ3) are left to the gguf library.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llama.errors import BadFileError
from llama.formats.gguf_header import BLOCKS

Values = np.ndarray  # float32
Blocks = np.ndarray  # uint8


def halves(blocks: Blocks, at: int) -> Values:
    """The half-precision number at a byte of each block: (n, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def fields(data: Blocks, shifts: tuple[int, ...], mask: int) -> np.ndarray:
    """The bits of bytes (n, k) from each of some shifts on: (n, shifts, k) of uint8."""
    return data[:, None, :] >> np.array(shifts, np.uint8)[:, None] & mask


def nibbles(data: Blocks) -> np.ndarray:
    """The low halves of bytes (n, k), then the high ones: (n, 2 k) of uint8."""
    return fields(data, (0, 4), 15).reshape(len(data), -1)


def fifth_bits(blocks: Blocks, at: int) -> np.ndarray:
    """Bit i of the 32-bit word at a byte of each block as 0 or 16: (n, 32) of uint8."""
    return np.unpackbits(np.ascontiguousarray(blocks[:, at : at + 4]), axis=1, bitorder="little") << 4


# --- Blocks of 32


def q4_0(blocks: Blocks) -> Values:
    """d (2), 32 x 4 bits: d (q - 8)."""
    return halves(blocks, 0) * (nibbles(blocks[:, 2:]).astype(np.int8) - np.int8(8)).astype(np.float32)


def q4_1(blocks: Blocks) -> Values:
    """d (2), m (2), 32 x 4 bits: d q + m."""
    return halves(blocks, 0) * nibbles(blocks[:, 4:]).astype(np.float32) + halves(blocks, 2)


def q5_0(blocks: Blocks) -> Values:
    """d (2), the fifth bits (4), 32 x 4 bits: d (q - 16)."""
    q = (nibbles(blocks[:, 6:]) | fifth_bits(blocks, 2)).astype(np.int8) - np.int8(16)
    return halves(blocks, 0) * q.astype(np.float32)


def q5_1(blocks: Blocks) -> Values:
    """d (2), m (2), the fifth bits (4), 32 x 4 bits: d q + m."""
    q = nibbles(blocks[:, 8:]) | fifth_bits(blocks, 4)
    return halves(blocks, 0) * q.astype(np.float32) + halves(blocks, 2)


def q8_0(blocks: Blocks) -> Values:
    """d (2), 32 signed bytes: d q."""
    return halves(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def iq4_nl(blocks: Blocks) -> Values:
    """d (2), 32 x 4 bits, which are places in a table of steps that grow outwards."""
    return halves(blocks, 0) * IQ4[nibbles(blocks[:, 2:])]


FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)  # doubled


def mxfp4(blocks: Blocks) -> Values:
    """An exponent e (1), 32 floats of 4 bits: 2^(e - 127) times their value."""
    scale = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128).astype(np.float32)
    return scale * FP4[nibbles(blocks[:, 1:])]


# --- Larger blocks, which have a scale for each 16 or 32 weights


def scaled(scales: np.ndarray, q: np.ndarray) -> Values:
    """Numbers (n, values of a block), each times the scale (n, groups) of its group."""
    groups = q.reshape(len(q), scales.shape[1], -1).astype(np.float32)
    return (scales[:, :, None] * groups).reshape(len(q), -1)


def nvfp4(blocks: Blocks) -> Values:
    """4 scales (4), 64 floats of 4 bits: of 8 bytes the low halves, then the high ones.

    A scale has 4 bits of exponent e and 3 of mantissa m, 2^(e - 7) (1 + m / 8), of e = 0 2^-6 m / 8; the
    largest, 0x7F, is none and stands for 0.
    """
    exponents, mantissas = (blocks[:, :4] >> 3 & 15).astype(np.int32), blocks[:, :4] & 7
    eighths = (mantissas + np.where(exponents > 0, 8, 0)).astype(np.float32)
    scales = np.ldexp(eighths, np.maximum(exponents, 1) - 11)  # 3 bits for the eighths, 1 as FP4 is doubled
    scales[blocks[:, :4] == 0x7F] = 0
    return scaled(scales, FP4[nibbles(blocks[:, 4:].reshape(-1, 8)).reshape(len(blocks), -1)])


# --- Blocks of 256: scales of few bits, under one of the whole block


def q2_k(blocks: Blocks) -> Values:
    """16 scales and minima of 4 bits (16), 256 x 2 bits (64), d (2), m (2)."""
    scales = halves(blocks, 80) * (blocks[:, :16] & 15).astype(np.float32)
    minima = halves(blocks, 82) * (blocks[:, :16] >> 4).astype(np.float32)
    q = np.concatenate([fields(blocks[:, at : at + 32], (0, 2, 4, 6), 3) for at in (16, 48)], 1)
    return scaled(scales, q.reshape(len(q), -1)) - np.repeat(minima, 16, 1)


def q3_k(blocks: Blocks) -> Values:
    """The third bits (32), 256 x 2 bits (64), 16 scales of 6 bits (12), d (2): d (s - 32) (q - 4 or q)."""
    low = nibbles(blocks[:, 96:104])
    high = fields(blocks[:, 104:108], (0, 2, 4, 6), 3).reshape(len(blocks), -1)
    scales = halves(blocks, 108) * ((low | high << 4).astype(np.int8) - np.int8(32)).astype(np.float32)
    q = np.concatenate([fields(blocks[:, at : at + 32], (0, 2, 4, 6), 3) for at in (32, 64)], 1)
    third = fields(blocks[:, :32], tuple(range(8)), 1)
    return scaled(scales, (q | third << 2).reshape(len(q), -1).astype(np.int8) - np.int8(4))


def six_bits(packed: Blocks) -> tuple[np.ndarray, np.ndarray]:
    """8 scales and 8 minima of 6 bits, which Q4_K and Q5_K keep in 12 bytes: (n, 8) each, uint8."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], 1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], 1)
    return scales, minima


def k_scales(blocks: Blocks) -> tuple[Values, Values]:
    """Scales and minima (n, 8) of Q4_K and Q5_K: d (2), m (2), then six_bits."""
    scales, minima = six_bits(blocks[:, 4:16])
    return halves(blocks, 0) * scales.astype(np.float32), halves(blocks, 2) * minima.astype(np.float32)


def q4_k(blocks: Blocks) -> Values:
    """k_scales (16), 256 x 4 bits: of 32 bytes the low halves, then the high ones."""
    scales, minima = k_scales(blocks)
    q = fields(blocks[:, 16:].reshape(-1, 32), (0, 4), 15).reshape(len(blocks), -1)
    return scaled(scales, q) - np.repeat(minima, 32, 1)


def q5_k(blocks: Blocks) -> Values:
    """k_scales (16), the fifth bits (32), 256 x 4 bits."""
    scales, minima = k_scales(blocks)
    q = fields(blocks[:, 48:].reshape(-1, 32), (0, 4), 15).reshape(len(blocks), -1)
    fifth = fields(blocks[:, 16:48], tuple(range(8)), 1).reshape(len(blocks), -1)
    return scaled(scales, q | fifth << 4) - np.repeat(minima, 32, 1)


def q6_k(blocks: Blocks) -> Values:
    """256 x 4 bits (128), the upper 2 bits (64), 16 signed scales (16), d (2): d s (q - 32)."""
    scales = halves(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    low = fields(blocks[:, :128].reshape(-1, 64), (0, 4), 15).reshape(len(blocks), -1)
    high = fields(blocks[:, 128:192].reshape(-1, 32), (0, 2, 4, 6), 3).reshape(len(blocks), -1)
    return scaled(scales, (low | high << 4).astype(np.int8) - np.int8(32))


def iq4_xs(blocks: Blocks) -> Values:
    """d (2), the upper 2 bits of 8 scales (2), their lower 4 (4), then 32 x 4 bits for each, as in IQ4_NL."""
    upper = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    lower = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], 2).reshape(len(blocks), -1)
    steps = (lower | upper.astype(np.uint8) << 4).astype(np.int8) - np.int8(32)
    scales = halves(blocks, 0) * steps.astype(np.float32)
    return scaled(scales, IQ4[nibbles(blocks[:, 8:].reshape(-1, 16)).reshape(len(blocks), -1)])


def tq1_0(blocks: Blocks) -> Values:
    """-1, 0 and 1: five in a byte as a fraction in base 3 (48), four in each of the last 4 bytes, d (2)."""
    trits = []
    for data, n in ((blocks[:, :32], 5), (blocks[:, 32:48], 5), (blocks[:, 48:52], 4)):
        powers = np.array([1, 3, 9, 27, 81][:n], np.uint8)[:, None]
        shifted = (data[:, None, :] * powers).astype(np.uint16)  # of 8 bits: what overflows is digits passed
        trits.append((shifted * 3 >> 8).reshape(len(data), -1))
    return halves(blocks, 52) * (np.concatenate(trits, 1).astype(np.int8) - np.int8(1)).astype(np.float32)


def tq2_0(blocks: Blocks) -> Values:
    """-1, 0 and 1 in 2 bits each (64), d (2)."""
    q = fields(blocks[:, :64].reshape(-1, 32), (0, 2, 4, 6), 3).reshape(len(blocks), -1)
    return halves(blocks, 64) * (q.astype(np.int8) - np.int8(1)).astype(np.float32)


DECODERS: dict[str, Callable[[Blocks], Values]] = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "IQ4_NL": iq4_nl,
    "MXFP4": mxfp4,
    "NVFP4": nvfp4,
    "Q2_K": q2_k,
    "Q3_K": q3_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "IQ4_XS": iq4_xs,
    "TQ1_0": tq1_0,
    "TQ2_0": tq2_0,
}


def by_library(data: np.ndarray, name: str) -> Values:
    """Rows of a type with a table of grid points. Raises BadFileError where no library knows it."""
    try:
        from gguf import GGMLQuantizationType, quants

        return quants.dequantize(data, GGMLQuantizationType[name])
    except (ImportError, KeyError, NotImplementedError):
        problem = f"weights of the type {name} are read by a library"
        raise BadFileError(f"{problem}: pip install -U gguf") from None


def dequantise(data: np.ndarray, name: str) -> Values:
    """Rows (..., bytes) of a quantised type as float32 (..., values). Raises BadFileError.

    What is not finite is for who takes the values to find.
    """
    with np.errstate(all="ignore"):
        if name not in DECODERS:
            return by_library(data, name)
        size, block_bytes = BLOCKS[name]
        values = DECODERS[name](np.ascontiguousarray(data).reshape(-1, block_bytes))
        return values.reshape(*data.shape[:-1], data.shape[-1] // block_bytes * size)
