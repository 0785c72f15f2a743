"""The files of torch.save (.pth, .pt, .bin): a zip archive of a pickle and a file for each storage.

A pickle is a program. It is read by an unpickler that knows the few harmless names of which a dict of tensors
is made, refuses every other, and gives descriptions of tensors: mapped.py has the tensors themselves.

Left out on purpose: files from before PyTorch 1.6, which are no zip archives.
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from llama.errors import BadFileError
from llama.formats.header import Tensor, checked_shape, printable
from llama.formats.kinds import checked_start, kind_of

STORAGES = {  # of torch: name and bytes of a value
    "DoubleStorage": ("fp64", 8),
    "FloatStorage": ("fp32", 4),
    "HalfStorage": ("fp16", 2),
    "BFloat16Storage": ("bf16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
MAX_PICKLE = 1 << 22  # bytes; a large model has 100 for each tensor, and each byte may become an object
ENTRY, ENTRY_BYTES = b"PK\3\4", 30  # what begins a file of an archive, before its name


@dataclass(frozen=True)
class Storage:
    """Values that tensors share. key: the name of their file, data/KEY, in the archive."""

    type: str
    item: int  # bytes
    key: str = ""


@dataclass(frozen=True)
class PickledTensor(Tensor):
    """A tensor that a pickle describes: where it begins in its storage, and its strides, both in values."""

    storage: Storage = field(repr=False)
    begin: int = field(repr=False)
    strides: tuple[int, ...] = field(repr=False)

    @property
    def end(self) -> int:
        """The value of the storage behind its last one."""
        steps = zip(self.shape, self.strides, strict=True)
        return self.begin + (1 + sum((n - 1) * step for n, step in steps) if self.values else 0)


# --- The pickle


def rebuild_parameter(tensor: Tensor, *rest: Any) -> Tensor:
    """What stands for torch._utils._rebuild_parameter."""
    return tensor


def rebuild_tensor(
    storage: Storage, begin: int, shape: Iterable[int], strides: Iterable[int], *rest: Any
) -> Tensor:
    """What stands for torch._utils._rebuild_tensor_v2."""
    (begin,), shape, strides = checked_shape([begin]), checked_shape(shape), checked_shape(strides)
    if len(shape) != len(strides):
        raise ValueError("a shape that can't be")
    return PickledTensor("", storage.type, shape, math.prod(shape) * storage.item, storage, begin, strides)


NAMES = {
    ("collections", "OrderedDict"): dict,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
}


class TensorUnpickler(pickle._Unpickler):  # in Python: a hostile index makes the one in C take all memory
    """Reads dicts, lists, numbers, text and descriptions of tensors; no name of a pickle is ever imported."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def load_build(self) -> None:
        """Drops what would be set on an object, such as the _metadata of a state_dict."""
        self.stack.pop()

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        """Refuses what makes room for any number of bytes before it reads them."""
        raise pickle.UnpicklingError("it holds a bytearray, which is not a tensor")

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NAMES:
            return NAMES[module, name]
        if module == "torch" and name in STORAGES:
            return Storage(*STORAGES[name])
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not a tensor")

    def persistent_load(self, pid: Any) -> Storage:
        if isinstance(pid, tuple) and len(pid) > 2 and isinstance(pid[1], Storage):
            return Storage(pid[1].type, pid[1].item, str(pid[2]))
        raise pickle.UnpicklingError("it has a storage of an unknown type")


def read_pickle(path: Path) -> Any:
    """What the pickle of a file says. Raises BadFileError."""
    start = checked_start(path)
    try:
        with zipfile.ZipFile(path) as archive:
            found = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
            if len(found) != 1:
                raise BadFileError(f"{path}: is a zip archive without a data.pkl, so not of PyTorch")
            if found[0].compress_type != zipfile.ZIP_STORED or found[0].file_size > MAX_PICKLE:
                what = f"its data.pkl has {found[0].file_size} bytes"
                raise BadFileError(f"{path}: {what}, allowed {MAX_PICKLE}, not compressed")
            with archive.open(found[0]) as file:
                return TensorUnpickler(file).load()
    except BadFileError:
        raise
    except OSError as error:
        raise BadFileError(f"{path}: {error.strerror or error}") from None
    except zipfile.BadZipFile:
        kind = None if start.startswith(ENTRY) else kind_of(start)
        what = f"is {kind}" if kind else "is not whole"
        raise BadFileError(f"{path}: {what}, allowed are zip archives of torch.save") from None
    except Exception as error:  # a broken pickle may fail in any way
        reason = printable(error) or type(error).__name__
        raise BadFileError(f"{path}: its pickle is not read: {reason}") from None


# --- Storages


def entry_begins(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the data of a file of an archive begin. Raises ValueError for an archive that lies."""
    file.seek(entry.header_offset)
    head = file.read(ENTRY_BYTES)
    if len(head) != ENTRY_BYTES or not head.startswith(ENTRY):
        raise ValueError("is not where the archive says")
    return entry.header_offset + ENTRY_BYTES + sum(struct.unpack_from("<2H", head, 26))


def find_storages(path: Path) -> dict[str, tuple[int, int]]:
    """Where the storage of each key lies in a file: its first byte, and its bytes. Raises BadFileError."""
    size, found = path.stat().st_size, {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for entry in archive.infolist():
            folder, _, key = entry.filename.rpartition("/")
            if entry.filename.endswith("/byteorder") and archive.read(entry).strip() != b"little":
                raise BadFileError(f"{path}: its byte order is {archive.read(entry)!r:.20}, allowed little")
            if not folder.endswith("/data"):
                continue
            if entry.compress_type != zipfile.ZIP_STORED:
                raise BadFileError(f"{path}: {entry.filename} is compressed, allowed are stored files")
            try:
                begin = entry_begins(file, entry)
            except ValueError as error:
                raise BadFileError(f"{path}: {entry.filename} {error}") from None
            if begin + entry.file_size > size:
                raise BadFileError(f"{path}: {entry.filename} ends behind the file")
            found[key] = (begin, entry.file_size)
    return found
