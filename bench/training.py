"""How fast a small Llama trains on this CPU, beside llama2.c's model and loop where its folder is given.

    python -m bench.training                                          # eager, compiled, float32, bfloat16
    python -m bench.training --llama2c ../llama2.c --shapes 15M --modes eager --dtypes float32

Both train on the same random tokens with AdamW and clipped gradients, each in a process of its own, with
every setting that its train.py makes, and take turns of a few steps, so that a bad spell of the machine meets
both. The table shows medians of the rounds and their range, in tokens per second. Left out on purpose: GPUs,
for which train.py prints its speed.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.report import cell
from model import Config
from training import models, parallel
from training.options import Options
from training.step import make_run, train_step

SHAPES = {  # the options of a shape, the vocabulary it has, sequences in a batch
    "260K": ({"dim": 64, "n_layers": 5, "n_heads": 8, "n_kv_heads": 4, "max_seq_len": 512}, 512, 16),
    "15M": ({"dim": 288, "n_layers": 6, "n_heads": 6, "n_kv_heads": 6, "max_seq_len": 256}, 32000, 8),
}
COLUMNS = ["model", "type", "mode", "cria", "llama2.c", "ratio"]
TURN = 2.0  # seconds that one of the two trains before the other does

Step = Callable[[], object]


class Same:
    """Batches that are the same in every step."""

    def __init__(self, tokens: Tensor, targets: Tensor) -> None:
        self.batch = (tokens, targets, None)

    def weight_of(self, step: int) -> float:
        return float(self.batch[1].numel())

    def at(self, step: int) -> tuple[Tensor, Tensor, None]:
        return self.batch


def our_step(config: Config, options: Options, batches: Same) -> Step:
    ranks = parallel.start("cpu", "ddp")
    model = models.make_model(options, ranks, config, None)
    parallel.keep_memory(model)
    run = make_run(model, options, ranks, batches)
    models.fill_weights(model, None)
    return lambda: train_step(run)


def their_step(folder: Path, config: Config, options: Options, batches: Same) -> Step:
    """A step as llama2.c's train.py takes it, with its model.py."""
    spec = importlib.util.spec_from_file_location("llama2c_model", folder / "model.py")
    if not spec or not spec.loader:
        raise FileNotFoundError(f"{folder}: has no model.py")
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    known = inspect.signature(theirs.ModelArgs).parameters
    shape = {name: value for name, value in config.to_dict().items() if name in known}
    model: Any = theirs.Transformer(theirs.ModelArgs(**shape))
    betas = (options.beta1, options.beta2)
    optimizer = model.configure_optimizers(options.weight_decay, options.learning_rate, betas, "cpu")
    called = torch.compile(model) if options.compile else model
    ranks = parallel.start("cpu", "ddp")
    tokens, targets, _ = batches.at(0)

    def step() -> None:
        with parallel.autocast(ranks, options.dtype):
            called(tokens, targets)
        model.last_loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def work(connection: Connection, shape: str, peer: Path | None, values: dict[str, Any]) -> None:
    """A process that trains for a turn when told to, and answers with its tokens per second."""
    sizes, vocab_size, batch_size = SHAPES[shape]
    options = Options(batch_size=batch_size, **sizes, **values)
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    config = options.model_config(vocab_size)
    ids = torch.randint(vocab_size, (batch_size, config.max_seq_len + 1))
    batches = Same(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    step = their_step(peer, config, options, batches) if peer else our_step(config, options, batches)
    for _ in range(3):  # the compiler, the allocator and the caches settle
        step()
    connection.send(0.0)
    while connection.recv():
        start, steps = time.perf_counter(), 0
        while time.perf_counter() < start + TURN:
            step()
            steps += 1
        connection.send(steps * batch_size * config.max_seq_len / (time.perf_counter() - start))


def compare(shape: str, values: dict[str, Any], peer: Path | None, rounds: int) -> list[list[float]]:
    """Tokens per second of each round: ours, and the peer's if there is one."""
    spawn = get_context("spawn")
    pipes, processes = [], []
    for folder in [None, peer] if peer else [None]:
        here, there = spawn.Pipe()
        processes.append(spawn.Process(target=work, args=(there, shape, folder, values)))
        processes[-1].start()
        there.close()
        here.recv()  # one after the other, so that none settles beside the other's turn
        pipes.append(here)
    speeds: list[list[float]] = [[] for _ in pipes]
    for _ in range(rounds):
        for pipe, found in zip(pipes, speeds, strict=True):
            pipe.send(True)
            found.append(pipe.recv())
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(False)
        process.join()
    return speeds


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", choices=parallel.DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (%(default)s)")
    parser.add_argument("--llama2c", type=Path, help="a checkout of llama2.c")
    options = parser.parse_args()
    peer = options.llama2c or "left out, --llama2c names a checkout"
    print(f"{options.threads} threads; llama2.c: {peer}", file=sys.stderr, flush=True)
    print("| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|", sep="\n")
    for shape in options.shapes:
        for dtype in options.dtypes:
            for mode in options.modes:
                values = {"dtype": dtype, "compile": mode == "compiled", "threads": options.threads}
                speeds = compare(shape, values, options.llama2c, options.rounds)
                cells = [shape, dtype, mode, *map(cell, speeds)]
                if len(speeds) > 1:
                    cells.append(f"{statistics.median(speeds[0]) / statistics.median(speeds[1]):.2f}")
                print("| " + " | ".join(cells + [""] * (len(COLUMNS) - len(cells))) + " |", flush=True)


if __name__ == "__main__":
    main()
