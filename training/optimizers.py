"""Which parameters are trained by what, and how fast: AdamW, Muon, warm-up and decay."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from training.few_bits import adamw_8bit
from training.muon import Muon
from training.options import Options


def is_matrix_of_a_block(name: str, parameter: nn.Parameter) -> bool:
    """What Muon and 8 bits are for: matrices between hidden layers, not the embedding or the classifier."""
    return parameter.ndim == 2 and name.startswith("layers.")


def make_optimizers(model: nn.Module, options: Options) -> list[Optimizer]:
    """AdamW for everything that is trained, or for the matrices of the blocks Muon or AdamW in 8 bits.

    Weight decay holds for matrices, not for norms.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = {n: p for n, p in named.items() if options.optimizer != "adamw" and is_matrix_of_a_block(n, p)}
    rest = [p for n, p in named.items() if n not in matrices]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas, rate = (options.beta1, options.beta2), options.learning_rate
    optimizers: list[Optimizer] = []
    if groups := [group for group in groups if group["params"]]:  # checkpoints take none without parameters
        optimizers.append(torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True))
    if matrices and options.optimizer == "muon":
        rate = options.muon_learning_rate or rate
        optimizers.append(Muon(list(matrices.values()), rate, options.weight_decay))
    elif matrices:
        optimizers.append(adamw_8bit(list(matrices.values()), options))
    return optimizers


def rate_factor(options: Options, step: int) -> float:
    """The learning rate of a step (from 0) as a part of its peak."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    floor = options.min_learning_rate
    if options.schedule == "constant":
        return 1.0
    if options.schedule == "cosine":
        progress = (step - options.warmup_steps) / max(1, options.max_steps - options.warmup_steps)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    decay_steps = max(1, round(options.decay_fraction * options.max_steps))
    left = (options.max_steps - step) / decay_steps
    return floor + (1 - floor) * min(1.0, max(0.0, left))


def set_rates(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Sets each learning rate to a part of the one that its optimizer was made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * factor
