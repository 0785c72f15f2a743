"""A run's tensors in PyTorch's distributed checkpoints: a rank writes and reads what is its own.

A folder of them has a file of each rank and .metadata, which says where every piece of every tensor lies: so
any number of ranks reads what any other wrote, and no rank ever holds what it does not train.
"""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as distributed
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from llama.errors import BadFileError
from training.stored import Planner, Reader

MODEL = "model"  # what names of weights begin with; those of the optimizers' tensors: optimizer
State = dict[str, Any]  # nested dicts of tensors
FULL_DISK = 1 << 20  # bytes that are free where a write that failed found no room

warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # one process, on purpose


def weights_of(model: nn.Module, adapters: bool) -> dict[str, Tensor]:
    """The weights by name, or those of adapters, as this rank has them."""
    weights = get_model_state_dict(model, options=StateDictOptions(ignore_frozen_params=adapters))
    if model.config.tied:
        weights.pop("output.weight", None)
    return weights


def state_of(model: nn.Module, optimizers: list[Optimizer], adapters: bool = False) -> State:
    """All tensors of a run, as this rank has them: views of what is trained. All ranks call it.

    Rates and the like are not among them: they follow from the options.
    """
    optimizer = get_optimizer_state_dict(model, optimizers)
    return {MODEL: weights_of(model, adapters), "optimizer": optimizer["state"]}


def copied(state: State) -> State:
    """The same in tensors of their own, on the CPU, which training does not change."""
    stager = DefaultStager(StagingOptions(False, False, False, False))
    try:
        return stager.stage(state)
    finally:
        stager.close()


def refused(error: BaseException, path: Path) -> OSError:
    """What went wrong with a file or folder, as an OSError: PyTorch reports a full disk as something else."""
    found: BaseException | None = error
    while found:
        if isinstance(found, OSError) and found.errno:
            return OSError(found.errno, found.strerror, str(found.filename or path))
        found = found.__context__
    if shutil.disk_usage(path.parent).free < FULL_DISK:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return OSError(errno.EIO, str(error).partition("\n")[0] or repr(error), str(path))


def reason_of(error: CheckpointException, folder: Path) -> OSError:
    """What went wrong on a rank."""
    return refused(next(iter(error.failures.values()))[0], folder)


def write(folder: Path, state: State, group: dist.ProcessGroup | None) -> None:
    """Writes a folder of tensors, to the disk. All ranks call it. Raises OSError."""
    try:
        distributed.save(state, storage_writer=distributed.FileSystemWriter(folder), process_group=group)
    except CheckpointException as error:
        raise reason_of(error, folder) from None


def read(folder: Path, state: State, group: dist.ProcessGroup | None = None, alone: bool = False) -> None:
    """Fills tensors from a folder of them. All ranks call it, or one alone. Raises BadFileError."""
    place = {"storage_reader": Reader(folder), "planner": Planner()}
    try:
        distributed.load(state, **place, process_group=group, no_dist=alone)
    except CheckpointException as error:
        raise BadFileError(f"{folder}: {reason_of(error, folder).strerror}") from None


def load(
    folder: Path,
    model: nn.Module,
    optimizers: list[Optimizer],
    adapters: bool,
    group: dist.ProcessGroup | None,
) -> None:
    """Brings model and optimizers to what a folder holds. All ranks call it. Raises BadFileError."""
    state = state_of(model, optimizers, adapters)
    read(folder, state, group)
    wanted = get_optimizer_state_dict(model, optimizers) | {"state": state["optimizer"]}
    set_optimizer_state_dict(model, optimizers, wanted)


def stored_weights(folder: Path) -> Mapping[str, Tensor]:
    """The whole weights that a folder holds, by name. One process calls it. Raises BadFileError."""
    described = Reader(folder).index.state_dict_metadata
    weights = {
        name.removeprefix(f"{MODEL}."): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in described.items()
        if name.startswith(f"{MODEL}.") and isinstance(entry, TensorStorageMetadata)
    }
    read(folder, {MODEL: weights}, alone=True)
    return weights
