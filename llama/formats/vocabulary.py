"""The tokens of a model as data, and the two files that the engine reads them from (docs/format.md).

The indexed file is used by the engine as it lies: arrays, and a table that finds a piece. llama2.c's
tokenizer.bin holds pieces and scores alone.
"""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from llama.errors import BadFileError

CHARACTERS, BYTES, UNIGRAM = range(3)  # kinds: what merges at first, or pieces are chosen by their sum
TEXT, UNKNOWN, CONTROL, USER, BYTE = range(5)  # types of tokens
NO_PATTERN, LLAMA3, GPT2, GPT2_DIGITS, SPACES = range(5)  # how text is split into words: split_patterns.py
QWEN2, TEKKEN, DEEPSEEK_LLM, DEEPSEEK_CODER, GPT2_NUMBERS, LLAMACPP_DEFAULT = range(5, 11)
PREFIX, PREFIX_EACH, PREFIX_UNLESS_SPACE, WHOLE_WORDS = 1, 2, 4, 8  # flags
USER_FIRST, RANKED, STRIP, UNKNOWN_EACH, DOUBLES, EDGED, LATE_AS_GIVEN = 16, 32, 64, 128, 256, 512, 1024
SEARCHES = USER_FIRST | LATE_AS_GIVEN  # flags of where names are looked for
PREFIXES_BYTES = PREFIX | PREFIX_EACH | PREFIX_UNLESS_SPACE  # what add_prefix_space of ByteLevel does
LEFT, RIGHT, WORD = 1, 2, 4  # edges: white space on a side of a token goes with it, it is no part of a word
SENTENCEPIECE = PREFIX | PREFIX_EACH | STRIP  # what its models do unless they say otherwise

