"""Checkpoints of a run: written aside, synced, renamed; the newest and the best are kept; a resume is exact.

out/step-0000500/model.safetensors    the weights and the shape of the model (export.py reads them)
                 tokenizer.*          the tokenizer that the data was made with
                 state.pt             step, optimizers, random numbers: what a resume needs besides
                 checksums.txt        sha256 of each file, written last
out/last, out/best                    links to one of these folders
out/model.bin, out/tokenizer.bin      the newest weights for the C engine: ./run out/model.bin
out/earlier-1                         all that, of a run that was in the folder before
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from llama.errors import BadFileError
from llama.files import sync
from llama.formats.adapters import is_adapter
from llama.formats.checkpoint import read_config
from model import Config
from training.lora import Lora, is_lora, load_adapter, save_adapter
from training.models import MAY_CHANGE
from training.pairs import REFERENCE
from training.parallel import Ranks, fill
from training.weights import save_weights

CHECKSUMS, STATE, WEIGHTS = "checksums.txt", "state.pt", "model.safetensors"
OF_A_RUN = (
    "last",
    "best",
    "log.csv",
    "loss.png",
    "model.bin",
    "tokenizer.bin",
    REFERENCE,
)  # besides checkpoints
FIXED = (  # options that may not change: of the state, and of what data is next
    *("optimizer", "batch_size", "seed", "train", "freeze"),
    *("lora_rank", "lora_alpha", "lora_targets"),
)
FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)  # whole tensors, on rank 0


@dataclass
class Progress:
    """Where a run stands: all that changes from step to step besides tensors."""

    step: int = 0
    tokens: int = 0  # targets trained on
    best_loss: float = float("inf")
    best_step: int = -1
    train_seconds: float = 0.0
    total_seconds: float = 0.0
    rng: list[dict[str, Any]] = field(default_factory=list)  # by rank
    fixed: dict[str, Any] = field(default_factory=dict)  # options that a resume must have too


@dataclass(frozen=True)
class About:
    """What stays the same of a run's checkpoints. told: what they say of texts (llama/formats/texts.py)."""

    told: Mapping[str, str] = field(default_factory=dict)
    lora: Lora | None = None  # adapters beside a model, in the place of its weights


# --- Files


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def point(link: Path, target: str) -> None:
    """Makes link a symbolic link to target, in one step."""
    aside = link.with_name(f".{link.name}.new")
    aside.unlink(missing_ok=True)
    aside.symlink_to(target)
    aside.replace(link)


def step_folders(out_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in out_dir.glob("step-*") if path.name[5:].isdigit())


def remove_left_over(out_dir: Path) -> None:
    """Removes what a run left that was killed while it saved."""
    for folder in out_dir.glob("*.aside"):
        shutil.rmtree(folder)


def move_earlier(out_dir: Path) -> Path | None:
    """Moves what an earlier run left into a folder earlier-N of out_dir. Returns that, None if none left any.

    Otherwise its checkpoints, of later steps, would be taken for those of the run that begins.
    """
    steps = step_folders(out_dir)
    if not steps:
        return None
    number = sum(1 for _ in out_dir.glob("earlier-*")) + 1
    earlier = out_dir / f"earlier-{number}"
    earlier.mkdir()
    for path in (*(out_dir / name for name in OF_A_RUN), *steps):
        if path.is_symlink() or path.exists():
            path.rename(earlier / path.name)
    return earlier


# --- Random numbers


def rng_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"torch": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(states: list[dict[str, Any]], ranks: Ranks) -> None:
    """Goes on with this rank's numbers. A rank that the checkpoint did not have keeps its seed's."""
    if ranks.rank < len(states):
        state = states[ranks.rank]
        torch.set_rng_state(state["torch"])
        if state["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])


def gather_rng(ranks: Ranks) -> list[dict[str, Any]]:
    states: list[Any] = [rng_state()]
    if ranks.world_size > 1:
        states = [None] * ranks.world_size
        dist.all_gather_object(states, rng_state(), group=ranks.control)
    return states


# --- Saving


def save_state(state: dict[str, Any], path: Path) -> None:
    """torch.save. Raises OSError for a write that failed, which PyTorch reports as something else."""
    try:
        torch.save(state, path)
    except RuntimeError as error:
        reason = "No space left on device" if shutil.disk_usage(path.parent).free < 1 << 20 else str(error)
        raise OSError(errno.EIO, reason.splitlines()[0], str(path)) from None


def fill_folder(
    folder: Path,
    config: Config,
    weights: Mapping[str, Tensor],
    state: dict[str, Any],
    extra: list[Path],
    about: About,
) -> None:
    """Writes the files of a checkpoint into a folder, to the disk. Raises OSError."""
    if about.lora:
        save_adapter(folder, config, weights, about.lora, about.told)
    else:
        save_weights(folder / WEIGHTS, config, weights, about.told)
    save_state(state, folder / STATE)
    for path in extra:
        shutil.copyfile(path, folder / path.name)
    names = sorted(path.name for path in folder.iterdir())
    lines = "".join(f"{sha256(folder / name)}  {name}\n" for name in names)
    (folder / CHECKSUMS).write_text(lines, encoding="ascii")
    for path in (*folder.iterdir(), folder):
        sync(path)


def write_folder(
    folder: Path,
    config: Config,
    weights: Mapping[str, Tensor],
    state: dict[str, Any],
    extra: list[Path],
    about: About = About(),
) -> None:
    """Writes a checkpoint aside and renames it. A folder of that name is replaced. Raises OSError."""
    aside = folder.with_name(folder.name + ".aside")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        fill_folder(aside, config, weights, state, extra, about)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)  # on a full disk its room is needed
        raise
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)
    sync(folder.parent)


