"""A model made of others: its layers in another order, a weighted sum, other tokens.

Each function takes sources and gives one, whose rows are made when a writer asks for them; so no tensor is
ever whole in memory, and what nothing changes is the input to the bit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np

from llama.errors import BadFileError, UsageError
from llama.files import temporary_folder
from llama.formats.chat_templates import Chat
from llama.formats.source import (
    CLASSIFIER,
    EMBEDDING,
    LIMITS,
    Source,
    checked_tensors,
    row_ranges,
    tensor_shapes,
)
from llama.formats.tensor import NUMPY, Tensor, rounded, to_floats
from llama.formats.vocabulary import BYTE, CONTROL, PREFIXES_BYTES, Vocabulary, byte_ids_of, text_ids
from llama.tokenizer import Tokenizer

LAYER = re.compile(r"layers\.(\d+)\.(.+)")
ADDING = (
    "attention.wo.weight",
    "feed_forward.w2.weight",
)  # what a layer adds to its input comes out of these
MAY_DIFFER = ("dropout", "max_seq_len")  # between models that are added up: the first one's counts


# --- Layers


def numbers(text: str, n: int, option: str) -> list[int]:
    """0-23,8-31 as the numbers that it lists, in that order, each below n.

    >>> numbers("0-2,1", 4, "layers")
    [0, 1, 2, 1]

    Raises UsageError, which calls the text by the name of its option.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        begin, end = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not begin <= end < n:
            raise UsageError(
                f"{option} = {text}: {part!r}, allowed numbers from 0 to {n - 1}, such as 0-{n - 1}"
            )
        found += range(begin, end + 1)
    return found


def zeros(tensor: Tensor) -> Tensor:
    """As many zeros of the same type."""
    shape, kind = tensor.shape[1:], NUMPY[tensor.dtype]
    return Tensor(tensor.dtype, tensor.shape, lambda begin, end: np.zeros((end - begin, *shape), kind))


def with_layers(source: Source, order: Sequence[int], silent: bool = False) -> Source:
    """The model whose layers are these of the source, in this order.

    Some may come again: so a deeper model begins (Kim et al., SOLAR 10.7B, 2023). silent: those that do add
    nothing at first, so the whole computes what it would without them (Wu et al., LLaMA Pro, 2024).
    Raises UsageError for no layer or too many, BadFileError.
    """
    if not 0 < len(order) <= LIMITS["n_layers"]:
        raise UsageError(f"{source.name}: n_layers would be {len(order)}, allowed 1 to {LIMITS['n_layers']}")
    tensors, config = checked_tensors(source), dataclasses.replace(source.config, n_layers=len(order))
    again = {at for at, layer in enumerate(order) if layer in order[:at]}

    def tensor_of(name: str) -> Tensor:
        if not (match := LAYER.fullmatch(name)):
            return tensors[name]
        at, rest = int(match[1]), match[2]
        tensor = tensors[f"layers.{order[at]}.{rest}"]
        return zeros(tensor) if silent and at in again and rest in ADDING else tensor

    return dataclasses.replace(
        source, config=config, tensors={name: tensor_of(name) for name in tensor_shapes(config)}
    )


# --- Sums


def sum_of(parts: Sequence[tuple[Tensor, float]]) -> Tensor:
    """The weighted sum of tensors of one shape, in their type if it is bf16 or fp16 for all, else in fp32.

    One of weight 1 is itself.
    """
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    kinds = {tensor.dtype for tensor, _ in parts}
    dtype = kinds.pop() if len(kinds) == 1 and kinds <= {"bf16", "fp16"} else "fp32"

    def rows(begin: int, end: int) -> np.ndarray:
        total = np.zeros((end - begin, *parts[0][0].shape[1:]))
        for tensor, weight in parts:
            total += np.float64(weight) * to_floats(tensor.rows(begin, end), tensor.dtype)
        with np.errstate(over="ignore"):  # what is written is checked
            values = total.astype(np.float32)
        return values if dtype == "fp32" else rounded(values, dtype)

    return Tensor(dtype, parts[0][0].shape, rows)


def check_shape(first: Source, other: Source) -> None:
    """Raises UsageError for models of different shapes."""
    wanted = first.config.to_dict()
    for name, value in other.config.to_dict().items():
        if value != wanted[name] and name not in MAY_DIFFER:
            raise UsageError(f"{other.name}: {name} = {value}, allowed {wanted[name]}, as {first.name} has")


def weighted(sources: Sequence[Source], weights: Sequence[float]) -> Source:
    """The sum of models, each times its weight; weights are divided by their sum. The rest is the first's.

    Raises UsageError for models of different shapes, or weights that add up to nothing, BadFileError.
    """
    if not sum(weights) > 0:
        raise UsageError(f"weights add up to {sum(weights)}, allowed more than 0")
    for other in sources[1:]:
        check_shape(sources[0], other)
    shares = [weight / sum(weights) for weight in weights]
    added = [(checked_tensors(s), share) for s, share in zip(sources, shares, strict=True) if share]
    tensors = {
        name: sum_of([(tensors[name], share) for tensors, share in added])
        for name in tensor_shapes(sources[0].config)
    }
    return dataclasses.replace(sources[0], tensors=tensors)


