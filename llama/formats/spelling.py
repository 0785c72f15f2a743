"""How the files of Hugging Face and llama.cpp spell the tokens of a vocabulary, and the pairs that merge.

Of characters, U+2581 stands for a space; bytes are letters of GPT-2's alphabet, of which it has one for each.
"""

from __future__ import annotations

from collections.abc import Iterator

from llama.formats import vocabulary as tokens
from llama.formats.tokenizer_json import BYTE_OF
from llama.formats.vocabulary import Vocabulary, text_ids

SPACE = "\u2581"
LETTERS = {byte: letter for letter, byte in BYTE_OF.items()}  # GPT-2's alphabet


def spelt(kind: int, piece: bytes, of: int) -> str:
    """A token of a type as a file spells it. Raises UnicodeDecodeError."""
    if of == tokens.BYTE:
        return f"<0x{piece[0]:02X}>"
    if of != tokens.TEXT:
        return piece.decode()
    if kind == tokens.BYTES:
        return "".join(LETTERS[byte] for byte in piece)
    return piece.decode().replace(" ", SPACE)


def spellings(vocabulary: Vocabulary) -> list[str]:
    """All tokens as a file spells them; of those without a name, which no text means, the id is in it.

    vocabulary: one without a pieces_problem.
    """
    typed = enumerate(zip(vocabulary.pieces, vocabulary.types, strict=True))
    return [spelt(vocabulary.kind, piece, of) if piece else f"[PAD{i}]" for i, (piece, of) in typed]


def pieces_problem(vocabulary: Vocabulary) -> str | None:
    """What of the tokens themselves the files can't hold, None for nothing."""
    v = vocabulary
    for i, (piece, of) in enumerate(zip(v.pieces, v.types, strict=True)):
        try:
            spelt(v.kind, piece, of)
        except UnicodeDecodeError:
            return f"token {i} = {piece!r}, allowed is UTF-8"
    return None


# --- Pairs


def cuts(piece: bytes, byte_level: bool = True) -> Iterator[int]:
    """Where a piece can be cut in two, between bytes or characters, in an order for pairs that are to merge
    as any two tokens do.

    Of x y z, where x y and y z are the same piece, the left pair is to merge: it comes first. (If the piece
    is x y and y x, as of spaces alone, that is not always to be had.)
    """
    n = len(piece)
    for at in range(1, n // 2 + 1):
        both = {at: None, n - at: None}
        ordered = sorted(both, key=lambda at: not piece.startswith(piece[at:]))
        yield from (at for at in ordered if byte_level or piece[at] & 0xC0 != 0x80)


def pairs_of(vocabulary: Vocabulary) -> list[tuple[bytes, bytes]]:
    """The pairs that merge, the first first."""
    if vocabulary.merges is not None:
        return [*vocabulary.merges]
    text, byte_level = text_ids(vocabulary), vocabulary.kind == tokens.BYTES
    made = sorted(text, key=lambda piece: -vocabulary.scores[text[piece]])
    parts = ((piece[:at], piece[at:]) for piece in made for at in cuts(piece, byte_level))
    return [(left, right) for left, right in parts if left in text and right in text]


def merges_of(vocabulary: Vocabulary) -> list[str]:
    """The pairs that merge, as a file spells them."""
    pairs = pairs_of(vocabulary)
    return [" ".join(spelt(vocabulary.kind, part, tokens.TEXT) for part in pair) for pair in pairs]
