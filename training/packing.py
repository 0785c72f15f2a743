"""Rows of whole conversations to train and to evaluate on: best-fit packing, each target with its weight.

A row has seq_len places. A document of n tokens takes n - 1 of them, one for each token that is followed by
another; a longer one is cut off at its end. Tokens attend within their document, so what a row holds besides
changes nothing (Ding et al., Fewer Truncations Improve Language Modeling, 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llama.errors import BadFileError
from model import IGNORE
from training.shards import Shard

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

    def __str__(self) -> str:
        cut = f", {self.n_cut:,} of them cut off" if self.n_cut else ""
        return f"{len(self.spans):,} conversations in {len(self):,} rows of {self.seq_len}{cut}"

    def weight(self, rows: Sequence[int]) -> float:
        """What the targets of rows count."""
        return sum(self.weights[row] for row in rows)

    def batch(self, rows: Sequence[int | None]) -> Batch:
        """Rows by number, None for one without a target. Behind its documents a row has token 0."""
        tokens = torch.zeros(len(rows), self.seq_len, dtype=torch.int64)
        targets, doc_ids = torch.full_like(tokens, IGNORE), torch.zeros_like(tokens)
        weights = torch.zeros(tokens.shape)
        for i, row in enumerate(rows):
            at = 0
            for number, document in enumerate(self.rows[row] if row is not None else ()):
                n, begin, end = self.spans[document]
                ids = torch.from_numpy(self.shards[n].read(begin, end))
                place = slice(at, at + len(ids) - 1)
                weighed = torch.from_numpy(self.shards[n].weights[begin + 1 : end].astype(np.float32))
                tokens[i, place], weights[i, place], doc_ids[i, place] = ids[:-1], weighed, number
                targets[i, place] = ids[1:].masked_fill(weighed == 0, IGNORE)
                at = place.stop
            doc_ids[i, at:] = self.seq_len
        return tokens, targets, doc_ids, weights
