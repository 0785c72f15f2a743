"""How fast the engine is, beside what the machine could do at best and beside other programs.

    python -m bench.engine                                        # everything: an hour or two
    python -m bench.engine --shapes 15M --repeats 3 --peers       # us alone: two minutes
    python -m bench.engine --parts decode --threads 2 --json today.json --plot today.png
    python -m bench.engine --llama2c ../llama2.c/run --llama2c-int8 ../llama2.c/runq
    python -m bench.engine --ik-llama ../ik_llama.cpp/build/bin/llama-batched-bench --types int8 int4
    python -m bench.engine --shapes 7B 8B --types int8 --parts machine decode
    python -m bench.engine --models smollm2.bin,smollm2-q8_0.gguf --depths 0 4096 --parts decode prefill

Models have random weights, which cost the same as real ones, and are written to a temporary folder, or are
the files that --models names: ours and, behind a comma, llama.cpp's. --depths puts so many positions into the
cache before what is measured. Others are llama.cpp (pip install llama-cpp-python gguf), transformers, and
ik_llama.cpp and llama2.c where their programs are named; what is not there is left out. Each runs in a
process of its own and they take turns, so that a bad spell of the machine meets all of them. Tables show
medians of the repeats and their range, in tokens per second of all sequences together; a ratio above 1 means
that we are faster (of memory: that we need more). The floor is that of a program that reads the weights once
in every pass at the bandwidth measured, or multiplies by them at the arithmetic measured, whichever is
slower; it reads no cache.

The cache is fp16, as llama.cpp has it, or what --kv says, for both. No token is drawn while a model is
measured, but llama2.c's speed is its own word and holds the cost of taking the likeliest token. Peak memory
is that of a program's process, Python and mapped weights included.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

# Every program's process imports this file again: nothing here may import numpy or torch.
from bench import machine, report
from bench.machine import Machine
from bench.programs import llama2c
from bench.report import OURS
from bench.shapes import SHAPES, TYPES, USUAL_SHAPES, Case, Shape, operations, parameters, whole_groups
from bench.turns import Found, Programs, alternate, apart
from llama.command import Parser, run_command
from llama.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("machine", "decode", "prefill", "batch", "startup", "sampling")
STARTUP_SHAPE, STARTUP_TYPES, STARTUP_STEPS = "15M", ("fp32", "int8"), 256
VOCABULARIES, TOP_P = (32_000, 128_256), 0.9
STEADY = 1.3  # ratio of two measurements of the machine
PEERS = {  # what they need: modules, and how to get them
    "llama.cpp": (("llama_cpp", "gguf"), "pip install llama-cpp-python gguf"),
    "transformers": (("transformers",), "pip install transformers"),
    "ik_llama.cpp": ((), "--ik-llama names its llama-batched-bench, built"),
    "llama2.c": ((), "--llama2c and --llama2c-int8 name its programs, built"),
}
READ_GGUF = ("llama.cpp", "ik_llama.cpp")
NAMED = {"ik_llama.cpp": ("ik_llama",), "llama2.c": ("llama2c", "llama2c_int8")}  # options that name programs
KV_TYPES = ("fp32", "fp16", "bf16", "int8")
ABOUT = {"llama.cpp": "bench.programs.llamacpp:about", "transformers": "bench.programs.hf:about"}


class Bench:
    """A run of the benchmark: its options, and what it found so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.machine: Machine | None = None
        self.results: dict[str, Any] = {"notes": [], "machine": None, "speeds": []}
        self.peers = [name for name in PEERS if name in options.peers and self._is_there(name)]

    def _is_there(self, peer: str) -> bool:
        modules, advice = PEERS[peer]
        there = all(importlib.util.find_spec(module) for module in modules)
        if peer in NAMED:
            there = any(getattr(self.options, option) for option in NAMED[peer])
        if not there:
            self.note(f"{peer} is left out: {advice}")
        return there

    def note(self, text: str) -> None:
        """Says something that is no result."""
        self.results["notes"].append(text)
        print(text, file=sys.stderr, flush=True)


