"""One step of training: micro batches forward and backward, clipped gradients, the optimizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llama.errors import UsageError
from model import Llama
from training import parallel
from training.checkpoints import About, Progress
from training.objectives import LANGUAGE, Objective
from training.optimizers import make_optimizers, rate_factor, set_rates
from training.options import Options
from training.pairs import Answers
from training.parallel import Ranks
from training.prefetch import Batch, Prefetch, Source
from training.saving import Saver


@dataclass
class Run:
    """All that a training step uses."""

    options: Options
    ranks: Ranks
    model: nn.Module  # as the loop calls it
    optimizers: list[torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    batches: Source
    progress: Progress
    answers: Mapping[str, Answers] = field(default_factory=dict)  # of each split, where batches are of pairs
    objective: Objective = LANGUAGE
    about: About = field(default_factory=About)
    stopping: bool = False  # a signal asked for the end
    ahead: Prefetch = field(init=False)
    saver: Saver = field(init=False)  # set by whoever saves

    def __post_init__(self) -> None:
        self.ahead = Prefetch(self.batches, pin=self.ranks.device.type == "cuda")


def make_run(model: Llama, options: Options, ranks: Ranks, batches: Source) -> Run:
    """The beginning of a run: the model wrapped for the ranks and compiled, fresh optimizers, step 0."""
    wrapped = parallel.wrap(model, ranks, options.dtype, options.compile)
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=options.dtype == "float16")
    return Run(options, ranks, wrapped, make_optimizers(model, options), scaler, batches, Progress())


def micro_batch_size(options: Options, n_ranks: int) -> int:
    """Sequences that a rank runs at once. Raises UsageError if steps can't be cut that way."""
    of_rank = options.batch_size // n_ranks
    size = min(options.micro_batch_size or of_rank, of_rank)
    if size < 1 or options.batch_size % (size * n_ranks):
        found = f"batch_size = {options.batch_size}, micro_batch_size = {size}, {n_ranks} ranks"
        raise UsageError(f"{found}: batch_size must be a multiple of the other two")
    return size


def micro_batches(options: Options, ranks: Ranks, batch: Batch) -> Iterator[tuple[Any, ...]]:
    """A batch in pieces, on the device."""
    size = micro_batch_size(options, ranks.data_size)
    for start in range(0, len(batch[0]), size):
        yield tuple(
            None if part is None else part[start : start + size].to(ranks.device, non_blocking=True)
            for part in batch
        )


def clip(run: Run) -> Tensor:
    """Scales the gradients down to a norm of grad_clip. Returns the norm before."""
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    if run.options.grad_clip:
        torch.nn.utils.clip_grads_with_norm_(parameters, run.options.grad_clip, norm)
    return norm


def train_step(run: Run) -> tuple[Tensor, float, Tensor]:
    """One step of the optimizers. Nothing in it waits for the device, so that it always has work.

    Returns the objective's sums of this rank, what all ranks' targets count, and the gradient norm.

    The loss is divided by what the targets of the whole step count, over micro batches and ranks, so that how
    a batch is cut does not change what is learnt.
    """
    options, ranks = run.options, run.ranks
    set_rates(run.optimizers, rate_factor(options, run.progress.step))
    weight = run.batches.weight_of(run.progress.step)
    pieces = list(micro_batches(options, ranks, run.ahead.at(run.progress.step)))
    total = torch.zeros(len(run.objective.names), device=ranks.device)
    for i, piece in enumerate(pieces):
        with parallel.synchronised(run.model, ranks, last=i == len(pieces) - 1):
            with parallel.autocast(ranks, options.dtype):
                sums, _ = run.objective(run.model, piece)
            total += sums.detach()
            # Ranks' gradients are averaged, which divides by their number once more.
            run.scaler.scale(sums[0] * (ranks.data_size / weight)).backward()
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    norm = clip(run)
    for optimizer in run.optimizers:
        run.scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    run.scaler.update()
    return total, weight, norm
