"""Trains a Llama: one CPU, one GPU, or many processes under torchrun.

    python train.py                              # then ./run out/model.bin
    python train.py --max_steps=200 --out_dir=out/try
    python train.py --init_from=resume
    python train.py --vocab_source=custom --vocab_size=2048
    python train.py configs/stories260K.toml
    torchrun --standalone --nproc_per_node=2 train.py
    torchrun --standalone --nproc_per_node=4 train.py configs/stories110M.toml --parallel=fsdp

A recipe is a TOML file of options, `--key=value` changes one; `--help` lists them. Without a recipe it is
configs/gpu.toml where there is CUDA, and otherwise configs/laptop.toml, half an hour on two laptop cores.
Without --data it is data/tok4096, or else the only folder of tokens in data. What was chosen is printed.

The folder out_dir gets checkpoints (training/checkpoints.py), log.csv, loss.png and model.bin for the C
engine; an earlier run that is there is moved to out_dir/earlier-1. Ctrl-C finishes the step, saves and ends;
`--init_from=resume` goes on as if nothing had happened.

Names of llama2.c's options are taken where they mean the same, and refused with the name here where they do
not. One is the same and means another thing: batch_size is that of a whole step here, over all processes,
and that of a micro batch there.

The loop is here, its machinery in training/. Left out on purpose: pipeline and tensor parallelism.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama.command import run_command
from llama.errors import BadFileError
from llama.files import lock_folder
from llama.formats import llama2c, tokenizers
from llama.formats.export import export_bin, export_v3
from llama.formats.source import Source
from llama.formats.text import with_text
from llama.formats.texts import with_told
from llama.formats.v3 import extras_of
from model import Config
from training import checkpoints, evaluation, models, options, pairs, parallel, report
from training.checkpoints import About, Progress
from training.defaults import find_data
from training.objectives import objective_of
from training.options import Options
from training.pairs import Answers, Pairs
from training.parallel import Flag, Ranks
from training.shards import open_split
from training.sources import open_batches
from training.step import Run, make_run, micro_batch_size, train_step
from training.weights import TorchWeights

# ---------------------------------------------------------------------------------------------------------
# Setting up


def begin(options: Options, ranks: Ranks) -> Run:
    """Makes or loads everything. All ranks call it."""
    micro_batch_size(options, ranks.world_size)
    shards = open_split(options.data, "train")
    folder = checkpoints.chosen(Path(options.out_dir), ranks) if options.init_from == "resume" else None
    start = models.start_of(options, folder)
    source = models.source_of(options, start, shards[0].vocab_size) if start else None
    lora = models.lora_of(options, start)
    model = models.make_model(options, ranks, source, shards[0].vocab_size, lora)
    run = make_run(model, options, ranks, open_batches(shards, options, ranks))
    run.objective = objective_of(shards[0].kind, options)
    if isinstance(run.batches, Pairs):
        run.val = Answers(open_split(options.data, "val"), options.max_seq_len)
    run.about = About(models.told_of(options, source, folder), lora)
    torch.manual_seed(options.seed)  # the same weights on every rank
    if source or not folder:
        models.fill_weights(model, source)
    torch.manual_seed(options.seed + 1 + ranks.rank)  # other dropout on every rank
    fixed = {name: getattr(options, name) for name in checkpoints.FIXED}
    if folder:
        run.progress = checkpoints.load(folder, run.model, run.optimizers, run.scaler, ranks, fixed)
    run.progress.fixed = fixed
    return run


# ---------------------------------------------------------------------------------------------------------
# Between steps


class Clock:
    """Seconds since the start, and those of them that went into training steps."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.last = progress, time.perf_counter()

    def lap(self, training: bool) -> float:
        """Books the time since the last lap, and returns it."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        self.progress.total_seconds += seconds
        self.progress.train_seconds += seconds if training else 0
        return seconds


def export_model(
    out_dir: Path, config: Config, weights: dict[str, Tensor], tokenizer: Any, told: Mapping[str, str]
) -> None:
    """Writes model.bin, v0 as llama2.c has it or v3 for what that can't hold, and tokenizer.bin."""
    path, source = out_dir / "model.bin", with_told(Source("model", config, TorchWeights(weights)), told)
    if llama2c.holds(config) and not told:
        export_bin(path, config, source.tensors, version=0)
    else:
        source, vocabulary = with_text(source, Path(tokenizer.path).parent)
        export_v3(path, config, source.tensors, "fp32", extras=extras_of(source, vocabulary))
    if not (out_dir / "tokenizer.bin").exists():
        tokenizers.export_bin(tokenizer, out_dir / "tokenizer.bin")


