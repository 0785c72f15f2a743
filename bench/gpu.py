"""How fast models train on one GPU: tokens per second, MFU and peak memory, a table for each shape.

    python -m bench.gpu                                        # 15M, 110M, 1.1B, 8B: six minutes at most
    python -m bench.gpu --shapes 110M --profile profile.txt    # and what the device does in a step
    python -m bench.gpu --device cpu --shapes 260K --seconds 1

A row is training.step.train_step on random tokens, with the batches, autocast, compiler and optimizer of
train.py, so its figures are train.py's; there is no dropout. MFU counts operations as PaLM's appendix B does
(report.flops_per_token: attention to the whole sequence, neither causal nor cut into documents, and nothing
for activations that are computed again) and is a part of the peak that the data sheet gives for dense
products. "compile s" is how much longer the first step took than a later one. The 8B rows train adapters of
rank 16 beside all matrices, which are bfloat16 or (qlora, with bitsandbytes) 4 bits. A shape has a process
and a time limit of its own, so that no fault takes the others with it; what is measured is printed at once.

Left out on purpose: several GPUs, the full training of 8B (128 GB of weights and optimizer in float32).
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch.profiler import profile

from bench.report import heading, line, number
from bench.shapes import SHAPES
from llama.command import run_command
from llama.errors import UsageError
from model import Config, Llama
from training import models, parallel, report
from training.few_bits import n_weights
from training.options import Options
from training.profiling import table
from training.shards import Shard, token_type
from training.sources import open_batches
from training.step import Run, make_run, train_step

STORY = 200  # tokens of a document, as in TinyStories
RANK = 16  # of adapters
FEWEST_STEPS = 3  # that are measured
PROFILED_STEPS = 2
COLUMNS = ["micro batch", "how", "tokens/s", "MFU", "peak GiB", "step ms", "compile s", "loss"]

# ---------------------------------------------------------------------------------------------------------
# What is measured


@dataclass(frozen=True)
class Case:
    """One way to train a shape: a row."""

    micro_batch_size: int
    compile: bool = True
    checkpointing: bool = False
    documents: bool = False
    lora: bool = False
    qlora: bool = False

    @property
    def how(self) -> str:
        names = ("checkpointing", "documents", "lora", "qlora")
        return ", ".join(["compiled" if self.compile else "eager", *(n for n in names if getattr(self, n))])


@dataclass(frozen=True)
class Plan:
    """The steps of a shape, and its cases, the one that matters most first."""

    seq_len: int
    batch_size: int  # sequences in a step
    limit: float  # seconds for all cases
    cases: tuple[Case, ...]


PLANS = {
    "260K": Plan(  # for a trial on a CPU
        64,
        4,
        300,
        (
            Case(2, compile=False, documents=True),
            Case(4, compile=False, checkpointing=True, lora=True),
            Case(4, compile=False, checkpointing=True, qlora=True),
            Case(2),
        ),
    ),
    "15M": Plan(256, 512, 65, (Case(256), Case(256, compile=False), Case(512), Case(128))),
    "110M": Plan(
        1024,
        128,
        130,
        (
            Case(32),
            Case(32, documents=True),
            Case(32, compile=False),
            Case(32, compile=False, documents=True),
            Case(64),
            Case(16),
        ),
    ),
    "1.1B": Plan(2048, 64, 130, (Case(8), Case(4), Case(16, compile=False, checkpointing=True))),
    "8B": Plan(
        2048,
        8,
        45,
        (
            Case(4, compile=False, checkpointing=True, qlora=True),
            Case(4, compile=False, checkpointing=True, lora=True),
        ),
    ),
}


@dataclass(frozen=True)
class Settings:
    """What all cases share. Crosses to the processes of the shapes."""

    device: str
    dtype: str
    seconds: float  # measured of each case, once it runs
    profile: Path | None


def random_shard(vocab_size: int, n_tokens: int) -> Shard:
    """Documents of STORY random tokens, in memory."""
    bos_id = 1
    rng = np.random.default_rng(1)
    tokens = rng.integers(2, vocab_size, n_tokens, dtype=token_type(vocab_size))
    tokens[::STORY] = bos_id
    ends = np.append(np.arange(STORY, n_tokens, STORY), n_tokens).astype(np.uint64)
    return Shard(Path("random"), tokens, ends, vocab_size, "", bos_id, None)


def start_run(shape: str, case: Case, settings: Settings) -> Run:
    """What train.py begins with, for random tokens; weights are drawn on the device."""
    plan = PLANS[shape]
    config = Config(**SHAPES[shape] | {"max_seq_len": plan.seq_len})
    options = Options(
        max_seq_len=plan.seq_len,
        batch_size=plan.batch_size,
        micro_batch_size=case.micro_batch_size,
        documents=case.documents,
        device=settings.device,
        dtype=settings.dtype,
        compile=case.compile,
        checkpointing=case.checkpointing,
        lora_rank=RANK if case.lora or case.qlora else 0,
        qlora=case.qlora,
    )
    ranks = parallel.start(options.device, options.parallel)
    torch.manual_seed(options.seed)
    shard = random_shard(config.vocab_size, 4 * plan.batch_size * plan.seq_len)
    batches = open_batches([shard], options, ranks)
    model = models.make_model(options, ranks, config, models.lora_of(options, shape))
    run = make_run(model, options, ranks, batches)
    with ranks.device:
        models.fill_weights(model, None)
    return run


def flops_per_token(model: Llama, seq_len: int) -> float:
    """report.flops_per_token, less the two operations a frozen weight that its gradient would take."""
    n = n_weights(model)
    frozen = n - sum(w.numel() for w in model.parameters() if w.requires_grad)
    if frozen and not model.config.tied:
        frozen -= model.tok_embeddings.weight.numel()  # is looked up, not multiplied with
    return report.flops_per_token(model.config, n, seq_len) - 2 * frozen


# ---------------------------------------------------------------------------------------------------------
# Measuring


@dataclass
class Result:
    """tokens_per_second, step_seconds: of the steps that were measured. peak: bytes, None on a CPU."""

    tokens_per_second: float
    mfu: float
    peak: int | None
    step_seconds: float
    compile_seconds: float
    loss: float  # of the last step, nats per token


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed_steps(run: Run, n: int) -> tuple[float, float]:
    """Seconds of a step, the mean of n that are waited for at the end as in train.py, and the last loss."""
    wait(run.ranks.device)
    start = time.perf_counter()
    for _ in range(n):
        loss, n_targets, _ = train_step(run)
        run.progress.step += 1
    wait(run.ranks.device)
    return (time.perf_counter() - start) / n, float(loss) / float(n_targets)


def measure(run: Run, seconds: float) -> Result:
    """The speed of a run over that many seconds, once it is compiled. Raises ArithmeticError for a NaN."""
    options, device = run.options, run.ranks.device
    flops = flops_per_token(run.model, options.max_seq_len)
    peak_flops, _ = report.peak_flops(device, parallel.DTYPES[options.dtype])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    first, _ = timed_steps(run, 1)
    usual, _ = timed_steps(run, 1)
    step, loss = timed_steps(run, max(FEWEST_STEPS, round(seconds / usual)))
    if not np.isfinite(loss):
        raise ArithmeticError(f"the loss is {loss}")
    speed = options.batch_size * options.max_seq_len / step
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Result(speed, speed * flops / peak_flops, peak, step, first - step, loss)


def release(device: torch.device) -> None:
    """Gives back what the last case held, graphs of the compiler included."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def row(case: Case, result: Result) -> str:
    r = result
    peak = "" if r.peak is None else number(r.peak / 2**30)
    cells = [number(r.tokens_per_second), f"{r.mfu:.1%}", peak, number(1000 * r.step_seconds)]
    compiling = number(r.compile_seconds) if case.compile else ""
    return line([str(case.micro_batch_size), case.how, *cells, compiling, f"{r.loss:.3f}"])


