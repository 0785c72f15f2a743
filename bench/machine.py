"""What this machine does at best (machine.c), and how fast a model can be on it at most."""

from __future__ import annotations

import bisect
import json
import math
import os
import platform
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.shapes import Case, Shape, operations

SIZES = tuple(n << 20 for n in (1, 8, 16, 32, 64, 1024))  # bytes that are read again and again
SOURCE = Path(__file__).with_name("machine.c")


@dataclass
class Machine:
    """Rates in 1e9 a second, one of each repeat, by threads.

    read: bytes, by how many are read again and again. peak: operations, by kind of arithmetic; a product and
    a sum are two. A kind is not there if the processor has no instruction for it.
    """

    processor: str
    processors: int
    read: dict[int, dict[int, list[float]]] = field(default_factory=dict)
    peak: dict[int, dict[str, list[float]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, so numbers that are keys are text."""
        return json.loads(json.dumps(asdict(self)))

    def read_rate(self, threads: int, size: float) -> float:
        """Bytes per second within `size` bytes: between two sizes measured, on a line over the logarithm."""
        rates = {n: statistics.median(found) for n, found in self.read[threads].items()}
        sizes = sorted(rates)
        size = min(max(size, sizes[0]), sizes[-1])
        i = max(1, bisect.bisect_left(sizes, size))
        below, above = sizes[i - 1], sizes[i]
        share = math.log(size / below) / math.log(above / below)
        return 1e9 * (rates[below] + share * (rates[above] - rates[below]))

    def peak_rate(self, threads: int, kind: str) -> float:
        """Operations per second. Types without an instruction of their own are computed in fp32."""
        peaks = self.peak[threads]
        return 1e9 * statistics.median(peaks.get(kind, peaks["fp32"]))

    def drift(self, later: Machine) -> float:
        """How far apart two measurements are: the largest ratio of any two medians, from 1 on."""
        ours, theirs = list(self._medians()), list(later._medians())
        return max(max(a / b, b / a) for a, b in zip(ours, theirs, strict=True))

    def _medians(self) -> Iterator[float]:
        for table in (self.read, self.peak):
            for rates in table.values():
                yield from map(statistics.median, rates.values())

    def floor(self, threads: int, shape: Shape, case: Case, kind: str, token_bytes: int) -> float:
        """Tokens per second of a program that only reads the weights once a pass, or only multiplies by them.

        The slower of the two counts. Attention, the cache and what lies between the matrices cost it nothing.
        """
        reading = token_bytes / self.read_rate(threads, token_bytes)
        return case.rows / max(reading, operations(shape, case) / self.peak_rate(threads, kind))


def processor_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def processors() -> int:
    """Processors that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def measure(threads: Sequence[int], repeats: int, seconds: float, sizes: Sequence[int] = SIZES) -> Machine:
    """Compiles machine.c and runs it. Raises OSError or CalledProcessError where there is no C compiler."""
    machine = Machine(processor_name(), processors())
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "machine")
        compiler = [os.environ.get("CC", "cc"), "-O3", "-march=native", "-fopenmp"]
        subprocess.run([*compiler, SOURCE, "-o", program], check=True, capture_output=True)
        lists = (",".join(map(str, threads)), ",".join(map(str, sizes)))
        command = [program, str(repeats), str(seconds), *lists]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in found.splitlines():
        kind, size, team, rate = line.split()
        if kind == "read":
            machine.read.setdefault(int(team), {}).setdefault(int(size), []).append(float(rate))
        else:
            machine.peak.setdefault(int(team), {}).setdefault(kind, []).append(float(rate))
    return machine
