"""Reads a tokenizer.json of Hugging Face's tokenizers library, for the kinds that Llama models have:

    characters and a space in front, as Llama 2: normalizer Prepend and Replace, or pre_tokenizer Metaspace;
    what has no piece is spelt in bytes ("byte_fallback"), is the unknown token, or is left out
    byte-level, split into words by a pattern that split_patterns.py has
    Unigram, with spaces as the first kind has them

The library merges pairs in the order of a list; sentencepiece and tiktoken merge any two tokens whose bytes
make one. Where the list provably comes to the same, the vocabulary has scores; otherwise it has the pairs.

Left out on purpose: in text, names of special tokens and of bytes as pieces of a Unigram, which the library
takes for the tokens even where it is told not to. Ids are those that the file says; the library numbers added
tokens after a gap anew.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama.errors import BadFileError
from llama.formats import split_patterns
from llama.formats import vocabulary as tokens
from llama.formats.files import parse_json
from llama.formats.text_ends import ends_of, with_ends
from llama.formats.tokenizer_fields import check_kinds, refuse, require, steps
from llama.formats.vocabulary import Vocabulary, text_ids

SPACE = "\u2581"

GAPS_MAX = 1 << 17  # ids that no token has

Pieces = dict[str, int]  # as the file spells them, with their ids


# --- What happens to text before it merges


SCHEMES = {"always": tokens.PREFIX | tokens.PREFIX_EACH, "first": tokens.PREFIX, "never": 0}  # of Metaspace


def space_flags(path: Path, data: dict[str, Any]) -> int:
    """How a tokenizer with byte fallback puts a space in front. Raises BadFileError."""
    normalizers = steps(data["normalizer"], "normalizers")
    splitters = steps(data["pre_tokenizer"], "pretokenizers")
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    if not splitters and normalizers in ([prepend, spaces], [spaces]):
        return tokens.PREFIX | tokens.PREFIX_EACH if prepend in normalizers else 0
    if normalizers or [step["type"] for step in splitters] != ["Metaspace"]:
        allowed = "Prepend and Replace of a space by \u2581 without a pre_tokenizer, or Metaspace alone"
        refuse(path, "normalizer, pre_tokenizer", [data["normalizer"], data["pre_tokenizer"]], allowed)
    require(path, "pre_tokenizer", splitters[0], {"replacement": (SPACE,)})
    scheme = splitters[0].get("prepend_scheme", "always")
    require(path, "pre_tokenizer", splitters[0], {"prepend_scheme": tuple(SCHEMES)})
    if splitters[0].get("add_prefix_space") is False and scheme != "never":  # of older files
        refuse(path, "pre_tokenizer.add_prefix_space", False, f"true where prepend_scheme is {scheme}")
    return SCHEMES[scheme] | (tokens.PREFIX_UNLESS_SPACE if SCHEMES[scheme] else 0)


def splits_at_spaces(data: dict[str, Any]) -> bool:
    """Whether each space of a tokenizer of characters begins a word."""
    splitters = steps(data["pre_tokenizer"], "pretokenizers")
    return any(step["type"] == "Metaspace" and step.get("split", True) for step in splitters)


def prepends(data: dict[str, Any]) -> bool:
    """Whether a normalizer puts a space in front: then names of "normalized" tokens have one, too."""
    return any(step["type"] == "Prepend" for step in steps(data["normalizer"], "normalizers"))


def strip_flag(path: Path, data: dict[str, Any]) -> int:
    """Whether the decoder of a tokenizer with byte fallback drops the space that a text begins with."""
    decoders = steps(data["decoder"], "decoders")
    if [step["type"] for step in decoders] == ["Metaspace"]:
        require(path, "decoder", decoders[0], {"replacement": (SPACE,), "prepend_scheme": tuple(SCHEMES)})
        return 0 if decoders[0].get("prepend_scheme", "always") == "never" else tokens.STRIP
    undo = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    without_bytes = [undo[0], *undo[2:]]
    if decoders not in (undo, undo[:-1], without_bytes, without_bytes[:-1]):
        allowed = "Replace, ByteFallback, Fuse, and Strip of a space, or Metaspace"
        refuse(path, "decoder", data["decoder"], allowed)
    return tokens.STRIP if decoders[-1] == undo[-1] else 0


COMPOSES = {"type": "NFC"}
TAKES_AS_IT_IS = (
    "the tokenizer composes characters first (NFC), which the engine does not: "
    "a text with letters whose accents are characters of their own may get other ids"
)


def split_of(path: Path, data: dict[str, Any]) -> tuple[int, int]:
    """How a byte-level tokenizer splits text into words, and the flags of a space in front.

    Raises BadFileError.
    """
    if steps(data["normalizer"], "normalizers") not in ([], [COMPOSES]):
        refuse(path, "normalizer", data["normalizer"], "null or NFC")
    if [step["type"] for step in steps(data["decoder"], "decoders")] != ["ByteLevel"]:
        refuse(path, "decoder", data["decoder"], "ByteLevel")
    splitters = steps(data["pre_tokenizer"], "pretokenizers")
    pattern = split_patterns.pattern_of(splitters)
    if pattern is None:
        refuse(path, "pre_tokenizer", data["pre_tokenizer"], split_patterns.KNOWN)
    prefix = splitters[-1].get("add_prefix_space", True)
    if len(splitters) > 1:  # each piece would get one
        require(path, "pre_tokenizer", splitters[-1], {"add_prefix_space": (False,)})
    return pattern, tokens.PREFIXES_BYTES if prefix else 0


def is_byte_level(data: dict[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in steps(data["pre_tokenizer"], "pretokenizers")[-1:])


# --- Pieces


def byte_characters() -> dict[str, int]:
    """What byte-level pieces spell bytes with: printable Latin-1 is itself, the others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = byte_characters()
