"""Weights of model.py: in and out of the file of a checkpoint, and as llama.formats has them."""

from __future__ import annotations

import errno
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from llama.files import written_aside
from llama.formats.checkpoint import StrPath
from llama.formats.config import Config
from llama.formats.models import open_source
from llama.formats.source import EMBEDDING, Source, checked_tensors
from llama.formats.tensor import Tensor
from model import Llama

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


# --- PyTorch's tensors, and those of llama.formats


def as_rows(weight: torch.Tensor, begin: int, end: int) -> np.ndarray:
    """Rows of a weight, on the CPU: a view of them where they are there."""
    part = weight.detach()[begin:end].cpu()
    return part.view(torch.uint16).numpy() if part.dtype == torch.bfloat16 else part.numpy()


def from_torch(weight: torch.Tensor) -> Tensor:
    """A weight for the writers of llama.formats; nothing is copied that is on the CPU."""
    dtype = NAMES.get(weight.dtype, str(weight.dtype).removeprefix("torch."))
    return Tensor(dtype, tuple(weight.shape), lambda begin, end: as_rows(weight, begin, end))


def to_torch(tensor: Tensor) -> torch.Tensor:
    """All rows of a tensor, a view of a mapped one: not to be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        values = torch.from_numpy(np.require(tensor.values(), requirements="A"))
    return values.view(torch.bfloat16) if tensor.dtype == "bf16" else values


class TorchWeights(Mapping[str, Tensor]):
    """The weights of a state_dict, or of any mapping of PyTorch's tensors, for llama.formats."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        return from_torch(self._weights[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


# --- Checkpoints


def save_weights(
    path: Path, config: Config, weights: Mapping[str, torch.Tensor], told: Mapping[str, str] | None = None
) -> None:
    """Writes the file of a checkpoint, model.safetensors, from the weights of a model's state_dict().

    told: metadata on its texts (llama/formats/texts.py).
    Raises BadFileError if they do not fit config, OSError if they can't be written; an old file then stays.
    """
    names = checked_tensors(Source(str(path), config, TorchWeights(weights)))
    tensors = {name: weights[name].detach().cpu().contiguous() for name in names}
    with written_aside(Path(path)) as scratch:
        try:
            save_file(tensors, scratch, {"config": json.dumps(config.to_dict()), **(told or {})})
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from None


def model_of(source: Source, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Llama:
    """The model of a source, ready for evaluation. dtype None: that of the embedding.

    Raises BadFileError, which names every tensor that is missing, unexpected or of another shape.
    """
    tensors = checked_tensors(source)
    with torch.device("meta"):  # weights that would be drawn only to be replaced
        model = Llama(source.config)
    dtype = dtype or DTYPES[tensors[EMBEDDING].dtype]
    # A copy, so that the model does not depend on the mapped file.
    weights = {name: to_torch(tensor).to(device, dtype, copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(weights, strict=False, assign=True)
    if source.config.tied:
        model.output.weight = model.tok_embeddings.weight
    return model.eval()


def load_model(path: StrPath, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Llama:
    """The model in a file or folder of any format. The rest as in model_of."""
    return model_of(open_source(Path(path)), device, dtype)
