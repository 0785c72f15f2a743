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
`--init_from=resume` goes on as if nothing had happened. `--eval_only` evaluates what init_from says, once.

Names of llama2.c's options are taken where they mean the same, and refused with the name here where they do
not. One is the same and means another thing: batch_size is that of a whole step here, over all processes,
and that of a micro batch there.

The loop is here, its machinery in training/. Several nodes, restarts and Slurm: docs/training.md. Left out on
purpose: pipeline parallelism.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama.command import run_command
from llama.errors import BadFileError
from llama.files import lock_folder
from llama.formats import tokenizers
from training import checkpoints, evaluation, models, options, pairs, parallel, report
from training.batches import in_turn
from training.checkpoints import About, Progress
from training.defaults import find_data
from training.distillation import distillation_of
from training.few_bits import n_weights, packed_matrices
from training.objectives import objective_of
from training.options import Options, seconds_of
from training.pairs import Answers
from training.parallel import Cut, Flag, Ranks
from training.profiling import Profiler, window_of
from training.saving import Saver
from training.shards import open_split
from training.sources import open_parts, open_run
from training.step import Run, make_run, micro_batch_size, train_step

# ---------------------------------------------------------------------------------------------------------
# Setting up


def begin(options: Options, ranks: Ranks, said: Collection[str]) -> Run:
    """Makes or loads everything. said: the options that somebody has said. All ranks call it."""
    micro_batch_size(options, ranks.data_size)
    shards = open_split(options.data, "train")
    folder = checkpoints.chosen(Path(options.out_dir), ranks) if options.init_from == "resume" else None
    start = models.start_of(options, folder)
    if folder and not start:
        models.take_shape(options, folder, said)
    source = models.source_of(options, start, shards[0].vocab_size) if start else None
    lora = models.lora_of(options, start)
    config = models.config_of(options, source, folder, shards[0].vocab_size)
    model = models.make_model(options, ranks, config, lora)
    parallel.keep_memory(model)
    batches = open_run(options, ranks, "train")
    if options.epochs:
        options.max_steps = batches.steps_of(options.epochs)
    run = make_run(model, options, ranks, batches)
    run.objective = objective_of(shards[0].kind, options)
    if shards[0].kind == "pairs":
        val = Answers(open_split(options.data, "val"), options.max_seq_len)
        run.answers = {"train": run.batches.sequences.items, "val": val}
    run.about = About(models.told_of(options, source, folder), lora)
    torch.manual_seed(options.seed)  # the same weights on every rank
    if source or not folder:
        models.fill_weights(model, source)
    if options.teachers and not options.eval_only:
        run.objective = distillation_of(model, options, ranks.device)
    torch.manual_seed((options.seed + 1 + ranks.data_rank) % 2**64)  # other dropout for other data
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
        self.begin = self.last

    def over(self, seconds: float) -> bool:
        """Whether so many have passed since this start."""
        return time.perf_counter() - self.begin >= seconds

    def lap(self, training: bool) -> float:
        """Books the time since the last lap, and returns it."""
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        self.progress.total_seconds += seconds
        self.progress.train_seconds += seconds if training else 0
        return seconds


def validate(run: Run, telling: bool) -> evaluation.Evaluation:
    """The validation split, or those of a mixture by their shares. All ranks call it."""
    o, ranks = run.options, run.ranks
    place = (micro_batch_size(o, ranks.data_size), ranks.data_rank, ranks.data_size, o.eval_windows)
    found = []
    for name, share, shards in open_parts(o, "val"):
        answers = in_turn(run.answers["val"], *place) if run.answers else None
        result = evaluation.evaluate(run.model, shards, o, ranks, run.objective, answers)
        found.append((float(share), result))
        if telling and o.mixture:
            print(f"step {run.progress.step}: {name}: val_loss {result.loss:.4f}")
    return evaluation.mixed(found)


def figures(run: Run, telling: bool) -> dict[str, float]:
    """What an evaluation says, by the names of the log: validation, and llama2.c's estimate where it is asked
    for. All ranks call it.
    """
    o = run.options
    result = validate(run, telling)
    values = {f"val_{name}": mean for name, mean in result.means.items()}
    values |= {} if math.isnan(result.bits_per_byte) else {"val_bits_per_byte": result.bits_per_byte}
    if o.estimate_batches and not run.answers:
        values["estimate"] = evaluation.estimate(run.model, open_run(o, run.ranks, "val"), o, run.ranks)
    return values


