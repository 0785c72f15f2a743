"""Kills small training runs at random moments, fills their disk, damages what they saved: nothing is lost.

    make kills, or with the folders of tests in PYTHONPATH:
    python tests/training/kills.py --kills 20 --terms 5 --seed 2

After each the newest whole checkpoint has to be gone on from, and the end is that of the run to which nothing
happened, to the bit: weights, losses, model.bin. Runs are of one process, and of two by DDP and FSDP.

Most of a run of seconds would be the import of PyTorch, so runs are forked from a process that has imported
it (forked.py). They do not measure the machine's peak and draw no loss.png. Some are whole
programs, started as anybody does (--programs). Files lie in memory where /dev/shm is: a kill loses nothing
that was written, so what a disk has taken makes no difference, and waiting for it would be most of the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked
import psutil
import runs
import torch
from helpers import ROOT

from training import checkpoints, report, toy

STEPS, EVERY = 24, 3
OPTIONS = (f"--max_steps={STEPS}", f"--save_interval={EVERY}", "--keep=3")
KINDS = {"alone": [], "muon": ["--optimizer=muon", "--dropout=0.1"], "ddp": ["--parallel=ddp"]}
KINDS |= {"fsdp": ["--parallel=fsdp", "--eval_interval=9"]}
TWO = ("ddp", "fsdp")  # of two ranks
MOST_SECONDS = 20  # from SIGTERM to the end
HANGS = 300
SAID = 20_000  # bytes
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a folder


# --- Runs


def lighten(limit: int | None) -> None:
    """Leaves out of a forked run what has nothing to do with it. limit: bytes that a file of it may have."""
    report.measured_peak = lambda *_: 1e12
    report.Report.plot = lambda self: None
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def wait_for(process: BaseProcess, seconds: float) -> int | None:
    process.join(seconds)
    return process.exitcode


def wait_for_program(process: subprocess.Popen, seconds: float) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    return None


@dataclass
class Running:
    """A run that was begun. pids: of its ranks, or of its program; waiting: how to wait for each."""

    out: Path
    outputs: Path
    pids: list[int]
    waiting: list[Callable[[float], int | None]]

    def send(self, number: signal.Signals, rank: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pids[rank], number)

    def kill(self, rank: int) -> None:
        """Kills a rank, or a program with its ranks, which torchrun gives sessions of their own."""
        with contextlib.suppress(psutil.NoSuchProcess):
            program = psutil.Process(self.pids[rank])
            family = [program, *program.children(recursive=True)]
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(family[1:], HANGS)  # until then they may still save

    def alive(self) -> bool:
        return self.waiting[0](0) is None

    def wait(self) -> list[int]:
        """Exit codes by rank. Raises AssertionError for a run that hangs."""
        codes = [wait(HANGS) for wait in self.waiting]
        if None in codes:
            for rank in range(len(self.pids)):
                self.kill(rank)
        assert None not in codes, f"{self.out}: hangs\n{self.text}"
        return [code for code in codes if code is not None]

    @property
    def text(self) -> str:
        """What it said, errors last."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.outputs.iterdir()))


@dataclass
class Runs:
    """Begins runs of a kind. data: what they learn; folder: where they are."""

    data: Path
    folder: Path
    count: int = 0

    def line(self, kind: str, out: Path) -> list[str]:
        return runs.command(self.data, out, *OPTIONS, *KINDS[kind], "--auto_resume")

    def outputs(self) -> Path:
        """A new folder for what a run says."""
        self.count += 1
        (path := self.folder / f"said-{self.count}").mkdir()
        return path

    def begin(self, kind: str, out: Path, limit: int | None = None, **changes: str) -> Running:
        """A run that is forked, and goes on from what is in out. changes: of its environment."""
        outputs, before = self.outputs(), partial(lighten, limit)
        ranks = [
            forked.start(forked.work, self.line(kind, out), ROOT, changed, outputs, before)
            for changed in forked.environments(2 if kind in TWO else 1, os.environ | changes)
        ]
        return Running(
            out, outputs, [process.pid or 0 for process in ranks], [partial(wait_for, p) for p in ranks]
        )

    def begin_program(self, kind: str, out: Path) -> Running:
        """The same as a program of its own, under torchrun where there are two ranks."""
        outputs, launcher = self.outputs(), [sys.executable]
        if kind in TWO:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        with (outputs / "1").open("wb") as file:
            process = subprocess.Popen(
                [*launcher, *self.line(kind, out)],
                stdout=file,
                stderr=file,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                cwd=ROOT,
            )
        return Running(out, outputs, [process.pid], [partial(wait_for_program, process)])


