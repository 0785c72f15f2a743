"""The readers and writers of llama.formats, with PyTorch's tensors going in and coming out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llama.formats import export, gguf, llama2c, models, source, v3
from llama.formats.source import Source
from llama.formats.tensor import Tensor
from training.weights import TorchWeights, to_torch


class AsTorch(Mapping[str, torch.Tensor]):
    """The tensors of a source, each as PyTorch's when it is asked for."""

    def __init__(self, ours: Mapping[str, Tensor]) -> None:
        self.ours = ours

    def __getitem__(self, name: str) -> torch.Tensor:
        return to_torch(self.ours[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.ours)

    def __len__(self) -> int:
        return len(self.ours)


def ours(weights: Mapping[str, Any]) -> Mapping[str, Tensor]:
    return weights.ours if isinstance(weights, AsTorch) else TorchWeights(weights)


def with_ours(found: Source) -> Source:
    return replace(found, tensors=ours(found.tensors))


def with_torch(found: Source) -> Source:
    return replace(found, tensors=AsTorch(found.tensors))


def checked_tensors(found: Source) -> dict[str, torch.Tensor]:
    return {name: to_torch(tensor) for name, tensor in source.checked_tensors(with_ours(found)).items()}


def reader(read: Callable[[Path], Source]) -> Callable[[Path], Source]:
    return lambda path: with_torch(read(path))


open_source, open_gguf = reader(models.open_source), reader(gguf.open_gguf)
open_bin, open_v3 = reader(llama2c.open_bin), reader(v3.open_bin)


def export_bin(path: Any, config: Any, weights: Mapping[str, Any], *rest: Any, **options: Any) -> Any:
    return export.export_bin(path, config, ours(weights), *rest, **options)


def export_v3(path: Any, config: Any, weights: Mapping[str, Any], *rest: Any, **options: Any) -> Any:
    return export.export_v3(path, config, ours(weights), *rest, **options)


def export_folder(path: Any, found: Source, *rest: Any, **options: Any) -> Any:
    return export.export_folder(path, with_ours(found), *rest, **options)


def export_gguf(path: Any, found: Source, *rest: Any, **options: Any) -> Any:
    return export.export_gguf(path, with_ours(found), *rest, **options)


def write_gguf(path: Any, found: Source, *rest: Any, **options: Any) -> Any:
    return gguf.write_gguf(path, with_ours(found), *rest, **options)
