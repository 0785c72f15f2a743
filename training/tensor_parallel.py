"""Tensor parallelism: neighbouring ranks share each matrix of a block, and compute each product together.

wq, wk, wv, w1 and w3 are cut by rows, so that a rank has heads, or hidden values, of its own; wo and w2 by
columns, and what ranks get from these is added up: twice a block forward and twice backward. The residual
stream, norms, the embedding and the loss are whole on every rank (Shoeybi et al., Megatron-LM, 2019). All
parameters are DTensors of one mesh, so that norms of gradients and optimizers need to know nothing of it.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)

from llama.errors import UsageError
from model import Config, Llama


class Whole(ParallelStyle):
    """A module that every rank computes as a whole, from plain tensors to plain tensors."""

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        def enter(module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
            return tuple(DTensor.from_local(x, mesh, [Replicate()], run_check=False) for x in inputs)

        def leave(module: nn.Module, output: DTensor, mesh: DeviceMesh) -> Any:
            return output.to_local()

        return distribute_module(module, mesh, None, enter, leave)


class Kept(ParallelStyle):
    """A module whose parameters every rank has as a whole, and takes to be plain by itself."""

    def _apply(self, module: nn.Module, mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, mesh)


def entrance(arguments: int) -> PrepareModuleInput:
    """Makes x, the first argument, a DTensor of all products, so that its gradient is added up once."""
    layouts = (Replicate(), None)[:arguments]
    return PrepareModuleInput(input_layouts=layouts, desired_input_layouts=layouts)


def of_block() -> dict[str, ParallelStyle]:
    """What becomes of the modules of a block."""
    by_rows = {name: ColwiseParallel() for name in ("attention.wq", "attention.wk", "attention.wv")}
    by_rows |= {name: ColwiseParallel() for name in ("feed_forward.w1", "feed_forward.w3")}
    by_columns = {name: RowwiseParallel() for name in ("attention.wo", "feed_forward.w2")}
    norms = {name: Whole() for name in ("attention_norm", "ffn_norm")}
    return by_rows | by_columns | norms | {"attention": entrance(2), "feed_forward": entrance(1)}


def check(config: Config, n: int) -> None:
    """Raises UsageError where n ranks can't share a model evenly."""
    for name in ("n_heads", "n_kv_heads", "hidden_dim"):
        if getattr(config, name) % n:
            raise UsageError(f"tensor_parallel = {n}, allowed divisors of {name} = {getattr(config, name)}")


def share(model: Llama, mesh: DeviceMesh) -> None:
    """Cuts the matrices of a model, in place. Raises UsageError where it does not fit."""
    check(model.config, mesh.size())
    for block in model.layers:
        parallelize_module(block, mesh, of_block())
    parallelize_module(model, mesh, {"tok_embeddings": Whole(), "norm": Whole(), "output": Kept()})
    if model.config.tied:  # two of one, by now
        model.output.weight = model.tok_embeddings.weight