# --- The machine


def measure_machine(options: argparse.Namespace) -> Machine:
    return machine.measure(options.threads, options.repeats, min(options.seconds, 0.2))


def describe_peers(bench: Bench) -> None:
    """Says which versions take part: a figure of a peer that was built without an instruction set is none."""
    bench.results["peers"] = {peer: apart(ABOUT[peer]) for peer in bench.peers if peer in ABOUT}
    for peer, about in bench.results["peers"].items():
        print(f"{peer}: {about}\n", flush=True)


def run_machine(bench: Bench) -> None:
    try:
        bench.machine = measure_machine(bench.options)
    except (OSError, subprocess.CalledProcessError) as error:
        bench.note(f"floors are left out, machine.c could not be run: {error}")
        return
    bench.results["machine"] = bench.machine.to_dict()
    print(report.machine_table(bench.results["machine"]), "\n", sep="\n", flush=True)


def check_machine(bench: Bench) -> None:
    """Measures the machine once more, to say so if floors can't be trusted."""
    if bench.machine is None:
        return
    later = measure_machine(bench.options)
    drift = bench.machine.drift(later)
    bench.results |= {"machine_after": later.to_dict(), "machine_drift": drift}
    if drift > STEADY:
        bench.note(f"the machine was not steady: a rate measured again is {drift:.1f} times another")


# --- Speeds of models


def cases(options: argparse.Namespace, max_seq_len: int) -> list[Case]:
    """What the options ask for and the context has room for."""
    found = []
    for depth in options.depths or [0]:
        tokens, prompt, deep = options.tokens, max(depth, options.prompt), depth > 0
        if "decode" in options.parts:
            found.append(Case("decode", tokens, 1, prompt, deep))
        if "prefill" in options.parts:
            found += [Case("prefill", n, 1, depth, deep) for n in options.prefill]
        if "batch" in options.parts:
            found += [Case("decode", tokens, sequences, prompt, deep) for sequences in options.sequences]
    return [case for case in found if case.prompt + case.tokens <= max_seq_len]


def has_type(bench: Bench, program: str, name: str, kind: str) -> bool:
    """Whether a program has a model's type of weights, or one that comes near."""
    weights = TYPES[kind]
    if not whole_groups(SHAPES[name], weights) and (program != OURS or weights.version < 3):
        return False
    program_c = weights.llama2c and getattr(bench.options, weights.llama2c[0])
    theirs = {OURS: True, "transformers": weights.torch, "llama2.c": program_c}
    theirs |= dict.fromkeys(READ_GGUF, weights.gguf)
    return bool(theirs[program])


def contenders(bench: Bench, name: str, kind: str, folder: Path) -> list[str]:
    """Who runs a model: what has the type, as long as all copies fit into memory."""
    one = parameters(SHAPES[name]) * TYPES[kind].bits / 8
    if 3.1 * one > shutil.disk_usage(folder).free:
        bench.note(f"{name} {kind} is left out: {folder} has no room for three files of {one / 1e9:.0f} GB")
        return []
    found, room = [], 0.8 * machine.memory()
    for program in (OURS, *bench.peers):
        if not has_type(bench, program, name, kind):
            continue
        room -= one
        if room < 0:
            bench.note(
                f"{program} is left out of {name} {kind}: memory has no room for {one / 1e9:.0f} GB more"
            )
        else:
            found.append(program)
    return found


def write_files(folder: Path, name: str, kind: str, who: Sequence[str]) -> dict[str, Path]:
    """The files that the programs need, by whose format it is."""
    files = {}
    if OURS in who:
        files[OURS] = apart("bench.models:write_bin", folder, SHAPES[name], kind)
    if "llama2.c" in who and (format_c := TYPES[kind].llama2c):
        files["llama2.c"] = apart("bench.models:write_bin", folder, SHAPES[name], format_c[1])
    if gguf := [program for program in READ_GGUF if program in who]:
        files |= dict.fromkeys(gguf, apart("bench.gguf_models:write_gguf", folder, SHAPES[name], kind))
    return files


