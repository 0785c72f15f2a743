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

from bench.shapes import TYPES, Shape
from llama.formats.config import Config
from llama.formats.export import export_bin, export_v3
from llama.formats.source import CLASSIFIER, EMBEDDING, tensor_shapes
from llama.formats.tensor import Tensor
from llama.formats.v3 import Extras

POOL = 4_194_301  # numbers; odd, so that rows do not repeat
SPECIAL = ["<unk>", "<s>", "</s>"]  # BOS is 1, EOS is 2


class RandomWeights(Mapping[str, Tensor]):
    """The weights of a shape under the names of model.py, float32, made when asked for.

    BOS and EOS are never likely, so that no text ends early.
    """

    def __init__(self, config: Config) -> None:
        self._shapes = tensor_shapes(config)
        pool = np.random.default_rng(1).standard_normal(POOL, dtype=np.float32)
        self._pool = np.concatenate((pool, pool))  # any POOL of them lie in a row

    def __getitem__(self, name: str) -> Tensor:
        shape, start = self._shapes[name], zlib.crc32(name.encode()) % POOL
        if len(shape) == 1:
            return Tensor.of(np.ones(shape, np.float32))
        scale = np.float32(shape[1] ** -0.5)

        def rows(begin: int, end: int) -> np.ndarray:
            values = np.empty((end - begin) * shape[1], np.float32)
            for at in range(0, len(values), POOL):
                part = values[at : at + POOL]
                first = (start + begin * shape[1] + at) % POOL
                np.multiply(self._pool[first : first + len(part)], scale, out=part)
            values = values.reshape(-1, shape[1])
            if name in (EMBEDDING, CLASSIFIER):
                values[max(0, 1 - begin) : max(0, 3 - begin)] *= 0.01
            return values

        return Tensor("fp32", shape, rows)

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
