"""The benchmark of ranks' memory measures what it says."""

from __future__ import annotations

import sys

import pytest

from bench.ranks import STATE_BYTES, measured
from model import Config, Llama

SHAPE = Config(dim=256, n_layers=2, n_heads=8, vocab_size=4096, max_seq_len=32)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_rank_of_one_holds_all_state_and_a_copy_of_it_while_it_saves():
    state = STATE_BYTES * sum(p.numel() for p in Llama(SHAPE).parameters())
    training, saving = measured(SHAPE, "fsdp", 1)
    assert training > 0.9 * state
    assert saving > training + 0.5 * state  # weights and moments


def test_a_cut_that_does_not_fit_is_not_measured():
    assert measured(SHAPE, "fsdp, tensor 2", 1) is None