BYTE_NAMES = {f"<0x{byte:02X}>": byte for byte in range(256)}


def piece_bytes(path: Path, piece: str, byte_level: bool, field: str = "model.vocab") -> bytes:
    """What a piece spells. field: what messages call the list of pieces. Raises BadFileError."""
    if not byte_level:
        if " " in piece:
            refuse(path, field, piece, "pieces that write a space as \u2581")
        return piece.replace(SPACE, " ").encode()
    try:
        return bytes([BYTE_OF[c] for c in piece])
    except KeyError:
        return refuse(path, field, piece, "byte-level pieces")


def bytes_missing(pieces: Sequence[bytes], types: Sequence[int], kind: int) -> int:
    """How many bytes have no token of a type."""
    found = {piece for piece, of in zip(pieces, types, strict=True) if of == kind and len(piece) == 1}
    return 256 - len(found)


def refuse_some_bytes(path: Path, pieces: Sequence[bytes], types: Sequence[int], field: str) -> None:
    """Refuses a vocabulary of characters with tokens for some of the bytes. Raises BadFileError."""
    if 0 < (missing := bytes_missing(pieces, types, tokens.BYTE)) < 256:
        refuse(path, field, f"{missing} bytes without a token", "a token for each of the 256 bytes, or none")


def count_ids(path: Path, vocab: dict[str, int], added: Sequence[dict[str, Any]]) -> int:
    """The number of ids, those between that no token has among them. Raises BadFileError."""
    known = dict(vocab)
    for token in added:
        name, i = token["content"], token["id"]
        if type(i) is not int or i != known.setdefault(name, i):
            wanted = f"{known[name]} for {name!r:.80}" if name in known else "integers"
            refuse(path, "added_tokens.id", i, wanted)
    if strange := [i for i in known.values() if type(i) is not int]:
        refuse(path, "model.vocab", strange[0], "integers as ids")
    ids = sorted(known.values())
    if twice := [i for i, following in itertools.pairwise(ids) if i == following]:
        refuse(path, "model.vocab, added_tokens", f"id {twice[0]} twice", "each id once")
    most = min(tokens.VOCABULARY_MAX, len(ids) + GAPS_MAX)
    if not ids or ids[0] < 0 or ids[-1] >= most:
        found = f"{len(ids)} ids" + (f" from {ids[0]} to {ids[-1]}" if ids else "")
        refuse(path, "model.vocab, added_tokens", found, f"ids from 0 to {most - 1}")
    return ids[-1] + 1


