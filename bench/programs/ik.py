"""ik_llama.cpp, a fork of llama.cpp for CPUs, by its llama-batched-bench: each measurement is a process.

Weights are repacked as they are read (-rtr), which is its fastest; flash attention is on and all else is as
it is by default. What a process says of its own time counts, not its start.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.shapes import Case
from bench.turns import Refused, Work

KV = {"fp32": "f32", "fp16": "f16", "bf16": "bf16", "int8": "q8_0"}  # its names of a cache's types
TIMES = {"prefill": 4, "decode": 6}  # the columns of its table: T_PP and T_TG, in seconds
REPEATS = 3  # of a prompt in a process; the best one counts


def seconds(output: str, what: str) -> list[float]:
    """What each row of its table says that a case took."""
    rows = [line.strip("| \n").split("|") for line in output.splitlines() if line.startswith("|")]
    return [float(cells[TIMES[what]]) for cells in rows if cells[0].strip().isdigit()]


class Model:
    """A GGUF file, on a number of threads. kv: type of the cache."""

    def __init__(self, program: Path, model: Path, threads: int, kv: str) -> None:
        self._command = [str(program), "-m", str(model), "-t", str(threads), "-rtr"]
        self._command += ["-ctk", KV[kv], "-ctv", KV[kv]]

    def work(self, case: Case) -> Work | None:
        prefill = case.what == "prefill"
        if prefill and case.prompt:  # its prompts begin at 0
            return None
        before, after, times = (case.tokens, 1, REPEATS) if prefill else (case.prompt, case.tokens, 1)
        cells = case.sequences * (before + after)
        command = [*self._command, "-c", str(cells), "-b", str(max(cells, 512)), "-npl", str(case.sequences)]
        command += ["-npp", ",".join([str(before)] * times), "-ntg", str(after)]

        def step() -> float:
            with TemporaryDirectory() as folder:  # where it writes a log
                result = subprocess.run(command, cwd=folder, capture_output=True, check=False)
            found = seconds(result.stdout.decode() + result.stderr.decode(), case.what)
            if len(found) != times:
                raise Refused(f"{command[0]} ended with {result.returncode} and shows no table")
            return min(found)

        return Work(step, case.tokens * case.sequences, here=False)
