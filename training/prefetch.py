"""Batches made one step ahead, in a thread, so that the device does not wait for them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from torch import Tensor

Batch = tuple[Tensor, Tensor, Tensor | None]  # tokens, targets, doc_ids or None: int64 (B, T) each


class Source(Protocol):
    """What batches come from: training.windows.Batches, or a substitute for it."""

    n_targets: int  # in a step, of all ranks; the same in every step, so that none has to be counted

    def at(self, step: int) -> Batch: ...


class Prefetch:
    """A source's batches. pin: in page-locked memory, from where copies to a GPU do not wait for it."""

    def __init__(self, source: Source, pin: bool) -> None:
        self.source, self.pin = source, pin
        self.thread = ThreadPoolExecutor(1, "batches")
        self.ahead: tuple[int, Future[Batch]] | None = None  # a step, and its batch

    def _make(self, step: int) -> Batch:
        tokens, targets, doc_ids = self.source.at(step)
        if not self.pin:
            return tokens, targets, doc_ids
        return tokens.pin_memory(), targets.pin_memory(), None if doc_ids is None else doc_ids.pin_memory()

    def at(self, step: int) -> Batch:
        """The batch of a step; the next step's is begun. Raises what the source does."""
        ready = self.ahead is not None and self.ahead[0] == step
        future = self.ahead[1] if ready else self.thread.submit(self._make, step)
        self.ahead = step + 1, self.thread.submit(self._make, step + 1)
        return future.result()