@dataclass(frozen=True)
class Right:
    """What a run that nothing happened to comes to, and the seconds that it takes."""

    weights: dict[str, torch.Tensor]
    losses: dict[int, float]
    model: bytes
    seconds: float

    def check(self, out: Path) -> None:
        """Raises AssertionError where a run came to anything else, or left something."""
        found = runs.weights(out)
        assert found.keys() == self.weights.keys(), sorted(found)
        wrong = [name for name, weight in found.items() if not torch.equal(weight, self.weights[name])]
        assert not wrong, f"{out}: not the same to the bit: {wrong}"
        assert runs.losses(out) == self.losses, f"{out}: other losses"
        assert (out / "model.bin").read_bytes() == self.model, f"{out}: another model.bin"
        left = [path.name for path in out.iterdir() if re.search(r"\.aside$|\.tmp$|\.new$", path.name)]
        assert not left, f"{out}: left: {left}"


def whole(makes: Runs, kind: str) -> Right:
    """Of a kind. The second of two, as the first one warms the machine up."""
    for name in ("first", "whole"):
        start, out = time.monotonic(), makes.folder / f"{kind}-{name}"
        running = makes.begin(kind, out)
        codes = running.wait()
        assert not any(codes), f"{kind}: {codes}\n{running.text}"
    seconds = time.monotonic() - start
    right = Right(runs.weights(out), runs.losses(out), (out / "model.bin").read_bytes(), seconds)
    right.check(makes.folder / f"{kind}-first")
    return right


# --- What happens to them


def finish(running: Running, right: Right, newest: int, passed_over: int = 0) -> None:
    """Lets a run that goes on come to its end. newest: the step of its newest checkpoint that is whole.

    passed_over: how many of its checkpoints are not. Raises AssertionError where anything is wrong.
    """
    codes, text = running.wait(), running.text
    assert not any(codes), f"{running.out}: {codes}\n{text}"
    assert "Traceback" not in text, text
    assert text.count("passed over: ") == passed_over, f"{running.out}: {text}"
    first = re.search(r"^step (\d+)/", text, re.M)
    begun = int(first[1]) - 1 if first else max(right.losses)
    assert begun == newest, (
        f"{running.out}: goes on from {begun}, the newest checkpoint is of {newest}\n{text}"
    )
    right.check(running.out)


def newest_step(out: Path) -> int:
    """Of a run's newest checkpoint, 0 where there is none."""
    return max((int(path.name[5:]) for path in checkpoints.step_folders(out)), default=0)


def until(condition: Callable[[], bool], running: Running) -> None:
    while not condition() and running.alive():
        time.sleep(0.001)


def moment(running: Running, right: Right, rng: random.Random) -> None:
    """Waits for any moment of a run, or, as often, for one in or just behind a save."""
    if rng.random() < 0.5:
        time.sleep(right.seconds * rng.random())
        return
    step = rng.randrange(EVERY, STEPS + 1, EVERY)
    until(lambda: (running.out / f"step-{step:07d}{checkpoints.ASIDE}").exists(), running)
    time.sleep(0.3 * rng.random())


def kill(running: Running, rng: random.Random) -> bool:
    """SIGKILL, to one rank after the other. Whether it came before the end."""
    ranks, alive = list(range(len(running.pids))), running.alive()
    rng.shuffle(ranks)
    for rank in ranks:
        running.kill(rank)
        if rng.random() < 0.5:
            time.sleep(0.2 * rng.random())
    running.wait()
    return alive


