"""One process or many: none, DDP or FSDP2, from the environment that torchrun sets.

    torchrun --standalone --nproc_per_node=2 train.py --parallel=fsdp
    torchrun --standalone --nproc_per_node=8 train.py --parallel=fsdp --replicas=2 --tensor_parallel=2

DDP keeps the whole model on every rank and averages gradients; FSDP2 (fully_shard) keeps a part of each
tensor on every rank and gathers a block while it runs. Both are PyTorch's own. With replicas, groups of ranks
keep a whole model each (HSDP), and exchange only gradients; with tensor_parallel, neighbouring ranks share a
shard's work too (training/tensor_parallel.py). Ranks that do so train on the same sequences, and count as one
where data is dealt out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from llama.errors import ResourceError, UsageError
from training import tensor_parallel

LEAVING = timedelta(seconds=5)  # for others, of a rank that failed
SMALL = 1 << 29  # weights of a model that leaves room for what is kept besides (keep_memory)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Cut:
    """How FSDP cuts a model: replicas x shards x tensor = ranks."""

    replicas: int = 1  # whole models
    tensor: int = 1  # neighbouring ranks that compute each product together
    offload: bool = False  # shards and optimizers are in the memory of the CPU
    deferred: bool = False  # gradients stay whole until the last micro batch of a step

    def check(self, world_size: int, kind: str) -> None:
        """Raises UsageError where that many ranks can't be cut so."""
        if kind != "fsdp" and self != Cut():
            names = "replicas, tensor_parallel, offload and defer_reduction"
            raise UsageError(f"parallel = {kind}, allowed fsdp on several ranks with {names}")
        if world_size % (self.replicas * self.tensor):
            found = f"replicas = {self.replicas}, tensor_parallel = {self.tensor}, {world_size} ranks"
            raise UsageError(f"{found}: the ranks must be a multiple of the product of the other two")


@dataclass
class Ranks:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device
    kind: str  # "none", "ddp" or "fsdp"
    control: dist.ProcessGroup | None = None  # between the CPUs; None for one process
    saving: dist.ProcessGroup | None = None  # the same for the threads that save checkpoints
    cut: Cut = Cut()

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Whose sequences this process trains on."""
        return self.rank // self.cut.tensor

    @property
    def data_size(self) -> int:
        """Among how many ranks, or groups of them, sequences are dealt out."""
        return self.world_size // self.cut.tensor

    def sum(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Each scalar summed over all parts of the data, in float64 so that the order does not show."""
        total = torch.stack([value.detach().to("cpu", torch.float64) for value in values])
        if self.world_size > 1:
            dist.all_reduce(total, group=self.control)
        return tuple(total / self.cut.tensor)

    def of_main(self, found: Any) -> Any:
        """What rank 0 found, on all ranks, which call it."""
        box = [found]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]


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


def usable_device(name: str) -> torch.device:
    """The device of a name. Raises UsageError if this machine has none such."""
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, ImportError) as error:  # torch lacks it, or knows no such name
        reason = str(error).partition("\n")[0].partition(". ")[0]  # behind it are hints for who builds torch
        raise UsageError(f"device = {name}: {reason}") from None
    if device.type == "meta":  # whose tensors hold nothing
        raise UsageError(f"device = {name}, allowed cpu, cuda, cuda:1, mps")
    return device


@contextlib.contextmanager
def memory_told() -> Iterator[None]:
    """Raises ResourceError where PyTorch finds no memory, which is a RuntimeError of its own."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise ResourceError(f"not enough memory: {str(error).splitlines()[0]}") from None


def new_groups() -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """Groups between the CPUs: one for the loop, and one for the threads beside it, who must not mix."""
    return dist.new_group(backend="gloo"), dist.new_group(backend="gloo")


def start(device: str, parallel: str, cut: Cut = Cut()) -> Ranks:
    """Joins the process group that torchrun set up, if it did.

    Raises UsageError for a missing device, or ranks that can't be cut so.
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device = device or best_device()
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UsageError(f"device = {device!r}, but PyTorch finds no CUDA device")
        torch.cuda.set_device(usable_device(device))
        torch.set_float32_matmul_precision("high")  # TF32 where the type is float32
    found = usable_device(device)
    cut.check(world_size, parallel if world_size > 1 else "none")
    if world_size == 1:
        return Ranks(rank, world_size, found, "none")
    cuda = "cpu:gloo,cuda:nccl" if cut.offload else "nccl"  # norms of what is offloaded are added on CPUs
    dist.init_process_group(cuda if device.startswith("cuda") else "gloo")
    return Ranks(rank, world_size, found, parallel, *new_groups(), cut)