MAGIC, VERSION = 0x6B6F746C, 1
HEADER = struct.Struct("<5I4i7I")
PROBES_MAX = 256  # slots that the engine looks at
NO_RANK = 2**32 - 1  # a pair that does not merge
VOCABULARY_MAX = 2**24 - 1  # tokens
SCORE_MAX = float(np.finfo(np.float32).max)  # but for doubles


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model. What the fields mean is said in docs/format.md.

    pieces: what each token prints, or its name; a space stands for U+2581. merges: the pairs of pieces that
    merge, the first first; None: any two whose bytes make one do, the highest score first. late: ids of
    special tokens that are found in what is between the others. edges: of special tokens, where not 0.
    textual: ids of user-defined tokens that are pieces of text as well. notes: what the user should know of a
    vocabulary that its file does not say all of, a line each; no file holds them.
    """

    kind: int
    pieces: Sequence[bytes]
    scores: Sequence[float]
    types: Sequence[int]
    bos: int = -1
    eos: int = -1
    unknown: int = -1
    pattern: int = NO_PATTERN
    flags: int = 0
    merges: Sequence[tuple[bytes, bytes]] | None = None
    late: Set[int] = frozenset()
    edges: Mapping[int, int] = field(default_factory=dict)
    textual: Set[int] = frozenset()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def special(self) -> dict[str, int]:
        """Ids of the tokens that text can be asked to mean, by name."""
        control = (i for i, kind in enumerate(self.types) if kind == CONTROL and self.pieces[i])
        return {self.pieces[i].decode(errors="replace"): i for i in control}

    def padded(self, n: int) -> Vocabulary:
        """The vocabulary with n tokens. The new ones have no name: no text means them, they print nothing."""
        more = n - len(self)
        pieces, types = [*self.pieces, *[b""] * more], [*self.types, *[CONTROL] * more]
        return replace(self, pieces=pieces, types=types, scores=[*self.scores, *[0.0] * more])

    @property
    def unpadded(self) -> Vocabulary:
        """The vocabulary without the tokens at its end that have no name."""
        n = max((i + 1 for i, piece in enumerate(self.pieces) if piece), default=0)
        return replace(self, pieces=self.pieces[:n], types=self.types[:n], scores=self.scores[:n])

    @cached_property
    def indexed(self) -> bytes:
        """The bytes of an indexed file."""
        return write_indexed(self)


# --- The tables of an indexed file


def hash_bytes(data: bytes) -> int:
    """64 bits, eight bytes at a time."""
    value = len(data)
    for at in range(0, max(1, len(data)), 8):
        value = hash_word(value, int.from_bytes(data[at : at + 8], "little"))
    return value


def hash_word(value: int, word: int) -> int:
    value = (value ^ word) * 0x9E3779B97F4A7C15 % 2**64
    return value ^ value >> 32


def place(hashes: Sequence[int]) -> np.ndarray:
    """Open addressing: for each slot the index of a hash, or -1. At most half of the slots are used."""
    n = 2
    while n < 2 * len(hashes):
        n *= 2
    slots = [-1] * n
    for i, value in enumerate(hashes):
        slot = value & n - 1
        while slots[slot] >= 0:
            slot = slot + 1 & n - 1
        slots[slot] = i
        if (slot - value) & n - 1 >= PROBES_MAX:
            raise BadFileError(
                f"token {i} of the vocabulary has {PROBES_MAX} others with nearly the same hash"
            )
    return np.array(slots)


def text_ids(vocabulary: Vocabulary) -> dict[bytes, int]:
    """The pieces that are found in text. Of equal ones the first counts."""
    ids: dict[bytes, int] = {}
    for i, (piece, kind) in enumerate(zip(vocabulary.pieces, vocabulary.types, strict=True)):
        if (kind == TEXT or i in vocabulary.textual) and piece:
            ids.setdefault(piece, i)
    return ids


def sorted_ids(vocabulary: Vocabulary, ids: Iterable[int]) -> list[int]:
    """Those that have a piece, by their bytes."""
    pieces = vocabulary.pieces
    return sorted((i for i in ids if pieces[i]), key=pieces.__getitem__)


def words_of(vocabulary: Vocabulary) -> list[int]:
    """The ids of what makes up a text of kind UNIGRAM, by their bytes; none of the other kinds."""
    v, types = vocabulary, {TEXT} if vocabulary.flags & USER_FIRST else {TEXT, USER}
    found = (i for i, of in enumerate(v.types) if of in types or i in v.textual)
    return sorted_ids(v, found) if v.kind == UNIGRAM else []


def slots_of(ids: dict[bytes, int]) -> np.ndarray:
    """The table of pieces: 8 bits of the hash and the id + 1, 0 where there is none."""
    hashes = [hash_bytes(piece) for piece in ids]
    entries = [value >> 56 << 24 | i + 1 for value, i in zip(hashes, ids.values(), strict=True)]
    return np.array([*entries, 0], "<u4")[place(hashes)]


def ranks_of(vocabulary: Vocabulary, ids: dict[bytes, int], offsets: np.ndarray) -> np.ndarray:
    """For each byte of all pieces, the rank of the pair that its piece is cut into before that byte."""
    merges = vocabulary.merges
    ranks = np.full(int(offsets[-1]) if merges is not None else 0, NO_RANK, "<u4")
    places = [int(offsets[ids[left + right]]) + len(left) for left, right in merges or ()]
    ranks[places] = np.arange(len(places))
    return ranks


def joined_of(pieces: Iterable[bytes]) -> np.ndarray:
    """Bit 256 a + b: some piece has byte b right after byte a."""
    bits = np.zeros(2**16, np.uint8)
    bits[[256 * a + b for piece in pieces for a, b in itertools.pairwise(piece)]] = 1
    return np.packbits(bits, bitorder="little")


def byte_ids_of(vocabulary: Vocabulary) -> np.ndarray:
    """The token of each byte, -1 where there is none."""
    v, ids = vocabulary, np.full(256, -1, "<i4")
    kind, textual = (TEXT, v.textual) if v.kind == BYTES else (BYTE, frozenset[int]())
    for i in reversed(range(len(v))):
        if len(v.pieces[i]) == 1 and (v.types[i] == kind or i in textual):
            ids[v.pieces[i][0]] = i
    return ids


def edges_of(vocabulary: Vocabulary) -> np.ndarray:
    """The edges of each token; nothing if no token has any."""
    edges = np.zeros(len(vocabulary) if vocabulary.edges else 0, np.uint8)
    edges[[*vocabulary.edges]] = [*vocabulary.edges.values()]
    return edges


def write_indexed(vocabulary: Vocabulary) -> bytes:
    """The bytes of an indexed file. Raises BadFileError for too many tokens with nearly the same hash."""
    v, ids = vocabulary, text_ids(vocabulary) if vocabulary.kind != UNIGRAM else {}
    named = [i for i, kind in enumerate(v.types) if kind in (CONTROL, USER) and i not in v.late]
    special, late, words = sorted_ids(v, named), sorted_ids(v, v.late), words_of(v)
    offsets = np.cumsum([0, *map(len, v.pieces)]).astype("<u4")
    ranks, slots, clipped = ranks_of(v, ids, offsets), slots_of(ids), np.clip(v.scores, -SCORE_MAX, SCORE_MAX)
    sections = [byte_ids_of(v), joined_of(ids), offsets, clipped.astype("<f4")]
    sections += [np.array([*special, *late, *words], "<u4"), slots, ranks]
    sections += [np.array(v.scores if v.flags & DOUBLES else [], "<f8"), edges_of(v)]
    sections += [np.array(v.types, np.uint8)]
    body = b"".join([section.tobytes() for section in sections] + [*v.pieces])
    flags = v.flags | (RANKED if v.merges is not None else 0) | (EDGED if v.edges else 0)
    ends = (len(v), v.bos, v.eos, v.unknown)
    sizes = (len(special), len(slots), max(map(len, ids), default=0), int(offsets[-1]))
    sizes = (*sizes, len(words), len(late), 0)
    head = HEADER.pack(MAGIC, VERSION, v.kind, v.pattern, flags, *ends, *sizes)[:-4]
    return head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body


def indexed_of(name: Path | str, vocabulary: Vocabulary) -> bytes:
    """The bytes of an indexed file. Raises BadFileError, with the name of what the vocabulary is of."""
    try:
        return vocabulary.indexed
    except BadFileError as error:
        raise BadFileError(f"{name}: {error}") from None


def checked_scores(path: Path, field: str, scores: list[float]) -> list[float]:
    """Scores as they are. Raises BadFileError for one that is no finite number of 32 bits."""
    for i, score in enumerate(scores):
        if not abs(score) <= SCORE_MAX:
            raise BadFileError(f"{path}: {field} of token {i} = {score}, allowed finite numbers of 32 bits")
    return scores


def is_indexed(data: bytes) -> bool:
    return data[:4] == struct.pack("<I", MAGIC)


def checked_part(data: bytes) -> bytes:
    """The bytes of a tokenizer that the checksum of a v3 file covers: of an indexed one, its header."""
    return data[: HEADER.size] if is_indexed(data) else data


def read_indexed(path: Path, data: bytes) -> Vocabulary:
    """The tokens of an indexed file. Raises BadFileError for one that is not as it was written."""
    if (
        len(data) < HEADER.size
        or zlib.crc32(data[HEADER.size :], zlib.crc32(data[: HEADER.size - 4]))
        != (struct.unpack_from("<I", data, HEADER.size - 4)[0])
    ):
        raise BadFileError(f"{path}: checksum of the tokenizer is not the one stored in it")
    _, _, kind, pattern, flags, n, *ends, n_special, n_slots, _, n_bytes, n_words, n_late, _ = (
        HEADER.unpack_from(data)
    )
    at, n_ranks = HEADER.size + 1024 + 8192, n_bytes if flags & RANKED else 0
    n_doubles, n_names = n if flags & DOUBLES else 0, n_special + n_late + n_words
    words, n_edges = 2 * n + 1 + n_names + n_slots + n_ranks + 2 * n_doubles, n if flags & EDGED else 0
    if (size := at + 4 * words + n_edges + n + n_bytes) != len(data):
        raise BadFileError(f"{path}: the tokenizer has {len(data)} bytes, its header asks for {size}")
    offsets = np.frombuffer(data, "<u4", n + 1, at).tolist()
    scores = np.frombuffer(data, "<f4", n, at + 4 * (n + 1)).tolist()
    late, listed, slots = np.split(
        np.frombuffer(data, "<u4", n_late + n_words + n_slots, at + 4 * (2 * n + 1 + n_special)),
        (n_late, n_late + n_words),
    )
    at += 4 * (2 * n + 1 + n_names + n_slots)
    ranks = np.frombuffer(data, "<u4", n_ranks, at)
    at += 4 * n_ranks
    scores = np.frombuffer(data, "<f8", n, at).tolist() if n_doubles else scores
    at += 8 * n_doubles
    edges = {i: bits for i, bits in enumerate(data[at : at + n_edges]) if bits}
    at += n_edges
    types, text = list(data[at : at + n]), data[at + n :]
    pieces = [text[begin:end] for begin, end in itertools.pairwise(offsets)]
    merges = read_merges(text, offsets, ranks) if flags & RANKED else None
    found = {*listed.tolist()} if kind == UNIGRAM else {*((slots & 0xFFFFFF) - 1).tolist()}
    users = kind == UNIGRAM and not flags & USER_FIRST  # which are such pieces by themselves
    textual = frozenset(i for i, of in enumerate(types) if of != TEXT and i in found and not users)
    flags, late = flags & ~(RANKED | EDGED), frozenset(late.tolist())
    return Vocabulary(kind, pieces, scores, types, *ends, pattern, flags, merges, late, edges, textual)


def read_merges(text: bytes, offsets: list[int], ranks: np.ndarray) -> list[tuple[bytes, bytes]]:
    """The pairs, in their order. text: all pieces."""
    places = np.argsort(ranks, kind="stable")[: np.count_nonzero(ranks != NO_RANK)]
    ends = np.searchsorted(offsets, places, "right")
    return [
        (text[offsets[end - 1] : at], text[at : offsets[end]])
        for at, end in zip(places.tolist(), ends.tolist(), strict=True)
    ]


# --- llama2.c's tokenizer.bin


def fits_llama2c(vocabulary: Vocabulary) -> bool:
    """Whether a tokenizer.bin can say all of it."""
    v = vocabulary
    special = {i for i, kind in enumerate(v.types) if kind in (CONTROL, USER)}
    return (
        v.kind == CHARACTERS
        and v.merges is None
        and not v.edges
        and v.flags & ~SEARCHES == SENTENCEPIECE
        and special <= {v.bos, v.eos}
        and (v.unknown >= 0 or BYTE in v.types)
    )


def write_llama2c(vocabulary: Vocabulary, path: Path) -> bytes:
    """The bytes of a tokenizer.bin: u32 longest piece, then of each token f32 score, i32 length and bytes.

    Raises BadFileError, with path, for what the file can't say.
    """
    v, names = vocabulary, {vocabulary.bos: b"\n<s>\n", vocabulary.eos: b"\n</s>\n"}
    if not fits_llama2c(v):
        raise BadFileError(
            f"{path}: can't be a tokenizer.bin of llama2.c, which knows sentencepiece's BPE alone"
        )
    pieces = [
        b"<0x%02X>" % piece[0] if kind == BYTE else b"<unk>" if kind == UNKNOWN else names.get(i, piece)
        for i, (piece, kind) in enumerate(zip(v.pieces, v.types, strict=True))
    ]
    records = (
        struct.pack("<fi", score, len(piece)) + piece for score, piece in zip(v.scores, pieces, strict=True)
    )
    return struct.pack("<I", max(map(len, pieces))) + b"".join(records)


def llama2c_records(path: Path, data: bytes) -> list[tuple[float, bytes]]:
    """Score and bytes of each token. Raises BadFileError where the records do not fill the file."""
    at, records = 4, []
    while at + 8 <= len(data):
        score, length = struct.unpack_from("<fi", data, at)
        at += 8 + max(0, length)
        records.append((score, data[at - max(0, length) : at]))
    if at != len(data) or not records:
        raise BadFileError(f"{path}: is not a whole tokenizer.bin")
    return records


OLD_BYTES = [chr(byte).encode() for byte in range(256)]  # tokens 3 to 258 of the first llama2.c
LLAMA2C_NAMES = {b"<unk>": UNKNOWN, b"<s>": CONTROL, b"</s>": CONTROL}


def read_llama2c(path: Path, data: bytes) -> Vocabulary:
    """The tokens of a tokenizer.bin, told by their names as the engine tells them. Raises BadFileError."""
    scores, names = zip(*llama2c_records(path, data), strict=True)
    names = [name[1:-1] if name in (b"\n<s>\n", b"\n</s>\n") else name for name in names]
    if names[3:259] == OLD_BYTES:
        names[3:259] = [b"<0x%02X>" % byte for byte in range(256)]
    bytes_ = [re.fullmatch(rb"<0x([0-9A-F]{2})>", name) for name in names]
    pieces = [
        bytes([int(match[1], 16)]) if match else name for match, name in zip(bytes_, names, strict=True)
    ]
    types = [
        BYTE if match else LLAMA2C_NAMES.get(name, TEXT) for match, name in zip(bytes_, names, strict=True)
    ]
    bos, eos, unknown = (names.index(name) if name in names else -1 for name in (b"<s>", b"</s>", b"<unk>"))
    return Vocabulary(CHARACTERS, pieces, scores, types, bos, eos, unknown, flags=SENTENCEPIECE)


# --- Either


def read_bin(path: Path, data: bytes) -> Vocabulary:
    """The tokens of either file. Raises BadFileError."""
    return read_indexed(path, data) if is_indexed(data) else read_llama2c(path, data)


def count_bin(path: Path, data: bytes) -> int:
    """The number of tokens of either file. Raises BadFileError for one that is not whole."""
    return len(read_indexed(path, data)) if is_indexed(data) else len(llama2c_records(path, data))
