"""Weights of model.py, in and out of the file of a checkpoint."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from llama.files import written_aside
from llama.formats.checkpoint import StrPath, open_checkpoint
from llama.formats.config import Config
from llama.formats.source import EMBEDDING, Source, checked_tensors
from model import Llama


def save_weights(path: Path, config: Config, weights: Mapping[str, Tensor]) -> None:
    """Writes the file of a checkpoint, model.safetensors, from the weights of a model's state_dict().

    Raises BadFileError if they do not fit config, OSError if they can't be written; an old file then stays.
    """
    tensors = checked_tensors(Source(str(path), config, weights))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_aside(Path(path)) as scratch:
        try:
            save_file(tensors, scratch, {"config": json.dumps(config.to_dict())})
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from None


def load_model(path: StrPath, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Llama:
    """The model of a checkpoint, a folder or file, ready for evaluation.

    dtype None: the one in which the embedding is stored. Raises BadFileError, which names every tensor that
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
