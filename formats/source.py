"""A model to read from: a configuration, and tensors that are read when asked for.

A reader of a format is a function that returns a Source, a writer one that takes it. One tensor is in memory
at a time, and the input is never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model import Config, Llama
from training.command import BadInput

EMBEDDING, CLASSIFIER = "tok_embeddings.weight", "output.weight"


@dataclass(frozen=True)
class Source:
    """A model to read: tensors under the names of model.py, which the mapping reads when asked for one.

    name: what messages call it.
    """

    name: str
    config: Config
    tensors: Mapping[str, Tensor]


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all weights; a tied output.weight is not among them."""
    with torch.device("meta"):  # allocates and draws nothing
        model = Llama(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def tensor_problem(name: str, tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    """What is wrong with a tensor, None if nothing is."""
    if tuple(tensor.shape) != shape:
        return f"{name} has the shape {tuple(tensor.shape)}, allowed {shape}"
    if not tensor.is_floating_point():
        return f"{name} has the type {tensor.dtype}, allowed floating point"
    return None


def name_problems(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Tensors that are missing or unexpected. A tied classifier may be there too if it is the embedding."""
    names = set(source.tensors)
    if source.config.tied and {EMBEDDING, CLASSIFIER} <= names:
        embedding, classifier = source.tensors[EMBEDDING], source.tensors[CLASSIFIER]
        if embedding.data_ptr() != classifier.data_ptr() and not torch.equal(embedding, classifier):
            return [f"tied = True, but {CLASSIFIER} differs from {EMBEDDING}"]
        names.remove(CLASSIFIER)
    problems = [f"{name} is missing" for name in shapes if name not in names]
    return problems + [f"{name} is unexpected" for name in sorted(names) if name not in shapes]


def refuse(source: Source, problems: list[str]) -> None:
    """Raises BadInput if there are any problems, with all of them."""
    if problems:
        raise BadInput(f"{source.name}: {'; '.join(problems)}")


def take(source: Source, name: str, shape: tuple[int, ...]) -> Tensor:
    """One tensor of a source, contiguous float32 on the CPU. Raises BadInput if it has another shape."""
    tensor = source.tensors[name].detach()
    if problem := tensor_problem(name, tensor, shape):
        refuse(source, [problem])
    return tensor.to("cpu", torch.float32).contiguous()


def checked_tensors(source: Source) -> dict[str, Tensor]:
    """All tensors of a source, as they are. Raises BadInput, which names each that does not fit."""
    shapes = tensor_shapes(source.config)
    problems = name_problems(source, shapes)
    tensors = {name: source.tensors[name] for name in shapes if name in source.tensors}
    found = (tensor_problem(name, tensor, shapes[name]) for name, tensor in tensors.items())
    refuse(source, problems + list(filter(None, found)))
    return tensors
