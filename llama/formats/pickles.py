"""The files of torch.save (.pth, .pt, .bin): a zip archive of a pickle and a file for each storage.

Before PyTorch 1.6 they were five pickles, one after the other (a number, a version, sizes of types, the
tensors, the keys of the storages), then the storages in the order of the keys, each after the number of its
values.

A pickle is a program. It is read by an unpickler that knows the few harmless names of which a dict of tensors
is made, refuses every other, and gives descriptions of tensors: mapped.py has the tensors themselves.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from llama.errors import BadFileError
from llama.files import reading
from llama.formats.header import Tensor, checked_shape, printable
from llama.formats.kinds import OLD_TORCH, checked_start, kind_of

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
MAX_INTEGER = 1 << 128  # the magic number of old files has 80 bits
MAX_DEPTH, MAX_SAID = 64, 1 << 22  # objects within objects, and how many there are where each is said out
MAX_ORDER = 16  # bytes of the file that names their order
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


def ordered_dict(pairs: Iterable[tuple[Any, Any]] = ()) -> dict[Any, Any]:
    """What stands for collections.OrderedDict."""
    pairs = list(pairs)
    for key, _ in pairs:
        check_key(key)
    return dict(pairs)


NAMES = {
    ("collections", "OrderedDict"): ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): rebuild_parameter,
}


def check_key(key: Any) -> None:
    """Raises UnpicklingError for a key that is not plain: to hash tuples in tuples may take for ever."""
    if type(key) not in (str, int, float, bool, type(None)):
        raise pickle.UnpicklingError(f"it has a {type(key).__name__} as a key, allowed are numbers and text")


def said(value: Any, known: dict[int, int], depth: int = 0) -> int:
    """How many objects are named where a tree is said out, each as often as it is shared.

    known: those of the objects that were met. Raises UnpicklingError.
    """
    if depth > MAX_DEPTH:
        raise pickle.UnpicklingError("it is nested too deeply")
    if not isinstance(value, (dict, list, tuple)):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(said(part, known, depth + 1) for part in parts)
    if known[id(value)] > MAX_SAID:
        raise pickle.UnpicklingError("it holds the same again and again")
    return known[id(value)]


def refusing(what: str) -> Callable[[Any], None]:
    """What refuses a kind of object that torch.save does not write."""

    def refuse(self: Unpickler) -> None:
        raise pickle.UnpicklingError(f"it holds a {what}, which is not a tensor")

    return refuse


def with_checked_number(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """What reads a number, refusing one of more than 128 bits, which Python may refuse to print."""

    def checked(self: Unpickler) -> None:
        load(self)
        if not abs(self.stack[-1]) < MAX_INTEGER:
            raise pickle.UnpicklingError("it holds a number of more than 128 bits")

    return checked


def with_checked_keys(load: Callable[[Any], None], last: int) -> Callable[[Any], None]:
    """What puts keys and values into a dict, once keys are checked. last: those on the stack, 0 for all."""

    def checked(self: Unpickler) -> None:
        for key in self.stack[-last::2]:
            self.check_key(key)
        load(self)

    return checked


class Unpickler(pickle._Unpickler):  # in Python: a hostile index makes the one in C take all memory
    """Reads no more than dicts, lists, numbers and text; what may be named is for others to say."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    dispatch[pickle.BYTEARRAY8[0]] = refusing("bytearray")  # which makes room before it reads
    dispatch[pickle.EMPTY_SET[0]] = refusing("set")  # of which a byte makes more than of anything else
    dispatch[pickle.FROZENSET[0]] = refusing("set")
    for code in (pickle.INT, pickle.LONG, pickle.LONG1, pickle.LONG4):
        dispatch[code[0]] = with_checked_number(dispatch[code[0]])
    for code in (pickle.SETITEM, pickle.SETITEMS, pickle.DICT):
        dispatch[code[0]] = with_checked_keys(dispatch[code[0]], 2 if code == pickle.SETITEM else 0)

    def check_key(self, key: Any) -> None:
        """As the function."""
        check_key(key)

    def load(self) -> Any:
        tree = super().load()
        said(tree, {})
        return tree

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