@dataclasses.dataclass
class Subject:
    """A model in the files of those who run it."""

    name: str
    kind: str  # of bench.shapes.TYPES
    shape: Shape
    files: dict[str, Path]
    who: Sequence[str]


def programs(bench: Bench, subject: Subject, threads: int) -> Programs:
    """What runs the model, with the arguments that open it."""
    files, who, kind, kv = subject.files, subject.who, TYPES[subject.kind], bench.options.kv
    if OURS in who:
        yield OURS, "bench.programs.cria:Model", (files[OURS], threads, kv)
    if "llama.cpp" in who:
        yield "llama.cpp", "bench.programs.llamacpp:Model", (files["llama.cpp"], threads, kv)
    if "ik_llama.cpp" in who:
        program = bench.options.ik_llama
        yield "ik_llama.cpp", "bench.programs.ik:Model", (program, files["ik_llama.cpp"], threads, kv)
    if "transformers" in who:
        yield "transformers", "bench.programs.hf:Model", (subject.shape, kind.torch, threads)
    if "llama2.c" in who and (format_c := kind.llama2c):
        program = getattr(bench.options, format_c[0])
        yield "llama2.c", "bench.programs.llama2c:Model", (program, files["llama2.c"], threads)


def record(bench: Bench, subject: Subject, threads: int, token_bytes: int, found: Found) -> dict[str, Any]:
    """What was measured in a case, for the JSON. token_bytes: 0 where the engine does not run it."""
    case, floor = found.case, None
    work = operations(subject.shape, case)
    if bench.machine and token_bytes:
        arithmetic = TYPES[subject.kind].arithmetic
        floor = bench.machine.floor(threads, subject.shape, case, arithmetic, token_bytes)
    return {
        "model": subject.name,
        "type": subject.kind,
        "threads": threads,
        "name": case.name,
        **dataclasses.asdict(case),
        "floor": floor,
        "token_bytes": token_bytes,
        "token_operations": work / case.rows,
        "intensity": work / token_bytes if token_bytes else None,  # operations for each byte of weights
        "speeds": found.speeds,
        "memory": found.memory,
    }


def run_subject(bench: Bench, subject: Subject) -> None:
    """Prints and keeps the rows of a model."""
    options, files = bench.options, subject.files
    wanted = cases(options, subject.shape["max_seq_len"])
    token_bytes = apart("bench.programs.cria:token_bytes", files[OURS]) if OURS in files else 0
    for threads in options.threads if subject.who else []:
        side_by_side = programs(bench, subject, threads)
        measured = alternate(side_by_side, wanted, options.repeats, options.seconds, bench.note)
        records = [record(bench, subject, threads, token_bytes, found) for found in measured]
        bench.results["speeds"] += records
        rows = [row for found in records for row in report.speed_rows(found, bench.peers)]
        print("\n".join(rows), flush=True)


