"""Tiny random models for the tests: their weights, the files of all versions, and a float64 reference.

The reference is written from the formulas, in PyTorch, and shares nothing with the engine. Shapes: T tokens,
D = dim, H = n_heads, K = n_kv_heads, d = head_dim.
"""

from __future__ import annotations

import itertools
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

MAGIC = 0x616B3432
HEADER = {0: 28, 1: 256, 2: 256}  # bytes, by version
NORMS = ("attention_norm", "ffn_norm", "norm")
MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
V0_ORDER = (
    "tok_embeddings",
    "attention_norm",
    *MATRICES[:4],
    "ffn_norm",
    *MATRICES[4:],
    "norm",
    "freqs",
    "output",
)
V1_ORDER = (*NORMS, "tok_embeddings", *MATRICES, "output")

Weights = dict[str, np.ndarray]  # by name; tensors of layers are stacked (n_layers, rows, cols)


@dataclass(frozen=True)
class Shape:
    """What the header of a file says, and the group size of its int8 form."""

    dim: int = 64
    hidden_dim: int = 192
    n_layers: int = 2
    n_heads: int = 8
    n_kv_heads: int = 4
    vocab_size: int = 96
    max_seq_len: int = 160
    tied: bool = True
    group_size: int = 32

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    def header(self) -> tuple[int, ...]:
        return (
            self.dim,
            self.hidden_dim,
            self.n_layers,
            self.n_heads,
            self.n_kv_heads,
            self.vocab_size,
            self.max_seq_len,
        )


