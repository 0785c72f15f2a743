"""Several folders of data in one run, each with its share: --mixture data/a:0.7,data/b:0.3.

Of which part the i-th sequence of a mixture is, and the how-manieth of that part, are functions of i alone:
of the first i, each part has its share, but for one or two. So a step, a resume and any number of ranks find
their sequences without a look at what came before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from llama.errors import UsageError
from training.batches import Sequences
from training.prefetch import Batch

FINEST = 10**6  # of a share, so that products with indices fit 64 bits
SHARE = re.compile(r"[0-9]{1,6}(\.[0-9]{0,20})?|\.[0-9]{1,20}")  # no 1e99999999, which takes for ever
SHARES = "a share above 0 and below 1000000, such as 0.7"


def parse_mixture(text: str) -> list[tuple[str, Fraction]]:
    """The folders of a mixture with their shares, which add up to 1. Raises UsageError."""
    found: list[tuple[str, Fraction]] = []
    for word in text.split(","):
        folder, _, share = word.strip().rpartition(":")
        counts = Fraction(share).limit_denominator(FINEST) if SHARE.fullmatch(share) else Fraction(0)
        if not folder or not counts:
            raise UsageError(f"mixture = {word.strip()!r}, allowed FOLDER:SHARE, {SHARES}")
        found.append((folder, counts))
    if len({folder for folder, _ in found}) < max(2, len(found)):
        raise UsageError(f"mixture = {text!r}, allowed two folders or more, each once")
    whole = sum(share for _, share in found)
    return [(folder, share / whole) for folder, share in found]


def places(index: np.ndarray, shares: Sequence[Fraction]) -> tuple[np.ndarray, np.ndarray]:
    """Of which part each sequence (B) of a mixture is, and where in that part: (B) each, int64.

    Of i sequences the first part has its share, rounded, and the others are those of a mixture of the rest.
    """
    part, at, left = np.full(len(index), -1), np.empty(len(index), np.int64), index.astype(np.int64)
    rest = Fraction(1)
    for number, share in enumerate(shares):
        of_rest = (share / rest).limit_denominator(FINEST)
        up, down = 2 * of_rest.numerator, 2 * of_rest.denominator
        before, after = ((up * i + down // 2) // down for i in (left, left + 1))
        here = (part < 0) & (after > before)
        part[here], at[here] = number, before[here]
        left, rest = left - before, rest - share
    return part, at


def weighed(batch: Batch) -> Batch:
    """A batch of text as one of conversations is: with doc_ids, and with weights."""
    tokens, targets, doc_ids, *weights = batch
    doc_ids = torch.zeros_like(tokens) if doc_ids is None else doc_ids
    return tokens, targets, doc_ids, weights[0] if weights else torch.ones(tokens.shape)


class Mixture:
    """Sequences of several parts. An epoch has as many as they have together.

    names, shares, parts: of each; alike: all parts give batches of one form.
    """

    def __init__(self, parts: Sequence[tuple[str, Fraction, Sequences]], alike: bool) -> None:
        self.names, self.shares, self.parts = zip(*parts, strict=True)
        self.alike = alike

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __str__(self) -> str:
        parts = zip(self.shares, self.names, self.parts, strict=True)
        return "; ".join(f"{float(share):.3g} of {name}: {part}" for share, name, part in parts)

    def _by_part(self, index: np.ndarray) -> list[tuple[Sequences, np.ndarray, np.ndarray]]:
        """Each part that has some of the sequences, with which they are of it, and where in index."""
        part, at = places(index, self.shares)
        found = ((p, np.flatnonzero(part == number)) for number, p in enumerate(self.parts))
        return [(p, at[where], where) for p, where in found if len(where)]

    def weight(self, index: np.ndarray) -> float:
        """What the targets of these count."""
        return sum(part.weight(at) for part, at, _ in self._by_part(index))

    def take(self, index: np.ndarray) -> Batch:
        """What comes index-th (B)."""
        found = self._by_part(index)
        batches = [part.take(at) if self.alike else weighed(part.take(at)) for part, at, _ in found]
        order = torch.from_numpy(np.argsort(np.concatenate([where for *_, where in found])))

        def joined(parts: tuple[Tensor | None, ...]) -> Tensor | None:
            return None if parts[0] is None else torch.cat(parts)[order]

        return tuple(map(joined, zip(*batches, strict=True)))