def remove_old(out_dir: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints and the best."""
    best = (out_dir / "best").resolve().name
    for folder in step_folders(out_dir)[:-keep]:
        if folder.name != best:
            shutil.rmtree(folder)


def mark_best(out_dir: Path, step: int) -> None:
    """Makes the checkpoint of a step the best, if it has one."""
    folder = out_dir / f"step-{step:07d}"
    if folder.exists():
        point(out_dir / "best", folder.name)


def unwrap(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def whole_weights(model: nn.Module, adapters: bool = False) -> dict[str, Tensor]:
    """The weights by name, or those of adapters, whole and on the CPU, on rank 0; all ranks must call it."""
    options = replace(FULL, ignore_frozen_params=adapters)
    weights = get_model_state_dict(unwrap(model), options=options)
    if unwrap(model).config.tied:
        weights.pop("output.weight", None)
    return weights


def save(
    out_dir: Path,
    model: nn.Module,
    optimizers: list[Optimizer],
    scaler: Any,
    progress: Progress,
    ranks: Ranks,
    extra: list[Path],
    keep: int,
    about: About = About(),
) -> dict[str, Tensor]:
    """Saves a checkpoint; all ranks must call it. Returns the weights (on rank 0)."""
    weights = whole_weights(model, adapters=about.lora is not None)
    state = {
        "progress": {**vars(progress), "rng": gather_rng(ranks)},
        "optimizer": get_optimizer_state_dict(unwrap(model), optimizers, options=FULL),
        "scaler": scaler.state_dict(),
    }
    if ranks.is_main:
        folder = out_dir / f"step-{progress.step:07d}"
        write_folder(folder, unwrap(model).config, weights, state, extra, about)
        point(out_dir / "last", folder.name)
        remove_old(out_dir, keep)
    ranks.barrier()
    return weights


# --- Resuming


def verify(folder: Path) -> None:
    """Raises BadFileError if a file of a checkpoint is missing or not what was written."""
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="ascii").splitlines()
        digests = {name: digest for digest, name in (line.split("  ") for line in lines)}
        found = {name: sha256(folder / name) for name in digests}
    except (OSError, ValueError) as error:
        raise BadFileError(f"{folder}: is not a whole checkpoint ({error})") from None
    for name, digest in digests.items():
        if found[name] != digest:
            raise BadFileError(f"{folder / name}: its sha256 is not the one in {CHECKSUMS}")


def newest(out_dir: Path) -> Path:
    """The newest checkpoint that is whole. Raises BadFileError if there is none."""
    problem = f"{out_dir}: has no checkpoint to resume from"
    for folder in reversed(step_folders(out_dir)):
        try:
            verify(folder)
            return folder
        except BadFileError as error:
            problem = str(error)
            print(f"passed over: {error}")
    raise BadFileError(problem)


def chosen(out_dir: Path, ranks: Ranks) -> Path:
    """Rank 0's newest checkpoint, from which all ranks go on. Raises BadFileError if there is none."""
    found: list[Any] = [None]
    if ranks.is_main:
        try:
            found = [newest(out_dir).name]
        except BadFileError as error:
            found = [error]
    if ranks.world_size > 1:
        dist.broadcast_object_list(found, src=0, group=ranks.control)
    if isinstance(found[0], BadFileError):
        raise found[0]
    if not (out_dir / found[0]).exists():
        where = f"is not on the node of rank {ranks.rank}, only on that of rank 0"
        raise BadFileError(f"{out_dir / found[0]}: {where}: out_dir must be a folder that all nodes share")
    return out_dir / found[0]


def check_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises BadFileError where a checkpoint has another value than the run that is to go on from it."""
    for name, value in wanted.items():
        if name not in MAY_CHANGE and found.get(name, value) != value:
            what = f"{name} = {found[name]}, this run has {value}"
            raise BadFileError(f"{folder}: {what}: go on with the recipe and the options that it began with")


def load(
    folder: Path,
    model: nn.Module,
    optimizers: list[Optimizer],
    scaler: Any,
    ranks: Ranks,
    fixed: Mapping[str, Any] | None = None,
) -> Progress:
    """Brings model, optimizers and random numbers to where the checkpoint was; all ranks must call it.

    fixed: options that must be those of the run that saved it. Raises BadFileError where they or the model
    are not.
    """
    model = unwrap(model)
    if not is_adapter(folder):
        check_same(folder, read_config(folder).to_dict(), model.config.to_dict())
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)
    progress = Progress(**state["progress"])
    check_same(folder, progress.fixed, fixed or {})
    if is_adapter(folder):
        adapters = load_adapter(folder, model.config)
        fill(model, lambda name, shape: adapters[name], is_lora)
    else:
        with safe_open(folder / WEIGHTS, "pt") as file:
            fill(model, lambda name, shape: file.get_tensor(name))
    set_optimizer_state_dict(model, optimizers, state["optimizer"], options=FULL)
    scaler.load_state_dict(state["scaler"])
    set_rng_state(progress.rng, ranks)
    return progress
