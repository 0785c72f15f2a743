"""Pairs of a chosen and a rejected answer, to train and to evaluate on, with what was said of them before.

The log-probabilities of the model that training begins with are computed once and kept in the folder of the
run, so that no second model is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llama.errors import BadFileError
from llama.files import named, written_aside
from model import IGNORE
from training.batches import in_turn
from training.objectives import log_probabilities
from training.parallel import Ranks, autocast
from training.shards import Shard

REFERENCE = "reference.safetensors"
# Tokens, targets, None, weights: (B, 2, T) each; the reference (B, 2).
Batch = tuple[Tensor, Tensor, None, Tensor, Tensor]


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

    def __str__(self) -> str:
        return f"{len(self):,} pairs of answers of up to {self.seq_len} tokens"

    def weight(self, pairs: Sequence[int]) -> float:
        """How many of them there are: each counts 1."""
        return float(len(pairs))

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


# --- The model before


@torch.no_grad()
def refer(model: nn.Module, answers: Answers, size: int, ranks: Ranks, dtype: str) -> None:
    """Sets the reference to what the model says of all pairs. All ranks call it, in batches of size pairs."""
    model.eval()
    found = []
    for batch in in_turn(answers, size, ranks.data_rank, ranks.data_size):
        with autocast(ranks, dtype):
            on_device = tuple(None if part is None else part.to(ranks.device) for part in batch)
            found.append(log_probabilities(model, on_device).float().cpu())
    model.train()
    mine = torch.cat(found)  # as many on every rank
    parts = [torch.empty_like(mine) for _ in range(ranks.world_size)] if ranks.world_size > 1 else [mine]
    if ranks.world_size > 1:
        dist.all_gather(parts, mine, group=ranks.control)
    parts = parts[:: ranks.cut.tensor]  # of ranks that share blocks all are alike
    answers.reference = torch.stack(parts, dim=1).flatten(0, 1)[: len(answers)].contiguous()


def save_reference(folder: Path, splits: Mapping[str, Answers]) -> None:
    """Keeps the references of a run. Raises OSError."""
    with written_aside(folder / REFERENCE) as scratch:
        save_file({name: answers.reference for name, answers in splits.items()}, scratch)


def load_reference(folder: Path, splits: Mapping[str, Answers]) -> None:
    """Sets the references of a run that is resumed. Raises BadFileError."""
    path = folder / REFERENCE
    if not path.exists():
        raise BadFileError(f"{path}: is missing, and with it what the model said before it was tuned")
    try:
        with named(path):
            found = load_file(path)
    except SafetensorError as error:
        raise BadFileError(f"{path}: is not what was written: {error}") from None
    for name, answers in splits.items():
        if (count := len(found.get(name, ()))) != len(answers):
            raise BadFileError(f"{path}: has {count} pairs for {name}, the data has {len(answers)}")
        answers.reference = found[name]
