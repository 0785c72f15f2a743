"""Changes the core in small ways, and counts what share of the changes some test notices.

    make mutants MUTANTS="loader tokenizer --minutes 20 --seed 1"

A change is a comparison flipped, && for ||, a number one higher, a condition negated, a statement dropped
(c_sites.py, python_sites.py). All are built at once, into a copy of the checkout in build/mutants, and the
variable MUTANT of the environment chooses one. First each test of the groups (groups.py) runs once to see
which mutants it reaches; a mutant meets those tests alone, the fastest first, until one fails. A random
sample is tried until the minutes are over. A program that hangs is noticed too: by a limit.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import c_sites
import python_sites
from groups import CSRC, GROUPS, Group
from sites import Mutant, woven

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "mutants"
TREE = BUILD / "tree"
PATIENCE, GRACE = 5, 30  # a mutant has so many times what its tests take without it, and these seconds
SECONDS = 20.0  # of tests that a mutant meets at most, but for the first
UNUSED = "linear or million or thousand or every_isa"  # tests that take long, and notice what others do
COMPILER = ["gcc", "-include", str(HERE / "mutant_switch.h")]
LAST = ["-O1", "-w"]  # options that count, after those of setup.py


# --- The copy


def copy_checkout() -> None:
    """The files that git knows or would take, in a place of their own, beside what was built there before."""
    names = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(names, cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)
    shutil.copy2(HERE / "mutant_switch.py", TREE)


def sources_of(group: Group) -> list[str]:
    paths = (path for pattern in group.sources for path in sorted(ROOT.glob(pattern)))
    return [path.relative_to(ROOT).as_posix() for path in paths if path.name not in group.without]


def weave(sources: list[str], refused: set[tuple[str, int]]) -> list[Mutant]:
    """Writes the sources with their mutants, but for lines of C that the compiler refused."""
    mutants: list[Mutant] = []
    for name in sources:
        text = (ROOT / name).read_text(encoding="utf-8")
        if name.endswith(".py"):
            new, more = python_sites.woven(name, text, len(mutants))
        else:
            sites = [s for s in c_sites.sites_of(name, text) if (name, s.mutant.line) not in refused]
            new, more = woven(text, sites, len(mutants)), [site.mutant for site in sites]
        (TREE / name).write_text(new, encoding="utf-8")
        mutants += more
    return mutants


def refusals() -> set[tuple[str, int]]:
    """The lines of C that do not compile: an array whose length is a mutant's, for instance."""
    command = [*COMPILER, "-fopenmp", "-fsyntax-only", "run.c"]
    said = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=False).stderr
    found = re.findall(r"^([^:\n]+):(\d+):\d+: error", said, re.MULTILINE)
    return {(os.path.normpath(name), int(line)) for name, line in found}


def build() -> None:
    """./run and the extension, from the sources with their mutants, unless they are what was built before."""
    sources = [TREE / "run.c", TREE / "llama" / "build_engine.py", *sorted((TREE / CSRC).rglob("*.h"))]
    texts = [path.read_bytes() for path in (*sources, HERE / "mutant_switch.h")]
    stamp, now = BUILD / "built", hashlib.sha256(b"\0".join(texts)).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == now:
        return
    compiler = BUILD / "cc"
    compiler.write_text(f'#!/bin/sh\nexec {" ".join(COMPILER)} "$@" {" ".join(LAST)}\n', encoding="utf-8")
    compiler.chmod(0o755)
    native = [compiler, "-fopenmp", "-ffp-contract=off", "run.c", "-o", "run", "-lm"]
    extension = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    builds = [
        subprocess.Popen(command, cwd=TREE, env=os.environ | {"CC": str(compiler)})
        for command in (native, extension)
    ]
    if max(build.wait() for build in builds):
        raise SystemExit("error: the mutants do not compile")
    stamp.write_text(now, encoding="utf-8")


def prepare(sources: list[str]) -> list[Mutant]:
    copy_checkout()
    refused: set[tuple[str, int]] = set()
    mutants = weave(sources, refused)
    while found := refusals():
        if found <= refused:
            raise SystemExit(f"error: {sorted(found)[0]} does not compile")
        refused |= found
        mutants = weave(sources, refused)
    build()
    return mutants


# --- Tests, in children of this process, which has imported what takes long


@dataclass
class Child:
    pid: int
    end: float  # when its time is over
    mutant: int


def start(
    tests: list[str], log: Path, environment: dict[str, str], mutant: int = -1, limit: float = 1e9
) -> Child:
    """Runs tests in the copy."""
    if pid := os.fork():
        return Child(pid, time.monotonic() + limit, mutant)
    code = 99
    try:
        os.setsid()
        os.chdir(TREE)
        os.environ |= {"MUTANT": str(mutant), "RUN_BINARY": str(TREE / "run")} | environment
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        sys.path[:] = [str(HERE), *(p for p in sys.path if p not in ("", str(HERE), str(ROOT)))]
        import pytest

        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "plugin", *tests])
    finally:
        sys.stdout.flush()
        os._exit(int(code))