def is_emulated(dtype: str, device: torch.device) -> bool:
    """Whether a CPU has no units for products of that type: they take many times as long as of float32."""
    has = {
        "bfloat16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
        "float16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return device.type == "cpu" and dtype in has and not has[dtype]()


def stop(ranks: Ranks, failed: bool = False) -> None:
    """Leaves the process group once all ranks want to: gloo aborts where one breaks off what others wait for.

    failed: others may never come, so that they are not waited for long.
    """
    if ranks.world_size == 1:
        return
    with contextlib.suppress(RuntimeError):  # a rank that is gone has said why
        dist.monitored_barrier(ranks.control, LEAVING if failed else None)
    for group in (ranks.saving, ranks.control, None):  # None: the one of all, last
        dist.destroy_process_group(group)


def keep_memory(model: nn.Module) -> None:
    """Tells glibc to keep freed memory, where a model is small; no effect with other C libraries.

    The tensors of a step on the CPU are megabytes each then, which malloc would map afresh and give back
    every time; touching fresh pages costs more than the arithmetic. Blocks of a large model that FSDP gathers
    and drops would not fit into each other's holes: the process would grow by one after the other.
    """
    if sum(parameter.numel() for parameter in model.parameters()) > SMALL:
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, (1 << 31) - 1)


def mesh_of(ranks: Ranks) -> DeviceMesh:
    """The ranks by replica, shard and what they share of a product."""
    n, cut = ranks.world_size, ranks.cut
    shape = (cut.replicas, n // (cut.replicas * cut.tensor), cut.tensor)
    return init_device_mesh(ranks.device.type, shape, mesh_dim_names=("replica", "shard", "tensor"))


def shard(model: nn.Module, ranks: Ranks, mesh: DeviceMesh, dtype: str) -> None:
    """FSDP: cuts each block, and then what is left, into shards.

    Blocks are gathered in the type they are multiplied in, so that autocast makes no copies of them that live
    until the backward pass. The embedding stays as it is: the residual stream begins with it. Where it is not
    the classifier too, each of them is whole only while it is used.
    """
    of_blocks = MixedPrecisionPolicy(DTYPES[dtype], torch.float32, cast_forward_inputs=False)
    among = mesh["replica", "shard"] if ranks.cut.replicas > 1 else mesh["shard"]
    cuda = ranks.device.type == "cuda"
    offload = CPUOffloadPolicy(pin_memory=cuda) if ranks.cut.offload else OffloadPolicy()
    for block in model.layers:
        fully_shard(block, mesh=among, mp_policy=of_blocks, offload_policy=offload)
    for table in () if model.config.tied else (model.tok_embeddings, model.output):
        fully_shard(table, mesh=among, offload_policy=offload)
    fully_shard(model, mesh=among, offload_policy=offload)


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
    mesh = mesh_of(ranks) if ranks.kind == "fsdp" else None
    if ranks.cut.tensor > 1:
        tensor_parallel.share(model, mesh["tensor"])
    if compiled:
        model.compile()  # before it is cut: a block is gathered around what is compiled
    if mesh:
        shard(model, ranks, mesh, dtype)
    if next(model.parameters()).is_meta:
        materialise(model, torch.device("cpu") if ranks.cut.offload else ranks.device)
    if ranks.kind == "ddp":
        ids = [ranks.device.index] if ranks.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)
    return model


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside of what the loop calls."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@contextlib.contextmanager
def synchronised(model: nn.Module, ranks: Ranks, last: bool) -> Iterator[None]:
    """Gradients are exchanged after the last micro batch of a step only. Must hold the forward pass too.

    But FSDP cuts them after each, unless that is deferred: until then every rank keeps whole gradients.
    Replicas add up what they have cut after the last one in any case.
    """
    if ranks.kind == "fsdp":
        model.set_requires_gradient_sync(last or not ranks.cut.deferred)
        model.set_requires_all_reduce(last)
    with model.no_sync() if ranks.kind == "ddp" and not last else contextlib.nullcontext():
        yield


def autocast(ranks: Ranks, dtype: str) -> contextlib.AbstractContextManager:
    enabled = dtype != "float32"
    return torch.autocast(ranks.device.type, DTYPES[dtype], enabled) if enabled else contextlib.nullcontext()