@dataclass
class Killed:
    """What kills hit."""

    count: Counter[str] = field(default_factory=Counter)
    left: dict[str, Path] = field(default_factory=dict)  # by kind: what the last kill left

    def one(self, makes: Runs, right: Right, kind: str, program: bool, rng: random.Random) -> None:
        """Kills a run, of which half go on from what a kill left, and lets it go on to its end."""
        out = makes.folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        if kind in self.left and rng.random() < 0.5:
            shutil.copytree(self.left[kind], out, symlinks=True)
            self.count["of a run that was killed before"] += 1
        begin = makes.begin_program if program else makes.begin
        running = begin(kind, out)
        moment(running, right, rng)
        self.count["before the end"] += kill(running, rng)
        if out.exists():
            self.left[kind] = makes.folder / f"{kind}-left"
            shutil.rmtree(self.left[kind], ignore_errors=True)
            shutil.copytree(out, self.left[kind], symlinks=True)
            self.count["in a save"] += any(re.search(r"\.aside$|\.tmp$", path.name) for path in out.iterdir())
        newest = newest_step(out)
        self.count["before the first checkpoint"] += newest == 0
        finish(begin(kind, out), right, newest)


def kills(makes: Runs, rights: dict[str, Right], n: int, programs: int, rng: random.Random) -> None:
    killed = Killed()
    for i in range(n):
        kind = list(KINDS)[i % len(KINDS)]
        killed.one(makes, rights[kind], kind, i >= n - programs, rng)
        if (i + 1) % 20 == 0:
            print(f"{i + 1} kills, {dict(killed.count)}", flush=True)
    print(f"{n} kills, {programs} of whole programs: each run went on to the same end; {dict(killed.count)}")


def terms(makes: Runs, rights: dict[str, Right], n: int, rng: random.Random) -> None:
    """SIGTERM somewhere behind the first step: the step is saved, the end comes in order and in time."""
    longest, early = 0.0, 0
    for i in range(n):
        kind, out = list(KINDS)[i % len(KINDS)], makes.folder / "ended"
        shutil.rmtree(out, ignore_errors=True)
        running = makes.begin(kind, out)
        until(lambda running=running: "step 1/" in running.text, running)
        time.sleep(0.5 * rights[kind].seconds * rng.random())
        early += running.alive()
        start = time.monotonic()
        for rank in range(len(running.pids)):
            running.send(signal.SIGTERM, rank)
        codes = running.wait()
        seconds = time.monotonic() - start
        assert not any(codes), f"{out}: {codes}\n{running.text}"
        assert seconds < MOST_SECONDS, f"{out}: {seconds:.1f} s"
        longest, last = max(longest, seconds), max(runs.losses(out))
        assert newest_step(out) == last, f"{out}: step {last} is not saved"
        finish(makes.begin(kind, out), rights[kind], last)
    print(f"{n} SIGTERMs, {early} before the end: saved each time, at most {longest:.1f} s to the end")


# --- Damage


def damages(path: Path, rng: random.Random) -> Iterator[tuple[str, Callable[[], object]]]:
    """What may have become of a file, by name."""
    data = path.read_bytes()
    at, bit = rng.randrange(len(data)), rng.randrange(8)
    flipped = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
    yield f"bit {bit} of byte {at} flipped", lambda: path.write_bytes(flipped)
    yield "one byte shorter", lambda: os.truncate(path, len(data) - 1)
    yield "cut", lambda: os.truncate(path, at)
    yield "empty", lambda: os.truncate(path, 0)
    yield "gone", path.unlink


