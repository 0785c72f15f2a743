"""Distillation: what models that were trained before expect of the next token is learnt beside what it is.

    loss = -(1 - share) log p(target) - share sum over v of q(v) log p(v)

q is the mean of the teachers' probabilities (Hinton et al., Distilling the Knowledge in a Neural Network,
2015). Where text is scarce, a student learns from it what its teachers generalise, and overfits less; one as
large as its teacher ends better than that (Furlanello et al., Born-Again Networks, 2018). Teachers have the
vocabulary of the data, and any shape.

A teacher of any other vocabulary is read once for all: dataset.py expect writes what it expects beside the
data (training/expecting.py), the few most likely tokens of each place, and --teachers=stored learns it. What
q lacks of 1 there is the text's.

Left out on purpose: temperatures, and hidden layers as targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llama.errors import BadFileError
from model import Llama, SoftmaxLoss
from training.models import open_for
from training.objectives import LANGUAGE, Objective
from training.options import STORED, Options
from training.weights import model_of


def soft_loss(
    logits: Tensor, goal: Tensor, counts: Tensor, q: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """model.softmax_loss with the probabilities q (n, V) of teachers: their share of the loss is to them."""
    exact = torch.promote_types(logits.dtype, torch.float32)
    log_p, counts, goal = logits.to(exact).log_softmax(dim=1), counts.to(exact), goal.clamp(min=0)[:, None]
    hard, soft = -log_p.gather(1, goal)[:, 0], -torch.linalg.vecdot(q.to(exact), log_p)
    total = (((1 - share) * hard + share * soft) * counts).sum()
    gradient = log_p.exp_().sub_(q, alpha=share).mul_(counts[:, None])
    return total, gradient.to(logits.dtype), gradient.gather(1, goal)[:, 0] - (1 - share) * counts


class Distillation:
    """The objective: of training the loss above, of an evaluation (model.eval()) that of a language model.

    It stands in the place of the student's softmax_loss, which gets the rows of a batch in parts, in order.
    """

    names = LANGUAGE.names

    def __init__(self, student: Llama, teachers: Sequence[Llama], share: float) -> None:
        self.teachers, self.share, self.hard = teachers, share, student.softmax_loss
        self.hidden: list[Tensor] = []  # of each teacher, (rows, D); empty: nothing is learnt of them
        self.begin = 0  # the row that is next
        student.softmax_loss = self.softmax_loss

    def __call__(self, model: nn.Module, batch: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            teachers = self.teachers if model.training else ()
            self.hidden, self.begin = (
                [teacher.hidden(batch[0], batch[2]).flatten(0, 1) for teacher in teachers],
                0,
            )
        return LANGUAGE(model, batch)

    def softmax_loss(self, logits: Tensor, goal: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.hidden:
            return self.hard(logits, goal, counts)
        return soft_loss(logits, goal, counts, self.expected(len(goal), logits.dtype), self.share)

    def expected(self, n: int, dtype: torch.dtype) -> Tensor:
        """The mean probabilities (n, V) of the next n rows."""
        rows = slice(self.begin, self.begin + n)
        self.begin += n
        outputs = (
            x[rows].to(dtype) @ teacher.output.weight.to(dtype).T
            for x, teacher in zip(self.hidden, self.teachers, strict=True)
        )
        exact = torch.promote_types(dtype, torch.float32)
        return torch.stack([logits.softmax(dim=1, dtype=exact) for logits in outputs]).mean(dim=0)


def sparse_loss(
    hard: SoftmaxLoss, logits: Tensor, goal: Tensor, counts: Tensor, ids: Tensor, q: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with the probabilities q (n, top) of ids (n, top) alone, by a softmax_loss.

    -(1 - share sum q) log p(goal) - share sum of q log p(id): what exceeds the loss of the text is
    share sum of q (logit of the goal - logit of the id).
    """
    exact, goals = torch.promote_types(logits.dtype, torch.float32), goal.clamp(min=0)[:, None]
    counts, q = counts.to(exact), q.to(exact) * share
    apart = logits.gather(1, goals).to(exact) - logits.gather(1, ids).to(exact)
    more = (torch.linalg.vecdot(q, apart) * counts).sum()
    total, gradient, _ = hard(logits, goal, counts)
    gradient.scatter_add_(1, ids, (-q * counts[:, None]).to(gradient.dtype))
    return total + more, gradient, gradient.gather(1, goals)[:, 0] - (1 - q.sum(dim=1)) * counts


class Stored:
    """The objective of batches that end with ids (B, T, top) and their probabilities: like Distillation."""

    names = LANGUAGE.names

    def __init__(self, student: Llama, share: float) -> None:
        self.share, self.hard = share, student.softmax_loss
        self.expected: tuple[Tensor, ...] = ()  # ids and probabilities of rows to come, (rows, top) each
        student.softmax_loss = self.softmax_loss

    def __call__(self, model: nn.Module, batch: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        if not model.training:
            self.expected = ()
            return LANGUAGE(model, batch)
        *plain, ids, probabilities = batch
        self.expected = ids.flatten(0, 1), probabilities.flatten(0, 1)
        return LANGUAGE(model, tuple(plain))

    def softmax_loss(self, logits: Tensor, goal: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.expected:
            return self.hard(logits, goal, counts)
        ids, q = (part[: len(goal)] for part in self.expected)
        self.expected = tuple(part[len(goal) :] for part in self.expected)
        return sparse_loss(self.hard, logits, goal, counts, ids, q, self.share)


def distillation_of(student: Llama, options: Options, device: torch.device) -> Objective:
    """What is learnt of the teachers that options name. Raises BadFileError for other tokens."""
    if options.teachers == STORED:
        return Stored(student, options.teacher_share)
    teachers = []
    for name in options.teachers.split(","):
        source = open_for(options, name, student.config.vocab_size)
        if source.config.vocab_size != student.config.vocab_size:
            found = f"vocab_size = {source.config.vocab_size}, the student has {student.config.vocab_size}"
            raise BadFileError(f"{name}: {found}")
        teachers.append(model_of(source, device).requires_grad_(False))
    return Distillation(student, teachers, options.teacher_share)
