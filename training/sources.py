"""Batches of whatever the shards of a run hold: windows of text, packed conversations, pairs, a mixture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from llama.errors import BadFileError
from llama.formats import tokenizers
from training.batches import Batches, Sequences, Shuffled, in_turn
from training.expected import open_beside
from training.mixture import Mixture, parse_mixture
from training.options import STORED, Options
from training.packing import Rows
from training.pairs import Answers
from training.parallel import Ranks
from training.prefetch import Batch
from training.shards import Shard, check_tokens, open_split
from training.windows import Windows, val_windows


def sequences_of(shards: Sequence[Shard], options: Options) -> Sequences:
    """What there is to train on in the shards of a folder. Raises BadFileError."""
    if shards[0].kind == "text":
        return Windows(shards, options.max_seq_len, options.seed, options.documents)
    items = Rows if shards[0].kind == "chat" else Answers
    return Shuffled(items(shards, options.max_seq_len), options.seed)


def open_batches(shards: Sequence[Shard], options: Options, ranks: Ranks) -> Batches:
    """The batches of a run on shards of one folder. Raises BadFileError."""
    return Batches(sequences_of(shards, options), options.batch_size, ranks.data_rank, ranks.data_size)


def open_parts(options: Options, split: str) -> list[tuple[str, Fraction, list[Shard]]]:
    """The folders of a run with their shares and their shards of a split: one, or a mixture.

    Raises BadFileError for parts that can't be mixed.
    """
    stored = split == "train" and options.teachers == STORED and not options.eval_only

    def shards_of(folder: str) -> list[Shard]:
        shards = open_split(folder, split)
        return [open_beside(shard) for shard in shards] if stored else shards

    if not options.mixture:
        return [(options.data, Fraction(1), shards_of(options.data))]
    parts = [(folder, share, shards_of(folder)) for folder, share in parse_mixture(options.mixture)]
    first = parts[0][2][0]
    for folder, _, (shard, *_) in parts:
        if shard.kind == "pairs":
            raise BadFileError(f"{folder}: holds pairs, allowed in a mixture: text and conversations")
        if shard.tokenizer_hash != first.tokenizer_hash:
            check_tokens(folder, tokenizers.load(Path(folder)).vocabulary, Path(options.data))
    return parts


def open_run(options: Options, ranks: Ranks, split: str) -> Batches:
    """The batches of a run on a split of its data. Raises BadFileError."""
    parts = open_parts(options, split)
    if len(parts) == 1:
        return open_batches(parts[0][2], options, ranks)
    alike = len({shards[0].kind for *_, shards in parts}) == 1
    mixture = Mixture([(name, share, sequences_of(s, options)) for name, share, s in parts], alike)
    return Batches(mixture, options.batch_size, ranks.data_rank, ranks.data_size)


def batched(windows: Iterable[tuple[Tensor, Tensor]], size: int, bos_id: int | None) -> Iterator[Batch]:
    """Windows (T,) of tokens and targets, as batches (size, T); the last one may be smaller.

    bos_id: where documents begin, if tokens attend within theirs only.
    """
    windows = iter(windows)
    while group := list(islice(windows, size)):
        tokens, targets = zip(*group, strict=True)
        batch = torch.stack(tokens)
        yield batch, torch.stack(targets), None if bos_id is None else (batch == bos_id).cumsum(1)


def val_batches(shards: Sequence[Shard], options: Options, ranks: Ranks, size: int) -> Iterator[Batch]:
    """All that there is to evaluate on, or the first eval_windows of it, as many batches on every rank.

    size: windows, or rows, in a batch. Raises BadFileError.
    """
    place = (ranks.data_rank, ranks.data_size, options.eval_windows)
    if shards[0].kind == "chat":
        return in_turn(Rows(shards, options.max_seq_len), size, *place)
    bos_id = shards[0].bos_id if options.documents else None
    return batched(val_windows(shards, options.max_seq_len, *place), size, bos_id)