def check_tokens(first: Vocabulary | None, other: Vocabulary | None, name: str) -> None:
    """Raises BadFileError where both are known and differ."""
    if first is None or other is None:
        return
    for i, (wanted, found) in enumerate(zip(first.pieces, other.pieces, strict=False)):
        if wanted != found:
            raise BadFileError(f"{name}: token {i} is {found!r}, allowed {wanted!r}, as in the first model")


# --- Tokens


@contextmanager
def speller(vocabulary: Vocabulary) -> Iterator[Callable[[bytes], list[int]]]:
    """A function that gives the tokens of a piece from the midst of a text, good until the end of the block.

    Bytes that are not UTF-8 are told one by one.
    """
    bare = dataclasses.replace(vocabulary, flags=vocabulary.flags & ~PREFIXES_BYTES)
    single = byte_ids_of(vocabulary).tolist()
    with temporary_folder() as aside:
        (aside / "tokenizer.bin").write_bytes(bare.indexed)
        with Tokenizer(aside / "tokenizer.bin") as tokenizer:

            def spell(piece: bytes) -> list[int]:
                try:
                    ids = tokenizer.encode(piece.decode(), bos=False)
                except UnicodeDecodeError:
                    ids = [single[byte] for byte in piece]
                return [i for i in ids if i not in (-1, vocabulary.unknown)]

            yield spell


def same_tokens(old: Vocabulary, new: Vocabulary) -> dict[int, int]:
    """For each new token that the old vocabulary has, its old id: by place, by name, by what it is for."""
    text, single = text_ids(old), byte_ids_of(old).tolist()
    roles = [(new.bos, old.bos), (new.eos, old.eos), (new.unknown, old.unknown)]
    found = {theirs: ours for theirs, ours in roles if theirs >= 0 and ours >= 0}
    for i, (piece, kind) in enumerate(zip(new.pieces, new.types, strict=True)):
        if i < len(old) and (old.pieces[i], old.types[i]) == (piece, kind):
            found[i] = i
        elif kind == CONTROL:
            found |= {i: old.special[name]} if (name := piece.decode(errors="replace")) in old.special else {}
        elif kind == BYTE:
            found |= {i: single[piece[0]]} if single[piece[0]] >= 0 else {}
        elif piece in text:
            found[i] = text[piece]
    return found


def made_of(old: Vocabulary, new: Vocabulary) -> list[list[int]]:
    """For each new token the old ones that it is made of; none for what has no spelling, such as <|end|>."""
    same = same_tokens(old, new)
    with speller(old) as spell:
        return [
            [same[i]] if i in same else [] if kind == CONTROL else spell(piece)
            for i, (piece, kind) in enumerate(zip(new.pieces, new.types, strict=True))
        ]


def gathered(tensor: Tensor, parts: Sequence[Sequence[int]]) -> Tensor:
    """Rows that are the mean of others, of all of them where none are named; a single one is itself."""

    @cache
    def mean_of_all() -> np.ndarray:
        pieces = (to_floats(tensor.rows(*ends), tensor.dtype) for ends in row_ranges(tensor.shape))
        return sum(piece.sum(axis=0, dtype=np.float64) for piece in pieces) / len(tensor)

    def row(ids: Sequence[int]) -> np.ndarray:
        found = [tensor.rows(i, i + 1)[0] for i in ids]
        if len(found) == 1:
            return found[0]
        floats = [to_floats(values, tensor.dtype) for values in found]
        mean = np.mean(floats, axis=0, dtype=np.float64) if floats else mean_of_all()
        narrow = mean.astype(np.float32)
        return rounded(narrow, tensor.dtype) if tensor.dtype in ("bf16", "fp16") else narrow

    def rows(begin: int, end: int) -> np.ndarray:
        out = np.empty((end - begin, *tensor.shape[1:]), NUMPY[tensor.dtype])
        for values, ids in zip(out, parts[begin:end], strict=True):
            values[:] = row(ids)
        return out

    return Tensor(tensor.dtype, (len(parts), *tensor.shape[1:]), rows)


def with_vocabulary(source: Source, old: Vocabulary, new: Vocabulary) -> Source:
    """The model with other tokens: each has the vectors that the same token had, else the mean of those of
    the tokens that it was made of.

    What is said of texts is the new tokenizer's: no chat template is left. Raises BadFileError.
    """
    parts, config = made_of(old, new), dataclasses.replace(source.config, vocab_size=len(new))
    tensors = checked_tensors(source)
    tensors |= {name: gathered(tensors[name], parts) for name in (EMBEDDING, CLASSIFIER) if name in tensors}
    counts = [sum(len(ids) == 1 for ids in parts), sum(len(ids) > 1 for ids in parts)]
    told = f"of {len(new)} tokens {counts[0]} are one of before, {counts[1]} the mean of several"
    said = {"bos": -1, "stops": (), "add_bos": None, "add_eos": False, "chat": Chat()}
    notes = (*source.notes, f"{told}, {len(new) - sum(counts)} of all")
    changes = {"config": config, "tensors": tensors, "vocabulary": lambda: None, "notes": notes}
    return dataclasses.replace(source, **changes, **said)
