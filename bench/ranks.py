"""How much memory a rank needs, by the number of ranks and how the model is cut: two steps of AdamW on CPUs.

    python -m bench.ranks                       # 1, 2 and 4 processes, five minutes at most, 3 GB
    python -m bench.ranks --dim 256 --layers 4 --ranks 1 2 --cuts fsdp

A figure is the most that the process of rank 0 grew by while it made the model, ran two steps and, in the
second column of each number of ranks, saved a checkpoint while it ran a third. Weights, gradients and AdamW's
two moments are 16 bytes a weight; FSDP adds what is whole for a moment. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor

from bench.report import heading, line, number
from llama.command import run_command
from model import Config, Llama
from training import models, parallel, states
from training.options import Options
from training.parallel import Cut, Ranks
from training.step import Run, make_run, train_step

CUTS = {
    "ddp": Cut(),
    "fsdp": Cut(),
    "fsdp, deferred": Cut(deferred=True),
    "fsdp, replicas 2": Cut(replicas=2),
    "fsdp, tensor 2": Cut(tensor=2),
}
ROWS, TOKENS = 8, 32  # of a step
STATE_BYTES = 16  # of a weight: itself, its gradient, AdamW's two moments, float32 each


class Numbers:
    """The same random tokens in each step, of which a rank gets its part."""

    def __init__(self, ranks: Ranks, vocab_size: int) -> None:
        tokens = torch.randint(vocab_size, (ROWS, TOKENS + 1), generator=torch.Generator().manual_seed(1))
        part = tokens.chunk(ranks.data_size)[ranks.data_rank]
        self.batch = part[:, :-1], part[:, 1:]

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        return self.batch

    def weight_of(self, step: int) -> float:
        return float(ROWS * TOKENS)


def begin(config: Config, ranks: Ranks) -> Run:
    """A fresh run, in two micro batches a step at least."""
    with torch.device("meta"):
        model = Llama(config)
    size = ROWS // ranks.data_size // 2
    options = Options(batch_size=ROWS, micro_batch_size=size, max_seq_len=TOKENS, warmup_steps=0)
    run = make_run(model, options, ranks, Numbers(ranks, config.vocab_size))
    torch.manual_seed(1)
    models.fill_weights(model, None)
    return run


def memory(name: str) -> int:
    """Bytes of this process: VmRSS, what it has, or VmHWM, the most it had since the last forget."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", status)[1])


def give_back() -> None:
    """Tells glibc to give memory back as soon as it is free, so that a process has what its tensors take."""
    mmap_threshold = -3
    ctypes.CDLL("libc.so.6").mallopt(mmap_threshold, 1 << 16)


def forget() -> None:
    """Lets VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def growth(config: Config, ranks: Ranks, folder: Path) -> tuple[int, int]:
    """The most bytes that this process grew by: in training, and with a checkpoint being saved."""
    warm = Config(dim=32, n_layers=1, n_heads=4, vocab_size=64, max_seq_len=TOKENS)
    train_step(begin(warm, ranks))  # loads what is loaded once
    forget()
    before = memory("VmRSS")
    run = begin(config, ranks)
    for _ in range(2):
        train_step(run)
    training = memory("VmHWM") - before
    copy = states.copied(states.state_of(parallel.unwrap(run.model), run.optimizers))
    train_step(run)
    states.write(folder, copy, ranks.saving)
    return training, memory("VmHWM") - before


@dataclass(frozen=True)
class Case:
    """A row and a number of ranks."""

    config: Config
    name: str
    n_ranks: int
    folder: Path


def work(rank: int, case: Case) -> None:
    """One process. Rank 0 leaves what it found in a file."""
    torch.set_num_threads(1)
    give_back()
    n, kind = case.n_ranks, "ddp" if case.name == "ddp" else "fsdp"
    store = f"file://{case.folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=n)
    ranks = Ranks(rank, n, torch.device("cpu"), kind, *parallel.new_groups(), CUTS[case.name])
    found = growth(case.config, ranks, case.folder / "state")
    if ranks.is_main:
        torch.save(found, case.folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


def measured(config: Config, name: str, n_ranks: int) -> tuple[int, int] | None:
    """growth of rank 0; None where so many ranks can't be cut so."""
    if n_ranks % (CUTS[name].replicas * CUTS[name].tensor):
        return None
    with tempfile.TemporaryDirectory() as folder:
        case = Case(config, name, n_ranks, Path(folder))
        processes.spawn(work, (case,), n_ranks)
        return torch.load(case.folder / "found.pt")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--cuts", nargs="+", choices=CUTS, default=list(CUTS))
    options = parser.parse_args(arguments)
    config = Config(dim=options.dim, n_layers=options.layers, n_heads=8, vocab_size=4096, max_seq_len=TOKENS)
    with torch.device("meta"):
        n = sum(p.numel() for p in Llama(config).parameters())
    print(f"{n / 1e6:.1f} M weights, {STATE_BYTES * n / 2**20:,.0f} MiB of state; MiB of a rank\n")
    titles = [t for ranks in options.ranks for t in (f"{ranks} ranks", "saving")]
    print(heading(["cut", *titles]))
    for name in options.cuts:
        found = [measured(config, name, ranks) or () for ranks in options.ranks]
        cells = [[number(value / 2**20) for value in pair] or ["", ""] for pair in found]
        print(line([name, *(cell for pair in cells for cell in pair)]), flush=True)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