def ended(child: Child) -> int | None:
    """The exit code, None as long as it runs; of one whose time is over that of a signal."""
    pid, status = os.waitpid(child.pid, os.WNOHANG)
    if pid == 0 and time.monotonic() < child.end:
        return None
    try:
        os.killpg(child.pid, signal.SIGKILL)  # and what it started
    except ProcessLookupError:
        pass
    if pid == 0:
        status = os.waitpid(child.pid, 0)[1]
    return os.waitstatus_to_exitcode(status)


def finish(child: Child) -> int:
    while (code := ended(child)) is None:
        time.sleep(0.05)
    return code


def reached(groups: list[Group], count: int) -> dict[str, tuple[float, list[int]]]:
    """Each test, its seconds, and the mutants whose places it reaches."""
    marks, found, log = BUILD / "reached", BUILD / "tests.json", BUILD / "tests.log"
    marks.write_bytes(bytes(max(1, count)))
    patterns = [pattern for group in groups for pattern in group.tests]
    files = [str(path.relative_to(TREE)) for pattern in patterns for path in sorted(TREE.glob(pattern))]
    child = start(
        ["-m", "not slow", "-k", f"not ({UNUSED})", *dict.fromkeys(files)],
        log,
        {"MUTANTS_REACHED": str(marks), "MUTANTS_TESTS": str(found)},
    )
    if code := finish(child):
        print(log.read_text(encoding="utf-8", errors="replace")[-5000:])
        raise SystemExit(f"error: the tests fail without a mutant (code {code})")
    return json.loads(found.read_text(encoding="utf-8"))


def import_what_takes_long() -> None:
    """So that no child does it. Nothing of the checkout, of which a child has its own."""
    for name in ("hypothesis", "pytest", "sentencepiece", "tiktoken", "tokenizers", "transformers"):
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)


# --- A sample


class Trial:
    """What became of the mutants that were tried."""

    def __init__(self, mutants: list[Mutant], tests: dict[str, tuple[float, list[int]]]) -> None:
        self.mutants = mutants
        self.tests: list[list[str]] = [[] for _ in mutants]  # that reach each, the fastest first
        self.seconds = [0.0 for _ in mutants]
        for name, (seconds, numbers) in sorted(tests.items(), key=lambda item: item[1][0]):
            for n in numbers:
                if not self.tests[n] or self.seconds[n] + seconds <= SECONDS:
                    self.tests[n].append(name)
                    self.seconds[n] += seconds
        self.survived: dict[int, str] = {}
        self.tried: set[int] = set()

    def start(self, n: int) -> Child | None:
        self.tried.add(n)
        if not self.tests[n]:
            self.survived[n] = "no test reaches it"
            return None
        limit = GRACE + PATIENCE * self.seconds[n]
        return start(self.tests[n], BUILD / f"mutant{n % 16}.log", {}, n, limit)

    def note(self, child: Child, code: int) -> None:
        if code == 0:
            self.survived[child.mutant] = f"{len(self.tests[child.mutant])} tests pass"

    def run(self, order: list[int], end: float, jobs: int) -> None:
        running: list[Child] = []
        while running or (order and time.monotonic() < end):
            while order and len(running) < jobs and time.monotonic() < end:
                child = self.start(order.pop(0))
                running += [child] if child else []
            time.sleep(0.02)
            for child in list(running):
                if (code := ended(child)) is not None:
                    self.note(child, code)
                    running.remove(child)

    def report(self, paths: set[str]) -> None:
        there = Counter(mutant.path for mutant in self.mutants if mutant.path in paths)
        tried = Counter(self.mutants[n].path for n in self.tried)
        alive = Counter(self.mutants[n].path for n in self.survived)
        print(f"{'file':44}{'mutants':>8}{'tried':>8}{'killed':>8}{'share':>8}")
        for path in [*there, "all"]:
            sums = [sum(c.values()) if path == "all" else c[path] for c in (there, tried, alive)]
            share = f"{100 * (sums[1] - sums[2]) / sums[1]:.1f} %" if sums[1] else ""
            print(f"{path:44}{sums[0]:8}{sums[1]:8}{sums[1] - sums[2]:8}{share:>8}")
        for n in sorted(self.survived):
            print(f"{n}: {self.mutants[n]} ({self.survived[n]})")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(GROUPS)}; default all")
    parser.add_argument("--minutes", type=float, default=20, help="for the sample, once all is built")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of mutants, as a run before listed them")
    options = parser.parse_args()
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"groups = {sorted(unknown)}, allowed {', '.join(GROUPS)}")
    return options


def main() -> None:
    options = arguments()
    groups = [GROUPS[name] for name in options.groups or GROUPS]
    mutants = prepare([name for group in GROUPS.values() for name in sources_of(group)])
    wanted = {name for group in groups for name in sources_of(group)}
    numbers = [n for n, mutant in enumerate(mutants) if mutant.path in wanted]
    import_what_takes_long()
    print(f"{len(mutants)} mutants are built", flush=True)
    tests = reached(groups, len(mutants))
    print(f"{len(tests)} tests take {sum(seconds for seconds, _ in tests.values()):.0f} s", flush=True)
    order = options.only or random.Random(options.seed).sample(numbers, len(numbers))
    trial = Trial(mutants, tests)
    trial.run(list(order), time.monotonic() + 60 * options.minutes, options.jobs)
    trial.report(wanted)


if __name__ == "__main__":
    main()
