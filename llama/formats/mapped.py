"""The tensors of safetensors and of torch.save's files, mapped: rows are views of the files, not copies.

Nothing can be written through them. What headers say is checked in safetensors.py and pickles.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama.errors import BadFileError
from llama.files import reading
from llama.formats.header import printable
from llama.formats.pickles import PickledTensor, find_storages, read_pickle
from llama.formats.safetensors import read_header
from llama.formats.tensor import NUMPY, Tensor


def map_file(path: Path) -> np.ndarray:
    """The bytes of a file, read when they are looked at. Raises OSError."""
    if not path.stat().st_size:  # which can't be mapped
        return np.empty(0, np.uint8)
    with reading(path) as file:
        return np.asarray(np.memmap(file, np.uint8, "r"))


WRAPPERS = re.compile(r"(?:module\.|_orig_mod\.)+")  # of DistributedDataParallel and torch.compile


def unwrapped(name: str) -> str:
    """The name of a tensor without what wrappers of a model put in front of it."""
    match = WRAPPERS.match(name)
    return name[match.end() :] if match else name


def by_unwrapped(path: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of a file by their names without wrappers. Raises BadFileError for two of one name."""
    found = {unwrapped(name): tensor for name, tensor in tensors.items()}
    if len(found) != len(tensors):
        raise BadFileError(f"{path}: has two tensors of one name, but for module. or _orig_mod. before it")
    return found


def unread(dtype: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of a type that nothing here reads: it has a shape, and whoever checks it names the type."""
    return Tensor(dtype, shape, lambda begin, end: np.empty((0,)))


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of a .safetensors file. metadata: the strings stored with them. Raises BadFileError."""

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        self._data, self.metadata = map_file(path), header.metadata
        self._tensors = by_unwrapped(path, header.tensors)

    def __getitem__(self, name: str) -> Tensor:
        tensor, begin = self._tensors[name]
        if tensor.type not in NUMPY:
            return unread(tensor.type, tensor.shape)
        values = self._data[begin : begin + tensor.bytes].view(NUMPY[tensor.type])
        return Tensor.of(values.reshape(tensor.shape), tensor.type)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class PickleFile:
    """A file of torch.save. tree: what it holds, with descriptions in the place of tensors.

    Raises BadFileError, OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.tree = path, read_pickle(path)
        self._data, self._storages = map_file(path), find_storages(path)

    def tensor(self, found: PickledTensor) -> Tensor:
        """The tensor of a description. Raises BadFileError for one that its storage does not hold."""
        storage = found.storage
        begin, size = self._storages.get(storage.key, (0, -1))
        if found.end * storage.item > size:
            raise BadFileError(
                f"{self.path}: a tensor of shape {found.shape} is not in its storage {storage.key}"
            )
        if found.type not in NUMPY:
            return unread(found.type, found.shape)
        strides = tuple(step * storage.item for step in found.strides)
        part = self._data[begin : begin + size]
        values: Any = np.ndarray(
            found.shape, NUMPY[found.type], part.data, found.begin * storage.item, strides
        )
        return Tensor.of(values, found.type)

    def tensors(self, tree: Any) -> dict[str, Tensor]:
        """The tensors of a dict. Raises BadFileError if it holds anything else."""
        if not isinstance(tree, dict):
            raise BadFileError(f"{self.path}: holds a {type(tree).__name__}, allowed tensors by name")
        for name, value in tree.items():
            if not (isinstance(name, str) and isinstance(value, PickledTensor)):
                kind, name = type(value).__name__, printable(name)
                raise BadFileError(f"{self.path}: {name!r} is of type {kind}, allowed dense tensors by name")
        return {name: self.tensor(value) for name, value in by_unwrapped(self.path, tree).items()}


def open_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of torch.save that is a dict of them. Nothing that it holds is executed.

    Raises BadFileError for a file that is damaged, or holds more than tensors by name; OSError.
    """
    file = PickleFile(path)
    return file.tensors(file.tree)
