"""What is minimised: the loss of a language model, or of preferences between two answers (DPO).

A preference's loss is that of Rafailov et al. (Direct Preference Optimization, 2023). How much more likely an
answer became than it was for the model that training began with is c for the chosen one and r for the other:

    h = beta (c - r - positive max(0, -c))          c, r = log p(answer) - log p0(answer)
    loss = -(1 - smoothing) log sigmoid(h) - smoothing log sigmoid(-h)

smoothing is the part of pairs that may be the wrong way round (Mitchell, A note on DPO with noisy
preferences, 2023), positive keeps the chosen answer from becoming less likely too (Pal et al., Smaug, 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama.errors import UsageError
from training.options import Options


class Objective(Protocol):
    """What is minimised of a batch, or of a part of one.

    names: of the sums that it gives, the first of which is the loss.
    """

    names: tuple[str, ...]

    def __call__(self, model: nn.Module, batch: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """The sums over what counts (n names), and what all of it counts."""


class Language:
    """The cross entropy of the next token, in nats, of targets and what each counts."""

    names = ("loss",)

    def __call__(self, model: nn.Module, batch: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        loss, count = model(*batch)
        return loss[None], count


LANGUAGE = Language()


def preference_loss(
    policy: Tensor, reference: Tensor, beta: float, smoothing: float = 0.0, positive: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The loss (B), and the rewards (B, 2), of log-probabilities of chosen and rejected answers (B, 2)."""
    ratios = policy - reference
    h = beta * (ratios[:, 0] - ratios[:, 1] - positive * (-ratios[:, 0]).clamp(min=0))
    loss = -(1 - smoothing) * F.logsigmoid(h) - smoothing * F.logsigmoid(-h)
    return loss, (beta * ratios).detach()


def log_probabilities(model: nn.Module, batch: tuple[Any, ...]) -> Tensor:
    """Of the two answers of each pair (B, 2). batch: tokens, targets, doc_ids, weights, (B, 2, T) or None."""
    flat = (None if part is None else part.flatten(0, 1) for part in batch[:4])
    return -model(*flat, each=True)[0].unflatten(0, (-1, 2))


@dataclass(frozen=True)
class Preference:
    """DPO, of batches (B, 2, T) that end with the reference's log-probabilities (B, 2)."""

    beta: float
    smoothing: float = 0.0
    positive: float = 0.0
    names = ("loss", "reward_chosen", "reward_rejected", "margin", "accuracy")

    def __call__(self, model: nn.Module, batch: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        policy, counts = log_probabilities(model, batch), (batch[3] > 0).any(dim=-1).all(dim=-1)
        loss, rewards = preference_loss(policy, batch[4], self.beta, self.smoothing, self.positive)
        margin = rewards[:, 0] - rewards[:, 1]
        sums = torch.stack((loss, *rewards.unbind(1), margin, (margin > 0).to(loss.dtype)))
        return (sums * counts).sum(dim=1), counts.sum()


def objective_of(kind: str, options: Options) -> Objective:
    """What is minimised on shards of a kind. Raises UsageError for teachers of preferences."""
    if kind != "pairs":
        return LANGUAGE
    if options.teachers:
        raise UsageError(f"teachers = {options.teachers}, allowed '' with data of pairs")
    return Preference(options.dpo_beta, options.dpo_smoothing, options.dpo_positive)
