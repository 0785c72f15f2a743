"""Batches of whatever the shards of a folder hold: windows of text, or packed conversations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from training.options import Options
from training.packing import Packed, val_rows
from training.pairs import Pairs
from training.parallel import Ranks
from training.prefetch import Batch, Source
from training.shards import Shard
from training.windows import Batches, val_windows


def open_batches(shards: Sequence[Shard], options: Options, ranks: Ranks) -> Source:
    """The batches of a run on shards of one folder. Raises BadFileError."""
    order = (options.batch_size, options.max_seq_len, options.seed, ranks.rank, ranks.world_size)
    if shards[0].kind == "chat":
        return Packed(shards, *order)
    if shards[0].kind == "pairs":
        return Pairs(shards, *order)
    return Batches(shards, *order, documents=options.documents)


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
    place = (ranks.rank, ranks.world_size, options.eval_windows)
    if shards[0].kind == "chat":
        return val_rows(shards, options.max_seq_len, size, *place)
    bos_id = shards[0].bos_id if options.documents else None
    return batched(val_windows(shards, options.max_seq_len, *place), size, bos_id)
