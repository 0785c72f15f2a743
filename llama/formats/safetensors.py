"""The header of a .safetensors file: its length (u64), JSON with type, shape and place of each tensor.

Only the header is read here, without numpy: mapped.py has the tensors themselves.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.errors import BadFileError
from llama.files import reading
from llama.formats.files import parse_json
from llama.formats.header import MAX_HEADER, Tensor, checked_shape, printable
from llama.formats.kinds import checked_start, kind_of

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
    metadata: dict[str, Any]


def described(path: Path, name: str, entry: Any, room: int) -> tuple[Tensor, int]:
    """The tensor that an entry of a header describes, and where it begins. Raises BadFileError."""
    try:
        begin, end = checked_shape(entry["data_offsets"])
        shape, dtype = checked_shape(entry["shape"]), printable(entry["dtype"])
    except (TypeError, KeyError, ValueError):
        raise BadFileError(f"{path}: {name}: has no dtype, shape and data_offsets") from None
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


def read_header(path: Path) -> Header:
    """What a .safetensors file says of itself. Raises BadFileError."""
    text, size = header_text(path)
    try:
        header = parse_json(text)
    except ValueError as error:
        raise BadFileError(f"{path}: its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise BadFileError(f"{path}: its header is no JSON object")
    metadata, begin = header.pop("__metadata__", {}), 8 + len(text)
    names = {name: printable(name) for name in header}
    found = {names[name]: described(path, names[name], header[name], size - begin) for name in header}
    if sum(tensor.bytes for tensor, _ in found.values()) != size - begin:
        room = f"the {size - begin} bytes after the header"
        raise BadFileError(f"{path}: is no whole safetensors file: its tensors do not fill {room}")
    tensors = {name: (tensor, begin + at) for name, (tensor, at) in found.items()}
    return Header(tensors, metadata if isinstance(metadata, dict) else {})
