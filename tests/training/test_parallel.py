"""Several ranks on this CPU, each a process of its own, joined by gloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from model import Config, Llama
from training import evaluation, parallel
from training.options import Options
from training.parallel import Flag, Ranks
from training.shards import Shard

SHAPE = Config(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=64, max_seq_len=16)


def rank_of(rank: int, world_size: int, folder: Path, kind: str, work: Callable[..., Any]) -> None:
    """One process: joins the others, works, and leaves what it found in a file."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    control = dist.new_group(backend="gloo")
    found = work(Ranks(rank, world_size, torch.device("cpu"), kind, control))
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def on_ranks(folder: Path, world_size: int, kind: str, work: Callable[..., Any]) -> list[Any]:
    """What work(ranks) returns on each of world_size ranks."""
    processes.spawn(rank_of, (world_size, folder, kind, work), world_size)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def alone(kind: str = "none") -> Ranks:
    return Ranks(0, 1, torch.device("cpu"), kind)


# --- The flag that ends a run


def polls(ranks: Ranks) -> list[bool]:
    """Rank 1 raises a flag at the third of six polls."""
    flag = Flag(ranks)
    return [flag.poll(ranks.rank == 1 and step >= 2) for step in range(6)] + [flag.last()]


def test_a_flag_that_one_rank_raises_is_seen_by_all_at_the_next_step(tmp_path):
    assert on_ranks(tmp_path, 2, "ddp", polls) == [[False] * 3 + [True] * 4] * 2


def test_a_flag_of_one_process_is_seen_at_once():
    flag = Flag(alone())
    assert [flag.poll(False), flag.poll(True), flag.last()] == [False, True, False]


# --- Evaluation


def shard(n_tokens: int) -> Shard:
    """Random tokens, in memory."""
    tokens = np.random.default_rng(1).integers(3, SHAPE.vocab_size, n_tokens, dtype=np.uint16)
    return Shard(Path("random"), tokens, np.array([n_tokens], np.uint64), SHAPE.vocab_size, "", 1, None)


def validation_losses(ranks: Ranks) -> list[tuple[float, int]]:
    """Mean loss and number of targets of 1 to 5 windows, the last cut off, and of the first 3 of 5."""
    torch.manual_seed(1)
    model = parallel.wrap(Llama(SHAPE), ranks, compiled=False)
    found = []
    for n, most in [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (5, 3)]:
        options = Options(max_seq_len=16, batch_size=4, micro_batch_size=2, eval_windows=most)
        result = evaluation.evaluate(model, [shard(16 * n - 3)], options, ranks)
        found.append((result.loss, result.tokens))
    return found


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_evaluation_ends_and_is_the_same_whatever_the_number_of_windows(tmp_path, kind):
    losses, counts = zip(*validation_losses(alone()), strict=True)
    assert counts == (12, 28, 44, 60, 76, 48)
    for found in on_ranks(tmp_path, 2, kind, validation_losses):
        assert [n for _, n in found] == list(counts)
        assert [loss for loss, _ in found] == pytest.approx(losses, rel=1e-5)
