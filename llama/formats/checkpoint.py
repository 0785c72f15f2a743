"""Our checkpoints: a folder with model.safetensors, or that file.

It holds the weights under the names of model.py, without output.weight where it is tied, and Config.to_dict()
as JSON in the metadata under "config".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama.errors import BadFileError
from llama.formats.config import Config
from llama.formats.source import Source

StrPath = str | os.PathLike[str]
WEIGHTS = "model.safetensors"


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of a .safetensors file, mapped into memory. metadata: the strings stored with them."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb"):  # the library does not name what is wrong with a folder
                self._file = safe_open(path, framework="pt")
        except OSError as error:
            raise BadFileError(f"{path}: {error.strerror}") from None
        except SafetensorError as error:
            raise BadFileError(f"{path}: is not a whole safetensors file ({error})") from None
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
    """Our own checkpoint, a folder or its model.safetensors. Raises BadFileError."""
    path = Path(path, WEIGHTS) if Path(path).is_dir() else Path(path)
    file = SafetensorsFile(path)
    if "config" not in file.metadata:
        raise BadFileError(f"{path}: metadata has no config, so it is not a checkpoint of train.py")
    try:
        return Source(str(path), Config.from_dict(json.loads(file.metadata["config"])), file)
    except (ValueError, TypeError, AttributeError) as error:
        raise BadFileError(f"{path}: config: {error}") from None


def read_config(path: StrPath) -> Config:
    """The configuration of a checkpoint, a folder or file. Raises BadFileError."""
    return open_checkpoint(path).config
