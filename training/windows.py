"""Windows of tokens to train and to evaluate on.

The shards of a split are one stream of tokens. An epoch cuts it into windows of seq_len + 1 tokens that share
their end tokens, from an offset of its own, and walks through them in an order of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from llama.errors import BadFileError
from model import IGNORE
from training.prefetch import Batch
from training.shards import Shard

ROUNDS = 6  # of the Feistel network


class Stream:
    """The tokens of shards, one after another."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        if not shards:
            raise BadFileError("shards = 0, allowed 1 or more")
        self.shards = shards
        self.begins = np.cumsum([0] + [len(shard.tokens) for shard in shards])  # (shards + 1)

    def __len__(self) -> int:
        return int(self.begins[-1])

    def parts(self, start: int, end: int) -> Iterator[tuple[Shard, int, int]]:
        """The shards that hold tokens start to end, with which of theirs these are."""
        for i in range(int(np.searchsorted(self.begins, start, "right")) - 1, len(self.shards)):
            begin = int(self.begins[i])
            if begin >= end:
                break
            yield self.shards[i], max(0, start - begin), min(end - begin, len(self.shards[i].tokens))

    def read(self, start: int, end: int) -> np.ndarray:
        """Tokens start to end, int64, across shards."""
        return np.concatenate([shard.read(*span) for shard, *span in self.parts(start, end)])

    def expected(self, start: int, end: int) -> tuple[np.ndarray, ...]:
        """The same of what is expected after them, where shards have it: ids and probabilities, (n, top)."""
        found = (shard.read_expected(*span) for shard, *span in self.parts(start, end))
        return tuple(map(np.concatenate, zip(*found, strict=True)))


def permute(index: np.ndarray, n: int, keys: np.ndarray) -> np.ndarray:
    """Where each index (B) of range(n) goes in a random order of it, chosen by keys (ROUNDS), all uint64.

    A Feistel network permutes the numbers of an even number of bits; one that comes out past n is sent
    through again, until it is inside (Black and Rogaway, Ciphers with arbitrary finite domains, 2002). So an
    order of billions costs no memory.
    """
    half = np.uint64(max(1, (max(1, n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    out = index.astype(np.uint64)
    outside = np.ones(len(out), dtype=bool)
    while outside.any():
        left, right = out[outside] >> half, out[outside] & mask
        for key in keys:
            left, right = right, left ^ (scramble(right ^ key) & mask)
        out[outside] = left << half | right
        outside = out >= n
    return out


def shuffled(index: np.ndarray, n: int, seed: int) -> np.ndarray:
    """What comes index-th (B) in epochs of n, each in an order of its own."""
    found = np.empty(len(index), np.int64)
    for epoch in np.unique(index // n):
        keys = np.random.SeedSequence([seed, int(epoch)]).generate_state(ROUNDS, np.uint64)
        here = index // n == epoch
        found[here] = permute(index[here] % n, n, keys)
    return found


def scramble(x: np.ndarray) -> np.ndarray:
    """splitmix64's output function, on uint64."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


class Windows:
    """The windows of text to train on, as batches.Sequences. Every token of a window is a target.

    documents: give doc_ids too. Up to 2 seq_len tokens at the ends of the stream are left out of an epoch.

    Raises BadFileError if there are fewer than seq_len + 1 tokens.
    """

    def __init__(self, shards: Sequence[Shard], seq_len: int, seed: int, documents: bool = False) -> None:
        self.stream, self.bos_id = Stream(shards), shards[0].bos_id
        self.seq_len, self.seed, self.documents = seq_len, seed, documents
        if seq_len < 1 or len(self.stream) < seq_len + 1:
            most = len(self.stream) - 1  # the tokens that there are, less one
            raise BadFileError(f"{shards[0].path.parent}: seq_len = {seq_len}, allowed 1 to {most}")
        self.windows = max(1, len(self.stream) // seq_len - 1)

    def __len__(self) -> int:
        return self.windows

    def __str__(self) -> str:
        return f"{len(self.stream):,} tokens, {self.windows:,} windows of {self.seq_len}"

    def starts(self, epoch: int, index: np.ndarray) -> np.ndarray:
        """Where in the stream the windows begin that come index-th (B) in an epoch."""
        offset, *keys = np.random.SeedSequence([self.seed, epoch]).generate_state(1 + ROUNDS, np.uint64)
        slack = len(self.stream) - self.windows * self.seq_len  # at least 1; more: offsets to choose from
        shift = int(offset) % min(self.seq_len, slack)
        order = permute(index, self.windows, np.array(keys))
        return shift + order.astype(np.int64) * self.seq_len

    def weight(self, index: np.ndarray) -> float:
        """How many targets as many windows have."""
        return float(len(index) * self.seq_len)

    def begins(self, index: np.ndarray) -> list[int]:
        """Where in the stream the windows begin that come index-th (B)."""
        found, epochs = np.empty(len(index), np.int64), index // self.windows
        for epoch in np.unique(epochs):
            found[epochs == epoch] = self.starts(int(epoch), index[epochs == epoch] % self.windows)
        return found.tolist()

    def take(self, index: np.ndarray) -> Batch:
        """The windows that come index-th (B): tokens, targets, doc_ids or None, int64 (B, seq_len) each.

        Where shards have what is expected of their tokens, its ids (B, seq_len, top), int64, and their
        probabilities, float32, come behind. The target of a document's last token is the BOS of the next:
        that is how a model learns to end.
        """
        begins = self.begins(index)
        block = np.stack([self.stream.read(begin, begin + self.seq_len + 1) for begin in begins])
        tokens, targets = (torch.from_numpy(np.ascontiguousarray(b)) for b in (block[:, :-1], block[:, 1:]))
        batch = tokens, targets, (tokens == self.bos_id).cumsum(1) if self.documents else None
        if self.stream.shards[0].expected is None:
            return batch
        rows = (self.stream.expected(begin, begin + self.seq_len) for begin in begins)
        return *batch, *(torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))


def val_windows(
    shards: Sequence[Shard], seq_len: int, rank: int = 0, world_size: int = 1, most: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive windows over all tokens, or the first `most`: tokens and targets, int64 (seq_len) each.

    Every world_size-th window is a rank's. All tokens but the first are a target once. What is missing of the
    last window is token 0 and target IGNORE, and so are whole windows of ranks that would have one fewer than
    others: each gathers what the others need.
    """
    stream = Stream(shards)
    count = -(-(len(stream) - 1) // seq_len)
    count = min(count, most) if most else count
    for first in range(0, count, world_size):
        tokens, targets = torch.zeros(seq_len, dtype=torch.int64), torch.full((seq_len,), IGNORE)
        start = (first + rank) * seq_len
        if first + rank < count:
            block = torch.from_numpy(stream.read(start, start + seq_len + 1))
            tokens[: len(block) - 1], targets[: len(block) - 1] = block[:-1], block[1:]
        yield tokens, targets


def val_documents(
    shards: Sequence[Shard], seq_len: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Each document alone: tokens from BOS on, targets, int64 (T <= seq_len) each, and targets left out."""
    documents = (
        (shard, *span) for shard in shards for span in zip([0, *shard.ends[:-1]], shard.ends, strict=True)
    )
    for n, (shard, begin, end) in enumerate(documents):
        length = min(int(end - begin) - 1, seq_len)
        if n % world_size == rank and length > 0:
            block = torch.from_numpy(shard.read(int(begin), int(begin) + length + 1))
            yield block[:-1], block[1:], int(end - begin) - 1 - length
