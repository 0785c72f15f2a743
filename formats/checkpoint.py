"""Our checkpoints: a folder with model.safetensors, or that file.

It holds the weights under the names of model.py, without output.weight where it is tied, and Config.to_dict()
as JSON in the metadata under "config".
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from formats.source import EMBEDDING, Source, checked_tensors
from model import Config, Llama
from training.command import BadInput, written_aside

StrPath = str | os.PathLike[str]
WEIGHTS = "model.safetensors"


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of a .safetensors file, mapped into memory. metadata: the strings stored with them."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb"):  # the library does not name what is wrong with a folder
                self._file = safe_open(path, framework="pt")
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}") from None
        except SafetensorError as error:
            raise BadInput(f"{path}: is not a whole safetensors file ({error})") from None
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self._names: list[str] = self._file.keys()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_checkpoint(path: StrPath) -> Source:
    """Our own checkpoint, a folder or its model.safetensors. Raises BadInput."""
    path = Path(path, WEIGHTS) if Path(path).is_dir() else Path(path)
    file = SafetensorsFile(path)
    if "config" not in file.metadata:
        raise BadInput(f"{path}: metadata has no config, so it is not a checkpoint of train.py")
    try:
        return Source(str(path), Config.from_dict(json.loads(file.metadata["config"])), file)
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: config: {error}") from None


def save_weights(path: Path, config: Config, weights: Mapping[str, Tensor]) -> None:
    """Writes the file of a checkpoint, model.safetensors, from the weights of a model's state_dict().

    Raises BadInput if they do not fit config, OSError if they can't be written; an old file then stays.
    """
    tensors = checked_tensors(Source(str(path), config, weights))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_aside(Path(path)) as scratch:
        try:
            save_file(tensors, scratch, {"config": json.dumps(config.to_dict())})
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from None


def read_config(path: StrPath) -> Config:
    """The configuration of a checkpoint, a folder or file. Raises BadInput."""
    return open_checkpoint(path).config


def load_model(path: StrPath, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Llama:
    """The model of a checkpoint, a folder or file, ready for evaluation.

    dtype None: the one in which the embedding is stored. Raises BadInput, which names every tensor that
    is missing, unexpected or of another shape.
    """
    source = open_checkpoint(path)
    tensors = checked_tensors(source)
    with torch.device("meta"):  # weights that would be drawn only to be replaced
        model = Llama(source.config)
    dtype = dtype or tensors[EMBEDDING].dtype
    # A copy, so that the model does not depend on the mapped file.
    tensors = {name: tensor.to(device, dtype, copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(tensors, strict=False, assign=True)
    if source.config.tied:
        model.output.weight = model.tok_embeddings.weight
    return model.eval()