def shown_figures(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())


def evaluate(run: Run, tokenizer: Any, log: report.Report | None) -> None:
    """The figures, in the log, and a story. All ranks call it."""
    o, ranks, progress = run.options, run.ranks, run.progress
    values = figures(run, log is not None)
    if values["val_loss"] < progress.best_loss:
        progress.best_loss, progress.best_step = values["val_loss"], progress.step
        run.saver.wait()  # it was written while this was evaluated
        if ranks.is_main:
            checkpoints.mark_best(Path(o.out_dir), progress.step)
    if log:
        told = f"{shown_figures(values)} (best {progress.best_loss:.4f})"
        print(f"step {progress.step}: {told}", flush=True)
        log.add(progress.step, tokens=progress.tokens, seconds=progress.total_seconds, **values)
        log.plot()
    if o.sample_tokens and ranks.kind != "fsdp" and ranks.is_main:
        with parallel.autocast(ranks, o.dtype):  # what is frozen may be of that type
            told = evaluation.story(parallel.unwrap(run.model), tokenizer, o, progress.step)
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
    told = shown_figures(means)
    peak = report.peak_gib(run.ranks.device)
    print(
        f"step {p.step}/{o.max_steps}: {told}, norm {float(norm):.2f}, rate {rate:.2e}, "
        f"{speed:,.0f} tokens/s, mfu {speed * flops:.1%}, {peak:.1f} GiB, training {share:.0%} of the time, "
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
        peak_gib=peak,
        seconds=p.total_seconds,
    )


# ---------------------------------------------------------------------------------------------------------
# The loop


def loop(run: Run, tokenizer: Any, log: report.Report | None, flops: float) -> None:
    """Trains until max_steps, max_time or a signal.

    flops: per token, as a part of what all devices do in a second.
    """
    o, p, ranks = run.options, run.progress, run.ranks
    none = torch.zeros(len(run.objective.names), device=ranks.device)
    clock, group, stop = Clock(p), Group(none), Flag(ranks)
    profiler = Profiler(o.profile, Path(o.out_dir), ranks)
    evaluate(run, tokenizer, log)  # after a resume again: what was saved is older than its evaluation
    clock.lap(training=False)
    done, most = p.step >= o.max_steps, seconds_of(o.max_time)
    if done and o.init_from == "resume" and ranks.is_main:
        run.saver.publish(p.step, parallel.unwrap(run.model).config)
    while not done:
        profiler.before(p.step + 1)
        sums, weight, norm = train_step(run)
        p.step += 1
        p.tokens += round(weight)
        group.add(sums, weight, clock.lap(training=True))
        done = stop.poll(run.stopping or clock.over(most)) or p.step >= o.max_steps
        profiler.after(p.step, done)
        evaluating = done or p.step % o.eval_interval == 0
        saving = evaluating or p.step % o.save_interval == 0
        if saving or p.step % o.log_interval == 0:
            settle(run, group, norm, clock, log, flops)  # before a save: what is not finite is never saved
            group = Group(none)
        if saving:
            run.saver.begin(run.model, run.optimizers, run.scaler, p)
        if evaluating:
            evaluate(run, tokenizer, log)
        clock.lap(training=False)
    stop.last()
    run.saver.wait()
    if ranks.is_main and p.step < o.max_steps and not run.stopping:
        print(f"stopped: --max_time={o.max_time} is over; --init_from=resume goes on", flush=True)


