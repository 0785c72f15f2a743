"""Programs with torch, each in a process of its own, forked from one that has imported it.

To import torch and what a run of train.py loads besides takes longer than nearly all that tests have programs
do. How programs start without that is tested by test_charter.py, and torchrun by test_elastic.py too.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from helpers import HANGS, ROOT, SPINS, environment

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["forked", "ranks", "runs", "dataset", "sample", "train", "torch._dynamo", "matplotlib.pyplot"]
)


def start(target: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """A process that calls target with the arguments, where torch is imported already."""
    process = SERVER.Process(target=target, args=arguments)
    with pytest.MonkeyPatch.context() as patch:  # of the process to fork from, which begins with the first
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        process.start()
    return process


def joined(processes: list[BaseProcess]) -> int:
    """Waits for all and returns the code of the first that failed, or 0. Raises TimeoutError."""
    for process in processes:
        process.join(HANGS)
    codes = [process.exitcode for process in processes]
    if None in codes:
        for process in processes:
            process.kill()
        raise TimeoutError(f"{codes} after {HANGS} s")
    return next((code for code in codes if code), 0)


def work(
    line: list[str],
    folder: Path,
    changed: Mapping[str, str],
    outputs: Path,
    before: Callable[[], None] | None,
) -> None:
    """What a process does: a program, with its standard outputs in files."""
    assert "train" in sys.modules  # or nothing was won
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(changed)
    resource.setrlimit(resource.RLIMIT_CPU, (SPINS, SPINS))
    for number in (1, 2):
        os.dup2(os.open(outputs / str(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if before:
        before()
    sys.argv = line[1:] if line[0] == "-m" else line
    if line[0] == "-m":
        runpy.run_module(line[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(line[0]).parent))
        runpy.run_path(line[0], run_name="__main__")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environments(ranks: int, changed: Mapping[str, str]) -> list[dict[str, str]]:
    """The environment of each of that many ranks, as torchrun makes it."""
    if ranks == 1:
        return [dict(changed)]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    return [{**changed, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def finish(
    line: Sequence[str | Path],
    *,
    cwd: Path = ROOT,
    ranks: int = 1,
    env: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a line, a script or -m and a module with arguments, as helpers.finish does, on one or more ranks.

    The outputs are those of all ranks together, the code that of the first that failed. before: called in
    each process, first.
    """
    line = [str(part) for part in line]
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            start(work, line, cwd, changed, Path(folder), before)
            for changed in environments(ranks, os.environ if env is None else env)
        ]
        code = joined(processes)
        out, err = ((Path(folder) / name).read_text(encoding="utf-8") for name in ("1", "2"))
    return subprocess.CompletedProcess(line, code, out, err)
