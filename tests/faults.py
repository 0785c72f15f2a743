"""Lets each call of a system function fail in turn that has to do with a program's files.

    make faults

Whatever fails, a program ends with an exit code and one line that names the file and gives the system's
reason, and leaves nothing behind.
What was there before is there still, or, whole, what was to take its place.
test_faults.py has a few of these.

Left out: what the C library calls by itself (fopen, fwrite), which no preloaded library sees.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers import RUN, environment
from tiny_models import write_chain, write_noise

SOURCE = Path(__file__).parent / "csrc" / "faults.c"
CALLS = ("open", "mmap", "read", "write", "fsync", "rename")
TIMEOUT = 120
REASONS = "|".join(map(os.strerror, (errno.EIO, errno.ENOSPC)))  # that faults.c gives
OLD, TEXT = b"what was there before", "text"


@dataclass(frozen=True)
class Program:
    """A command line in a folder of its own. prepare: makes its files; out: the file that it writes."""

    prepare: Callable[[Path], list[str]]
    out: str


def told(folder: Path) -> list[str]:
    """./run, with its text in a file."""
    write_chain(folder, ["a", "b"], {"<unk>": "a", "a": "b", "b": "</s>"})
    (folder / "prompt.txt").write_bytes(b"a\n")
    return [str(RUN), str(folder / "chain.bin"), "-f", str(folder / "prompt.txt"), "-t", "0", "--no-echo"]


def converted(folder: Path, name: str = "out.bin", *options: str) -> list[str]:
    """cria convert over a file that is there."""
    write_noise(folder)
    (folder / name).write_bytes(OLD)
    command = [sys.executable, "-m", "llama.cli", "convert", str(folder / "v0.bin"), str(folder / name)]
    return [*command, *options]


PROGRAMS = {
    "run": Program(told, TEXT),
    "convert v3": Program(lambda folder: converted(folder, "out.bin", "--dtype", "int8"), "out.bin"),
    "convert gguf": Program(lambda folder: converted(folder, "out.gguf"), "out.gguf"),
}


def build(folder: Path) -> Path:
    """The library to preload."""
    library = folder / "faults.so"
    compiler = os.environ.get("CC") or "cc"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def finish(command: list[str], folder: Path, **changes: str) -> tuple[int, bytes]:
    """Runs a command, its text goes to a file of the folder. Its exit code and what it says of errors."""
    with (folder / TEXT).open("wb") as text:
        result = subprocess.run(
            command,
            stdout=text,
            stderr=subprocess.PIPE,
            env=environment(**changes),
            timeout=TIMEOUT,
            check=False,
        )
    return result.returncode, result.stderr


def state(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Fault:
    """What a program did when one of its calls failed. right: the file it writes where none does."""

    what: str
    folder: Path
    code: int
    said: bytes
    before: dict[str, bytes]
    after: dict[str, bytes]
    out: str
    right: bytes

    def check(self) -> None:
        """Raises AssertionError where a promise is broken."""
        assert self.code in (1, 3, 4), f"{self.what}: exit code {self.code}: {self.said!r}"
        lines = self.said.splitlines()
        assert lines, f"{self.what}: nothing is said"
        place = rf"error: ({re.escape(str(self.folder))}\S*|standard (in|out)put): .*({REASONS})"
        assert re.fullmatch(place, os.fsdecode(lines[-1])), f"{self.what}: {self.said!r}"
        assert b"Traceback" not in self.said, f"{self.what}: {self.said!r}"
        assert self.after.keys() == self.before.keys(), f"{self.what}: left: {sorted(self.after)}"
        changed = {name for name in self.before if self.after[name] != self.before[name]}
        assert changed <= {self.out, TEXT}, f"{self.what}: changed: {changed}"
        whole = self.after[self.out] in (self.before[self.out], self.right)
        assert whole or self.out == TEXT, f"{self.what}: {self.out} is half written"


def attempt(
    program: Program, folder: Path, **changes: str
) -> tuple[int, bytes, dict[str, bytes], dict[str, bytes]]:
    """Runs a program in a folder made anew: its exit code, what it says, the files before and after."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = program.prepare(folder)
    (folder / TEXT).touch()
    before = state(folder)
    return *finish(command, folder, **changes), before, state(folder)


def faults(name: str, library: Path, calls: Sequence[str] = CALLS, most: int = 1000) -> Iterator[Fault]:
    """Fails each call of a program in turn, at most `most` of a kind."""
    program = PROGRAMS[name]
    with tempfile.TemporaryDirectory() as outer:
        folder, done = Path(outer, "files"), Path(outer, "done")
        right = attempt(program, folder)[-1][program.out]
        preload = {"LD_PRELOAD": str(library), "FAULT_FOLDER": str(folder), "FAULT_DONE": str(done)}
        for call, at in itertools.product(calls, range(1, most + 1)):
            if at > 1 and not done.exists():
                continue  # the program has no more of these
            done.unlink(missing_ok=True)
            found = attempt(program, folder, FAULT_CALL=call, FAULT_AT=str(at), **preload)
            if done.exists():
                yield Fault(f"{name}: {call} {at}", folder, *found, program.out, right)
            else:
                assert found[0] == 0, f"{name}: {call} {at} did not fail: {found[1]!r}"


def main() -> None:
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        for name in PROGRAMS:
            for fault in faults(name, library):
                print(f"{fault.what}: {fault.code}, {os.fsdecode(fault.said.splitlines()[-1])}", flush=True)
                fault.check()
                count += 1
    print(f"{count} faults, each an error of one line, with nothing lost and nothing left")


if __name__ == "__main__":
    main()
