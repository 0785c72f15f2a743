"""llama2.c's run and runq, as programs that are measured: each text is a process, which says its speed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from bench.shapes import Case
from bench.turns import Refused, Work

SPEED = re.compile(r"achieved tok/s: ([\d.]+)")


def command(program: Path, model: Path, steps: int) -> list[str]:
    """A command line that writes the likeliest text of that many positions."""
    tokenizer = model.with_name("tokenizer.bin")
    return [str(program), str(model), "-z", str(tokenizer), "-t", "0", "-n", str(steps)]


class Model:
    """A checkpoint, on a number of threads."""

    def __init__(self, program: Path, model: Path, threads: int) -> None:
        self._program, self._model = program, model
        self._environment = os.environ | {"OMP_NUM_THREADS": str(threads)}

    def work(self, case: Case) -> Work | None:
        if case.what != "decode" or case.sequences > 1 or case.deep:  # it would run the prompt each time
            return None
        arguments = command(self._program, self._model, case.prompt + case.tokens)

        def step() -> float:
            result = subprocess.run(arguments, capture_output=True, env=self._environment, check=False)
            found = SPEED.search(result.stderr.decode(errors="replace"))
            if not found:
                raise Refused(f"{self._program} ended with {result.returncode} and says no speed")
            return case.tokens / float(found[1])

        return Work(step, case.tokens, here=False)
