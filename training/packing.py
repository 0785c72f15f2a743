"""Rows of whole conversations to train and to evaluate on: best-fit packing, each target with its weight.

A row has seq_len places. A document of n tokens takes n - 1 of them, one for each token that is followed by
another; a longer one is cut off at its end. Tokens attend within their document, so what a row holds besides
changes nothing (Ding et al., Fewer Truncations Improve Language Modeling, 2024).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from llama.errors import BadFileError
from model import IGNORE
from training.shards import Shard
from training.windows import shuffled

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # tokens, targets, doc_ids; weights, float32: (B, T) each


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which documents share a row of `room` places, the longest first, each where the least room is left.

    lengths: 1 to room. The rooms that are left in any row are bits of one number, so that the smallest that
    is large enough is found at once.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(room + 1)]  # rows, by the room that they have left
    bits = 0
    for document in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[document]
        fitting = bits >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            row = with_room[left].pop()
            bits ^= 0 if with_room[left] else 1 << left
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(document)
        if left > length:
            with_room[left - length].append(row)
            bits |= 1 << left - length
    return rows


class Rows:
    """The documents of a split, packed. Those without a target that counts are left out.

    Raises BadFileError if none is left.
    """

    def __init__(self, shards: Sequence[Shard], seq_len: int) -> None:
        self.shards, self.seq_len = shards, seq_len
        self.spans: list[tuple[int, int, int]] = []  # shard, begin, end
        sums, self.n_cut = [], 0
        for n, shard in enumerate(shards):
            begin = 0
            for end in map(int, shard.ends):
                last = min(end, begin + seq_len + 1)
                weight = float(shard.weights[begin + 1 : last].sum(dtype=np.float64))
                if weight > 0:
                    self.n_cut += last < end
                    self.spans.append((n, begin, last))
                    sums.append(weight)
                begin = end
        if not self.spans:
            raise BadFileError(f"{shards[0].path.parent}: targets = 0 in {seq_len} tokens, allowed 1 or more")
        self.rows = best_fit([end - begin - 1 for _, begin, end in self.spans], seq_len)
        self.weights = [sum(sums[i] for i in row) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Sequence[int | None]) -> Batch:
        """Rows by number, None for one without a target. Behind its documents a row has token 0."""
        tokens = torch.zeros(len(rows), self.seq_len, dtype=torch.int64)
        targets, doc_ids = torch.full_like(tokens, IGNORE), torch.zeros_like(tokens)
        weights = torch.zeros(tokens.shape)
        for i, row in enumerate(rows):
            at = 0
            for number, document in enumerate(self.rows[row] if row is not None else ()):
                n, begin, end = self.spans[document]
                ids, place = (
                    torch.from_numpy(self.shards[n].read(begin, end)),
                    slice(at, at + end - begin - 1),
                )
                weighed = torch.from_numpy(self.shards[n].weights[begin + 1 : end].astype(np.float32))
                tokens[i, place], weights[i, place], doc_ids[i, place] = ids[:-1], weighed, number
                targets[i, place] = ids[1:].masked_fill(weighed == 0, IGNORE)
                at = place.stop
            doc_ids[i, at:] = self.seq_len
        return tokens, targets, doc_ids, weights


class Packed:
    """Training batches of packed conversations, by step, rank and seed as those of windows.Batches.

    Raises BadFileError if world_size does not divide batch_size, or nothing is to be learnt.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        batch_size: int,
        seq_len: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
            raise BadFileError(f"batch_size = {batch_size}, allowed multiples of world_size = {world_size}")
        self.rows, self.batch_size, self.seed = Rows(shards, seq_len), batch_size, seed
        self.rank, self.world_size = rank, world_size

    def __str__(self) -> str:
        rows = self.rows
        cut = f", {rows.n_cut:,} of them cut off" if rows.n_cut else ""
        return f"{len(rows.spans):,} conversations in {len(rows):,} rows of {rows.seq_len}{cut}"

    def _rows_of(self, step: int) -> list[int]:
        """The rows of a step, of all ranks."""
        index = step * self.batch_size + np.arange(self.batch_size)
        return shuffled(index, len(self.rows), self.seed).tolist()

    def weight_of(self, step: int) -> float:
        """The sum of the weights of a step's targets, over all ranks."""
        return sum(self.rows.weights[row] for row in self._rows_of(step))

    def at(self, step: int) -> Batch:
        """A rank's part of a step: batch_size / world_size rows."""
        share = self.batch_size // self.world_size
        return self.rows.batch(self._rows_of(step)[self.rank * share : (self.rank + 1) * share])


def val_rows(
    shards: Sequence[Shard], seq_len: int, size: int, rank: int = 0, world_size: int = 1, most: int = 0
) -> Iterator[Batch]:
    """All rows, or the first `most`, in batches of at most size; every world_size-th is a rank's.

    Ranks that would have a row fewer than others get one without a target.
    """
    rows = Rows(shards, seq_len)
    count = min(len(rows), most) if most else len(rows)
    mine = [first + rank if first + rank < count else None for first in range(0, count, world_size)]
    return (rows.batch(mine[at : at + size]) for at in range(0, len(mine), size))
