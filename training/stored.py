"""Reads PyTorch's distributed checkpoints without running what they say.

Their index, .metadata, is a pickle, and so is what a run keeps besides tensors: PyTorch's own reader imports
and calls whatever these name. Here the index may name what PyTorch's writer puts there and nothing else, and
the rest is read as PyTorch reads weights alone. So a folder of a stranger may be wrong, but runs nothing.
"""

from __future__ import annotations

import io
import pickle
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint import filesystem as files
from torch.distributed.checkpoint import metadata as names
from torch.distributed.checkpoint.planner import ReadItem
from torch.serialization import _get_layout

from llama.errors import BadFileError
from llama.files import reading
from llama.formats.header import printable
from llama.formats.pickles import Unpickler

RECORDS = (  # dataclasses, of fields that are set
    names.Metadata,
    names.MetadataIndex,
    names.TensorStorageMetadata,
    names.ChunkStorageMetadata,
    names.BytesStorageMetadata,
    names.StorageMeta,
    files._StorageInfo,
)
VALUES = (names.TensorProperties, names._MEM_FORMAT_ENCODING, torch.Size)
NAMES = {(kind.__module__, kind.__qualname__): kind for kind in (*RECORDS, *VALUES)}
NAMES[_get_layout.__module__, _get_layout.__qualname__] = _get_layout
PATHS = ("PosixPath", "WindowsPath")  # where the folder was when it was written, which nobody asks


class IndexUnpickler(Unpickler):
    """Reads the index of a distributed checkpoint."""

    dispatch: ClassVar[dict[int, Any]] = dict(Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NAMES:
            return NAMES[module, name]
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if module.partition(".")[0] == "pathlib" and name in PATHS:
            return lambda *parts: "/".join(map(str, parts))
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not of an index")

    def check_key(self, key: Any) -> None:
        if not isinstance(key, names.MetadataIndex):
            super().check_key(key)
        elif not (type(key.fqn) is str and type(key.offset) in (torch.Size, type(None))):
            raise pickle.UnpicklingError("it has a place that is none as a key")
        else:
            super().check_key(key.index)

    def load_build(self) -> None:
        """Sets the fields of a record. Anything else has none that may be set: not a class, for instance."""
        state, found = self.stack.pop(), self.stack[-1]
        if isinstance(found, names.TensorProperties):
            found.__setstate__(state)
        elif isinstance(found, RECORDS) and isinstance(state, dict):
            vars(found).update(state)
        else:
            raise pickle.UnpicklingError(f"it sets fields of a {type(found).__name__}")

    dispatch[pickle.BUILD[0]] = load_build


def check_index(index: Any) -> None:
    """Raises ValueError for what is no index, or is of files elsewhere."""
    tensors, places = index.state_dict_metadata, index.storage_data
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise ValueError("it has no names of tensors")
    for place in places.values():
        if Path(place.relative_path).name != place.relative_path:
            raise ValueError(f"it is of a file {printable(place.relative_path, 60)}")
        if place.transform_descriptors:
            raise ValueError("its files are compressed")


def read_index(path: Path) -> names.Metadata:
    """The .metadata of a folder. Raises BadFileError."""
    try:
        with reading(path) as file:
            index = IndexUnpickler(io.BytesIO(file.read())).load()
        check_index(index)
    except OSError as error:
        raise BadFileError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # a broken pickle may fail in any way
        reason = printable(error) or type(error).__name__
        raise BadFileError(f"{path}: is not an index of tensors: {reason}") from None
    return index


class Reader(FileSystemReader):
    """PyTorch's, of a folder whose index is read here. Raises BadFileError.

    It is read at once: PyTorch writes a traceback for one that can't be, and looks for others.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.index = read_index(folder / ".metadata")
        self.index.storage_meta = names.StorageMeta(load_id=self.load_id)

    def read_metadata(self, *_: Any, **__: Any) -> names.Metadata:
        return self.index


class Planner(DefaultLoadPlanner):
    """PyTorch's, with what is no tensor, such as the steps that bitsandbytes counts, read as weights are."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        *path, last = self.mappings[read_item.dest_index.fqn]
        place = reduce(getitem, path, self.original_state_dict)
        found = torch.load(value, weights_only=True)
        if type(found) is not type(place[last]):
            name, wanted = read_item.dest_index.fqn, type(place[last]).__name__
            raise ValueError(f"{printable(name, 60)} is a {type(found).__name__}, allowed {wanted}")
        place[last] = found
