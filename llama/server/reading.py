"""Texts that are read and not written: log-probabilities of prompts, and embeddings.

Each function is a generator that reads a chunk, yields, and returns its result, so that the texts being
written go on in between.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar

import numpy as np

from llama._engine import ffi, lib
from llama.engine import Llama, alive
from llama.native import call

T = TypeVar("T")
Reading = Generator[None, None, T]
Scored = tuple[float | None, tuple[tuple[int, float], ...]]  # logprob and top, as of llama.batch.Event
CHUNK = 64  # rows, between which others get their turn: a tenth of a second with 135M parameters on two cores


def chunks(ids: Sequence[int]) -> range:
    """Where the chunks begin."""
    return range(0, len(ids), CHUNK)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Rows of natural logarithms of probabilities. logits: (rows, vocab_size)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, dtype=np.float64, keepdims=True)).astype(np.float32)


def most_likely(row: np.ndarray, n: int) -> tuple[tuple[int, float], ...]:
    """The n greatest entries of a row with their indices, the greatest first."""
    if n == 0:
        return ()
    best = np.argpartition(row, -n)[-n:]
    return tuple((int(i), float(row[i])) for i in best[np.argsort(-row[best], kind="stable")])


def scores(llama: Llama, ids: Sequence[int], top: int) -> Reading[list[Scored]]:
    """Log-probabilities of the tokens of a text after those before them, and of the `top` most likely ones.

    The first token has none.
    """
    found: list[Scored] = [(None, ())]
    for start in chunks(ids[:-1]):
        n = min(CHUNK, len(ids) - 1 - start)
        logits = np.empty((n, llama.config.vocab_size), np.float32)
        rows = [(ids[start + i], start + i, 0, 1, 0) for i in range(n)]
        out = ffi.from_buffer("float[]", logits, require_writable=True)
        call(lib.llama_forward, alive(llama._context, "Llama"), rows, n, out)
        for row, token in zip(log_softmax(logits), ids[start + 1 :], strict=False):
            found.append((float(row[token]), most_likely(row, top)))
        yield
    return found


def embedding(llama: Llama, ids: Sequence[int], pooling: str = "mean") -> Reading[np.ndarray]:
    """The mean of the hidden states of a text, or the last one: float32, (dim)."""
    total, hidden = np.zeros(llama.config.dim), np.empty((CHUNK, llama.config.dim), np.float32)
    out = ffi.from_buffer("float[]", hidden, require_writable=True)
    for start in chunks(ids):
        n = min(CHUNK, len(ids) - start)
        rows = [(ids[start + i], start + i, 0, 0, 1) for i in range(n)]
        call(lib.llama_forward_hidden, alive(llama._context, "Llama"), rows, n, ffi.NULL, out)
        total += hidden[:n].sum(axis=0, dtype=np.float64)
        yield
    return (hidden[n - 1] if pooling == "last" else total / len(ids)).astype(np.float32)
