"""The header of a .safetensors file: its length (u64), JSON with type, shape and place of each tensor.

Only the header is read here, without numpy: mapped.py has the tensors themselves.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.errors import BadFileError
from llama.files import reading
from llama.formats.header import MAX_HEADER, Tensor, checked_shape, printable
from llama.formats.kinds import checked_start, is_text, kind_of

DTYPES = {  # name and bytes of a value
    "F64": ("fp64", 8),
    "F32": ("fp32", 4),
    "F16": ("fp16", 2),
    "BF16": ("bf16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}


@dataclass(frozen=True)
class Header:
    """tensors: by name, with the byte of the file at which each begins. metadata: stored beside them."""

    tensors: dict[str, tuple[Tensor, int]]
    metadata: dict[str, str]


def sizes_of(value: Any) -> tuple[int, ...]:
    """A list of sizes. Raises ValueError for anything else."""
    if not isinstance(value, list):
        raise ValueError("no list")
    return checked_shape(value)


def described(path: Path, name: str, entry: Any, room: int) -> tuple[Tensor, int]:
    """The tensor that an entry of a header describes, and where it begins. Raises BadFileError."""
    try:
        begin, end = sizes_of(entry["data_offsets"])
        shape, dtype = sizes_of(entry["shape"]), entry["dtype"]
    except (TypeError, KeyError, ValueError):
        raise BadFileError(f"{path}: {name}: has no dtype, shape and data_offsets") from None
    if not is_text(dtype):
        raise BadFileError(f"{path}: {name}: dtype = {dtype!r:.40}, allowed text")
    dtype = printable(dtype)
    kind, item = DTYPES.get(dtype, (dtype, 0))
    if not begin <= end <= room or (item and end - begin != item * math.prod(shape)):
        found = (
            f"{name}: {dtype} of shape {shape} at {begin} to {end} does not fit the {room} bytes of tensors"
        )
        raise BadFileError(f"{path}: is no whole safetensors file: {found}")
    return Tensor(name, kind, shape, end - begin), begin


def header_text(path: Path) -> tuple[bytes, int]:
    """The JSON of a header, and the bytes of the file. Raises BadFileError."""
    start, size = checked_start(path), path.stat().st_size
    length = struct.unpack_from("<Q", start)[0] if len(start) >= 8 else 0
    with reading(path) as file:
        file.seek(8)
        text = file.read(length) if length <= MAX_HEADER else b""
    if len(text) != length or length == 0:
        kind = None if start[8:].startswith(b"{") else kind_of(start)
        found = kind or f"has {size} bytes and a header of {length}"
        raise BadFileError(f"{path}: is no whole safetensors file: {found}")
    return text, size


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError for a name that it has twice: other readers may take the other."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r:.200} is in an object twice")
        found[name] = value
    return found


def parse_header(path: Path, text: bytes) -> dict[str, Any]:
    """The object that a header is. Raises BadFileError."""
    try:
        header = json.loads(text.decode(), object_pairs_hook=once)  # of bytes it takes UTF-16 too
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{path}: its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise BadFileError(f"{path}: its header is no JSON object")
    if wrong := next((name for name in header if not is_text(name)), None):
        raise BadFileError(f"{path}: its header has the name {wrong!r:.200}, allowed text")
    return header


def checked_metadata(path: Path, metadata: Any) -> dict[str, str]:
    """What is stored beside the tensors, {} for null. Raises BadFileError for what is not text by name."""
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise BadFileError(f"{path}: __metadata__ = {metadata!r:.40}, allowed text by name")
    for name, value in metadata.items():
        if not (is_text(name) and is_text(value)):
            raise BadFileError(f"{path}: __metadata__ {name!r:.200} = {value!r:.40}, allowed text")
    return metadata


def check_places(path: Path, found: dict[str, tuple[Tensor, int]], room: int) -> None:
    """Raises BadFileError where tensors overlap, or leave bytes to none of them."""
    end = 0
    for tensor, begin in sorted(found.values(), key=lambda place: (place[1], place[0].bytes)):
        if begin != end:
            place = f"{tensor.name} begins at {begin}, the tensors before it end at {end}"
            raise BadFileError(f"{path}: is no whole safetensors file: {place}")
        end += tensor.bytes
    if end != room:
        after = f"the {room} bytes after the header"
        raise BadFileError(f"{path}: is no whole safetensors file: its tensors do not fill {after}")


def read_header(path: Path) -> Header:
    """What a .safetensors file says of itself. Raises BadFileError."""
    text, size = header_text(path)
    header, begin = parse_header(path, text), 8 + len(text)
    metadata = checked_metadata(path, header.pop("__metadata__", None))
    names = {name: printable(name) for name in header}
    found = {names[name]: described(path, names[name], header[name], size - begin) for name in header}
    check_places(path, found, size - begin)
    return Header({name: (tensor, begin + at) for name, (tensor, at) in found.items()}, metadata)
