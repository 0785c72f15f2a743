"""One process or many: none, DDP or FSDP2, from the environment that torchrun sets.

    torchrun --standalone --nproc_per_node=2 train.py --parallel=fsdp

DDP keeps the whole model on every rank and averages gradients; FSDP2 (fully_shard) keeps a part of each
tensor on every rank and gathers a block while it runs. Both are PyTorch's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from llama.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Ranks:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device
    kind: str  # "none", "ddp" or "fsdp"
    control: dist.ProcessGroup | None = None  # between the CPUs; None for one process

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    def sum(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Each scalar summed over all ranks, in float64 so that the order does not show."""
        total = torch.stack([value.detach().to("cpu", torch.float64) for value in values])
        if self.world_size > 1:
            dist.all_reduce(total, group=self.control)
        return tuple(total)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier(group=self.control)


class Flag:
    """A flag that any rank can raise, and that all see at the same step.

    No step waits for it: what is raised in one is added up between the CPUs while the next one runs.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.count = ranks, torch.zeros(())
        self.adding: dist.Work | None = None

    def poll(self, raised: bool) -> bool:
        """Whether any rank raised it by the poll before, or this one process now. All ranks call it."""
        if self.ranks.world_size == 1:
            return raised
        seen = self.last()
        self.count = torch.tensor(float(raised))
        self.adding = dist.all_reduce(self.count, group=self.ranks.control, async_op=True)
        return seen

    def last(self) -> bool:
        """Whether any rank raised it by the last poll. All ranks call it at the end."""
        if self.adding:
            self.adding.wait()
        return bool(self.count > 0)


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def start(device: str, parallel: str) -> Ranks:
    """Joins the process group that torchrun set up, if it did. Raises UsageError for a missing device."""
    world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = device or best_device()
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UsageError(f"device = {device!r}, but PyTorch finds no CUDA device")
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32 where the type is float32
    if world_size == 1:
        return Ranks(rank, world_size, torch.device(device), "none")
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Ranks(rank, world_size, torch.device(device), parallel, dist.new_group(backend="gloo"))


def stop(ranks: Ranks) -> None:
    if ranks.world_size > 1:
        dist.destroy_process_group()


def keep_memory() -> None:
    """Tells glibc to keep freed memory; no effect with other C libraries.

    The tensors of a step on the CPU are megabytes each, which malloc would map afresh and give back every
    time; touching fresh pages costs more than the arithmetic.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def shard(model: nn.Module, ranks: Ranks, dtype: str) -> None:
    """FSDP: cuts each block, and then what is left, into shards.

    Blocks are gathered in the type they are multiplied in, so that autocast makes no copies of them that live
    until the backward pass. The embedding stays float32: the residual stream begins with it.
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    of_blocks = MixedPrecisionPolicy(DTYPES[dtype], torch.float32, cast_forward_inputs=False)
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=of_blocks)
    fully_shard(model, mesh=mesh)


def materialise(model: nn.Module, device: torch.device) -> None:
    """Gives a model on the meta device memory, of a shard only where it is cut. Its values are arbitrary."""
    model.to_empty(device=device)
    if model.config.tied:  # to_empty makes two of one
        model.output.weight = model.tok_embeddings.weight


@torch.no_grad()
def fill(
    model: nn.Module,
    value_of: Callable[[str, torch.Size], Tensor],
    chosen: Callable[[str], bool] = lambda name: True,
) -> None:
    """Sets each weight, or this rank's shard of it, to value_of(name, shape): one whole tensor at a time.

    chosen: whether a weight is set, by its name.
    """
    for name, parameter in ((n, p) for n, p in model.named_parameters() if chosen(n)):
        value = value_of(name, parameter.shape)
        if isinstance(parameter, DTensor):
            place = (parameter.device_mesh, parameter.placements)
            value = distribute_tensor(value.to(parameter.device), *place, src_data_rank=None)
        parameter.copy_(value)


def wrap(model: nn.Module, ranks: Ranks, dtype: str, compiled: bool) -> nn.Module:
    """The model as the loop calls it. Its parameters stay those of model, or become shards of them.

    A model on the meta device gets memory for what is this rank's: fill sets it.
    """
    if compiled:
        model.compile()  # before it is cut: a block is gathered around what is compiled
    if ranks.kind == "fsdp":
        shard(model, ranks, dtype)
    if next(model.parameters()).is_meta:
        materialise(model, ranks.device)
    if ranks.kind == "ddp":
        ids = [ranks.device.index] if ranks.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)
    return model


@contextlib.contextmanager
def synchronised(model: nn.Module, ranks: Ranks, last: bool) -> Iterator[None]:
    """DDP exchanges gradients after the last micro batch of a step only. Must hold the forward pass too.

    FSDP does after each: until then every rank would keep whole gradients.
    """
    with model.no_sync() if ranks.kind == "ddp" and not last else contextlib.nullcontext():
        yield


def autocast(ranks: Ranks, dtype: str) -> contextlib.AbstractContextManager:
    enabled = dtype != "float32"
    return torch.autocast(ranks.device.type, DTYPES[dtype], enabled) if enabled else contextlib.nullcontext()
