"""Events of the engine as texts, with the tokens that they are made of.

A text is held back where it may be the beginning of a stop string, and tokens with it: a token is told once
the text reaches beyond where it begins, and those of a stop string never are.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from llama.batch import Event, Request
from llama.native import c_bytes, token_bytes
from llama.reading import Scored
from llama.tokenizer import Tokenizer

# finish of Batch to finish_reason
REASONS = {"stop_token": "stop", "stop_string": "stop", "length": "length"}


# --- Tokens as text


@lru_cache(maxsize=1 << 17)
def spellings(tokenizer: Tokenizer, begins: bool, token: int) -> tuple[bytes, bytes]:
    """The text of a token, of one that begins a text or not, and what spells it: of some its name."""
    plain = token_bytes(tokenizer.handle, -1 if begins else token, token)
    return plain, c_bytes(tokenizer.name(token)) if tokenizer.is_special(token) else plain


def is_text(data: bytes) -> bool:
    """Whether bytes of a token are whole characters."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def shown(data: bytes) -> str:
    """Bytes of a token as text, or as OpenAI spells what is none: "bytes:\\xe2\\x80"."""
    return data.decode() if is_text(data) else "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


# --- Texts


class Piece(NamedTuple):
    """A token of a text. begins: whether a text begins with it. begin: its first byte. offset: its first
    character. logprob, top: as of Event; None for the first token of a prompt.
    """

    token: int
    begins: bool
    begin: int
    offset: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]


class Pieces:
    """Places tokens in a text, one after the other. previous: the token before the first, -1 for none."""

    def __init__(self, tokenizer: Tokenizer, previous: int = -1, offset: int = 0) -> None:
        self._tokenizer, self._previous, self._bytes, self._characters = tokenizer, previous, 0, offset

    def next(self, token: int, logprob: float | None, top: tuple[tuple[int, float], ...]) -> Piece:
        begins = self._previous in (-1, self._tokenizer.bos_id)
        data, _ = spellings(self._tokenizer, begins, token)
        inside = bool(data) and data[0] & 0xC0 == 0x80  # of a character that has begun before
        piece = Piece(token, begins, self._bytes, self._characters - inside, logprob, top)
        self._bytes += len(data)
        self._characters += sum(byte & 0xC0 != 0x80 for byte in data)
        self._previous = token
        return piece


@dataclass(eq=False)
class Choice:
    """One text of a request, as far as it has been told."""

    tokenizer: Tokenizer
    previous: int  # the last token of the prompt
    text: str = ""
    pieces: list[Piece] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # without the one that ended the text
    finish: str | None = None  # as of Event
    request: Request | None = None
    _held: list[Piece] = field(default_factory=list)
    _told: int = 0  # bytes

    def __post_init__(self) -> None:
        self.place(0)

    def place(self, offset: int) -> None:
        """Says how many characters are told in front of the text."""
        self._pieces = Pieces(self.tokenizer, self.previous, offset)

    @property
    def reason(self) -> str | None:
        """finish_reason as OpenAI has it."""
        return REASONS.get(self.finish or "")

    def take(self, event: Event) -> tuple[str, list[Piece]]:
        """The text and the tokens that an event adds."""
        self.finish, self.request = event.finish, event.request
        if event.token is not None and event.finish != "stop_token":
            self.tokens.append(event.token)
            if event.logprob is not None:
                self._held.append(self._pieces.next(event.token, event.logprob, event.top))
        self.text += event.text
        self._told += len(event.text.encode())
        whole = event.finish is not None and event.finish != "stop_string"
        told = [piece for piece in self._held if whole or piece.begin < self._told]
        self._held = self._held[len(told) :]
        self.pieces += told
        return event.text, told


def placed(tokenizer: Tokenizer, ids: Sequence[int], scored: Iterable[Scored]) -> list[Piece]:
    """The tokens of a prompt with what reading.logprobs says of them."""
    pieces = Pieces(tokenizer)
    return [pieces.next(token, *score) for token, score in zip(ids, scored, strict=True)]


# --- Log-probabilities


def completion_logprobs(tokenizer: Tokenizer, pieces: Sequence[Piece], top: int) -> dict[str, Any]:
    """Tokens as /v1/completions has them. token_ids is not of OpenAI: two tokens may have the same text."""

    def text(piece: Piece, token: int) -> str:
        return shown(spellings(tokenizer, piece.begins, token)[1])

    def likely(piece: Piece) -> dict[str, float] | None:
        """The most likely tokens and the one that is there, the first of those with the same text."""
        if piece.logprob is None:
            return None
        found: dict[str, float] = {}
        for token, logprob in (*piece.top, (piece.token, piece.logprob)):
            found.setdefault(text(piece, token), logprob)
        return found

    return {
        "tokens": [text(piece, piece.token) for piece in pieces],
        "token_logprobs": [piece.logprob for piece in pieces],
        "top_logprobs": [likely(piece) for piece in pieces] if top else None,
        "text_offset": [piece.offset for piece in pieces],
        "token_ids": [piece.token for piece in pieces],
    }


def token_logprob(tokenizer: Tokenizer, begins: bool, token: int, logprob: float | None) -> dict[str, Any]:
    """A token as /v1/chat/completions has it, with the id, as llama.cpp has it."""
    _, data = spellings(tokenizer, begins, token)
    return {"id": token, "token": shown(data), "bytes": list(data), "logprob": logprob}


def chat_logprobs(
    tokenizer: Tokenizer, pieces: Sequence[Piece], name: str = "top_logprobs"
) -> list[dict[str, Any]]:
    """Tokens as /v1/chat/completions has them."""
    return [
        token_logprob(tokenizer, piece.begins, piece.token, piece.logprob)
        | {name: [token_logprob(tokenizer, piece.begins, token, logprob) for token, logprob in piece.top]}
        for piece in pieces
    ]


def as_base64(values: Any) -> str:
    """A float32 array as OpenAI's clients take it."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()
