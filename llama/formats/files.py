"""What folders of other programs are made of: JSON objects, PyTorch's pickles, safetensors in shards."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama.errors import BadFileError

LARGEST = 1e30  # of a number in a configuration


@dataclass(frozen=True)
class Fields:
    """A JSON object whose fields are checked as they are read. null is as good as not there."""

    path: Path
    values: Mapping[str, Any]

    def _get(self, name: str, default: Any, kinds: tuple[type, ...], allowed: str) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise BadFileError(f"{self.path}: has no {name}")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise BadFileError(f"{self.path}: {name} = {value!r}, allowed {allowed}")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """Raises BadFileError, as the next two: of another kind, or missing without a default."""
        return self._get(name, default, (int,), "whole numbers")

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default, (int, float), "numbers")
        if not abs(value) < LARGEST:  # also what Python's JSON has beyond the standard: NaN, Infinity
            raise BadFileError(f"{self.path}: {name} = {value}, allowed finite numbers")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        return self._get(name, default, (bool,), "true and false")

    def object(self, name: str) -> Fields:
        """The fields of an object within, none where it is missing."""
        return Fields(self.path, self._get(name, {}, (dict,), "objects"))

    def one_of(self, name: str, allowed: tuple[Any, ...], default: Any = None) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if value not in allowed:
            options = " and ".join(json.dumps(option) for option in allowed)
            raise BadFileError(f"{self.path}: {name} = {json.dumps(value)}, allowed {options}")
        return value


def read_json(path: Path) -> Fields:
    """The fields of a file that holds a JSON object. Raises BadFileError, OSError."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{path}: is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise BadFileError(f"{path}: holds a {type(values).__name__}, allowed an object")
    return Fields(path, values)


def load_tensors(path: Path) -> object:
    """What torch.load finds, mapped: it builds tensors and plain containers, and calls nothing else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd file gets one line, which is ours
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception as error:  # a pickle is a program: one that is damaged can end in any exception
        text = str(error).strip()
        asks = re.search(r"GLOBAL (\S+)", text)
        first = (text.partition("WeightsUnpickler error: ")[2] or text).partition("\n")[0]
        reason = f"its pickle asks for {asks[1]}" if asks else first or type(error).__name__
        raise BadFileError(f"{path}: holds more than tensors, or is damaged ({reason})") from None


def open_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch.save. Nothing that it holds is executed.

    Raises BadFileError for a file that is damaged, or holds more than tensors by name; OSError.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise BadFileError(
                f"{path}: is not a whole file of torch.save (a zip archive, as of PyTorch 1.6)"
            )
    found = load_tensors(path)
    if not isinstance(found, dict):
        raise BadFileError(f"{path}: holds a {type(found).__name__}, allowed tensors by name")
    for name, value in found.items():
        if not (isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided):
            kind = type(value).__name__
            raise BadFileError(f"{path}: {name!r} is of type {kind}, allowed dense tensors by name")
    return found
