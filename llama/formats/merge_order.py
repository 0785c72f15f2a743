"""The order in which tokens merge, from the order of their ids: for files that do not say it.

llama.cpp's converter writes one score for all tokens of a model that has a tokenizer.json and no
tokenizer.model. Training makes tokens one after the other, each of two that are there already, and numbers
them so. A token alone is then merged, by the pairs that came before it, into just those two: if each token of
the vocabulary is, the ids are in the order of the merges, and the pairs are known.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from llama.formats import vocabulary as tokens
from llama.formats.tokenizer_json import merging_by
from llama.formats.vocabulary import Vocabulary, text_ids

RUNS = {b" " * n for n in (*range(2, 15), 16)}  # in Llama 2 and Mistral these merge last, whatever their ids
LAST = -1e9  # their score there
UNKNOWN_ORDER = (
    "all scores of the tokenizer are alike, and the order of its tokens does not tell which merge first: "
    "texts may get other ids than the model was trained with"
)

Pair = tuple[bytes, bytes]


def characters(piece: bytes) -> list[bytes]:
    """The characters of a piece. Raises UnicodeDecodeError."""
    return [character.encode() for character in piece.decode()]


def joined(parts: list[bytes], pair: Pair) -> list[bytes]:
    """Parts, in which a pair is one wherever it stands, from the left."""
    whole, at = list[bytes](), 0
    while at < len(parts):
        n = 2 if (*parts[at : at + 2],) == pair else 1
        whole.append(b"".join(parts[at : at + n]))
        at += n
    return whole


def merged(piece: bytes, ranks: dict[Pair, int]) -> list[bytes]:
    """The parts that a piece alone is merged into, by pairs with ranks, each after those that make its parts.

    So all places of a pair merge at once: what they make is in later pairs alone.
    """
    parts = characters(piece)
    while pair := min(ranks.keys() & itertools.pairwise(parts), key=ranks.__getitem__, default=None):
        parts = joined(parts, pair)
    return parts


def pairs_by_order(pieces: Sequence[bytes]) -> list[Pair] | None:
    """The pair that each piece of several characters is made of, if the pieces are in the order of merges.

    pieces: of text, all there are. None if they are in another.
    """
    known, ranks = set(pieces), dict[Pair, int]()
    for piece in pieces:
        parts = merged(piece, ranks)
        if len(parts) == 1:
            continue
        if len(parts) != 2 or not known.issuperset(parts):
            return None
        ranks[parts[0], parts[1]] = len(ranks)
    return [*ranks]


def is_trained_by_sentencepiece(pieces: Sequence[bytes]) -> bool:
    """Whether characters come after what is made of them; the tokenizers library puts them first."""
    return len(characters(pieces[0])) > 1 and len(characters(pieces[-1])) == 1


def with_order(vocabulary: Vocabulary) -> Vocabulary:
    """A vocabulary whose scores are all alike, merging as its ids say; else as it is, with a note."""
    v, last = vocabulary, set[bytes]()
    try:
        pieces = sorted(text_ids(v), key=text_ids(v).__getitem__)
        if pieces and is_trained_by_sentencepiece(pieces) and RUNS.issubset(pieces):
            last = {piece for piece in pieces if len(piece) > 1 and not piece.strip(b" ")}
            pieces = [piece for piece in pieces if piece not in last]
        pairs = pairs_by_order(pieces)
    except UnicodeDecodeError:
        pairs = None
    if pairs is None:
        return replace(v, notes=(*v.notes, UNKNOWN_ORDER))
    if not last:
        return merging_by(v, pairs)
    scores = [LAST if piece in last else -float(i) for i, piece in enumerate(v.pieces)]
    return replace(v, scores=scores)


def are_alike(vocabulary: Vocabulary) -> bool:
    """Whether no score of a token that merges differs from another, though there is something to merge."""
    v = vocabulary
    text = {
        i
        for i, of in enumerate(v.types)
        if of == tokens.TEXT and len(v.pieces[i].decode(errors="replace")) > 1
    }
    return len(text) > 1 and len({v.scores[i] for i in text}) == 1
