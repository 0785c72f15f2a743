"""What a run tells: lines on the terminal, log.csv, loss.png, and TensorBoard or wandb where asked for."""

from __future__ import annotations

import csv
import importlib.util
import math
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import torch

from llama.errors import BadFileError, UsageError
from llama.files import named, read, written_aside
from model import Config
from training.objectives import Preference
from training.options import Options, to_dict

COLUMNS = (
    "step",
    "tokens",
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "mfu",
    "peak_gib",
    "val_loss",
    "val_bits_per_byte",
    "estimate",
    "seconds",
    *Preference.names[1:],
    *(f"val_{name}" for name in Preference.names[1:]),
)

# Dense TFLOP/s of matrix products by the vendors' data sheets, (bfloat16 or float16, float32 as TF32). The
# first name that is part of the device's counts.
PEAKS = {
    "H200": (989, 494),
    "H100 PCIe": (756, 378),
    "H100": (989, 494),
    "A100": (312, 156),
    "A10G": (70, 35),
    "L40S": (362, 183),
    "L4": (121, 60),
    "RTX 4090": (165, 83),
    "RTX 3090": (71, 36),
    "V100": (125, 16),
    "T4": (65, 8),
}


def flops_per_token(config: Config, n_parameters: int, seq_len: int) -> float:
    """Of a training step: 6 for each weight that is multiplied with, and 12 L D T for attention.

    The embedding of an untied model is looked up, not multiplied with. Source: Chowdhery et al., PaLM, 2022,
    appendix B.
    """
    looked_up = 0 if config.tied else config.vocab_size * config.dim
    attention = 12 * config.n_layers * config.n_heads * config.head_dim * seq_len
    return 6 * (n_parameters - looked_up) + attention


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of a few: of smaller ones where one takes a second."""
    best = 0.0
    for n in (512, 1024, 2048, 2048, 2048):
        a = torch.ones(n, n, device=device, dtype=dtype)  # a resume must find random numbers untouched
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds = time.perf_counter() - start
        best = max(best, 2 * n**3 / seconds)
        if seconds > 1:
            break
    return best


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """The FLOP/s that MFU is a part of, and where the figure comes from."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, (half, single) in PEAKS.items():
            if part in name:
                return 1e12 * (single if dtype == torch.float32 else half), f"{name}, data sheet"
    return measured_peak(device, dtype), "measured with a matrix product"


def peak_gib(device: torch.device) -> float:
    """The most memory that this process ever had; on a GPU, that tensors had there. nan: nobody can say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def check_installed(options: Options) -> None:
    """Raises UsageError for a library that a run needs and that is not there."""
    needed = {"matplotlib": "loss.png"}
    needed |= {"tensorboard": "--tensorboard"} if options.tensorboard else {}
    needed |= {"wandb": "--wandb"} if options.wandb else {}
    needed |= {"bitsandbytes": "--optimizer=adamw_8bit"} if options.optimizer == "adamw_8bit" else {}
    needed |= {"bitsandbytes": "--qlora"} if options.qlora else {}
    for name, what in needed.items():
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"{what} needs {name}, which is not installed: pip install {name}")


def is_of(row: dict[str, str], step: int) -> bool:
    """Whether a row of the log is of what led to a checkpoint: its evaluation came after it."""
    return int(row["step"]) < step or (int(row["step"]) == step and not row["val_loss"])


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a log, but for a last line that was cut off, as when the power fails.

    A log of an earlier version may have fewer columns. Raises BadFileError where it is no log.
    """

    def refuse(found: str, allowed: str) -> NoReturn:
        raise BadFileError(f"{path}: {found}, allowed {allowed}; move the file away to go on without it")

    *lines, cut = read(path).decode(errors="replace").split("\n")
    table, rows = csv.DictReader(lines, restval="", quoting=csv.QUOTE_NONE), []
    columns = table.fieldnames or []
    for name in columns:
        if name not in COLUMNS:
            refuse(f"column {name!r:.40}", f"are {', '.join(COLUMNS)}")
    if (lines or cut) and "step" not in columns:
        refuse("no column 'step'", "is a log of a run")
    for row in table:
        for name, value in row.items():
            try:
                _ = int(value) if name == "step" else float(value or 0)
            except (TypeError, ValueError):
                place = name or "behind the last column"
                refuse(f"row {len(rows) + 1}: {place} = {value!r:.40}", "are numbers")
        rows.append(dict.fromkeys(COLUMNS, "") | row)
    return rows


class Report:
    """The log of a run, on its main rank. Rows after the checkpoint that a run resumes from are dropped."""

    def __init__(self, out_dir: Path, options: Options, step: int) -> None:
        self.path, self.out_dir = out_dir / "log.csv", out_dir
        earlier = read_rows(self.path) if step and self.path.exists() else []
        self.rows = [row for row in earlier if is_of(row, step)]
        self._rewrite()
        self.tensorboard: Any = None
        self.wandb: Any = None
        if options.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.tensorboard = SummaryWriter(str(out_dir))
        if options.wandb:
            import wandb

            self.wandb = wandb.init(project=options.wandb, name=out_dir.name, config=to_dict(options))

    def _rewrite(self) -> None:
        with written_aside(self.path) as scratch, scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def add(self, step: int, **values: float) -> None:
        """Adds a row; columns that are not given stay empty."""
        row = dict.fromkeys(COLUMNS, "") | {"step": str(step)}
        row |= {name: repr(value) for name, value in values.items()}
        self.rows.append(row)
        with named(self.path), self.path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        if self.tensorboard:
            for name, value in values.items():
                self.tensorboard.add_scalar(name, value, step)
        if self.wandb:
            self.wandb.log(values, step=step)

    def plot(self) -> None:
        """Draws loss.png: the loss of training and validation over the steps."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(8, 5))
        for column, label in (("loss", "train"), ("val_loss", "validation")):
            points = [(int(row["step"]), float(row[column])) for row in self.rows if row[column]]
            points = [point for point in points if math.isfinite(point[1])]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2 if column == "loss" else 2)
        axes.set(xlabel="step", ylabel="loss (nats per token)", title=self.out_dir.name)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.tight_layout()
        picture, aside = self.out_dir / "loss.png", self.out_dir / ".loss.png"
        try:
            with named(picture):
                figure.savefig(aside, format="png", dpi=120)
            aside.replace(picture)
        finally:
            aside.unlink(missing_ok=True)
            pyplot.close(figure)

    def close(self) -> None:
        if self.tensorboard:
            self.tensorboard.close()
        if self.wandb:
            self.wandb.finish()
