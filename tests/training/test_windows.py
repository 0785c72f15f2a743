"""Orders that are drawn once are drawn for ever, and what a window can't be made of is left out or refused.

Left out on purpose: that windows cover the text (test_dataset.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llama.errors import BadFileError
from training.batches import Batches
from training.shards import Shard
from training.windows import Windows, permute, scramble, shuffled, val_documents


def shard(lengths: list[int]) -> Shard:
    """Documents in memory, of tokens that count up from 0."""
    ends = np.cumsum(lengths).astype(np.uint64)
    return Shard(Path("text"), np.arange(int(ends[-1]), dtype=np.uint16), ends, 1000, "", 0, None)


def test_scramble_is_the_output_of_splitmix64():
    found = scramble(np.array([0, 1, 2**63], np.uint64))
    assert [hex(int(x)) for x in found] == ["0x0", "0x5692161d100b05e5", "0x25c26ea579cea98a"]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, [0]),
        (2, [0, 1]),
        (3, [2, 1, 0]),
        (5, [4, 3, 0, 1, 2]),
        (17, [14, 1, 13, 3, 4, 5, 10, 7]),
        (100, [4, 35, 69, 78, 66, 2, 19, 29]),
    ],
)
def test_an_order_is_the_same_in_every_version(n, expected):
    """Or a run that goes on with a newer one would see some sequences twice and others never."""
    keys = np.arange(1, 7, dtype=np.uint64)
    assert permute(np.arange(len(expected)), n, keys).tolist() == expected
    assert sorted(permute(np.arange(n), n, keys).tolist()) == list(range(n))


def test_epochs_are_the_same_in_every_version():
    assert shuffled(np.arange(8), 5, 1).tolist() == [1, 4, 0, 3, 2, 0, 1, 3]
    windows = Windows([shard([50])], 4, seed=1)
    starts = [windows.starts(epoch, np.arange(len(windows))).tolist() for epoch in range(2)]
    assert starts == [[35, 23, 7, 39, 43, 11, 27, 31, 15, 19, 3], [5, 41, 21, 9, 13, 29, 37, 1, 25, 33, 17]]


def test_a_document_without_a_target_is_left_out():
    """One of a token alone, or of none."""
    found = [
        (tokens.tolist(), targets.tolist(), cut)
        for tokens, targets, cut in val_documents([shard([1, 3, 1, 6])], 3)
    ]
    assert found == [([1, 2], [2, 3], 0), ([5, 6, 7], [6, 7, 8], 2)]


def test_a_window_needs_a_token_more_than_it_is_long():
    assert [len(Windows([shard([9])], seq_len, 1)) for seq_len in (1, 8)] == [8, 1]
    for seq_len in (0, 9):
        with pytest.raises(BadFileError, match=f"seq_len = {seq_len}, allowed 1 to 8"):
            Windows([shard([9])], seq_len, 1)


def test_epochs_are_whole_steps_and_at_least_one():
    batches = Batches(Windows([shard([50])], 4, seed=1), 4)  # of 11
    assert [batches.steps_of(epochs) for epochs in (0.001, 0.5, 1, 2.5)] == [1, 2, 3, 7]


@pytest.mark.parametrize(("size", "rank", "ranks"), [(0, 0, 1), (3, 0, 2), (4, 2, 2), (4, -1, 2), (-2, 0, 2)])
def test_a_step_that_ranks_can_not_share_is_refused(size, rank, ranks):
    windows = Windows([shard([20])], 4, 1)
    assert len(Batches(windows, 4, 1, 2).at(0)[0]) == 2
    with pytest.raises(BadFileError, match=f"batch_size = {size}, allowed multiples of world_size = {ranks}"):
        Batches(windows, size, rank, ranks)