def random_weights(shape: Shape, seed: int = 0) -> Weights:
    """Weights whose logits spread over a few units, so that errors show."""
    rng = np.random.default_rng(seed)
    dim, hidden, layers = shape.dim, shape.hidden_dim, shape.n_layers
    kv_dim = shape.n_kv_heads * shape.head_dim
    sizes = {
        "wq": (layers, dim, dim),
        "wk": (layers, kv_dim, dim),
        "wv": (layers, kv_dim, dim),
        "wo": (layers, dim, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "tok_embeddings": (shape.vocab_size, dim),
        "output": (shape.vocab_size, dim),
    }
    weights = {name: rng.normal(0, size[-1] ** -0.5, size).astype(np.float32) for name, size in sizes.items()}
    weights["tok_embeddings"] *= dim**0.5
    for name in NORMS:
        size = (dim,) if name == "norm" else (layers, dim)
        weights[name] = rng.uniform(0.5, 1.5, size).astype(np.float32)
    if shape.tied:
        weights["output"] = weights["tok_embeddings"] = weights["tok_embeddings"] / np.float32(dim**0.5)
    return weights


def quantise(values: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 values and fp32 scales of groups of neighbours: scale = max |w| / 127."""
    groups = values.reshape(-1, group_size).astype(np.float32)
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    return np.rint(groups * inverse[:, None]).astype(np.int8), scales


def dequantised(weights: Weights, group_size: int) -> Weights:
    """The weights that an int8 file stands for, in float64."""
    result = {}
    for name, values in weights.items():
        if name in NORMS:
            result[name] = values.astype(np.float64)
            continue
        q, scales = quantise(values, group_size)
        result[name] = (q * scales[:, None].astype(np.float64)).reshape(values.shape)
    return result


def header_v1(shape: Shape, version: int) -> bytes:
    """The 256 bytes of a v1 header, or of a v2 one with its group size."""
    fields = struct.pack("<Ii7iB", MAGIC, version, *shape.header(), shape.tied)
    if version == 2:
        fields += struct.pack("<i", shape.group_size)
    return fields.ljust(256, b"\0")


def v0(shape: Shape, weights: Weights) -> bytes:
    fields = list(shape.header())
    fields[5] *= 1 if shape.tied else -1
    freqs = np.zeros(shape.max_seq_len * shape.head_dim, np.float32)  # skipped by readers
    names = V0_ORDER if not shape.tied else V0_ORDER[:-1]
    return struct.pack("<7i", *fields) + b"".join({**weights, "freqs": freqs}[n].tobytes() for n in names)


def v1(shape: Shape, weights: Weights) -> bytes:
    names = V1_ORDER if not shape.tied else V1_ORDER[:-1]
    return header_v1(shape, 1) + b"".join(weights[name].tobytes() for name in names)


def v2(shape: Shape, weights: Weights) -> bytes:
    data = [header_v1(shape, 2)]
    for name in V1_ORDER if not shape.tied else V1_ORDER[:-1]:
        layers = [weights[name]] if weights[name].ndim < 3 else weights[name]
        for values in layers:  # int8, then its scales, layer by layer
            parts = (values,) if name in NORMS else quantise(values, shape.group_size)
            data += [part.tobytes() for part in parts]
    return b"".join(data)


def file_size(version: int, shape: Shape) -> int:
    """What a file of this shape has, header included."""
    d, h, n, kv_dim = shape.dim, shape.hidden_dim, shape.n_layers, shape.n_kv_heads * shape.head_dim
    matrices = (shape.vocab_size * d) * (1 if shape.tied else 2) + n * (
        2 * d * d + 2 * kv_dim * d + 3 * h * d
    )
    norms, rope = 4 * d * (2 * n + 1), 4 * shape.max_seq_len * shape.head_dim if version == 0 else 0
    weight_bytes = matrices + 4 * matrices // shape.group_size if version == 2 else 4 * matrices
    return HEADER[version] + norms + rope + weight_bytes


def write_zeros(path: Path, shape: Shape) -> None:
    """Writes a v1 file of any size, whose weights are 0 and take no block of the disk."""
    path.write_bytes(header_v1(shape, 1))
    os.truncate(path, file_size(1, shape))


WRITERS = {0: v0, 1: v1, 2: v2}


def write(path: Path, shape: Shape, version: int = 0, seed: int = 0) -> Weights:
    """Writes a random model and returns its weights."""
    weights = random_weights(shape, seed)
    path.write_bytes(WRITERS[version](shape, weights))
    return weights


# --- v3, read by docs/format.md alone

V3_LAYER = ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w3", "w2")


def read_tiles(data: bytes, rows: int, cols: int, bits: int) -> np.ndarray:
    """A matrix of int8 or int4 in tiles, as float64 (rows, cols)."""
    groups, n = -(-cols // 32), 512 if bits == 8 else 256
    tile = -(-groups // 2) * 64 + groups * n
    out = np.zeros((-(-rows // 16) * 16, groups * 32))
    assert len(data) == len(out) // 16 * tile
    for t in range(len(out) // 16):
        for g in range(groups):
            block = t * tile + g // 2 * (64 + 2 * n)
            scales = np.frombuffer(data, "<f2", 16, block + g % 2 * 32).astype(np.float64)
            packed = np.frombuffer(data, np.uint8, n, block + 64 + g % 2 * n).reshape(-1, 16, 4).astype(int)
            if bits == 8:
                values = packed - 128  # (8 chunks, 16 rows, 4 columns)
            else:
                values = np.stack((packed & 15, packed >> 4), 1).reshape(8, 16, 4) - 8
            group = values.transpose(1, 0, 2).reshape(16, 32) * scales[:, None]
            out[16 * t : 16 * t + 16, 32 * g : 32 * g + 32] = group
    return out[:rows, :cols]


def read_float_tiles(data: bytes, rows: int, cols: int, size: int) -> np.ndarray:
    """The weights of a matrix of fp32 (size 4) or bf16 (size 2) in tiles of 16 rows."""
    together = 4 // size  # columns side by side
    if size == 4:
        values = np.frombuffer(data, "<f4")
    else:
        values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    tiles, places = -(-rows // 16), -(-cols // together)
    values = values.reshape(tiles, places, 16, together).transpose(0, 2, 1, 3)
    return values.reshape(tiles * 16, places * together)[:rows, :cols].astype(np.float64)


def read_v3(path: Path) -> tuple[dict[str, object], Weights, bytes]:
    """The header, the weights in float64 and the tokenizer of a v3 file, with every checksum compared."""
    data = path.read_bytes()
    names = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
    head: dict[str, object] = dict(zip(names, struct.unpack_from("<7i", data, 8), strict=True))
    head |= {"tied": data[36] == 1, "head_dim": struct.unpack_from("<i", data, 40)[0]}
    head |= dict(zip(("norm_eps", "rope_theta"), struct.unpack_from("<2f", data, 44), strict=True))
    n_tensors, begin, size, total = struct.unpack_from("<i4x3Q", data, 120)
    assert (begin, total) == (256 + 32 * n_tensors, len(data))
    checked = 64 if data[begin : begin + 4] == b"ltok" else size  # an indexed tokenizer has its own checksum
    flags, *lengths = struct.unpack_from("<4I", data, 152)
    ends = list(itertools.accumulate(lengths, initial=begin + size))
    head |= {"flags": flags, "texts": [data[at:end] for at, end in itertools.pairwise(ends)]}
    checksum = zlib.crc32(data[256 : begin + checked], zlib.crc32(data[:252]))
    checksum = zlib.crc32(data[begin + size : ends[-1]], checksum)
    assert struct.unpack_from("<I", data, 252)[0] == checksum
    layers = [f"{name}.{i}" for i in range(int(str(head["n_layers"]))) for name in V3_LAYER]
    weights: dict[str, list[np.ndarray]] = {}
    for i, name in enumerate(["tok_embeddings", *layers, "norm", *([] if head["tied"] else ["output"])]):
        kind, rows, cols, crc, offset, n = struct.unpack_from("<3iI2Q", data, 256 + 32 * i)
        part = data[offset : offset + n]
        assert zlib.crc32(part) == crc
        assert offset % 64 == 0
        if rows == 1:
            values = np.frombuffer(part, "<f4").astype(np.float64)
        elif kind in (0, 2):
            values = read_float_tiles(part, rows, cols, 4 if kind == 0 else 2)
        else:
            values = read_tiles(part, rows, cols, 8 if kind == 1 else 4)
        weights.setdefault(name.split(".")[0], []).append(values.reshape(rows, cols))
    stacked = {name: np.stack(parts) for name, parts in weights.items()}
    for name in NORMS:
        stacked[name] = stacked[name][:, 0]
    for name in ("tok_embeddings", "norm", *([] if head["tied"] else ["output"])):
        stacked[name] = stacked[name][0]
    if head["tied"]:
        stacked["output"] = stacked["tok_embeddings"]
    return head, stacked, data[begin : begin + size]


# --- The reference


def fake_quantise(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """x as int8 activations stand for it: rounded to 127 steps of each group's largest value."""
    if group_size == 0:
        return x
    cols = x.shape[-1]
    padded = torch.nn.functional.pad(x, (0, -cols % group_size))  # the last group may be longer than the row
    groups = padded.reshape(-1, group_size)
    scales = groups.abs().amax(dim=1, keepdim=True) / 127
    return (torch.round(groups / scales.clamp(min=1e-30)) * scales).reshape(padded.shape)[..., :cols]


def rmsnorm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    return weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def rotate(x: torch.Tensor, theta: float = 10000.0) -> torch.Tensor:
    """RoPE on x (T, heads, d): pairs (2 j, 2 j + 1) turned by position / theta^(2 j / d)."""
    length, _, d = x.shape
    frequencies = theta ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None, :]  # (T, 1, d / 2)
    pairs = torch.view_as_complex(x.to(torch.float64).reshape(length, -1, d // 2, 2))
    return torch.view_as_real(pairs * turn).reshape(x.shape).to(x.dtype)


def attention(shape: Shape, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of q (T, H, d) to k, v (T, K, d), returned as (T, D)."""
    share = shape.n_heads // shape.n_kv_heads
    k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / shape.head_dim**0.5
    future = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    weights = torch.softmax(scores.masked_fill(future, -torch.inf), dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, v).reshape(len(q), -1)


def reference_logits(
    shape: Shape,
    weights: Weights,
    ids: list[int],
    dtype: torch.dtype = torch.float64,
    group_size: int = 0,
    activations: torch.dtype | None = None,
    kv: torch.dtype | None = None,
) -> np.ndarray:
    """Logits (T, vocab_size).

    group_size > 0: activations are quantised before each matmul. activations, kv: what these, and keys and
    values, are rounded to, int8 with a scale for each head.
    """
    w = {name: torch.from_numpy(np.asarray(values)).to(dtype) for name, values in weights.items()}

    def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = x if activations is None else x.to(activations).to(dtype)
        return fake_quantise(x, group_size) @ weight.T

    def rounded(y: torch.Tensor) -> torch.Tensor:
        if kv is torch.int8:
            return fake_quantise(y, shape.head_dim)
        return y if kv is None else y.to(kv).to(dtype)

    x = w["tok_embeddings"][torch.tensor(ids)]
    for layer in range(shape.n_layers):
        h = rmsnorm(x, w["attention_norm"][layer])
        q, k, v = (linear(h, w[n][layer]).reshape(len(ids), -1, shape.head_dim) for n in ("wq", "wk", "wv"))
        k, v = (rounded(y) for y in (rotate(k), v))
        x = x + linear(attention(shape, rotate(q), k, v), w["wo"][layer])
        h = rmsnorm(x, w["ffn_norm"][layer])
        gated = torch.nn.functional.silu(linear(h, w["w1"][layer])) * linear(h, w["w3"][layer])
        x = x + linear(gated, w["w2"][layer])
    return linear(rmsnorm(x, w["norm"]), w["output"]).to(torch.float64).numpy()
