"""Checkpoints of a run: written aside, synced, renamed; the newest and the best are kept; a resume is exact.

out/step-0000500/state/               weights and the optimizers' tensors, a file of each rank: a resume reads
                                      them, on any number of ranks (training/states.py)
                 state.pt             step, random numbers: what a resume needs besides
                 model.safetensors    the weights and the shape of the model, whole (export.py reads them)
                 tokenizer.*          the tokenizer that the data was made with
                 checksums.txt        sha256 of each file, written last
out/last, out/best                    links to one of these folders
out/model.bin, out/tokenizer.bin      the newest weights for the C engine: ./run out/model.bin
out/earlier-1                         all that, of a run that was in the folder before
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from llama.errors import BadFileError
from llama.files import copy, named, reading, sync
from llama.formats.adapters import is_adapter
from llama.formats.checkpoint import read_config
from model import Config
from training import states
from training.lora import Lora, save_adapter
from training.models import MAY_CHANGE
from training.pairs import REFERENCE
from training.parallel import Ranks, unwrap
from training.weights import save_weights

CHECKSUMS, STATE, TENSORS, WEIGHTS = "checksums.txt", "state.pt", "state", "model.safetensors"
ASIDE = ".aside"  # what the name of a folder ends with that is being written
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
    *("optimizer", "batch_size", "seed", "mixture", "train", "freeze"),
    *("lora_rank", "lora_alpha", "lora_targets", "qlora", "qat"),
)


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
    with reading(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def point(link: Path, target: str) -> None:
    """Makes link a symbolic link to target, in one step. Raises OSError, with its name."""
    aside = link.with_name(f".{link.name}.new")
    try:
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        aside.replace(link)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(link)) from error


def folder_of(out_dir: Path, step: int) -> Path:
    return out_dir / f"step-{step:07d}"


def step_folders(out_dir: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(path for path in out_dir.glob("step-*") if path.name[5:].isdigit())


def remove_left_over(out_dir: Path) -> None:
    """Removes what a run left that was killed while it saved."""
    for folder in out_dir.glob(f"*{ASIDE}"):
        shutil.rmtree(folder)


def move_earlier(out_dir: Path) -> Path | None:
    """Moves what an earlier run left into a folder earlier-N of out_dir. Returns that, None if none left any.

    Otherwise its checkpoints, of later steps, would be taken for those of the run that begins.
    """
    steps = step_folders(out_dir)
    if not steps:
        return None
    taken = [int(path.name[8:]) for path in out_dir.glob("earlier-*") if path.name[8:].isdigit()]
    number = max(taken, default=0) + 1
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
        with path.open("wb") as file:  # whose errors have the system's reason; those of C++ streams have none
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        raise states.refused(error, path) from None


def listed(digests: Mapping[str, str]) -> str:
    """The text of checksums.txt. digests: by name."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def fill_folder(
    folder: Path,
    config: Config,
    weights: Mapping[str, Tensor],
    rest: Mapping[str, Any],
    extra: list[Path],
    about: About,
    digests: Mapping[str, str],
) -> None:
    """Writes all files of a checkpoint but its tensors into a folder, to the disk. Raises OSError.

    digests: the sha256 of what is there already, by name.
    """
    if about.lora:
        save_adapter(folder, config, weights, about.lora, about.told)
    else:
        save_weights(folder / WEIGHTS, config, weights, about.told)
    save_state(rest, folder / STATE)
    for path in extra:
        copy(path, folder / path.name)
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found = {name: digests.get(name) or sha256(folder / name) for name in sorted(names)}
    with named(folder / CHECKSUMS):
        (folder / CHECKSUMS).write_text(listed(found), encoding="ascii")
    for path in (*folder.rglob("*"), folder):
        sync(path)


def make_aside(aside: Path) -> None:
    """An empty folder to write a checkpoint into. Raises OSError."""
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)


def put_in_place(aside: Path, folder: Path) -> None:
    """Gives a checkpoint its name, on the disk. A folder of that name is replaced. Raises OSError."""
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
    folder = folder_of(out_dir, step)
    if folder.exists():
        point(out_dir / "best", folder.name)


# --- Resuming


def verify(folder: Path) -> None:
    """Raises BadFileError if a file of a checkpoint is missing or not what was written."""
    try:
        text = (folder / CHECKSUMS).read_text(encoding="ascii")
        digests = {name: digest for digest, name in (line.split("  ") for line in text.splitlines())}
        found = {name: sha256(folder / name) for name in digests}
    except (OSError, ValueError) as error:
        raise BadFileError(f"{folder}: is not a whole checkpoint ({error})") from None
    needed = (path.relative_to(folder).as_posix() for path in (folder / STATE, *(folder / TENSORS).glob("*")))
    if listed(digests) != text or not digests.keys() >= set(needed):
        raise BadFileError(f"{folder / CHECKSUMS}: is not what was written")
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


def has_any(out_dir: Path, ranks: Ranks) -> bool:
    """Whether a run has checkpoints, whole or not, as rank 0 sees it. All ranks call it."""
    return ranks.of_main(bool(step_folders(out_dir)))


def chosen(out_dir: Path, ranks: Ranks) -> Path:
    """Rank 0's newest checkpoint, from which all ranks go on. Raises BadFileError if there is none."""
    found: str | BadFileError | None = None
    if ranks.is_main:
        try:
            found = newest(out_dir).name
        except BadFileError as error:
            found = error
    found = ranks.of_main(found)
    if isinstance(found, BadFileError):
        raise found
    if not (out_dir / found).exists():
        where = f"is not on the node of rank {ranks.rank}, only on that of rank 0"
        raise BadFileError(f"{out_dir / found}: {where}: out_dir must be a folder that all nodes share")
    return out_dir / found


def check_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises BadFileError where a checkpoint has another value than the run that is to go on from it."""
    for name, value in wanted.items():
        if name not in MAY_CHANGE and found.get(name, value) != value:
            what = f"{name} = {found[name]}, this run has {value}"
            raise BadFileError(f"{folder}: {what}: go on with the recipe and the options that it began with")


def read_state(path: Path) -> tuple[Progress, dict[str, Any]]:
    """Where a run stood, and its scaler. Raises BadFileError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return Progress(**state["progress"]), state["scaler"]
    except Exception as error:  # a broken pickle may fail in any way
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BadFileError(f"{path}: is not the state of a run: {reason}") from None


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
    model, adapters = unwrap(model), is_adapter(folder)
    if not adapters:
        check_same(folder, read_config(folder).to_dict(), model.config.to_dict())
    if not (folder / TENSORS).is_dir():
        raise BadFileError(f"{folder}: has no folder {TENSORS}: begin a new run with --init_from={folder}")
    progress, of_scaler = read_state(folder / STATE)
    check_same(folder, progress.fixed, fixed or {})
    states.load(folder / TENSORS, model, optimizers, adapters, ranks.control)
    scaler.load_state_dict(of_scaler)
    set_rng_state(progress.rng, ranks)
    return progress
