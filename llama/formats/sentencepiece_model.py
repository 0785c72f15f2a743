"""The tokens of a sentencepiece model, and what the library does not tell of its own files.

BPE and UNIGRAM models are read; those of WORD and CHAR, which no Llama has, are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sentencepiece import SentencePieceProcessor

from llama.errors import BadFileError
from llama.formats import vocabulary as tokens
from llama.formats.vocabulary import Vocabulary

PIECES, TRAINER, NORMALIZER, TYPE = 1, 2, 3, 3  # fields of ModelProto, and of its SentencePiece
RULES = 2  # field of its NormalizerSpec: what characters become, compiled; the identity has none
MODEL_TYPE = 3  # field of its TrainerSpec
MODEL_TYPES = {1: "UNIGRAM", 2: "BPE", 3: "WORD", 4: "CHAR"}
KINDS = {"UNIGRAM": tokens.UNIGRAM, "BPE": tokens.CHARACTERS}
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


KEEPS_SPACES = "the sentencepiece model leaves out extra spaces of a text; the engine keeps them"
TYPES = {
    NORMAL: tokens.TEXT,
    UNKNOWN: tokens.UNKNOWN,
    CONTROL: tokens.CONTROL,
    USER_DEFINED: tokens.USER,
    BYTE: tokens.BYTE,
    UNUSED: tokens.CONTROL,  # without its name: no text means it
}


def number_of(message: bytes, field: int, known: Collection[int], usual: int) -> int:
    """The last number known of a field. Of another kind it is as good as not there, as to the library."""
    said = [value for name, value in fields(message) if name == field and value in known]
    return int(said[-1]) if said else usual


def parts_of(message: bytes, field: int) -> list[bytes]:
    """The values of a field that are messages, or bytes."""
    return [value for name, value in fields(message) if name == field and isinstance(value, bytes)]


def piece_types(model: bytes) -> list[int]:
    """The type of each piece of a model that the library has read."""
    return [number_of(piece, TYPE, TYPES, NORMAL) for piece in parts_of(model, PIECES)]


def has_rules(model: bytes) -> bool:
    """Whether a model that the library has read makes other characters of some."""
    return any(parts_of(b"".join(parts_of(model, NORMALIZER)), RULES)[-1:])


def model_type(model: bytes) -> str:
    """The name of the type of a model that the library has read."""
    trainer = next((value for field, value in fields(model) if field == TRAINER), b"")
    trainer = trainer if isinstance(trainer, bytes) else b""
    return MODEL_TYPES[number_of(trainer, MODEL_TYPE, MODEL_TYPES, 1)]


def opened(data: bytes) -> SentencePieceProcessor | None:
    """The library's model in the bytes of a file, None for what it refuses."""
    try:
        model = SentencePieceProcessor(model_proto=data)
        for i in range(model.vocab_size()):
            model.id_to_piece(i)
    except (RuntimeError, UnicodeDecodeError):  # the latter also of a reason that quotes what is no UTF-8
        return None
    return model


def zeros_apart(scores: list[float], types: list[int]) -> list[float]:
    """Scores by which BPE merges as the library does, which compares bits: -0 is less than 0 (0.2.3)."""
    text = [str(score) for score, of in zip(scores, types, strict=True) if of == NORMAL]
    if not {"0.0", "-0.0"} <= set(text):
        return scores
    below = -float(np.finfo(np.float32).smallest_subnormal)
    return [below if str(score) == "-0.0" else score for score in scores]


def read_sentencepiece(path: Path, sp: Any) -> Vocabulary:
    """The tokens of a sentencepiece model. Raises BadFileError for one that changes text before it splits it.

    One that removes extra whitespace, such as llama2.c's tok512, is read with a note: the engine keeps it.
    """
    changed, model = sp.normalize("a b"), sp.serialized_model_proto()
    try:
        kind, types, n = model_type(model), piece_types(model), sp.vocab_size()
        identity = changed.removeprefix("\u2581") == "a\u2581b" and not has_rules(model)
    except (IndexError, KeyError):  # fields of a kind that is no longer in use
        kind, types, n, identity = "unknown", list[int](), -1, True
    if len(types) != n:
        raise BadFileError(f"{path}: is a damaged sentencepiece model")
    if not identity:
        raise BadFileError(f"{path}: normalisation changes text, allowed identity with a space in front")
    if kind not in KINDS:
        raise BadFileError(f"{path}: model_type = {kind}, allowed {' and '.join(KINDS)}")
    names = [sp.id_to_piece(i) for i in range(n)]
    unused = [i for i, of in enumerate(types) if of == UNUSED]
    if cut := [i for i in unused if len(names[i]) > 1 and kind == "BPE"]:  # merged, and cut again
        raise BadFileError(f"{path}: piece {cut[0]} is unused, allowed are pieces in use")
    for i in unused:
        names[i] = ""
    if spaced := [name for name in names if " " in name]:
        raise BadFileError(f"{path}: piece = {spaced[0]!r}, allowed are pieces that write a space as \u2581")
    pieces = [
        bytes([int(name[3:5], 16)]) if of == BYTE else name.replace("\u2581", " ").encode()
        for name, of in zip(names, types, strict=True)
    ]
    flags = tokens.SENTENCEPIECE if changed.startswith("\u2581") else 0
    scores = tokens.checked_scores(path, "score", [sp.get_score(i) for i in range(n)])
    if kind == "BPE":
        scores = zeros_apart(scores, types)
    ends = (sp.bos_id(), sp.eos_id(), sp.unk_id())
    rest = {"flags": flags, "notes": (KEEPS_SPACES,) if sp.normalize("a  b") == sp.normalize("a b") else ()}
    return Vocabulary(KINDS[kind], pieces, scores, [TYPES[of] for of in types], *ends, **rest)