# ---------------------------------------------------------------------------------------------------------
# What the device does in a step


def profiled(run: Run, step_seconds: float) -> str:
    """The ten kernels that take longest and how often the host waits, of one step."""
    with profile() as found:
        timed_steps(run, PROFILED_STEPS)
    on_gpu = run.ranks.device.type == "cuda"
    return f"steps of {1000 * step_seconds:,.1f} ms\n\n{table(found, PROFILED_STEPS, on_gpu)}"


def add_profile(path: Path, title: str, run: Run, result: Result) -> None:
    """Adds the profile of a run to a file. One that fails is a line there: the row is known by then."""
    try:
        text = profiled(run, result.step_seconds)
    except Exception as error:
        text = f"failed: {first_line(error)}\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(f"## {title}\n\n{text}\n")


# ---------------------------------------------------------------------------------------------------------
# Shapes


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def attempt(shape: str, case: Case, settings: Settings, profiling: bool) -> str:
    """The row of a case. One that fails, whatever the reason, is a row too: the others go on."""
    try:
        run = start_run(shape, case, settings)
        result = measure(run, settings.seconds)
        if profiling and settings.profile:
            title = f"{shape}, micro batch {case.micro_batch_size}, {case.how}"
            add_profile(settings.profile, title, run, result)
        return row(case, result)
    except Exception as error:
        return line([str(case.micro_batch_size), case.how, f"failed: {first_line(error)[:200]}"])


