"""Several ranks on this CPU, each a process of its own, joined by gloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from training.parallel import Flag, Ranks


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


def polls(ranks: Ranks) -> list[bool]:
    """Rank 1 raises a flag at the third of six polls."""
    flag = Flag(ranks)
    return [flag.poll(ranks.rank == 1 and step >= 2) for step in range(6)] + [flag.last()]


def test_a_flag_that_one_rank_raises_is_seen_by_all_at_the_next_step(tmp_path):
    assert on_ranks(tmp_path, 2, "ddp", polls) == [[False] * 3 + [True] * 4] * 2


def test_a_flag_of_one_process_is_seen_at_once():
    flag = Flag(Ranks(0, 1, torch.device("cpu"), "none"))
    assert [flag.poll(False), flag.poll(True), flag.last()] == [False, True, False]
