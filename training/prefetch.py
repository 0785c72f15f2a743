"""Batches made one step ahead, in a thread, so that the device does not wait for them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from torch import Tensor

Batch = tuple[Tensor | None, ...]  # what the model takes: tokens, targets, and doc_ids and weights or None


class Source(Protocol):
    """What batches come from: text in windows, packed conversations, or a substitute for them."""

    def at(self, step: int) -> Batch:
        """A rank's part of a step."""

    def weight_of(self, step: int) -> float:
        """What the targets of a step count, of all ranks: known without a look at the device."""


class Prefetch:
    """A source's batches. pin: in page-locked memory, from where copies to a GPU do not wait for it."""

    def __init__(self, source: Source, pin: bool) -> None:
        self.source, self.pin = source, pin
        self.thread = ThreadPoolExecutor(1, "batches")
        self.ahead: tuple[int, Future[Batch]] | None = None  # a step, and its batch

    def _make(self, step: int) -> Batch:
        batch = self.source.at(step)
        return tuple(part.pin_memory() if self.pin and part is not None else part for part in batch)

    def at(self, step: int) -> Batch:
        """The batch of a step; the next step's is begun. Raises what the source does."""
        ready = self.ahead is not None and self.ahead[0] == step
        future = self.ahead[1] if ready else self.thread.submit(self._make, step)
        self.ahead = step + 1, self.thread.submit(self._make, step + 1)
        return future.result()
