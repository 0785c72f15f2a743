"""What a Hugging Face folder says of its tokenizer.model: tokens that it adds (added_tokens.json,
added_tokens_decoder), which are BOS and EOS, and whether a space goes in front of a text.

Tokens are found in text as transformers finds them, and a text that follows one has no space put in front.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama.errors import BadFileError
from llama.formats import vocabulary as tokens
from llama.formats.files import Fields, read_json
from llama.formats.text_ends import CONFIG, end_said, note_of
from llama.formats.tokenizer_json import GAPS_MAX, edges_of
from llama.formats.vocabulary import Vocabulary

ADDED, SPECIAL = "added_tokens.json", "special_tokens_map.json"
MOST = tokens.VOCABULARY_MAX
DIGITS = 9  # of an id


@dataclass(frozen=True)
class Added:
    """A token beside those of a model."""

    id: int
    name: str
    special: bool
    edges: int = 0


def is_name(name: Any) -> bool:
    """Whether JSON's value is a text that UTF-8 can hold, and not empty."""
    return isinstance(name, str) and name != "" and not any("\ud800" <= c <= "\udfff" for c in name)


def read_added(path: Path, i: Any, name: Any, special: Any) -> Added:
    """A token as a file lists it. Raises BadFileError."""
    digits = str(i) if type(i) in (int, str) else ""
    number = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < DIGITS else -1
    if not (0 <= number < MOST and is_name(name) and isinstance(special, bool)):
        raise BadFileError(
            f"{path}: added token {i!s:.20} = {name!r:.80}, allowed a name, and an id up to {MOST - 1}"
        )
    return Added(number, name, special)


def read_decoder(fields: Fields) -> Iterator[Added]:
    """The tokens of added_tokens_decoder. Raises BadFileError."""
    for i, token in fields.object("added_tokens_decoder").values.items():
        said = Fields(fields.path, token if isinstance(token, dict) else {})
        added = read_added(fields.path, i, said.values.get("content"), said.flag("special", False))
        yield replace(added, edges=edges_of(said.values))


def special_names(folder: Path) -> set[str]:
    """Names of tokens that a folder says have a part to play, such as eos_token."""
    said = [read_json(folder / name).values for name in (CONFIG, SPECIAL) if (folder / name).exists()]
    values = [value for fields in said for key, value in fields.items() if key.endswith("_token")]
    for fields in said:
        values += more if isinstance(more := fields.get("additional_special_tokens"), list) else []
    names = (value.get("content") if isinstance(value, dict) else value for value in values)
    return {name for name in names if isinstance(name, str)}


def by_id(path: Path, listed: Iterable[Added]) -> dict[int, Added]:
    """Tokens by their ids. Raises BadFileError for two of one id."""
    found: dict[int, Added] = {}
    for token in listed:
        if token.id in found:
            names = f"{found[token.id].name!r:.80} and {token.name!r:.80}"
            raise BadFileError(f"{path}: added token {token.id} = {names}, allowed one name")
        found[token.id] = token
    return found


def find_listed(folder: Path, most: int | None) -> list[Added]:
    """The tokens that the files of a folder list, by their ids, up to `most`. Raises BadFileError."""
    found: dict[int, Added] = {}
    if (path := folder / ADDED).exists():
        special = special_names(folder)
        listed = (read_added(path, i, name, name in special) for name, i in read_json(path).values.items())
        found |= by_id(path, listed)
    if (path := folder / CONFIG).exists():
        found |= by_id(path, read_decoder(read_json(path)))
    return [found[i] for i in sorted(found) if most is None or i < most]


def says_no_prefix(folder: Path) -> bool:
    """Whether a folder says that no space goes in front of a text. Raises BadFileError."""
    path = folder / CONFIG
    return path.exists() and not read_json(path).flag("add_prefix_space", True)


def adds_to(folder: Path, n: int, most: int | None) -> bool:
    """Whether a folder says more of the tokens than a model of n does. Raises BadFileError."""
    more = any(token.edges or token.id >= n for token in find_listed(folder, most))
    return more or says_no_prefix(folder)


def ends_of(folder: Path, special: Mapping[str, int], usual: Sequence[int]) -> tuple[list[int], list[str]]:
    """BOS and EOS as a folder says, else the usual ones, and notes where it names none of the special tokens.

    Raises BadFileError.
    """
    said = read_json(folder / CONFIG).values if (folder / CONFIG).exists() else {}
    ends, notes, names = list[int](), list[str](), {i: name for name, i in special.items()}
    for name, other in zip(("bos_token", "eos_token"), usual, strict=True):
        token = end_said(folder / CONFIG, said, name)
        ends.append(other if token is None else special.get(token, other))
        if token is not None and token not in special:
            notes.append(note_of(name, token, names.get(other)))
    return ends, notes


def with_ends(folder: Path, vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary with the folder's BOS and EOS. Raises BadFileError."""
    v = vocabulary
    (bos, eos), notes = ends_of(folder, v.special, (v.bos, v.eos))
    return replace(v, bos=bos, eos=eos, notes=(*v.notes, *notes))


def with_added(folder: Path, vocabulary: Vocabulary, most: int | None = None) -> Vocabulary:
    """The vocabulary of a model with what its folder says of it, itself if that is nothing.

    most: of the rows of the embedding; tokens that have none are left out. Raises BadFileError.
    """
    n, listed = len(vocabulary), find_listed(folder, most)
    flags = vocabulary.flags & ~tokens.SENTENCEPIECE if says_no_prefix(folder) else vocabulary.flags
    v = replace(vocabulary, flags=flags, edges={token.id: token.edges for token in listed if token.edges})
    added = [token for token in listed if token.id >= n]
    if not added:
        return with_ends(folder, v)
    if added[-1].id >= n + len(added) + GAPS_MAX:
        found = f"added token {added[-1].id} = {added[-1].name!r:.80}"
        raise BadFileError(f"{folder}: {found}, allowed ids from 0 to {n + len(added) + GAPS_MAX - 1}")
    pieces, types = [*v.padded(added[-1].id + 1).pieces], [*v.padded(added[-1].id + 1).types]
    for token in added:
        pieces[token.id] = token.name.encode()
        types[token.id] = tokens.CONTROL if token.special else tokens.USER
    path, flags = folder / CONFIG, v.flags | tokens.USER_FIRST
    legacy = read_json(path).flag("legacy", False) if path.exists() else False
    if v.flags & tokens.PREFIX and not legacy:
        flags = flags & ~tokens.PREFIX_EACH | tokens.PREFIX_UNLESS_SPACE
    scores = [*v.scores, *[0.0] * (len(pieces) - n)]
    return with_ends(folder, replace(v, pieces=pieces, types=types, scores=scores, flags=flags))
