"""python -m llama.bench: how fast a model runs on this machine, and what memory it takes.

    python -m llama.bench stories15M.bin     # without a model: the one of the package
    python -m llama.bench stories15M.bin -j 1 -p 0 -n 256 -r 9
    python -m llama.bench model.bin --prefill 64,1024 --sequences 1,4,16
    python -m llama.bench model.bin --json > today.json

decode is writing: in each of the sequences, which hold a prompt of -p tokens, -n tokens are run one after the
other, and every one gets its logits. prefill is reading: a prompt is run as a whole and its last token gets
logits. Tokens are arbitrary and none is drawn: llama.run says the speed of a text with all that
belongs to it. Cases take turns, -r times; the table shows medians and the range. tokens/s are those of all
sequences together, GB/s is what decoding reads of the weights, MiB the cache and scratch of the case.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama import names
from llama._engine import ffi, lib
from llama.command import Parser, run_command, started_as
from llama.config import model_config
from llama.errors import UsageError
from llama.native import KV, SHIPPED, call, check, context_init, model_open

PREFILL, SEQUENCES = (128, 512), (1, 8, 32)
PROMPT, TOKENS = 16, 64  # of decoding, less where the context is smaller
TURN = 0.1  # seconds that a turn takes at least


def processors() -> int:
    """Processors that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


# --- Work


@dataclass(frozen=True)
class Case:
    """What is measured: each of `sequences`, which hold `prompt` positions, gets `tokens` more.

    at_once: in one pass, as a prompt is read. Otherwise one after the other, as a text is written.
    """

    tokens: int
    prompt: int = 0
    sequences: int = 1
    at_once: bool = False

    @property
    def name(self) -> str:
        if self.at_once:
            return f"prefill {self.tokens}"
        return "decode" if self.sequences == 1 else f"decode, {self.sequences} sequences"


def rows(sequences: int, start: int, n: int, vocab_size: int, at_once: bool) -> list[tuple[int, ...]]:
    """LlamaRows from position `start` on, n for each sequence: arbitrary tokens, the same ones every time.

    Sequence by sequence, with logits for the last row of each, if at once; otherwise position by position,
    with logits for every row.
    """
    ids = random.Random(start)
    last = start + n - 1
    places = [(start + i, sequence) for sequence in range(sequences) for i in range(n)]
    if not at_once:
        places.sort()
    return [(ids.randrange(vocab_size), i, s, int(not at_once or i == last)) for i, s in places]


class Work:
    """A case on a context of its own, with its prompt run. Raises UsageError, ResourceError.

    steps: passes that the tokens take. width: rows of a pass. bytes: cache and scratch.
    """

    def __init__(self, model: Any, case: Case, threads: int = 0, kv: str = "fp32") -> None:
        vocab_size = lib.llama_config(model).vocab_size
        self._context = context_init(model, case.prompt + case.tokens, threads, case.sequences, kv)
        self._logits = ffi.new("float[]", case.sequences * vocab_size)  # (sequences, vocab_size)
        self._error = ffi.new("LlamaError *")
        self._next = 0
        self.bytes: int = lib.llama_context_bytes(self._context)
        self.steps, self.width = case.tokens, case.sequences
        if case.at_once:
            self.steps, self.width = 1, case.tokens * case.sequences
        prompt = rows(case.sequences, 0, case.prompt, vocab_size, at_once=True)
        call(lib.llama_forward, self._context, prompt, len(prompt), self._logits)
        work = rows(case.sequences, case.prompt, case.tokens, vocab_size, case.at_once)
        self._rows = ffi.new("LlamaRow[]", work)  # (steps * width)

    def step(self) -> None:
        """Runs the next pass; after the last one comes the first again."""
        now = self._rows + self._next * self.width
        self._next = (self._next + 1) % self.steps
        # Not by call(), which costs a microsecond: some models take only twenty for a token.
        check(lib.llama_forward(self._context, now, self.width, self._logits, self._error), self._error)


def speed(work: Work, least: float) -> float:
    """Tokens per second of as many whole runs of a case as take `least` seconds, one or more."""
    start, tokens, spent = time.perf_counter(), 0, 0.0
    while tokens == 0 or spent < least:
        for _ in range(work.steps):
            work.step()
        tokens += work.steps * work.width
        spent = time.perf_counter() - start
    return tokens / spent


# --- Results


@dataclass
class Result:
    """The speeds of a case in tokens per second, one for each repeat. context_bytes: cache and scratch."""

    case: Case
    threads: int
    context_bytes: int
    speeds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.speeds)

    def to_dict(self) -> dict[str, Any]:
        measured = {"context_bytes": self.context_bytes, "median": self.median, "speeds": self.speeds}
        return {"name": self.case.name, "threads": self.threads, **asdict(self.case), **measured}