def read_tokens(
    path: Path, vocab: dict[str, int], data: dict[str, Any], byte_level: bool
) -> tuple[list[bytes], list[int]]:
    """What each token prints, or its name, and its type; an id that no token has is one without a name.

    Raises BadFileError.
    """
    added, fallback = data.get("added_tokens") or [], data["model"].get("byte_fallback", False)
    n = count_ids(path, vocab, added)
    pieces, types = [b""] * n, [tokens.CONTROL] * n
    for token in added:
        pieces[token["id"]] = token["content"].encode()
        types[token["id"]] = tokens.CONTROL if token["special"] else tokens.USER
    names = {token["content"] for token in added}
    for piece, i in vocab.items():
        if piece in names:
            continue
        is_byte = not byte_level and fallback and piece in BYTE_NAMES
        pieces[i] = bytes([BYTE_NAMES[piece]]) if is_byte else piece_bytes(path, piece, byte_level)
        types[i] = tokens.BYTE if is_byte else tokens.TEXT
    refuse_some_bytes(path, pieces, types, "model.vocab")
    return pieces, types


def late_of(data: dict[str, Any]) -> tuple[frozenset[int], int]:
    """The special tokens that are found in what is between the others, and the flag of where: in normalised
    text, or as it was given where spaces are left to a pre_tokenizer.
    """
    late = frozenset(token["id"] for token in data.get("added_tokens") or [] if token.get("normalized"))
    as_given = late and steps(data["pre_tokenizer"], "pretokenizers")
    return late, tokens.LATE_AS_GIVEN if as_given else 0


