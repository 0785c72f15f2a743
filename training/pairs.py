"""Pairs of a chosen and a rejected answer, to train and to evaluate on, with what was said of them before.

The log-probabilities of the model that training begins with are computed once and kept in the folder of the
run, so that no second model is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llama.errors import BadFileError
from llama.files import written_aside
from model import IGNORE
from training.objectives import log_probabilities
from training.parallel import Ranks, autocast
from training.shards import Shard
from training.windows import shuffled

REFERENCE = "reference.safetensors"
Batch = tuple[
    Tensor, Tensor, None, Tensor, Tensor
]  # tokens, targets, None, weights (B, 2, T); reference (B, 2)


class Answers:
    """The pairs of a split, both answers cut off behind seq_len + 1 tokens. Those of which one has no target
    then are left out. reference: the log-probabilities (n, 2) of the model before, 0 until they are set.

    Raises BadFileError if none is left.
    """

    def __init__(self, shards: Sequence[Shard], seq_len: int) -> None:
        self.shards, self.seq_len = shards, seq_len
        self.spans: list[tuple[int, tuple[int, int], tuple[int, int]]] = []  # shard, begin and end of each
        for n, shard in enumerate(shards):
            ends = shard.ends.astype(int).tolist()
            spans = list(zip([0, *ends[:-1]], ends, strict=True))
            cut = [(begin, min(end, begin + seq_len + 1)) for begin, end in spans]
            for pair in zip(cut[::2], cut[1::2], strict=True):
                if all(shard.weights[begin + 1 : end].any() for begin, end in pair):
                    self.spans.append((n, *pair))
        if not self.spans:
            raise BadFileError(f"{shards[0].path.parent}: pairs = 0 in {seq_len} tokens, allowed 1 or more")
        self.reference = torch.zeros(len(self.spans), 2)

    def __len__(self) -> int:
        return len(self.spans)

    def batch(self, pairs: Sequence[int | None]) -> Batch:
        """Pairs by number, None for one without a target."""
        tokens = torch.zeros(len(pairs), 2, self.seq_len, dtype=torch.int64)
        targets, weights = torch.full_like(tokens, IGNORE), torch.zeros(tokens.shape)
        reference = torch.zeros(len(pairs), 2)
        for i, pair in enumerate(pairs):
            if pair is None:
                continue
            n, *spans = self.spans[pair]
            reference[i] = self.reference[pair]
            for side, (begin, end) in enumerate(spans):
                ids, length = torch.from_numpy(self.shards[n].read(begin, end)), end - begin - 1
                weighed = torch.from_numpy(self.shards[n].weights[begin + 1 : end].astype(np.float32))
                tokens[i, side, :length], weights[i, side, :length] = ids[:-1], weighed
                targets[i, side, :length] = ids[1:].masked_fill(weighed == 0, IGNORE)
        return tokens, targets, None, weights, reference

    def in_turn(self, size: int, rank: int, world_size: int, most: int = 0) -> Iterator[Batch]:
        """All pairs, or the first `most`: every world_size-th is a rank's, in batches of at most size.

        Ranks that would have a pair fewer than others get one without a target.
        """
        count = min(len(self), most) if most else len(self)
        mine = [first + rank if first + rank < count else None for first in range(0, count, world_size)]
        return (self.batch(mine[at : at + size]) for at in range(0, len(mine), size))


class Pairs:
    """Training batches of pairs, by step, rank and seed as those of windows.Batches.

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
        self.answers, self.batch_size, self.seed = Answers(shards, seq_len), batch_size, seed
        self.rank, self.world_size = rank, world_size

    def __str__(self) -> str:
        return f"{len(self.answers):,} pairs of answers of up to {self.answers.seq_len} tokens"

    def weight_of(self, step: int) -> float:
        """How many pairs all ranks together have in a step."""
        return float(self.batch_size)

    def at(self, step: int) -> Batch:
        """A rank's part of a step: batch_size / world_size pairs."""
        share = self.batch_size // self.world_size
        index = step * self.batch_size + self.rank * share + np.arange(share)
        return self.answers.batch(shuffled(index, len(self.answers), self.seed).tolist())


# --- The model before


@torch.no_grad()
def refer(model: nn.Module, answers: Answers, size: int, ranks: Ranks, dtype: str) -> None:
    """Sets the reference to what the model says of all pairs. All ranks call it, in batches of size pairs."""
    model.eval()
    found = []
    for batch in answers.in_turn(size, ranks.rank, ranks.world_size):
        with autocast(ranks, dtype):
            on_device = tuple(None if part is None else part.to(ranks.device) for part in batch)
            found.append(log_probabilities(model, on_device).float().cpu())
    model.train()
    mine = torch.cat(found)  # as many on every rank
    parts = [torch.empty_like(mine) for _ in range(ranks.world_size)]
    if ranks.world_size > 1:
        dist.all_gather(parts, mine, group=ranks.control)
    else:
        parts = [mine]
    answers.reference = torch.stack(parts, dim=1).flatten(0, 1)[: len(answers)].contiguous()


def save_reference(folder: Path, splits: dict[str, Answers]) -> None:
    """Keeps the references of a run. Raises OSError."""
    with written_aside(folder / REFERENCE) as scratch:
        save_file({name: answers.reference for name, answers in splits.items()}, scratch)


def load_reference(folder: Path, splits: dict[str, Answers]) -> None:
    """Sets the references of a run that is resumed. Raises BadFileError."""
    path = folder / REFERENCE
    if not path.exists():
        raise BadFileError(f"{path}: is missing, and with it what the model said before it was tuned")
    found = load_file(path)
    for name, answers in splits.items():
        if found[name].shape != answers.reference.shape:
            raise BadFileError(
                f"{path}: has {len(found[name])} pairs for {name}, the data has {len(answers)}"
            )
        answers.reference = found[name]
