"""Guesses of what a text goes on with, which the model checks many at a time: speculative decoding.

A pass with a few rows takes hardly longer than one with a single row, and each guess that was right saves a
pass. Every token is drawn from the model's own logits by the same sampler as without guesses, and a guess was
right if it is the token drawn. So the text is the same, to the bit, whoever guesses, at any temperature.

A guesser is called with all ids of a text so far, prompt included, and returns those that it expects next.
It belongs to one text at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama.errors import UsageError

if TYPE_CHECKING:
    from llama.batch import Guesser
    from llama.engine import Llama


class Lookup:
    """Prompt lookup: what followed when the newest tokens stood in the text the last time.

    For texts that repeat what is there: summaries, code that is edited, answers from a document.
    n: guesses at a time. sizes: how many of the newest tokens are looked for, the most first.
    """

    def __init__(self, n: int = 8, sizes: tuple[int, ...] = (3, 2)) -> None:
        self._n, self._sizes = n, sizes
        self._after: dict[tuple[int, ...], int] = {}  # tokens to where the text went on after them
        self._seen = 0  # ids whose place is noted

    def __call__(self, ids: list[int]) -> list[int]:
        for at in range(self._seen, len(ids)):
            for size in self._sizes:
                if size <= at:
                    self._after[tuple(ids[at - size : at])] = at
        self._seen = len(ids)
        for size in self._sizes:
            if at := self._after.get(tuple(ids[-size:])):
                return ids[at : at + self._n]
        return []


class Draft:
    """What a smaller model with the same tokens finds most likely.

    llama: that model; it remembers as many texts as it has sequences. n: guesses at a time. chunk: tokens of
    a text that it reads at a time, without a guess until it has read all, so that other texts need not
    wait for a long prompt; 0: all.
    """

    def __init__(self, llama: Llama, n: int = 4, chunk: int = 0) -> None:
        self._llama, self._n, self._chunk = llama, n, chunk
        self._read = 0  # tokens of the text

    def __call__(self, ids: list[int]) -> list[int]:
        n = min(self._n, self._llama.context - len(ids))
        if n < 1:
            return []
        if 0 < self._chunk < len(ids) - self._read:
            self._read += self._chunk
            self._likely(ids[: self._read], 1)  # drawing one is not to be had without
            return []
        self._read = len(ids)
        return self._likely(ids, n)

    def _likely(self, ids: list[int], n: int) -> list[int]:
        text = self._llama.generate(ids, max_tokens=n, temperature=0)
        for _ in text:
            pass
        return text.request.tokens


def guesser(draft: str | Llama | None, vocab_size: int, chunk: int = 0) -> Guesser | None:
    """What draft of Llama.generate means, for a text of a model with that many tokens. chunk: as of Draft.

    Raises UsageError.
    """
    if draft is None:
        return None
    if draft == "lookup":
        return Lookup()
    if not hasattr(draft, "config"):
        raise UsageError(f"draft = {draft!r}, allowed 'lookup' or a Llama")
    if draft.config.vocab_size != vocab_size:
        raise UsageError(f"the draft has {draft.config.vocab_size} tokens, the model {vocab_size}")
    return Draft(draft, chunk=chunk)