def parts_of(merges: Iterable[str | Sequence[str]]) -> set[str]:
    """All that a list of pairs merges, and what it makes."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return {part for pair in pairs for part in (*pair, "".join(pair))}


def is_made(name: str, parts: Collection[str] | None, byte_level: bool) -> bool:
    """Whether a piece is one of text: a byte or character, or one of the parts of pairs; None: any is."""
    spelt = all(c in BYTE_OF for c in name) if byte_level else " " not in name
    return spelt and (parts is None or len(name) == 1 or name in parts)


def may_come(path: Path, name: str, special: bool, byte_level: bool, field: str = "added_tokens") -> bool:
    """Whether a token that is found by its name, and is a piece of text, may come of text: no <|im_end|> may.

    Raises BadFileError for a special one that text can't do without, and for one that is looked for under
    another spelling than text has.
    """
    if special or name.startswith("<|"):
        if byte_level and len(name) == 1:
            refuse(path, field, name, "special tokens other than those of bytes")
        return False
    if piece_bytes(path, name, byte_level, field) != name.encode():
        refuse(path, field, name, "user-defined tokens that, as pieces of text, spell their own name")
    return True


def may_be_missed(data: dict[str, Any], token: Mapping[str, Any]) -> bool:
    """Whether an added token may stand in a text and not be found: a name is looked for with a space in
    front, or what it stands in is no whole word and text as such.
    """
    single = any(other.get("single_word") for other in data["added_tokens"])
    return single or (prepends(data) and bool(token.get("normalized")))


def textual_of(path: Path, vocab: Collection[str], data: dict[str, Any], byte_level: bool) -> frozenset[int]:
    """The user-defined tokens that are pieces of text as well: where such a token is not found, as in the
    middle of a word, the library still makes text of it.

    Raises BadFileError for special ones that text can't do without, or of a BPE that the library makes of
    text where they are not found.
    """
    model, textual = data["model"], set[int]()
    merged = None if model.get("type") == "Unigram" else parts_of(model["merges"])
    parts = None if model.get("ignore_merges") else merged
    for token in data.get("added_tokens") or []:
        name = token["content"]
        if name not in vocab or not is_made(name, parts, byte_level):
            continue
        if may_come(path, name, token["special"], byte_level):
            textual.add(token["id"])
        elif merged is not None and is_made(name, merged, byte_level) and may_be_missed(data, token):
            allowed = "special tokens that model.merges do not make, or that are found wherever they stand"
            refuse(path, "added_tokens", name, allowed)
    return frozenset(textual)


EDGES = {"lstrip": tokens.LEFT, "rstrip": tokens.RIGHT, "single_word": tokens.WORD}


def edges_of(token: Mapping[str, Any]) -> int:
    """What an added token, as the library writes it, asks of the text beside it."""
    return sum(bit for name, bit in EDGES.items() if token.get(name))


def edges_by_id(data: dict[str, Any]) -> dict[int, int]:
    added = data.get("added_tokens") or []
    return {token["id"]: edges for token in added if (edges := edges_of(token))}


def numbered_anew(data: dict[str, Any], vocab: Collection[str]) -> tuple[str, ...]:
    """A note, if the library has other ids for added tokens than the file says."""
    added = data.get("added_tokens") or []
    new = sorted((token["id"], token["content"]) for token in added if token["content"] not in vocab)
    for known, (i, name) in enumerate(new, len(vocab)):
        if i != known:
            return (f"token {i} = {name!r}, as the file says; the tokenizers library makes it {known}",)
    return ()


# --- Merges


CHARACTER_MAX = 4  # bytes of UTF-8


def is_character(text: bytes) -> bool:
    """Whether UTF-8 text is one character."""
    return all(byte & 0xC0 == 0x80 for byte in text[1:])


def cuts(piece: bytes, byte_level: bool, sizes: Set[int]) -> Iterator[tuple[bytes, bytes]]:
    """The pairs of parts of some sizes that a piece can be cut into: between bytes, or between characters."""
    for at in range(1, len(piece)):
        if at in sizes and len(piece) - at in sizes and (byte_level or piece[at] & 0xC0 != 0x80):
            yield piece[:at], piece[at:]


def classes_of(merges: Sequence[tuple[bytes, bytes]]) -> dict[bytes, int] | None:
    """The order in which pieces are made, if the pairs of each stand together in the list; else None."""
    order: dict[bytes, int] = {}
    last = b""
    for left, right in merges:
        piece = left + right
        if piece != last and order.setdefault(piece, len(order)) != len(order) - 1:
            return None
        last = piece
    return order


def merges_any_pair(pieces: set[bytes], merges: Sequence[tuple[bytes, bytes]], byte_level: bool) -> bool:
    """Whether merging by this list comes to the same as merging any two tokens whose bytes make one, in the
    order in which the list makes them, the leftmost pair first.

    It does if the pairs of a piece stand together, after those of its parts; if every pair of tokens, or
    characters, that makes a piece is in the list; and if of two pairs that make the same piece and overlap,
    (x, y) and (y, z), the left one comes first.
    """
    order, ranks = classes_of(merges), {pair: rank for rank, pair in enumerate(merges)}
    if order is None or not pieces.issuperset(order):
        return False

    def fits(x: bytes, y: bytes) -> bool:
        if (x, y) not in ranks:
            return any(part not in pieces and (byte_level or not is_character(part)) for part in (x, y))
        after = ranks.get((y, (x + y)[len(y) :]), -1) if (x + y).startswith(y) else -1
        made_before = max(order.get(x, -1), order.get(y, -1)) < order[x + y]
        return made_before and (after < 0 or after >= ranks[x, y])

    # Only cuts into tokens and characters matter. To try each byte of a long token would take the square of
    # its length.
    sizes = {*map(len, pieces), *range(1, CHARACTER_MAX + 1)}
    return all(fits(x, y) for piece in pieces for x, y in cuts(piece, byte_level, sizes))


def read_merges(
    path: Path,
    merges: Sequence[str | Sequence[str]],
    vocab: Collection[str],
    names: Set[str],
    byte_level: bool,
    field: str = "model.merges",
) -> list[tuple[bytes, bytes]]:
    """The list of pairs, in either of its forms: "a b", or ["a", "b"]. Raises BadFileError.

    vocab: all pieces. names: of special tokens that are no text. A pair that makes one, or has one, is left
    out: its name in a text is text.
    """
    pairs = []
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        made = (*parts, "".join(parts))
        if len(made) != 3 or any(
            part not in vocab or (part in BYTE_NAMES and not byte_level) for part in made
        ):
            refuse(path, field, merge, "two tokens that make one")
        if names.isdisjoint(made):
            left, right = (piece_bytes(path, part, byte_level) for part in parts)
            pairs.append((left, right))
    return pairs


def scores_of(pieces: Sequence[bytes], order: dict[bytes, int]) -> list[float]:
    """Scores by which pieces merge in this order."""
    return [-float(order.get(piece, len(order))) for piece in pieces]


def merging_by(vocabulary: Vocabulary, merges: list[tuple[bytes, bytes]]) -> Vocabulary:
    """The vocabulary, merging by a list of pairs: by scores where that comes to the same."""
    if merges_any_pair({*text_ids(vocabulary)}, merges, vocabulary.kind == tokens.BYTES):
        return replace(vocabulary, scores=scores_of(vocabulary.pieces, classes_of(merges) or {}))
    return replace(vocabulary, merges=merges)


# --- The file


def read(path: Path, data: bytes, most: int | None = None) -> Vocabulary:
    """The tokens in a tokenizer.json. Raises BadFileError, with the field that can't be represented.

    most: of the rows of the embedding; added tokens that have none are left out.
    """
    try:
        fields = parse_json(data)
        check_kinds(path, fields)
        return read_fields(path, within(fields, most))
    except BadFileError:
        raise
    except KeyError as error:
        raise BadFileError(f"{path}: is no tokenizer.json: {error} is missing") from None
    except (TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise BadFileError(f"{path}: is no tokenizer.json: {error}") from None


def unknown_of(path: Path, data: dict[str, Any], vocabulary: Vocabulary) -> Vocabulary:
    """The BPE vocabulary with the token for what has none, and how often it stands. Raises BadFileError."""
    model, v = data["model"], vocabulary
    name = model.get("unk_token")
    unknown = model["vocab"].get(name, -1) if name is not None else -1
    if not bytes_missing(v.pieces, v.types, tokens.TEXT if v.kind == tokens.BYTES else tokens.BYTE):
        return replace(v, unknown=unknown)
    if name is not None and unknown < 0:
        refuse(path, "model.unk_token", name, "a piece of model.vocab, or null")
    each = unknown >= 0 and not model.get("fuse_unk", False)
    return replace(v, unknown=unknown, flags=v.flags | (tokens.UNKNOWN_EACH if each else 0))


def read_vocabulary(path: Path, data: dict[str, Any], vocab: dict[str, int], kind: int) -> Vocabulary:
    """The tokens, of any kind, and how spaces are dealt with. Raises BadFileError."""
    if kind == tokens.BYTES:
        pattern, flags = split_of(path, data)
    else:
        flags = space_flags(path, data) | strip_flag(path, data)
        pattern = tokens.SPACES if splits_at_spaces(data) else tokens.NO_PATTERN
    pieces, types = read_tokens(path, vocab, data, kind == tokens.BYTES)
    late, where = late_of(data)
    for i in late if not where else ():  # which are found in text that is spelt as pieces are
        pieces[i] = pieces[i].replace(SPACE.encode(), b" ") if types[i] == tokens.USER else pieces[i]
    control = {piece.decode(): i for i, piece in enumerate(pieces) if piece and types[i] == tokens.CONTROL}
    rest = {"pattern": pattern, "flags": flags | where | tokens.USER_FIRST, "late": late}
    composes = COMPOSES in steps(data["normalizer"], "normalizers")
    ends, notes = ends_of(path, control)
    notes += ((TAKES_AS_IT_IS,) if composes else ()) + numbered_anew(data, vocab)
    textual = textual_of(path, vocab, data, kind == tokens.BYTES)
    rest |= {"edges": edges_by_id(data), "textual": textual, "notes": notes}
    return Vocabulary(kind, pieces, [0.0] * len(pieces), types, *ends, **rest)


def read_unigram(path: Path, data: dict[str, Any]) -> Vocabulary:
    """A tokenizer.json of type Unigram. Raises BadFileError."""
    listed, unknown = data["model"]["vocab"], data["model"].get("unk_id")
    vocab = {piece: i for i, (piece, _) in reversed([*enumerate(listed)])}
    if len(vocab) != len(listed):
        refuse(path, "model.vocab", f"{len(listed) - len(vocab)} pieces twice", "each piece once")
    for piece, score in listed:
        if type(score) not in (int, float) or not abs(score) <= sys.float_info.max:
            refuse(path, f"model.vocab: score of {piece!r:.80}", score, "finite numbers")
    v = read_vocabulary(path, data, vocab, tokens.UNIGRAM)
    scores = [float(score) for _, score in listed] + [0.0] * (len(v) - len(listed))
    v = replace(v, scores=scores, flags=v.flags | tokens.DOUBLES)
    if unknown is None and bytes_missing(v.pieces, v.types, tokens.BYTE):
        refuse(path, "model.unk_id", unknown, "a token where there are none for bytes")
    if unknown is not None and (type(unknown) is not int or not 0 <= unknown < len(listed)):
        refuse(path, "model.unk_id", unknown, f"null and 0 to {len(listed) - 1}")
    return v if unknown is None else replace(v, unknown=unknown)


def read_bpe(path: Path, data: dict[str, Any]) -> Vocabulary:
    """A tokenizer.json of type BPE. Raises BadFileError."""
    model, byte_level = data["model"], is_byte_level(data)
    plain = dict.fromkeys(("continuing_subword_prefix", "end_of_word_suffix"), (None, ""))
    require(path, "model", model, {"dropout": (None, 0.0), **plain})
    whole_words = tokens.WHOLE_WORDS if model.get("ignore_merges") else 0
    if not byte_level:
        require(path, "model", model, {"ignore_merges": (False,)})
    v = read_vocabulary(path, data, model["vocab"], tokens.BYTES if byte_level else tokens.CHARACTERS)
    v = unknown_of(path, data, replace(v, flags=v.flags | whole_words))
    added = data.get("added_tokens") or []
    names = {token["content"] for token in added if token["id"] not in v.textual}
    return merging_by(v, read_merges(path, model["merges"], model["vocab"], names, byte_level))


def within(data: dict[str, Any], most: int | None) -> dict[str, Any]:
    """The fields of a file without the added tokens from id `most` on."""
    added = data.get("added_tokens") or []
    rest = [token for token in added if most is None or type(token["id"]) is not int or token["id"] < most]
    return data | {"added_tokens": rest}


def read_fields(path: Path, data: dict[str, Any]) -> Vocabulary:
    """What read does."""
    kinds = {"BPE": read_bpe, "Unigram": read_unigram}
    require(path, "model", data["model"], {"type": tuple(kinds)})
    return with_ends(path, data, kinds[data["model"].get("type", "BPE")](path, data))