@contextlib.contextmanager
def said(what: str) -> Iterator[None]:
    """An AssertionError of the block says what had been done."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None


def damaged(makes: Runs, right: Right, rng: random.Random) -> None:
    """Each file of the newest checkpoint in turn: the one before is gone on from, which is said."""
    source, out, count = makes.folder / "alone-whole", makes.folder / "damaged", 0
    newest = source / f"step-{STEPS:07d}"
    for name in sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file()):
        for what, _ in damages(newest / name, random.Random(0)):
            shutil.rmtree(out, ignore_errors=True)
            shutil.copytree(source, out, symlinks=True)
            changes = damages(out / newest.name / name, rng)
            next(change for other, change in changes if other.split()[0] == what.split()[0])()
            with said(f"{name}: {what}"):
                finish(makes.begin("alone", out), right, STEPS - EVERY, passed_over=1)
            count += 1
    print(f"{count} damaged newest checkpoints: each passed over aloud, the one before gone on from")


# --- A full disk


def refused(running: Running, out: Path) -> bool:
    """Whether a run found no room: an error of one line that names a file, and nothing left aside."""
    codes, lines = running.wait(), running.text.splitlines()
    if not any(codes):
        return False
    errors = [line for line in lines if line.startswith("error: ")]
    assert codes == [4], f"{codes}\n{running.text}"
    assert len(errors) == 1, running.text
    assert lines[-1] == errors[0], running.text
    assert f"error: {out}" in errors[0], errors
    assert re.search("No space left on device|File too large", errors[0]), errors
    assert not list(out.glob("*.aside")), sorted(out.iterdir())
    return True


def limited(makes: Runs, right: Right, rng: random.Random) -> None:
    """No file may become larger than some size: about that of each that is larger than what a run says."""
    source, out, count = makes.folder / "alone-whole", makes.folder / "limited", 0
    sizes = {path.stat().st_size for path in source.rglob("*") if path.is_file()}
    limits = {size + change for size in sizes if size > SAID for change in (-1, -size // 3, 1)}
    for limit in sorted(limits):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(source, out, symlinks=True)
        for step in (STEPS, STEPS - EVERY):
            shutil.rmtree(out / f"step-{step:07d}")
        running = makes.begin("alone", out, limit)
        count += refused(running, out)
        finish(makes.begin("alone", out), right, newest_step(out))
    print(f"{count} full disks (a limit of a file's size): one line each, and on from the newest checkpoint")


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A disk of its own. Raises CalledProcessError where one may not be mounted."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def full(makes: Runs, right: Right, n: int, rng: random.Random) -> None:
    """A disk that fills up somewhere in a run, alone and with two ranks; then it is made larger."""
    used = sum(path.stat().st_size for path in (makes.folder / "alone-whole").rglob("*")) // 1024
    count = 0
    for _ in range(n):
        with small_disk(makes.folder / "disk", rng.randrange(used // 4, used + used // 4)) as disk:
            out = disk / "out"
            count += refused(makes.begin("alone", out), out)
            subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
            finish(makes.begin("alone", out), right, newest_step(out))
    print(f"{count} of {n} small disks filled up: one line each, and on from the newest checkpoint")


def may_mount(folder: Path) -> bool:
    with contextlib.suppress(OSError, subprocess.CalledProcessError), small_disk(folder / "probe", 64):
        return True
    return False


# --- All of it


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--terms", type=int, default=50, help="SIGTERMs (%(default)s)")
    parser.add_argument("--programs", type=int, default=8, help="kills of whole programs (%(default)s)")
    parser.add_argument("--disks", type=int, default=12, help="small ones, if this may mount (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    o = parser.parse_args()
    rng = random.Random(o.seed)
    with tempfile.TemporaryDirectory(prefix="kills-", dir=MEMORY) as name:
        folder = Path(name)
        toy.make_reverse(folder / "data", count=2000, val_count=50, seed=1, workers=1)
        makes = Runs(folder / "data", folder)
        rights = {kind: whole(makes, kind) for kind in KINDS}
        print({kind: f"{right.seconds:.1f} s" for kind, right in rights.items()}, flush=True)
        damaged(makes, rights["alone"], rng)
        limited(makes, rights["alone"], rng)
        if may_mount(folder):
            full(makes, rights["alone"], o.disks, rng)
        else:
            print("left out: small disks, which this may not mount")
        terms(makes, rights, o.terms, rng)
        kills(makes, rights, o.kills, min(o.programs, o.kills), rng)


if __name__ == "__main__":
    main()
