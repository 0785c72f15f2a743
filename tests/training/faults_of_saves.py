"""Lets each call of a system function fail in turn that a resume and a save of training make.

    make faults, which runs it behind tests/faults.py, or with the folders of tests in PYTHONPATH:
    python tests/training/faults_of_saves.py fsync rename

Whatever fails: the run ends with one line that names a file and gives the system's reason, or it says aloud
which checkpoint it passed over, or it never needed what failed. No checkpoint is lost that was whole, nothing
half written is left under the name of one, and the run goes on to the same end, to the bit.

Runs are forked, as those of kills.py are. Left out: what the C library and C++ streams call by themselves
(fopen, the names of folders), which no preloaded library sees.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import faults
import kills

from training import checkpoints, toy

OPTIONS = ["--max_steps=2", "--save_interval=1", "--keep=3"]
kills.KINDS["faults"] = OPTIONS


@dataclass(frozen=True)
class Saves:
    """A folder of a run that has saved its first step, and what it comes to."""

    makes: kills.Runs
    begun: Path
    right: kills.Right

    @classmethod
    def made(cls, folder: Path) -> Saves:
        toy.make_reverse(folder / "data", count=2000, val_count=50, seed=1, workers=1)
        makes = kills.Runs(folder / "data", folder)
        right = kills.whole(makes, "faults")
        begun = folder / "begun"
        shutil.copytree(folder / "faults-whole", begun, symlinks=True)
        shutil.rmtree(begun / "step-0000002")
        return cls(makes, begun, right)

    def attempt(self, out: Path, **changes: str) -> kills.Running:
        """Resumes a fresh copy of the run. changes: of its environment."""
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(self.begun, out, symlinks=True)
        return self.makes.begin("faults", out, **changes)

    def check(self, what: str, out: Path, code: int, text: str) -> str:
        """What became of a run in which something failed. Raises AssertionError where a promise is broken."""
        assert "Traceback" not in text, f"{what}: {text}"
        last = text.splitlines()[-1] if text else ""
        if code:
            place = rf"error: {re.escape(str(out))}\S*: .*({faults.REASONS}).*"
            assert re.fullmatch(place, last), f"{what}: {code}: {text}"
        left = [path.name for path in out.iterdir() if re.search(r"\.aside$|\.tmp$|\.new$", path.name)]
        assert not left, f"{what}: left: {left}"
        for folder in checkpoints.step_folders(out):
            checkpoints.verify(folder)
        newest = kills.newest_step(out)
        assert newest >= 1, f"{what}: the checkpoint that was there is lost"
        with kills.said(what):
            kills.finish(self.makes.begin("faults", out), self.right, newest)
        return "refused" if code else "passed over" if "passed over" in text else "not needed"


def attempts(saves: Saves, folder: Path, calls: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Fails each call of a kind in turn: which, what became of it, what was said last."""
    out, done = folder / "out", folder / "done"
    place = {"FAULT_FOLDER": str(out), "FAULT_DONE": str(done)}
    for call in calls:
        for at in itertools.count(1):
            done.unlink(missing_ok=True)
            running = saves.attempt(out, FAULT_CALL=call, FAULT_AT=str(at), **place)
            (code,) = running.wait()
            if not done.exists():
                assert code == 0, f"{call} {at} did not fail: {running.text}"
                break
            what = f"{call} {at}"
            yield what, saves.check(what, out, code, running.text), running.text.splitlines()[-1]


def main() -> None:
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="faults-", dir=kills.MEMORY) as name:
        for what, outcome, last in attempts(Saves.made(Path(name)), Path(name), sys.argv[1:] or faults.CALLS):
            print(f"training: {what}: {outcome}: {last}", flush=True)
            found[outcome] += 1
    print(f"{found.total()} faults of a resume and a save: {dict(found)}; each went on to the same end")


if __name__ == "__main__":
    if "FAULT_LIBRARY" not in os.environ:  # once more, with the library in front
        with tempfile.TemporaryDirectory() as folder:
            library = str(faults.build(Path(folder)))
            environment = os.environ | {"LD_PRELOAD": library, "FAULT_LIBRARY": library}
            sys.exit(os.spawnve(os.P_WAIT, sys.executable, [sys.executable, *sys.argv], environment))
    main()