class TensorUnpickler(Unpickler):
    """Reads descriptions of tensors besides; no name of a pickle is ever imported."""

    dispatch: ClassVar[dict[int, Any]] = dict(Unpickler.dispatch)

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}  # by key

    def load_build(self) -> None:
        """Drops what would be set on an object, such as the _metadata of a state_dict."""
        self.stack.pop()

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NAMES:
            return NAMES[module, name]
        if module == "torch" and name in STORAGES:
            return Storage(*STORAGES[name])
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not a tensor")

    def persistent_load(self, pid: Any) -> Storage:
        if (
            isinstance(pid, tuple)
            and len(pid) > 2
            and isinstance(pid[1], Storage)
            and isinstance(pid[2], str)
        ):
            if len(pid) > 5 and pid[5] is not None:
                raise pickle.UnpicklingError("it has a view of a storage, as PyTorch before 1.0 wrote them")
            return self.storages.setdefault(pid[2], Storage(pid[1].type, pid[1].item, pid[2]))
        raise pickle.UnpicklingError("it has a storage of an unknown type")


OLD_VERSION = 1001  # of the files from before PyTorch 1.6


def read_old(path: Path) -> tuple[Any, dict[str, tuple[int, int]]]:
    """What a file from before PyTorch 1.6 says, and the first byte and the bytes of each storage.

    Raises pickle.UnpicklingError, or whatever else a broken pickle leads to.
    """
    size = path.stat().st_size
    with reading(path) as file:
        head = io.BytesIO(file.read(MAX_PICKLE))
        _, version, system = (TensorUnpickler(head).load() for _ in range(3))
        if version != OLD_VERSION or not system["little_endian"]:
            raise pickle.UnpicklingError("it is of another version of PyTorch, or a big-endian machine")
        unpickler = TensorUnpickler(head)
        tree, keys, at, places = unpickler.load(), TensorUnpickler(head).load(), head.tell(), {}
        for key in keys:
            file.seek(at)
            values = struct.unpack("<q", file.read(8))[0]
            places[key] = (at + 8, values * unpickler.storages[key].item)
            at = sum(places[key])
            if values < 0 or at > size:
                raise pickle.UnpicklingError(f"the file ends before its storage {printable(key, 40)} does")
    return tree, places


def read_pickle(path: Path) -> Any:
    """What the pickle of a file says. Raises BadFileError."""
    start = checked_start(path)
    try:
        if start.startswith(OLD_TORCH):
            return read_old(path)[0]
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
    if not 0 <= entry.header_offset <= file.seek(0, io.SEEK_END):
        raise ValueError("is not in the file")
    file.seek(entry.header_offset)
    head = file.read(ENTRY_BYTES)
    if len(head) != ENTRY_BYTES or not head.startswith(ENTRY):
        raise ValueError("is not where the archive says")
    return entry.header_offset + ENTRY_BYTES + sum(struct.unpack_from("<2H", head, 26))


def check_order(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Raises ValueError where an archive says that its bytes are of another order, or lies."""
    if entry.file_size > MAX_ORDER:
        raise ValueError(f"has {entry.file_size} bytes, allowed {MAX_ORDER}")
    try:
        order = archive.read(entry).strip()
    except Exception as error:  # zipfile raises what it comes upon
        raise ValueError(f"is not read: {printable(error)}") from None
    if order != b"little":
        raise ValueError(f"says that its byte order is {order!r}, allowed little")


def begin_of(file: BinaryIO, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int | None:
    """Where the data of a storage begin, None for a file that is none. Raises ValueError."""
    folder, _, key = entry.filename.rpartition("/")
    if key == "byteorder":
        check_order(archive, entry)
    if not folder.endswith("/data"):
        return None
    if f"{folder}.pkl" not in archive.NameToInfo:
        raise ValueError("is not of the data.pkl")
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError("is compressed, allowed are stored files")
    return entry_begins(file, entry)


def find_storages(path: Path) -> dict[str, tuple[int, int]]:
    """Where the storage of each key lies in a file: its first byte, and its bytes. Raises BadFileError."""
    if checked_start(path).startswith(OLD_TORCH):
        return read_old(path)[1]
    size, found = path.stat().st_size, {}
    with reading(path) as file, zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            try:
                begin = begin_of(file, archive, entry)
            except ValueError as error:
                raise BadFileError(f"{path}: {entry.filename} {error}") from None
            if begin is None:
                continue
            if begin + entry.file_size > size:
                raise BadFileError(f"{path}: {entry.filename} ends behind the file")
            key = entry.filename.rpartition("/")[2]
            if key in found:
                raise BadFileError(f"{path}: has two files of the name {printable(entry.filename)}")
            found[key] = (begin, entry.file_size)
    return found
