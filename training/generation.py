"""Writing text with a model in PyTorch: tokens drawn one by one, and their text in whole characters."""

from __future__ import annotations

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
def next_logits(model: Llama, ids: Sequence[int], cache: Cache) -> Tensor:
    """Logits (V), float32 on the CPU, after the last of ids, which are added to the cache."""
    tokens = torch.tensor([ids], device=cache.keys.device)  # (1, T)
    with evaluating(model):
        x = model.hidden(tokens, cache=cache)[0, -1]  # (D): the classifier runs for the last token alone
        return model.output(x).float().cpu()


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
    """Tokens that follow ids (one at least, BOS for a new text), drawn one by one.

    It ends after max_new_tokens, where the model's max_seq_len does, or before a token of stop_ids.
    temperature: 0 is greedy. top_k: 0 is off. top_p: 0 or 1 is off. generator: on any device, None: torch's.
    Raises UsageError, at once.
    """
    check_sampling(temperature, top_k, top_p)
    context, size = model.config.max_seq_len, model.config.vocab_size
    if not 0 < len(ids) <= context:
        raise UsageError(f"prompt = {len(ids)} tokens, allowed 1 to {context}")
    if max_new_tokens < 0:
        raise UsageError(f"max_new_tokens = {max_new_tokens}, allowed 0 or more")
    if wrong := [token for token in ids if not 0 <= token < size]:
        raise UsageError(f"token = {wrong[0]}, allowed 0 to {size - 1}")

    def tokens() -> Iterator[int]:
        positions = min(len(ids) + max_new_tokens - 1, context)  # the last token is not run, so it takes none
        weight = model.tok_embeddings.weight
        cache = Cache(model.config, 1, positions, weight.device, weight.dtype)
        new: Sequence[int] = ids
        while cache.length + len(new) <= positions:
            token = draw(next_logits(model, new, cache), temperature, top_k, top_p, generator)
            if token in stop_ids:
                return
            yield token
            new = [token]

    return tokens()


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
