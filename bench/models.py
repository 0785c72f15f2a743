"""Random models of any size, as files that the engine reads; gguf_models.py makes those of llama.cpp.

Weights are slices of one pool of normal numbers: they cost a program the same as real ones, and a model of
8 billion weights is written with one tensor in memory at a time. The same shape gives the same weights in
every format, so programs can be held to equal logits.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from bench.shapes import TYPES, Shape
from llama.formats.export import export_bin, export_v3
from llama.formats.source import CLASSIFIER, EMBEDDING, tensor_shapes
from llama.formats.v3 import Extras
from model import Config

POOL = 4_194_301  # numbers; odd, so that rows do not repeat
SPECIAL = ["<unk>", "<s>", "</s>"]  # BOS is 1, EOS is 2


class RandomWeights(Mapping[str, torch.Tensor]):
    """The weights of a shape under the names of model.py, float32, made when asked for.

    BOS and EOS are never likely, so that no text ends early.
    """

    def __init__(self, config: Config) -> None:
        self._shapes = tensor_shapes(config)
        self._pool = np.random.default_rng(1).standard_normal(POOL, dtype=np.float32)

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape)
        values = np.empty(int(np.prod(shape, dtype=np.int64)), np.float32)
        pool = np.roll(self._pool, -zlib.crc32(name.encode()) % POOL)
        for start in range(0, len(values), POOL):
            part = values[start : start + POOL]
            np.multiply(pool[: len(part)], np.float32(shape[-1] ** -0.5), out=part)
        values = values.reshape(shape)
        if name in (EMBEDDING, CLASSIFIER):
            values[1:3] *= 0.01
        return torch.from_numpy(values)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def pieces(vocab_size: int) -> list[str]:
    """A vocabulary of that size: special tokens, bytes, and pieces that no text holds."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    return SPECIAL + bytes_ + [f" w{i}" for i in range(vocab_size - len(SPECIAL) - len(bytes_))]


def write_tokenizer(path: Path, vocab_size: int) -> None:
    texts = [f"\n{piece}\n" if piece in SPECIAL[1:] else piece for piece in pieces(vocab_size)]
    records = (struct.pack("<fi", 0.0, len(text)) + text.encode() for text in texts)
    path.write_bytes(struct.pack("<I", max(map(len, texts))) + b"".join(records))


def write_bin(folder: Path, shape: Shape, kind: str) -> Path:
    """A random model for the engine, with its tokenizer beside it."""
    config, weight_type = Config(**shape), TYPES[kind]
    path, tokenizer, weights = folder / f"{kind}.bin", folder / "tokenizer.bin", RandomWeights(config)
    write_tokenizer(tokenizer, config.vocab_size)
    if weight_type.version == 3:
        export_v3(path, config, weights, weight_type.dtype, extras=Extras(tokenizer.read_bytes()))
    else:  # force: the header has no place for rope_theta, which does not change the speed
        export_bin(path, config, weights, weight_type.version, force=True)
    return path