@dataclass
class Report:
    """What was measured of a model. open_seconds: for the file and a context, of each repeat."""

    path: str
    config: dict[str, Any]
    parameters: int
    file_bytes: int
    token_bytes: int  # of weights that one decoded token reads
    kernels: str
    kv: str
    processors: int
    open_seconds: list[float]
    results: list[Result]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "results": [result.to_dict() for result in self.results]}

    def __str__(self) -> str:
        c, opened = self.config, [1e3 * seconds for seconds in self.open_seconds]
        head = (
            f"{self.path}: v{c['version']}, {c['weight_type']}, {self.parameters / 1e6:.1f} M parameters, "
            f"{self.file_bytes / 1e6:.1f} MB, a token reads {self.token_bytes / 1e6:.1f} MB\n"
            f"{self.kernels} kernels, {self.kv} cache, {self.processors} processors, "
            f"opened in {statistics.median(opened):.2f} ms ({min(opened):.2f}-{max(opened):.2f})"
        )
        titles = ("", "threads", "tokens/s", "range", "GB/s", "MiB")
        return "\n".join([head, "", *aligned([titles, *map(self._cells, self.results)])])

    def _cells(self, result: Result) -> tuple[str, ...]:
        case, speeds = result.case, result.speeds
        read = "" if case.at_once else number(result.median / case.sequences * self.token_bytes / 1e9)
        return (
            case.name,
            str(result.threads),
            number(result.median),
            f"{number(min(speeds))}-{number(max(speeds))}",
            read,
            f"{result.context_bytes / 2**20:.1f}",
        )


def number(x: float) -> str:
    """x with about three digits."""
    return f"{x:,.{0 if x >= 100 else 1 if x >= 10 else 2}f}"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table: the first column on the left, numbers on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        numbers = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *numbers])


# --- Measuring


def cases(options: argparse.Namespace, max_seq_len: int) -> list[Case]:
    """What the options ask for; the defaults give way to a small context. Raises UsageError."""
    prompt = min(PROMPT, max_seq_len // 2) if options.prompt is None else options.prompt
    tokens = min(TOKENS, max(1, max_seq_len - prompt)) if options.tokens is None else options.tokens
    if prompt + tokens > max_seq_len:
        found = f"-p {prompt} and -n {tokens} make {prompt + tokens} positions"
        raise UsageError(f"{found}, the model has {max_seq_len}")
    prefill = [n for n in PREFILL if n <= max_seq_len] if options.prefill is None else options.prefill
    decoding = [Case(tokens, prompt, sequences) for sequences in options.sequences]
    return decoding + [Case(n, at_once=True) for n in prefill]


def measure(model: Any, wanted: Sequence[Case], threads: int, repeats: int, kv: str) -> list[Result]:
    """The cases, in turns. Raises UsageError, ResourceError."""
    works = [Work(model, case, threads, kv) for case in wanted]
    results = [Result(case, threads, work.bytes) for case, work in zip(wanted, works, strict=True)]
    for work in works:  # touches its memory
        for _ in range(work.steps):
            work.step()
    for _ in range(repeats):
        for result, work in zip(results, works, strict=True):
            result.speeds.append(speed(work, TURN))
    return results


def open_seconds(path: str, positions: int) -> float:
    """How long it takes until a model could run."""
    start = time.perf_counter()
    context_init(model_open(path), positions)
    return time.perf_counter() - start


def bench(options: argparse.Namespace) -> Report:
    """Measures what the options ask for. Raises BadFileError, UsageError, ResourceError."""
    with names.opened(options.model, None, options.dtype, not options.no_cache) as files:
        return bench_file(options, files.model)


def bench_file(options: argparse.Namespace, path: str) -> Report:
    """The same for the file of a model."""
    model = model_open(path)
    config = model_config(model)
    wanted = cases(options, config.max_seq_len)
    opened = [open_seconds(path, wanted[0].prompt + wanted[0].tokens) for _ in range(options.repeats)]
    context = context_init(model, 1)
    kernels = ffi.string(lib.llama_context_options(context).kernels).decode()
    repeats, kv = options.repeats, options.kv
    measured = [measure(model, wanted, threads, repeats, kv) for threads in options.threads]
    results = [result for of_threads in measured for result in of_threads]
    sizes = (lib.llama_parameters(model), Path(path).stat().st_size, lib.llama_token_bytes(model))
    return Report(path, asdict(config), *sizes, kernels, kv, processors(), opened, results)


# --- The program


def numbers(text: str) -> list[int]:
    """1,8,32 as a list. Raises ArgumentTypeError."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed are whole numbers, as 1,8,32") from None
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{min(found)}, allowed 1 or more")
    return list(dict.fromkeys(found))


def at_least(least: int) -> Any:
    """A type of argparse: a whole number, not less than least."""

    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}, allowed are whole numbers from {least} on")
        return int(text)

    return whole


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line."""
    parser = Parser(prog=started_as("bench"), description=__doc__)
    parser.add_argument("model", nargs="?", default=SHIPPED, help="a file, a folder or a name (llama.names)")
    parser.add_argument("-p", "--prompt", type=at_least(0), metavar="N", help=f"before decoding ({PROMPT})")
    parser.add_argument("-n", "--tokens", type=at_least(1), metavar="N", help=f"decoded ({TOKENS})")
    parser.add_argument("--sequences", type=numbers, metavar="N,N", default=SEQUENCES, help="(1,8,32)")
    parser.add_argument("--prefill", type=numbers, metavar="N,N", help="lengths of prompts (128,512)")
    parser.add_argument("-j", "--threads", type=numbers, metavar="N,N", help="(1 and all)")
    parser.add_argument("--kv", choices=KV, default=KV[0], help="type of keys and values (%(default)s)")
    parser.add_argument("-r", "--repeats", type=at_least(1), metavar="N", default=5, help="(%(default)s)")
    parser.add_argument("--json", action="store_true", help="print an object")
    names.add_model_options(parser)
    options = parser.parse_args(arguments)
    options.threads = options.threads or sorted({1, processors()})
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    report = bench(options)
    print(json.dumps(report.to_dict()) if options.json else report)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
