"""Texts that are read and not written: log-probabilities of their tokens, and embeddings.

Each function is a generator that reads a chunk, yields, and at its end returns its result. So texts that are
being written, or other readers, get their turn in between; whoever has nothing else to do calls `result`. It
overwrites a sequence of a C context, which nobody else may use meanwhile.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from llama._engine import ffi, lib
from llama.errors import UsageError
from llama.native import NEW_UNCLEARED, call, check_tokens, vocab_size, within

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
Reading = Generator[None, None, T]
CHUNK = 64  # rows between two turns: a tenth of a second with 135M parameters on two cores
POOLING = ("mean", "last")


class Scored(NamedTuple):
    """A token of a text: its log-probability after those before it, in nats, and the most likely tokens in
    its place with theirs. The first one has none.
    """

    logprob: float | None
    top: tuple[tuple[int, float], ...]


def result(reading: Reading[T]) -> T:
    """What a reading returns, run to its end."""
    while True:
        try:
            next(reading)
        except StopIteration as end:
            return end.value


def chunks(context: Any, n: int) -> range:
    """Where the chunks of n rows begin. Raises UsageError where they are more than a C context holds."""
    if n > (most := lib.llama_context_options(context).context):
        raise UsageError(f"{n} tokens do not fit in the context of {most} positions")
    return range(0, n, CHUNK)


def likely(tops: Any, token: int, logprob: float) -> tuple[tuple[int, float], ...]:
    """The entries of a LlamaLogprob[], which are floats, with the double of a token for which there is one.

    So whether a token is the most likely one can be seen by comparing the two.
    """
    entries = ffi.unpack(tops, len(tops)) if len(tops) else ()
    return tuple((entry.token, logprob if entry.token == token else entry.logprob) for entry in entries)


def logprobs(context: Any, ids: Sequence[int], top: int = 0, sequence: int = 0) -> Reading[list[Scored]]:
    """The log-probability of each token, and those of the `top` most likely ones.

    top: 0 to 128, at most all tokens there are. Raises UsageError for it, an id that is none, or too many.
    """
    size, found = vocab_size(context), [Scored(None, ())] * min(1, len(ids))
    check_tokens(ids, size)
    within(top, "top", 0, lib.LLAMA_MAX_TOP)
    logits = NEW_UNCLEARED("float[]", min(CHUNK, len(ids)) * size)
    logprob, tops = ffi.new("double *"), ffi.new("LlamaLogprob[]", min(top, size))
    for start in chunks(context, max(0, len(ids) - 1)):
        rows = [(token, start + i, sequence, 1) for i, token in enumerate(ids[start : start + CHUNK])]
        rows = rows[: len(ids) - 1 - start]  # nothing follows the last one
        call(lib.llama_forward, context, rows, len(rows), logits)
        for i, token in enumerate(ids[start + 1 : start + 1 + len(rows)]):
            call(lib.llama_logprobs, context, logits + i * size, token, logprob, tops, len(tops))
            found.append(Scored(logprob[0], likely(tops, token, logprob[0])))
        yield
    return found


def embedding(
    context: Any, ids: Sequence[int], pooling: str = "mean", sequence: int = 0
) -> Reading[np.ndarray]:
    """The mean of the hidden states of a text's tokens, or the last one: float32, (dim).

    Hidden states are those after the last layer and its norm, as transformers' last_hidden_state, and are not
    normalised to a length. Raises UsageError.
    """
    import numpy as np  # here, because importing it takes longer than opening a model

    if pooling not in POOLING:
        raise UsageError(f"pooling = {pooling!r}, allowed {', '.join(POOLING)}")
    if not ids:
        raise UsageError("the text has no tokens, and so no embedding")
    dim = lib.llama_config(lib.llama_context_model(context)).dim
    total, hidden = np.zeros(dim), np.empty((CHUNK, dim), np.float32)
    out = ffi.from_buffer("float[]", hidden, require_writable=True)
    for start in chunks(context, len(ids)):
        rows = [(token, start + i, sequence, 0, 1) for i, token in enumerate(ids[start : start + CHUNK])]
        call(lib.llama_forward_hidden, context, rows, len(rows), ffi.NULL, out)
        total += hidden[: len(rows)].sum(axis=0, dtype=np.float64)
        yield
    return (hidden[len(rows) - 1] if pooling == "last" else total / len(ids)).astype(np.float32)