def save(run: Run, tokenizer: Any) -> None:
    """Writes a checkpoint and model.bin. All ranks call it."""
    o, out_dir = run.options, Path(run.options.out_dir)
    weights = checkpoints.save(
        out_dir,
        run.model,
        run.optimizers,
        run.scaler,
        run.progress,
        run.ranks,
        [Path(tokenizer.path)],
        o.keep,
        run.about,
    )
    if run.ranks.is_main and not run.about.lora:  # adapters are merged by export.py
        export_model(out_dir, checkpoints.unwrap(run.model).config, weights, tokenizer, run.about.told)


def evaluate(run: Run, tokenizer: Any, log: report.Report | None) -> None:
    """Validation loss, llama2.c's estimate and a story. All ranks call it."""
    o, ranks, progress = run.options, run.ranks, run.progress
    shards = open_split(o.data, "val")
    place = (micro_batch_size(o, ranks.world_size), ranks.rank, ranks.world_size, o.eval_windows)
    answers = run.val.in_turn(*place) if run.val else None
    result = evaluation.evaluate(run.model, shards, o, ranks, run.objective, answers)
    values = {f"val_{name}": mean for name, mean in result.means.items()}
    values |= {} if run.val else {"val_bits_per_byte": result.bits_per_byte}
    if o.estimate_batches and not run.val:
        values["estimate"] = evaluation.estimate(run.model, open_batches(shards, o, ranks), o, ranks)
    if result.loss < progress.best_loss:
        progress.best_loss, progress.best_step = result.loss, progress.step
        if ranks.is_main:
            checkpoints.mark_best(Path(o.out_dir), progress.step)
    if log:
        text = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"step {progress.step}: {text} (best {progress.best_loss:.4f})", flush=True)
        log.add(progress.step, tokens=progress.tokens, seconds=progress.total_seconds, **values)
        log.plot()
    if o.sample_tokens and ranks.kind != "fsdp" and ranks.is_main:
        with parallel.autocast(ranks, o.dtype):  # what is frozen may be of that type
            told = evaluation.story(checkpoints.unwrap(run.model), tokenizer, o, progress.step)
        print("  " + told.strip() + "\n")


@dataclass
class Group:
    """The steps since the last line of the log."""

    sums: Tensor  # of this rank's objective, on the device: reading them would wait for the step
    weight: float = 0.0  # what all targets count
    steps: int = 0
    seconds: float = 0.0

    def add(self, sums: Tensor, weight: float, seconds: float) -> None:
        self.sums = self.sums + sums
        self.weight += weight
        self.steps += 1
        self.seconds += seconds


def settle(
    run: Run, group: Group, norm: Tensor, clock: Clock, log: report.Report | None, flops: float
) -> None:
    """One line on a group of steps, and a row of the log. Raises BadFileError if their loss is not finite."""
    p, o = run.progress, run.options
    totals = run.ranks.sum(*group.sums)
    group.seconds += clock.lap(training=True)  # the device may have had work left
    means = {name: float(t) / group.weight for name, t in zip(run.objective.names, totals, strict=True)}
    loss = means["loss"]
    if not math.isfinite(loss):
        raise BadFileError(f"the loss of step {p.step} is {loss}: stopped, the last checkpoint is kept")
    if not log:
        return
    rate, n_tokens = run.optimizers[0].param_groups[0]["lr"], group.steps * o.batch_size * o.max_seq_len
    speed = n_tokens / group.seconds
    share = p.train_seconds / p.total_seconds
    left = p.total_seconds / p.step * (o.max_steps - p.step)
    told = ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())
    print(
        f"step {p.step}/{o.max_steps}: {told}, norm {float(norm):.2f}, rate {rate:.2e}, "
        f"{speed:,.0f} tokens/s, mfu {speed * flops:.1%}, training {share:.0%} of the time, "
        f"{report.duration(left)} left",
        flush=True,
    )
    log.add(
        p.step,
        tokens=p.tokens,
        **means,
        learning_rate=rate,
        grad_norm=float(norm),
        tokens_per_second=speed,
        mfu=speed * flops,
        seconds=p.total_seconds,
    )


# ---------------------------------------------------------------------------------------------------------
# The loop


