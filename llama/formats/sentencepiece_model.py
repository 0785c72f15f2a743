"""What the sentencepiece library does not tell of its own model files: the types of their pieces."""

from __future__ import annotations

from collections.abc import Iterator

PIECES, TYPE = 1, 3  # fields of ModelProto and of its SentencePiece
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message that is well formed: numbers, and values as they lie."""
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        if key & 7 == 0:
            value, at = read_varint(data, at)
            yield key >> 3, value
            continue
        length, at = read_varint(data, at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
        yield key >> 3, data[at : at + length]
        at += length


def piece_types(model: bytes) -> list[int]:
    """The type of each piece of a model that the library has read."""
    pieces = (value for field, value in fields(model) if field == PIECES and isinstance(value, bytes))
    return [int(dict(fields(piece)).get(TYPE, NORMAL)) for piece in pieces]
