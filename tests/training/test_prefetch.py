"""Batches made ahead are the source's, in any order of steps, and so are its errors."""

from __future__ import annotations

import pytest
import torch

from llama.errors import BadFileError
from training.prefetch import Prefetch


class Numbered:
    """A source whose batch is the number of its step. broken: a step that has none."""

    def __init__(self, broken: int = -1) -> None:
        self.broken = broken

    def at(self, step: int):
        if step == self.broken:
            raise BadFileError("train.bin: is cut off")
        return torch.tensor([[step]]), torch.tensor([[step + 1]]), None


@pytest.mark.parametrize("steps", [[0, 1, 2, 3], [7, 8, 2, 3, 3, 0]], ids=["one by one", "with jumps"])
def test_batches_are_those_of_their_steps(steps):
    ahead = Prefetch(Numbered(), pin=False)
    for step in steps:
        tokens, targets, doc_ids = ahead.at(step)
        assert (tokens.item(), targets.item(), doc_ids) == (step, step + 1, None)


def test_an_error_comes_with_its_step():
    ahead = Prefetch(Numbered(broken=2), pin=False)
    ahead.at(0)
    ahead.at(1)
    with pytest.raises(BadFileError, match="is cut off"):
        ahead.at(2)