def loop(run: Run, tokenizer: Any, log: report.Report | None, flops: float) -> None:
    """Trains until max_steps or a signal. flops: per token, as a part of what all devices do in a second."""
    o, p, ranks = run.options, run.progress, run.ranks
    none = torch.zeros(len(run.objective.names), device=ranks.device)
    clock, group, stop = Clock(p), Group(none), Flag(ranks)
    evaluate(run, tokenizer, log)  # after a resume again: what was saved is older than its evaluation
    clock.lap(training=False)
    done = p.step >= o.max_steps
    while not done:
        sums, weight, norm = train_step(run)
        p.step += 1
        p.tokens += round(weight)
        group.add(sums, weight, clock.lap(training=True))
        done = stop.poll(run.stopping) or p.step >= o.max_steps
        evaluating = done or p.step % o.eval_interval == 0
        saving = evaluating or p.step % o.save_interval == 0
        if saving or p.step % o.log_interval == 0:
            settle(run, group, norm, clock, log, flops)  # before a save: what is not finite is never saved
            group = Group(none)
        if saving:
            save(run, tokenizer)
        if evaluating:
            evaluate(run, tokenizer, log)
        clock.lap(training=False)
    stop.last()


def listen(run: Run) -> None:
    """SIGINT and SIGTERM end the run after the step; a second SIGINT ends it at once."""

    def stop(number: int, frame: Any) -> None:
        if run.stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        run.stopping = True
        if run.ranks.is_main:
            print("\nstopping: the step is finished and saved; --init_from=resume goes on", flush=True)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def open_log(options: Options, step: int) -> report.Report:
    """Makes out_dir ready for a run that begins at a step."""
    out_dir = Path(options.out_dir)
    checkpoints.remove_left_over(out_dir)
    if options.init_from != "resume" and (earlier := checkpoints.move_earlier(out_dir)):
        print(f"{out_dir}: the run that was there is in {earlier} now")
    return report.Report(out_dir, options, step)


def shown(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def introduce(run: Run, recipes: list[Path], flops: float, peak: float, source: str) -> None:
    """What is about to be trained, on what."""
    o, model = run.options, checkpoints.unwrap(run.model)
    n = sum(p.numel() for p in model.parameters())
    print(f"recipe: {', '.join(map(shown, recipes))}")
    print(f"model: {n:,} parameters, {json.dumps(model.config.to_dict())}")
    print(
        f"data: {o.data}, {run.batches}; "
        f"{o.batch_size * o.max_seq_len:,} tokens a step, {o.max_steps:,} steps"
    )
    print(
        f"machine: {run.ranks.world_size} x {run.ranks.device} {run.ranks.kind}, {o.dtype}; "
        f"peak {peak / 1e12:.2f} TFLOP/s ({source}), {flops / 1e6:.1f} MFLOP a token",
        flush=True,
    )


def refer(run: Run, resumed: bool) -> None:
    """Sets what the model said of pairs before it was tuned, and keeps it. All ranks call it."""
    if not (isinstance(run.batches, Pairs) and run.val):
        return
    splits, folder = {"train": run.batches.answers, "val": run.val}, Path(run.options.out_dir)
    if resumed:
        pairs.load_reference(folder, splits)
        return
    size = micro_batch_size(run.options, run.ranks.world_size)
    for answers in splits.values():
        pairs.refer(run.model, answers, size, run.ranks, run.options.dtype)
    if run.ranks.is_main:
        pairs.save_reference(folder, splits)


def train(options: Options, recipes: list[Path], ranks: Ranks) -> None:
    """A whole run. Raises BadFileError, OSError."""
    run = begin(options, ranks)
    tokenizer = tokenizers.load(Path(options.data))
    listen(run)
    model = checkpoints.unwrap(run.model)
    n_parameters = sum(p.numel() for p in model.parameters())
    flops = report.flops_per_token(model.config, n_parameters, options.max_seq_len)
    peak, source = report.peak_flops(ranks.device, parallel.DTYPES[options.dtype])
    log = open_log(options, run.progress.step) if ranks.is_main else None
    if log:
        introduce(run, recipes, flops, peak, source)
    refer(run, options.init_from == "resume")
    try:
        loop(run, tokenizer, log, flops / (peak * ranks.world_size))
    finally:
        if log:
            log.close()


def run_from(arguments: list[str]) -> None:
    """Does what a command line says. Raises BadFileError, OSError, KeyboardInterrupt."""
    if {"-h", "--help"} & set(arguments):
        print(
            __doc__.strip()
            + "\n\nOptions, and what they are where neither a recipe nor the command line says\n"
            + options.describe()
        )
        return
    chosen, recipes = options.from_arguments(arguments)
    report.check_installed(chosen)
    models.check_said(chosen, options.split(arguments)[1])
    chosen.data = chosen.data or find_data()
    parallel.keep_memory()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    ranks = parallel.start(chosen.device, chosen.parallel)
    try:
        with lock_folder(Path(chosen.out_dir)) if ranks.is_main else contextlib.nullcontext():
            train(chosen, recipes, ranks)
    finally:
        parallel.stop(ranks)


if __name__ == "__main__":
    sys.exit(run_command(lambda: run_from(sys.argv[1:])))
