"""JSON by a schema: which tokens may come next, by llguidance, as masks of the engine."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from llama._engine import lib
from llama.batch import Mask
from llama.engine import Llama
from llama.errors import UsageError
from llama.native import token_bytes
from llama.tokenizer import Tokenizer

BEFORE = "\x02"  # a character that no token joins with another
# One way to write each value: small models fill what is left with white space where they may.
FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def stop_ids(llama: Llama) -> list[int]:
    """The tokens that end a text of a model."""
    config = lib.llama_config(llama._model)
    stops = [config.stops[i] for i in range(config.n_stops)]
    return sorted({*stops, llama.tokenizer.eos_id} - {-1})


def reason(error: str) -> str:
    """What llguidance says, as a line. Of a regular expression it says why behind a picture of it.

    >>> reason("regex parse error:\\n    ((\\n     ^\\nerror: unclosed group")
    'regex parse error: unclosed group'
    """
    first, *rest = error.strip().split("\n")
    last = rest[-1] if rest else ""
    return f"{first} {last.removeprefix('error: ')}" if last.startswith("error: ") else first


def check(matcher: LLMatcher) -> None:
    """Raises UsageError for a grammar that can't be kept, or not go on with."""
    if matcher.is_error():
        raise UsageError(f"json_schema: {reason(matcher.get_error())}")


class Vocabulary:
    """The tokens of a model with the fields that llguidance's TokenizerWrapper asks for."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, stops: list[int]) -> None:
        self._tokenizer, self.eos_token_id = tokenizer, stops[0]
        ids = range(tokenizer.vocab_size)
        self.special_token_ids = [token for token in ids if tokenizer.is_special(token)]
        plain = next(
            token for token in ids if not tokenizer.is_special(token)
        )  # behind which no space is dropped
        self.tokens = [token_bytes(tokenizer.handle, plain, token) for token in ids]
        for token in self.special_token_ids:
            self.tokens[token] = b"\xff" + tokenizer.name(token).encode()  # no text means it

    def __call__(self, text: str) -> list[int]:
        """The ids of text inside another: some vocabularies put a space in front of one that begins."""
        ids = self._tokenizer.encode(BEFORE + text, bos=False)
        return ids[len(self._tokenizer.encode(BEFORE, bos=False)) :]


class Grammars:
    """What turns schemas into masks over the tokens of a model."""

    def __init__(self, llama: Llama) -> None:
        self._llama = llama

    @cached_property
    def tokenizer(self) -> LLTokenizer:
        """The vocabulary as llguidance takes it; made when it is first needed. Raises UsageError."""
        stops = stop_ids(self._llama)
        if not stops:
            raise UsageError("the model has no token that ends a text, so no text can be held to a schema")
        return LLTokenizer(TokenizerWrapper(Vocabulary(self._llama.tokenizer, stops)), eos_token=stops)

    def masks(self, schema: dict[str, Any] | bool, n: int = 1) -> list[Mask]:
        """The masks of n texts that are to be JSON by a schema. Raises UsageError for a bad schema."""
        try:
            rules = json.dumps({} if schema is True else schema)
            grammar = LLMatcher.grammar_from_json_schema(rules, overrides=FORM)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"json_schema: {error}") from None
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0)
        check(matcher)
        size = self._llama.config.vocab_size
        return [Matching(matcher.deep_copy(), size) for _ in range(n)]


class Matching:
    """A text that a grammar is held to: called with the tokens drawn so far, as Batch calls it."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._taken = matcher, 0
        self._words = np.zeros((vocab_size + 31) // 32, np.uint32)

    def __call__(self, tokens: list[int]) -> np.ndarray:
        self._matcher.consume_tokens(tokens[self._taken :])
        self._taken = len(tokens)
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        check(self._matcher)
        return self._words
