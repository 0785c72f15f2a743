"""Adapters as files that the engine runs beside a model, OUT.lora.bin.

docs/format.md has the layout byte by byte; llama/csrc/weights/adapter.h reads it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llama.errors import BadFileError
from llama.files import write_aside
from llama.formats.adapters import Adapter
from llama.formats.config import Config
from llama.formats.tensor import is_finite

SUFFIX = ".lora.bin"
MAGIC, VERSION, ALIGN = b"lora", 1, 64
SHAPE = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim")
MATRICES = (  # of a layer, in the order in which a pass uses them
    *("attention.wq", "attention.wk", "attention.wv", "attention.wo"),
    *("feed_forward.w1", "feed_forward.w3", "feed_forward.w2"),
)


def matrices(config: Config) -> list[str]:
    """The names of all that may have an adapter beside a model, in the order of the file."""
    return [f"layers.{layer}.{matrix}.weight" for layer in range(config.n_layers) for matrix in MATRICES]


def check_matrices(adapter: Adapter, config: Config) -> None:
    """Raises BadFileError for an adapter of other matrices: of the classifier."""
    if others := sorted(set(adapter.pairs).difference(matrices(config))):
        hint = f"can't run beside a model: merge it, cria convert MODEL OUT --lora {adapter.name}"
        raise BadFileError(f"{adapter.name}: adapter of {others[0]} {hint}")


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGN)


def halves(adapter: Adapter, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A (r, in) and B, transposed (r, out), of a matrix, in float32. Raises BadFileError."""
    a, b = (part.floats() for part in adapter.pairs[name])
    found = f"{adapter.name}: adapter of {name} has"
    if not (is_finite(a, "fp32") and is_finite(b, "fp32")):
        raise BadFileError(f"{found} values that are not finite")
    return a, b.T


def parts(adapter: Adapter, config: Config) -> Iterator[bytes]:
    """What follows the header."""
    names = matrices(config)
    ranks = [adapter.pairs[name][0].shape[0] if name in adapter.pairs else 0 for name in names]
    yield struct.pack(f"<{len(ranks)}i", *ranks)
    for name in filter(adapter.pairs.__contains__, names):
        yield from (np.ascontiguousarray(half, "<f4").tobytes() for half in halves(adapter, name))


def write_adapter(path: Path, adapter: Adapter, config: Config, scale: float = 1.0) -> int:
    """Writes an adapter, times scale, for models of this shape; returns the bytes of the file.

    Raises BadFileError for values that are not finite and an adapter of the classifier, OSError.
    """
    check_matrices(adapter, config)
    rest = b"".join(map(padded, parts(adapter, config)))
    head = MAGIC + struct.pack("<7i", VERSION, *(getattr(config, name) for name in SHAPE))
    head += struct.pack("<f", scale * adapter.scale)
    tail = struct.pack("<Q", ALIGN + len(rest)).ljust(ALIGN - len(head) - 4, b"\0")
    crc = zlib.crc32(rest, zlib.crc32(tail, zlib.crc32(head)))
    with write_aside(path) as file:
        file.write(head + struct.pack("<I", crc) + tail + rest)
    return ALIGN + len(rest)
