"""Small runs of train.py, and what is left of them."""

from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path

import forked
import torch
from helpers import ROOT
from safetensors.torch import load_file

SHAPE = ["--dim=32", "--n_layers=2", "--n_heads=4", "--n_kv_heads=2", "--max_seq_len=32", "--batch_size=8"]
QUIET = ["--device=cpu", "--eval_interval=1000", "--log_interval=1", "--sample_tokens=0", "--threads=1"]


def command(data: Path, out: Path, *options: str) -> list[str]:
    """A command line without Python in front."""
    script = [str(ROOT / "train.py"), os.devnull]  # an empty recipe: the options' own defaults
    return [*script, f"--data={data}", f"--out_dir={out}", *SHAPE, *QUIET, *options]


def run(data: Path, out: Path, *options: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    return forked.finish(command(data, out, *options), ranks=ranks)


def train(data: Path, out: Path, *options: str, ranks: int = 1) -> str:
    result = run(data, out, *options, ranks=ranks)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def losses(out: Path) -> dict[int, float]:
    with (out / "log.csv").open(newline="") as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file) if row["loss"]}


def validations(out: Path) -> dict[int, float]:
    with (out / "log.csv").open(newline="") as file:
        return {int(row["step"]): float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]}


def weights(out: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(out / name / "model.safetensors")


def assert_same_weights(first: Path, second: Path, atol: float = 0.0) -> None:
    a, b = weights(first), weights(second)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(
            a[name], b[name], rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