def rows(shape: str, settings: Settings, end: float) -> Iterator[str]:
    """A row for each case of a shape, until too little of the time is left for one more of its kind.

    end: of the time, by time.monotonic, which is one clock for all processes.
    """
    longest = {True: 0.0, False: 0.0}  # seconds that a case took so far, compiled and eager
    for i, case in enumerate(PLANS[shape].cases):
        start = time.monotonic()
        if end - start < longest[case.compile]:
            yield line([str(case.micro_batch_size), case.how, f"left out: {end - start:.0f} s left"])
            continue
        yield attempt(shape, case, settings, profiling=i == 0)
        release(torch.device(settings.device))
        longest[case.compile] = max(longest[case.compile], time.monotonic() - start)


def measure_shape(shape: str, settings: Settings, end: float) -> None:
    """The table of a shape, in a process of its own."""
    plan = PLANS[shape]
    dtype = parallel.DTYPES[settings.dtype]
    peak, source = report.peak_flops(torch.device(settings.device), dtype)
    print(
        f"\n{shape}: {plan.batch_size} sequences of {plan.seq_len} tokens a step, {settings.dtype}; "
        f"peak {peak / 1e12:,.1f} TFLOP/s ({source}); torch {torch.__version__}\n\n{heading(COLUMNS)}",
        flush=True,
    )
    for text in rows(shape, settings, end):
        print(text, flush=True)


def supervise(shape: str, settings: Settings, limit: float) -> None:
    """Measures a shape within a limit in seconds."""
    end = time.monotonic() + limit
    process = get_context("spawn").Process(target=measure_shape, args=(shape, settings, end))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        print(f"{shape}: stopped after {limit:.0f} s, its limit", flush=True)
    elif process.exitcode:
        print(f"{shape}: its process ended with code {process.exitcode}", flush=True)


def measure_all(arguments: list[str]) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    usual = [shape for shape in PLANS if shape != "260K"]
    parser.add_argument("--shapes", nargs="+", choices=PLANS, default=usual)
    parser.add_argument("--seconds", type=float, default=5.0, help="measured of each row (%(default)s)")
    parser.add_argument("--limit", type=float, default=370.0, help="seconds for everything (%(default)s)")
    parser.add_argument("--device", help="(the GPU that PyTorch finds)")
    parser.add_argument("--dtype", choices=parallel.DTYPES, default="bfloat16", help="(%(default)s)")
    parser.add_argument("--profile", type=Path, help="a file for the profile of each shape's first row")
    options = parser.parse_args(arguments)
    device = options.device or parallel.best_device()
    if device == "cpu" and not options.device:
        raise UsageError("PyTorch finds no GPU here; --device cpu measures the CPU")
    if options.profile:
        options.profile.write_text("", encoding="utf-8")  # fails now, not after the first row
    settings = Settings(device, options.dtype, options.seconds, options.profile)
    end = time.monotonic() + options.limit
    for shape in options.shapes:
        supervise(shape, settings, min(PLANS[shape].limit, max(0.0, end - time.monotonic())))


if __name__ == "__main__":
    sys.exit(run_command(lambda: measure_all(sys.argv[1:])))
