"""How good the model is: the whole validation shard, llama2.c's estimate beside it, and a story.

The loss is the mean over all targets of the shard, in nats, with the shard cut into windows of max_seq_len at
fixed places; bits per byte is the same sum, in bits, over the bytes of the text, so that vocabularies
compare. llama2.c draws 100 random batches instead; estimate does so too, for comparison with its figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from training.generation import generate
from training.options import Options
from training.parallel import Ranks, autocast
from training.prefetch import Batch
from training.shards import Shard
from training.step import micro_batch_size, micro_batches
from training.windows import Batches, val_windows


@dataclass
class Evaluation:
    """loss: nats per token. bits_per_byte: of the text of the shard."""

    loss: float
    bits_per_byte: float
    tokens: int


def batched(windows: Iterable[tuple[Tensor, Tensor]], size: int, bos_id: int | None) -> Iterator[Batch]:
    """Windows (T,) of tokens and targets, as batches (size, T); the last one may be smaller.

    bos_id: where documents begin, if tokens attend within theirs only.
    """
    windows = iter(windows)
    while group := list(islice(windows, size)):
        tokens, targets = zip(*group, strict=True)
        batch = torch.stack(tokens)
        yield batch, torch.stack(targets), None if bos_id is None else (batch == bos_id).cumsum(1)


@torch.no_grad()
def loss_of(model: nn.Module, batches: Iterable[Batch], options: Options, ranks: Ranks) -> tuple[float, int]:
    """Sum of the loss in nats, and number of targets, over the batches of all ranks, as many on each."""
    model.eval()
    sums = [torch.zeros(2, device=ranks.device)]  # of batches: reading them one by one would wait for each
    for piece in (piece for batch in batches for piece in micro_batches(options, ranks, batch)):
        with autocast(ranks, options.dtype):
            loss, n = model(*piece)
        sums.append(torch.stack((loss, n.to(loss.dtype))))
    model.train()
    total, count = ranks.sum(*torch.stack(sums).to("cpu", torch.float64).sum(dim=0))
    return float(total), int(count)


def bytes_of(shards: list[Shard], n_targets: int) -> float:
    """Bytes of the text that n_targets tokens stand for; nan where the shards do not know."""
    if any(shard.n_bytes is None for shard in shards):
        return math.nan
    n_tokens = sum(len(shard.tokens) for shard in shards)
    return sum(shard.n_bytes for shard in shards) * n_targets / (n_tokens - 1)


def evaluate(model: nn.Module, shards: list[Shard], options: Options, ranks: Ranks) -> Evaluation:
    """The loss on the validation split, or on its first eval_windows windows. All ranks must call it."""
    order = (options.max_seq_len, ranks.rank, ranks.world_size, options.eval_windows)
    bos_id = shards[0].bos_id if options.documents else None
    size = micro_batch_size(options, ranks.world_size)
    total, count = loss_of(model, batched(val_windows(shards, *order), size, bos_id), options, ranks)
    return Evaluation(total / max(1, count), total / math.log(2) / bytes_of(shards, count), count)


def estimate(model: nn.Module, batches: Batches, options: Options, ranks: Ranks) -> float:
    """llama2.c's loss: the mean over estimate_batches random batches of the same split."""
    total, count = loss_of(model, map(batches.at, range(options.estimate_batches)), options, ranks)
    return total / max(1, count)


def story(model: nn.Module, tokenizer: Any, options: Options, step: int) -> str:
    """A text that the model tells now, with a seed of its own so that training does not depend on it."""
    generator = torch.Generator(device=next(model.parameters()).device).manual_seed(options.seed + step)
    ids = tokenizer.encode(options.sample_prompt, bos=True)
    n = min(options.sample_tokens, options.max_seq_len - len(ids))
    model.eval()
    stops = (tokenizer.bos_id, tokenizer.eos_id)
    with torch.compiler.set_stance("force_eager"):  # a token at a time, it would be compiled for each length
        new = list(generate(model, ids, n, temperature=0.8, top_p=0.9, generator=generator, stop_ids=stops))
    model.train()
    return tokenizer.decode(ids + new)
