"""Muon (Jordan et al., 2024): momentum whose singular values are made about 1, for the matrices of blocks.

    m <- mu m + (1 - mu) g        u = mu m + (1 - mu) g        w <- (1 - rate decay) w - rate s O(u)

O is five steps of Newton and Schulz in bfloat16. s = 0.2 sqrt(max(rows, columns)) gives the update the size
that AdamW's has (Liu et al., Muon is Scalable for LLM Training, 2025), so the same rate serves both.

O takes a whole matrix. Of one that FSDP cut, momentum and weights stay with the shards; its update goes to
one rank, a different one for each matrix of a round, and comes back as shards. So a matrix gets what it gets
in one process, to the bit, each rank has its share of the work, and none holds more than one matrix at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.optim import Optimizer

A, B, C = 3.4445, -4.7750, 2.0315  # of the polynomial of a step, which is steepest at 0
STEPS = 5
EPS = 1e-7


def orthogonal(update: Tensor) -> Tensor:
    """O of a matrix, in bfloat16."""
    x = update.bfloat16()
    if upright := x.shape[0] > x.shape[1]:
        x = x.T
    x = x / x.norm().clamp(min=EPS)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.T if upright else x


# --- Matrices that are cut


def rows_of(matrix: DTensor, group: dist.ProcessGroup) -> list[int]:
    """How many rows each rank of a group has: chunks of equal size, of which the last may be missing."""
    n, rows = dist.get_world_size(group), matrix.shape[0]
    size = -(-rows // n)
    return [max(0, min(size, rows - rank * size)) for rank in range(n)]


def group_of(matrix: Tensor) -> dist.ProcessGroup | None:
    """The ranks that have some rows each; None where it is whole, or cut otherwise.

    Where other ranks hold the same rows, they do the same.
    """
    if not isinstance(matrix, DTensor):
        return None
    cut = [i for i, place in enumerate(matrix.placements) if not place.is_replicate()]
    if len(cut) != 1 or matrix.placements[cut[0]] != Shard(0):
        return None
    return matrix.device_mesh.get_group(cut[0])


def exchange(parts: Sequence[Tensor], sizes: Sequence[int], group: dist.ProcessGroup) -> list[Tensor]:
    """Sends the r-th part to rank r, and returns what each rank sent here, flat, of these sizes."""
    sent, found = torch.cat([part.flatten() for part in parts]), parts[0].new_empty(sum(sizes))
    dist.all_to_all_single(found, sent, list(sizes), [part.numel() for part in parts], group=group)
    return list(found.split(list(sizes)))


def orthogonal_shards(updates: Sequence[DTensor]) -> list[Tensor]:
    """This rank's shards of O of as many matrices as ranks share them, or fewer. All ranks call it."""
    group = group_of(updates[0])
    n, rank = dist.get_world_size(group), dist.get_rank(group)
    local = [update.to_local().bfloat16() for update in updates]
    local += [local[0].new_empty(0)] * (n - len(local))
    mine = updates[rank] if rank < len(updates) else None
    rows = rows_of(mine, group) if mine is not None else [0] * n
    width = mine.shape[1] if mine is not None else 0
    found = exchange(local, [width * count for count in rows], group)
    parts = [local[0].new_empty(0)] * n
    if mine is not None:
        parts = list(orthogonal(torch.cat(found).view(mine.shape)).split(rows))
    back = exchange(parts, [part.numel() for part in local], group)
    return [part.view_as(shard) for part, shard in zip(back, local, strict=True)][: len(updates)]


def orthogonal_parts(updates: Sequence[Tensor]) -> list[Tensor]:
    """What this rank has of O of some matrices that are cut alike, or of one. All ranks call it."""
    first = updates[0]
    if group_of(first):
        return orthogonal_shards(updates)
    if not isinstance(first, DTensor):
        return [orthogonal(first)]
    whole = orthogonal(first.full_tensor())  # of a product that ranks share: by columns, or in two ways
    return [distribute_tensor(whole, first.device_mesh, first.placements, src_data_rank=None).to_local()]


def in_turn(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters that are worked on together: as many as ranks share them, or one."""
    for group, some in itertools.groupby(parameters, group_of):
        alike, n = list(some), dist.get_world_size(group) if group else 1
        yield from (alike[i : i + n] for i in range(0, len(alike), n))


class Muon(Optimizer):
    """As above, of matrices that are whole or cut."""

    def __init__(self, params: Any, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    def _update(self, parameter: Tensor, momentum: float) -> Tensor:
        """u of a parameter; its momentum goes on."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for some in in_turn([p for p in group["params"] if p.grad is not None]):
                made = orthogonal_parts([self._update(p, group["momentum"]) for p in some])
                for p, update in zip(some, made, strict=True):
                    size = group["lr"] * 0.2 * math.sqrt(max(p.shape))
                    local = p.to_local() if isinstance(p, DTensor) else p
                    local.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-size)