def run_random(bench: Bench, name: str, kind: str) -> None:
    """A shape with random weights."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        who = contenders(bench, name, kind, Path(folder))
        files = write_files(Path(folder), name, kind, who)
        run_subject(bench, Subject(name, kind, SHAPES[name], files, who))


def run_real(bench: Bench, paths: Sequence[Path]) -> None:
    """A model in files. Raises BadFileError."""
    shape, kind = apart("bench.programs.cria:about_file", paths[0])
    files = {OURS: paths[0]} | {program: path for program in READ_GGUF for path in paths[1:]}
    who = [name for name in files if name in (OURS, *bench.peers)]
    run_subject(bench, Subject(paths[0].stem, kind, shape, files, who))


def run_models(bench: Bench) -> None:
    options = bench.options
    print(report.heading(report.speed_titles(bench.peers)), flush=True)
    for paths in options.models:
        run_real(bench, paths)
    for name in options.shapes:
        for kind in options.types:
            try:
                run_random(bench, name, kind)
            except (OSError, BrokenProcessPool) as error:
                bench.note(f"{name} {kind} is left out: {error}")
    print("\n", flush=True)


# --- Whole processes, and drawing a token


def startup_commands(bench: Bench, folder: Path, kind: str) -> dict[str, list[str]]:
    """Command lines that write the same number of tokens, by what the table calls them."""
    threads, steps = str(max(bench.options.threads)), str(STARTUP_STEPS)
    who = [name for name in (OURS, *bench.peers) if has_type(bench, name, STARTUP_SHAPE, kind)]
    files = write_files(folder, STARTUP_SHAPE, kind, who)
    python, model = sys.executable, files[OURS]
    ours = [str(model), "-t", "0", "-n", steps, "-j", threads]
    commands = {"python -m llama.run": [python, "-m", "llama.run", *ours]}
    if (ROOT / "run").exists():
        commands = {"./run": [str(ROOT / "run"), *ours], **commands}
    else:
        bench.note("./run is left out: make runfast")
    if "llama2.c" in who and (format_c := TYPES[kind].llama2c):
        program = getattr(bench.options, format_c[0])
        commands["llama2.c"] = llama2c.command(program, files["llama2.c"], STARTUP_STEPS)
    if gguf := files.get("llama.cpp"):
        commands["llama.cpp"] = [python, "-m", "bench.programs.llamacpp", str(gguf), steps, threads]
    if "transformers" in who:
        saved = apart("bench.programs.hf:save", folder, SHAPES[STARTUP_SHAPE])
        commands["transformers"] = [python, "-m", "bench.programs.hf", str(saved), steps]
    return commands


def run_startup(bench: Bench, kind: str) -> None:
    """Times whole processes, from their start to their end."""
    environment = os.environ | {"OMP_NUM_THREADS": str(max(bench.options.threads))}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        commands = startup_commands(bench, Path(folder), kind)
        found: dict[str, list[float]] = {name: [] for name in commands}
        for repeat in range(bench.options.repeats + 1):  # the first one fills the caches
            for name, command in list(commands.items()):
                start = time.perf_counter()
                result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
                if repeat > 0:
                    found[name].append(time.perf_counter() - start)
                if result.returncode != 0:
                    bench.note(f"{name} is left out: it ended with {result.returncode}")
                    del commands[name], found[name]
    record = {"type": kind, "threads": max(bench.options.threads), "seconds": found}
    bench.results.setdefault("startup", []).append(record)
    print(report.startup_table(kind, found), "\n", sep="\n", flush=True)


def run_sampling(bench: Bench) -> None:
    sources = {OURS: "cria", "llama.cpp": "llamacpp", "transformers": "hf"}
    names = [name for name in (OURS, *bench.peers) if name in sources]
    samplers = [(name, f"bench.programs.{sources[name]}:Sampler", (TOP_P,)) for name in names]
    wanted = [Case("sample", size) for size in VOCABULARIES]
    measured = alternate(samplers, wanted, bench.options.repeats, bench.options.seconds, bench.note)
    records = [{"vocab_size": found.case.tokens, "speeds": found.speeds} for found in measured]
    bench.results["sampling"] = records
    print(report.sampling_table(records, names[1:]), flush=True)


# --- The program


def file_pair(text: str) -> list[Path]:
    """FILE.bin,FILE.gguf or FILE.bin as paths. Raises ArgumentTypeError."""
    paths = [Path(part).resolve() for part in text.split(",")]
    if missing := [path for path in paths if not path.is_file()]:
        raise argparse.ArgumentTypeError(f"{missing[0]}: no such file")
    if len(paths) > 2:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed are one file, or two with a comma")
    return paths


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of a command line. Raises SystemExit."""
    teams = sorted({1, machine.processors()})
    parser = Parser(description=__doc__)
    several: dict[str, Any] = {"nargs": "+", "type": int, "metavar": "N"}
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, help="(260K to 1.1B, none where --models are given)"
    )
    parser.add_argument(
        "--models", nargs="+", type=file_pair, default=[], metavar="FILE.bin[,FILE.gguf]", help="real ones"
    )
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES), help="(all)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="(all)")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="(all that are there)")
    parser.add_argument("--threads", **several, default=teams, help="(1 and all)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="turns of each (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn at least (%(default)s)")
    parser.add_argument("--prompt", type=int, default=16, metavar="N", help="before decoding (%(default)s)")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="decoded (%(default)s)")
    parser.add_argument("--prefill", **several, default=[128, 512], help="(128 512)")
    parser.add_argument(
        "--depths", **several, default=[], help="positions before decoding and prefill (none)"
    )
    parser.add_argument("--sequences", **several, default=[8, 32], help="of part batch (8 32)")
    parser.add_argument(
        "--kv",
        choices=KV_TYPES,
        default="fp16",
        help="our cache and llama.cpp's; llama2.c has fp32 (fp16)",
    )
    parser.add_argument("--llama2c", type=Path, metavar="RUN", help="llama2.c's run, built")
    parser.add_argument("--llama2c-int8", type=Path, metavar="RUNQ", help="llama2.c's runq, built")
    parser.add_argument(
        "--ik-llama", type=Path, metavar="BENCH", help="ik_llama.cpp's llama-batched-bench, built"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw them, as bench/plot.py does")
    options = parser.parse_args(arguments)
    numbers = [*options.threads, *options.prefill, *options.sequences, options.repeats, options.tokens]
    if min(numbers) < 1 or options.prompt < 0:
        parser.error(f"found {min(*numbers, options.prompt)}, allowed are numbers from 1 on, 0 for --prompt")
    if min(options.depths, default=0) < 0:
        parser.error(f"--depths = {min(options.depths)}, allowed are numbers from 0 on")
    options.threads = sorted(set(options.threads))
    if options.shapes is None:
        options.shapes = [] if options.models else USUAL_SHAPES
    return options


def check(options: argparse.Namespace) -> None:
    """Raises UsageError for what would be found out only after an hour."""
    for name in options.shapes:
        positions, most = options.prompt + options.tokens, SHAPES[name]["max_seq_len"]
        if positions > most:
            raise UsageError(f"--prompt and --tokens make {positions} positions, {name} has {most}")
    for option in (option for options_of in NAMED.values() for option in options_of):
        if program := getattr(options, option):
            if not program.is_file():
                raise UsageError(f"--{option.replace('_', '-')} = {program}: no such file")
            setattr(options, option, program.resolve())
    for path in filter(None, (options.json, options.plot)):
        if not path.resolve().parent.is_dir():
            raise UsageError(f"{path}: its folder does not exist")


def run_parts(bench: Bench) -> None:
    """Measures what is asked for."""
    parts = bench.options.parts
    describe_peers(bench)
    if "machine" in parts:
        run_machine(bench)
    if {"decode", "prefill", "batch"} & set(parts):
        run_models(bench)
        check_machine(bench)
    if "startup" in parts:
        for kind in STARTUP_TYPES:
            run_startup(bench, kind)
    if "sampling" in parts:
        run_sampling(bench)


def run(options: argparse.Namespace) -> None:
    """Does what a command line says. Raises UsageError, OSError."""
    check(options)
    bench = Bench(options)
    try:
        run_parts(bench)
    finally:  # also what was found until Ctrl-C
        if options.json:
            options.json.write_text(json.dumps(bench.results, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        apart("bench.plot:plot", bench.results, options.plot)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line without its program name (None: sys.argv) and returns the exit status."""
    options = parse(arguments)
    return run_command(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
