"""Writing text with a model in PyTorch: tokens drawn one by one, and their text in whole characters."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llama.errors import BadFileError, UsageError
from model import Cache, Llama

# --- Drawing tokens


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """Raises UsageError for an option out of range."""
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"temperature = {temperature}, allowed 0 or more")
    if top_k < 0:
        raise UsageError(f"top_k = {top_k}, allowed 0 or more")
    if not 0 <= top_p <= 1:
        raise UsageError(f"top_p = {top_p}, allowed 0 to 1")


def filtered(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """Probabilities (V), 0 for the tokens that do not get through top_k, then top_p, as in ./run.

    top_p keeps the most likely tokens, up to the one with which they exceed top_p of what top_k left.
    """
    ordered, tokens = probabilities.sort(descending=True, stable=True)
    if 0 < top_k < len(ordered):
        ordered[top_k:] = 0
    if 0 < top_p < 1:
        before = ordered.cumsum(0) - ordered
        ordered[before > top_p * ordered.sum()] = 0
    return torch.zeros_like(probabilities).scatter_(0, tokens, ordered)


def draw(
    logits: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> int:
    """A token drawn by its logits (V); the most likely one, the first among equals, at temperature 0."""
    if not logits.isfinite().all():
        raise BadFileError("logits are not finite: the weights of the model are broken")
    if temperature == 0:
        return int(logits.argmax())
    # The largest becomes 0, in float64: no temperature is so small that its division gives a NaN.
    scaled = (logits.double() - logits.max()) / temperature
    probabilities = filtered(scaled.softmax(0), top_k, top_p)
    if generator is not None:
        probabilities = probabilities.to(generator.device)
    return int(torch.multinomial(probabilities, 1, generator=generator))


@contextmanager
def evaluating(model: Llama) -> Iterator[None]:
    """Without dropout, and as it was afterwards."""
    if (
        not model.training
    ):  # going through all modules for every token takes a third of the time of a tiny model
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


@torch.no_grad()
def next_logits(model: Llama, ids: Sequence[Sequence[int]], cache: Cache) -> Tensor:
    """Logits (B, V), float32 on the CPU, after the last of ids (B, T), which are added to the cache."""
    tokens = torch.tensor(ids, device=cache.keys.device)
    with evaluating(model):
        x = model.hidden(tokens, cache=cache)[:, -1]  # (B, D): the classifier runs for the last token alone
        return model.logits(x).float().cpu()


def generate(
    model: Llama,
    ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    stop_ids: Collection[int] = (),
) -> Iterator[int]:
    """Tokens that follow ids: generate_together for a single text."""
    (text,) = generate_together(
        model, ids, max_new_tokens, temperature, top_k, top_p, [generator], stop_ids=stop_ids
    )
    return text


def generate_together(
    model: Llama,
    ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generators: Sequence[torch.Generator | None] = (None,),
    stop_ids: Collection[int] = (),
) -> list[Iterator[int]]:
    """Texts that follow ids (one at least, BOS for a new text), a row of one batch each, a token at a time.

    A text ends after max_new_tokens, where the model's max_seq_len does, or before a token of stop_ids.
    temperature: 0 is greedy. top_k: 0 is off. top_p: 0 or 1 is off. generators: one a text, on any device,
    None: torch's. Raises UsageError, at once.
    """
    check_sampling(temperature, top_k, top_p)
    context, size, n = model.config.max_seq_len, model.config.vocab_size, len(generators)
    if not 0 < len(ids) <= context:
        raise UsageError(f"prompt = {len(ids)} tokens, allowed 1 to {context}")
    if max_new_tokens < 0:
        raise UsageError(f"max_new_tokens = {max_new_tokens}, allowed 0 or more")
    if wrong := [token for token in ids if not 0 <= token < size]:
        raise UsageError(f"token = {wrong[0]}, allowed 0 to {size - 1}")

    def steps() -> Iterator[list[int | None]]:
        """A token of each text, None of one that has ended."""
        positions = min(len(ids) + max_new_tokens - 1, context)  # the last token is not run, so it takes none
        weight = model.norm.weight  # of the type of the residual stream
        cache = Cache(model.config, n, positions, weight.device, weight.dtype)
        new: list[Sequence[int]] = [ids] * n
        found: list[int | None] = list(ids[:1]) * n
        while cache.length + len(new[0]) <= positions:
            for i, logits in enumerate(next_logits(model, new, cache)):
                if found[i] is not None:
                    token = draw(logits, temperature, top_k, top_p, generators[i])
                    found[i] = None if token in stop_ids else token
            if found == [None] * n:
                return
            yield list(found)
            new = [[token or 0] for token in found]  # what follows the end of a text is not looked at

    def text(i: int, rows: Iterator[list[int | None]]) -> Iterator[int]:
        for row in rows:
            if (token := row[i]) is None:
                return
            yield token

    return [text(i, rows) for i, rows in enumerate(itertools.tee(steps(), n))]


# --- Text


def stream(tokenizer: Any, prompt: Sequence[int], ids: Iterable[int]) -> Iterator[str]:
    """The text of ids that follow those of a prompt, piece by piece: only whole characters, none empty.

    What a token says depends on its neighbours: the space before the first word of a text is dropped, a
    character may lie over several tokens. So it is decoded together with the last piece that has a word.
    """
    held, told, new = list(prompt), len(tokenizer.decode(list(prompt))), 0  # of held, told characters are out
    for token in ids:
        held.append(token)
        new += 1  # tokens that are not out
        text = tokenizer.decode(held)
        if len(text) <= told or text.endswith("\ufffd"):
            continue
        yield text[told:]
        piece, told = tokenizer.decode(held[-new:]), len(text)
        if piece.strip():
            held, told = held[-new:], len(piece)
        new = 0
    if rest := tokenizer.decode(held)[told:]:
        yield rest
