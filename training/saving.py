"""Saves checkpoints while training goes on, in a thread of each rank, one checkpoint at a time.

A rank copies what is its own, which takes as long as reading it, and goes on training; the thread writes
that, aside. When all ranks have, rank 0's makes the files for everybody else from it: model.safetensors, and
model.bin for the C engine. Then the folder gets its name. What goes wrong anywhere is raised on every rank,
when the next checkpoint is begun or the run ends.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from llama.formats import llama2c, tokenizers
from llama.formats.export import export_bin, export_v3
from llama.formats.source import Source
from llama.formats.text import with_text
from llama.formats.texts import with_told
from llama.formats.v3 import extras_of
from model import Config
from training import checkpoints, states
from training.checkpoints import ASIDE, TENSORS, About, Progress, sha256
from training.parallel import Ranks, unwrap
from training.weights import TorchWeights


def export_model(
    out_dir: Path,
    config: Config,
    weights: Mapping[str, Tensor],
    tokenizer: Any,
    told: Mapping[str, str],
    dtype: str,
) -> None:
    """Writes model.bin, v0 as llama2.c has it or v3 for what that can't hold, and tokenizer.bin."""
    path, source = out_dir / "model.bin", with_told(Source("model", config, TorchWeights(weights)), told)
    if llama2c.holds(config) and not told and dtype == "fp32":
        export_bin(path, config, source.tensors, version=0)
    else:
        source, vocabulary = with_text(source, Path(tokenizer.path).parent)
        export_v3(path, config, source.tensors, dtype, extras=extras_of(source, vocabulary))
    if not (out_dir / "tokenizer.bin").exists():
        tokenizers.export_bin(tokenizer, out_dir / "tokenizer.bin")


@dataclass(frozen=True)
class Snapshot:
    """A run at the end of a step, in copies that training does not change."""

    step: int
    config: Config
    tensors: states.State  # this rank's
    rest: dict[str, Any]  # what is the same for all ranks


class Saver:
    """Saves the checkpoints of a run into out_dir.

    keep: how many of the newest stay, besides the best. dtype: of the weights in model.bin.
    """

    def __init__(
        self, out_dir: Path, ranks: Ranks, tokenizer: Any, keep: int, about: About, dtype: str = "fp32"
    ) -> None:
        self.out_dir, self.ranks, self.tokenizer = out_dir, ranks, tokenizer
        self.keep, self.about, self.dtype = keep, about, dtype
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None

    def begin(self, model: nn.Module, optimizers: list[Optimizer], scaler: Any, progress: Progress) -> None:
        """Begins to save a checkpoint. All ranks call it. Raises what went wrong with the one before."""
        self.wait()
        model = unwrap(model)
        state = states.state_of(model, optimizers, adapters=self.about.lora is not None)
        told = {**vars(progress), "rng": checkpoints.gather_rng(self.ranks)}
        rest = copy.deepcopy({"progress": told, "scaler": scaler.state_dict()})
        snapshot = Snapshot(progress.step, model.config, states.copied(state), rest)
        self.writing = self.thread.submit(self._save, snapshot)

    def wait(self) -> None:
        """Returns once the checkpoint is saved that was begun. All ranks call it. Raises what went wrong."""
        if self.writing:
            writing, self.writing = self.writing, None
            writing.result()

    def publish(self, step: int, config: Config) -> None:
        """Does again what follows the save of a step, for a run that was killed before it could. Rank 0 calls
        it. Raises OSError, BadFileError.
        """
        folder = checkpoints.folder_of(self.out_dir, step)
        self._publish(folder, config, states.stored_weights(folder / TENSORS))

    def close(self) -> None:
        """Lets what is being saved come to its end, whatever that is."""
        self.thread.shutdown(wait=True)

    # --- In the thread

    def _save(self, snapshot: Snapshot) -> None:
        folder = checkpoints.folder_of(self.out_dir, snapshot.step)
        aside, is_main = folder.with_name(folder.name + ASIDE), self.ranks.is_main
        self._together(lambda: checkpoints.make_aside(aside) if is_main else None)
        try:
            states.write(aside / TENSORS, snapshot.tensors, self.ranks.saving)
            found = self._together(lambda: self._digests(aside))
            digests = {name: digest for of_rank in found for name, digest in of_rank.items()}
            self._together(lambda: self._finish(folder, aside, snapshot, digests) if is_main else None)
        except OSError:
            if is_main:
                shutil.rmtree(aside, ignore_errors=True)  # on a full disk its room is needed
            raise

    def _together(self, work: Callable[[], Any]) -> list[Any]:
        """What work gives on each rank, once all are done. Raises on all what it raised on any."""
        try:
            mine = work()
        except Exception as error:
            mine = error
        found: list[Any] = [mine]
        if self.ranks.world_size > 1:
            found *= self.ranks.world_size
            dist.all_gather_object(found, mine, group=self.ranks.saving)
        for failed in (entry for entry in found if isinstance(entry, Exception)):
            raise failed
        return found

    def _digests(self, aside: Path) -> dict[str, str]:
        """The sha256 of what this rank wrote, by name."""
        mine = (aside / TENSORS).glob(f"__{self.ranks.rank}_*")
        return {f"{TENSORS}/{path.name}": sha256(path) for path in mine}

    def _finish(self, folder: Path, aside: Path, snapshot: Snapshot, digests: Mapping[str, str]) -> None:
        """Adds what is for everybody, and lets the folder count."""
        weights = states.stored_weights(aside / TENSORS)
        extra = [Path(self.tokenizer.path)]
        checkpoints.fill_folder(aside, snapshot.config, weights, snapshot.rest, extra, self.about, digests)
        checkpoints.put_in_place(aside, folder)
        self._publish(folder, snapshot.config, weights)

    def _publish(self, folder: Path, config: Config, weights: Mapping[str, Tensor]) -> None:
        """Makes a checkpoint the last one, and model.bin of it."""
        checkpoints.point(self.out_dir / "last", folder.name)
        checkpoints.remove_old(self.out_dir, self.keep)
        if not self.about.lora:  # adapters are merged by export.py
            export_model(self.out_dir, config, weights, self.tokenizer, self.about.told, self.dtype)
