"""How good the model is: the whole validation shard, llama2.c's estimate beside it, and a story.

The loss is the mean over all targets of the shard, in nats, with the shard cut into windows of max_seq_len at
fixed places; bits per byte is the same sum, in bits, over the bytes of the text, so that vocabularies
compare. llama2.c draws 100 random batches instead; estimate does so too, for comparison with its figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from training.generation import generate
from training.objectives import LANGUAGE, Objective
from training.options import Options
from training.parallel import Ranks, autocast
from training.prefetch import Batch, Source
from training.shards import Shard
from training.sources import val_batches
from training.step import micro_batch_size, micro_batches


@dataclass
class Evaluation:
    """means: of what the objective names. bits_per_byte: of the text of the shard, nan where it has none.
    weight: what all targets count."""

    means: dict[str, float]
    bits_per_byte: float
    weight: float

    @property
    def loss(self) -> float:
        return self.means["loss"]


@torch.no_grad()
def sums_of(
    model: nn.Module, batches: Iterable[Batch], options: Options, ranks: Ranks, objective: Objective
) -> tuple[list[float], float]:
    """The objective's sums, and what all targets count, over the batches of all ranks, as many on each."""
    model.eval()
    sums = [
        torch.zeros(len(objective.names) + 1, device=ranks.device)
    ]  # one by one, each would be waited for
    for piece in (piece for batch in batches for piece in micro_batches(options, ranks, batch)):
        with autocast(ranks, options.dtype):
            found, n = objective(model, piece)
        sums.append(torch.cat((found, n[None].to(found.dtype))))
    model.train()
    *totals, count = map(float, ranks.sum(*torch.stack(sums).to("cpu", torch.float64).sum(dim=0)))
    return totals, count


def bytes_of(shards: list[Shard], n_targets: float) -> float:
    """Bytes of the text that n_targets tokens stand for; nan where the shards do not know."""
    if any(shard.n_bytes is None or shard.weights is not None for shard in shards):
        return math.nan
    n_tokens = sum(len(shard.tokens) for shard in shards)
    return sum(shard.n_bytes for shard in shards) * n_targets / (n_tokens - 1)


def evaluate(
    model: nn.Module,
    shards: list[Shard],
    options: Options,
    ranks: Ranks,
    objective: Objective = LANGUAGE,
    batches: Iterable[Batch] | None = None,
) -> Evaluation:
    """The loss on the validation split, or on its first eval_windows windows. All ranks must call it.

    batches: those of the split, None where the shards say all of them.
    """
    size = micro_batch_size(options, ranks.data_size)
    totals, weight = sums_of(
        model, batches or val_batches(shards, options, ranks, size), options, ranks, objective
    )
    means = {
        name: total / weight if weight else 0.0 for name, total in zip(objective.names, totals, strict=True)
    }
    return Evaluation(means, totals[0] / math.log(2) / bytes_of(shards, weight), weight)


def mixed(parts: Sequence[tuple[float, Evaluation]]) -> Evaluation:
    """Of a mixture: the means over its parts, by their shares."""
    names = parts[0][1].means

    def mean(value_of: Callable[[Evaluation], float]) -> float:
        return sum(share * value_of(result) for share, result in parts)

    means = {name: mean(lambda result, name=name: result.means[name]) for name in names}
    weight = sum(result.weight for _, result in parts)
    return Evaluation(means, mean(lambda result: result.bits_per_byte), weight)


def estimate(model: nn.Module, batches: Source, options: Options, ranks: Ranks) -> float:
    """llama2.c's loss: the mean over estimate_batches random batches of the same split."""
    chosen = map(batches.at, range(options.estimate_batches))
    (total,), count = sums_of(model, chosen, options, ranks, LANGUAGE)
    return total / count if count else 0.0


def story(model: nn.Module, tokenizer: Any, options: Options, step: int) -> str:
    """A text that the model tells now, with a seed of its own so that training does not depend on it."""
    generator = torch.Generator(device=next(model.parameters()).device)
    generator.manual_seed((options.seed + step) % 2**64)
    ids = tokenizer.encode(options.sample_prompt, bos=True)
    n = min(options.sample_tokens, options.max_seq_len - len(ids))
    model.eval()
    stops = (tokenizer.bos_id, tokenizer.eos_id)
    with torch.compiler.set_stance("force_eager"):  # a token at a time, it would be compiled for each length
        new = list(generate(model, ids, n, temperature=0.8, top_p=0.9, generator=generator, stop_ids=stops))
    model.train()
    return tokenizer.decode(ids + new)
