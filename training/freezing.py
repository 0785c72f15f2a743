"""Which parameters are trained, by words of their names.

    --train norm                               all norms, and nothing else
    --freeze tok_embeddings,layers.0-7         all but the embedding and the first eight blocks

A word means the parameters that have it between dots, or behind an underscore; 0-7 is any of these numbers.
"""

from __future__ import annotations

import re

from torch import nn

from llama.errors import UsageError


def pattern_of(word: str) -> re.Pattern[str]:
    """What finds the names that a word means."""

    def numbers(found: re.Match[str]) -> str:
        return f"(?:{'|'.join(map(str, range(int(found[1]), int(found[2]) + 1)))})"

    middle = re.sub(r"([0-9]+)\\-([0-9]+)", numbers, re.escape(word))
    return re.compile(rf"(?:^|[._]){middle}(?:\.|$)")


def named(model: nn.Module, option: str, words: str) -> set[str]:
    """The parameters that the words of an option mean. Raises UsageError for a word that means none."""
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for word in filter(None, map(str.strip, words.split(","))):
        pattern = pattern_of(word)
        if not (meant := {name for name in names if pattern.search(name)}):
            problem = f"{option} = {word!r} is in the name of no parameter"
            raise UsageError(f"{problem}, allowed are words such as in {names[-1]}")
        found |= meant
    return found


def freeze(model: nn.Module, train: str, frozen: str) -> None:
    """Leaves training to what the words of train mean ("": all), less what those of frozen do.

    What is frozen already stays so. Raises UsageError, also where nothing is left.
    """
    chosen, out = named(model, "train", train), named(model, "freeze", frozen)
    for name, parameter in model.named_parameters():
        if name in out or (train and name not in chosen):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"train = {train!r}, freeze = {frozen!r}: no parameter is left to train")
