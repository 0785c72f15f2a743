"""Ranks on this CPU, each a process of its own, joined by gloo; and one process as if it were all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import forked
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from training import parallel, states
from training.parallel import Ranks


def rank_of(
    rank: int, world_size: int, folder: Path, kind: str, work: Callable[..., Any], changed: Mapping[str, str]
) -> None:
    """One process: joins the others, works, and leaves what it found in a file."""
    os.environ.update(changed)
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    ranks = Ranks(rank, world_size, torch.device("cpu"), kind, *parallel.new_groups())
    torch.save(work(ranks), folder / f"{rank}.pt")
    parallel.stop(ranks)


def on_ranks(folder: Path, world_size: int, kind: str, work: Callable[..., Any]) -> list[Any]:
    """What work(ranks) returns on each of world_size ranks."""
    folder.mkdir(exist_ok=True)
    common = (world_size, folder, kind, work, dict(os.environ))
    code = forked.joined([forked.start(rank_of, rank, *common) for rank in range(world_size)])
    assert code == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def alone(kind: str = "none") -> Ranks:
    return Ranks(0, 1, torch.device("cpu"), kind)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on the CPU. All ranks call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().cpu().clone()


def whole_weights(model: nn.Module, adapters: bool = False) -> dict[str, Tensor]:
    """The weights by name, or those of adapters. All ranks call it."""
    return {n: whole(weight) for n, weight in states.weights_of(parallel.unwrap(model), adapters).items()}
