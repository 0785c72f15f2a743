"""Steps of a run, cut from what data holds, in an order of its own for each epoch.

Data is sequences that come one after another without an end, epoch after epoch, or items that are shuffled
so. A step takes the next batch_size of them: a pure function of step, seed and rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from llama.errors import BadFileError
from training.prefetch import Batch
from training.windows import shuffled


class Sequences(Protocol):
    """What a run trains on, by when it comes: index counts over all epochs, len is that of one."""

    def __len__(self) -> int: ...

    def take(self, index: np.ndarray) -> Batch:
        """What comes index-th (B): tensors (B, ...), the first of which are the tokens."""

    def weight(self, index: np.ndarray) -> float:
        """What the targets of these count."""


class Items(Protocol):
    """What is packed, or paired: a batch by numbers, None for one without a target."""

    def __len__(self) -> int: ...

    def batch(self, numbers: Sequence[int | None]) -> Batch: ...

    def weight(self, numbers: Sequence[int]) -> float: ...


class Shuffled:
    """Items as sequences, each epoch in another order."""

    def __init__(self, items: Items, seed: int) -> None:
        self.items, self.seed = items, seed

    def __len__(self) -> int:
        return len(self.items)

    def __str__(self) -> str:
        return str(self.items)

    def numbers(self, index: np.ndarray) -> list[int]:
        """Which items come index-th."""
        return shuffled(index, len(self.items), self.seed).tolist()

    def take(self, index: np.ndarray) -> Batch:
        return self.items.batch(self.numbers(index))

    def weight(self, index: np.ndarray) -> float:
        return self.items.weight(self.numbers(index))


class Batches:
    """Training batches, a prefetch.Source: `at(step)` is a pure function of the sequences, step and rank.

    batch_size: sequences in a step, of all ranks together; rank r gets the r-th of world_size equal parts, so
    the data of a step does not depend on the number of ranks. A step on the border of two epochs takes the
    last sequences of one and the first of the next.

    Raises BadFileError if world_size does not divide batch_size.
    """

    def __init__(self, sequences: Sequences, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
            raise BadFileError(f"batch_size = {batch_size}, allowed multiples of world_size = {world_size}")
        self.sequences, self.batch_size = sequences, batch_size
        self.rank, self.world_size = rank, world_size

    def __str__(self) -> str:
        return str(self.sequences)

    def index(self, step: int) -> np.ndarray:
        """The sequences of a step, of all ranks: (batch_size)."""
        return step * self.batch_size + np.arange(self.batch_size)

    def steps_of(self, epochs: float) -> int:
        """How many steps see the data that often."""
        return max(1, math.ceil(epochs * len(self.sequences) / self.batch_size))

    def weight_of(self, step: int) -> float:
        """What the targets of a step count, over all ranks."""
        return self.sequences.weight(self.index(step))

    def at(self, step: int) -> Batch:
        """A rank's part of a step: batch_size / world_size sequences."""
        return self.sequences.take(np.split(self.index(step), self.world_size)[self.rank])


def in_turn(items: Items, size: int, rank: int = 0, world_size: int = 1, most: int = 0) -> Iterator[Batch]:
    """All items, or the first `most`: every world_size-th is a rank's, in batches of at most size.

    Ranks that would have one fewer than others get one without a target.
    """
    count = min(len(items), most) if most else len(items)
    mine = [first + rank if first + rank < count else None for first in range(0, count, world_size)]
    return (items.batch(mine[at : at + size]) for at in range(0, len(mine), size))