def listen(run: Run) -> None:
    """SIGINT and SIGTERM end the run after the step; a second SIGINT ends it at once."""

    def stop(number: int, frame: Any) -> None:
        if run.stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        run.stopping = True
        if run.ranks.is_main:
            print("\nstopping: the step is finished and saved; --init_from=resume goes on", flush=True)
            if run.ranks.world_size > 1:
                print("torchrun waits 30 s for that, or as long as its --shutdown-timeout says", flush=True)

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
    o, model = run.options, parallel.unwrap(run.model)
    n = n_weights(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    part = f", {trained:,} of them trained" if trained < n else ""
    packed = sum(m.nbytes for m in packed_matrices(model).values())
    part += f", matrices packed in {packed:,} bytes" if packed else ""
    print(f"recipe: {', '.join(map(shown, recipes))}")
    print(f"model: {n:,} parameters{part}, {json.dumps(model.config.to_dict())}")
    print(
        f"data: {o.data}, {run.batches}; "
        f"{o.batch_size * o.max_seq_len:,} tokens a step, {o.max_steps:,} steps"
    )
    kind = f" {run.ranks.kind}" if run.ranks.world_size > 1 else ""
    print(
        f"machine: {run.ranks.world_size} x {run.ranks.device}{kind}, {o.dtype}; "
        f"peak {peak / 1e12:.2f} TFLOP/s ({source}), {flops / 1e6:.1f} MFLOP a token",
        flush=True,
    )
    if parallel.is_emulated(o.dtype, run.ranks.device):
        print(
            f"note: PyTorch has no fast {o.dtype} on this CPU; --dtype=float32 is many times as fast",
            flush=True,
        )


def refer(run: Run, resumed: bool) -> None:
    """Sets what the model said of pairs before it was tuned, and keeps it for a run. All ranks call it."""
    folder = Path(run.options.out_dir)
    if not run.answers:
        return
    if resumed:
        pairs.load_reference(folder, run.answers)
        return
    size = micro_batch_size(run.options, run.ranks.data_size)
    for answers in run.answers.values():
        pairs.refer(run.model, answers, size, run.ranks, run.options.dtype)
    if run.ranks.is_main and not run.options.eval_only:
        pairs.save_reference(folder, run.answers)


def only_evaluate(run: Run) -> None:
    """Prints the figures of a model as it is, and writes nothing. All ranks call it."""
    if run.answers:
        run.answers = {"val": run.answers["val"]}
    refer(run, run.options.init_from == "resume")
    values = figures(run, run.ranks.is_main)
    if run.ranks.is_main:
        print(f"step {run.progress.step}: {shown_figures(values)}")


def train(options: Options, recipes: list[Path], ranks: Ranks, said: Collection[str]) -> None:
    """A whole run, or with eval_only one evaluation. Raises BadFileError, OSError."""
    run = begin(options, ranks, said)
    if options.eval_only:
        only_evaluate(run)
        return
    tokenizer = tokenizers.load(Path(options.data))
    dtype = options.qat or "fp32"
    run.saver = Saver(Path(options.out_dir), ranks, tokenizer, options.keep, run.about, dtype)
    listen(run)
    model = parallel.unwrap(run.model)
    flops = report.flops_per_token(model.config, n_weights(model), options.max_seq_len)
    peak, source = report.peak_flops(ranks.device, parallel.DTYPES[options.dtype])
    log = open_log(options, run.progress.step) if ranks.is_main else None
    if log:
        introduce(run, recipes, flops, peak, source)
    refer(run, options.init_from == "resume")
    try:
        loop(run, tokenizer, log, flops / (peak * ranks.world_size))
    finally:
        run.saver.close()
        if log:
            log.close()


@parallel.memory_told()
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
    said = options.said(arguments)
    models.check_said(chosen, said)
    window_of(chosen.profile)
    chosen.data = chosen.data or find_data()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    cut = Cut(chosen.replicas, chosen.tensor_parallel, chosen.offload, chosen.defer_reduction)
    ranks = parallel.start(chosen.device, chosen.parallel, cut)
    try:
        writes = ranks.is_main and not chosen.eval_only
        with lock_folder(Path(chosen.out_dir)) if writes else contextlib.nullcontext():
            if chosen.auto_resume and checkpoints.has_any(Path(chosen.out_dir), ranks):
                chosen.init_from = "resume"
            train(chosen, recipes, ranks, said)
    except BaseException:
        parallel.stop(ranks, failed=True)
        raise
    parallel.stop(ranks)


if __name__ == "__main__":
    sys.exit(run_command(lambda: run_from(sys.argv[1:])))
