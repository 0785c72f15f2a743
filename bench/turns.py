"""Programs side by side: each in a process of its own, measured in turns.

A program is named by a function as "bench.programs.cria:Model". It is called in a new process, so that
neither thread pools nor memory of two programs meet, and returns an object whose work(case) is what that
program does in a case. In each repeat every program has its turn: a bad spell of the machine meets them all.

The process of a program imports what runs the benchmark once more: keep that free of numpy and torch.
"""

from __future__ import annotations

import importlib
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from bench.shapes import Case

SPAWN = get_context("spawn")


class Refused(Exception):
    """A program can't do what was asked. The message is one line."""


@dataclass(frozen=True)
class Work:
    """What a program does in a case.

    step: does it once, and may be called as often as one likes. It returns the seconds that count, None for
    all that it took. tokens: how many a step makes. here: in this process, so its memory is the program's.
    """

    step: Callable[[], float | None]
    tokens: int = 1
    here: bool = True


class Program(Protocol):
    def work(self, case: Case) -> Work | None:
        """What is to be measured, warmed up or not; None for what the program can't do."""


# --- In the process of a program


def find(target: str) -> Callable[..., Any]:
    """The function that "package.module:name" is."""
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


def peak_memory() -> int:
    """The most bytes of memory that this process had so far, mapped files that it touched included."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent had when it made this process
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 1024 * int(lines["VmHWM"].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def speed(work: Work, least: float) -> float:
    """Tokens per second of as many steps as take `least` seconds, one or more."""
    tokens, spent, start = 0, 0.0, time.perf_counter()
    now = start
    while tokens == 0 or now - start < least:
        before = now
        counted = work.step()
        now = time.perf_counter()
        spent += now - before if counted is None else counted
        tokens += work.tokens
    return tokens / spent


def answer(program: Program, works: dict[Case, Work | None], case: Case, least: float) -> Any:
    """A speed and the peak memory (0 if unknown), None for what the program can't do."""
    if case not in works:
        works[case] = program.work(case)
        if (work := works[case]) is not None:
            speed(work, least)  # caches, allocators and clocks settle
    work = works[case]
    return None if work is None else (speed(work, least), peak_memory() if work.here else 0)


def serve(connection: Connection, target: str, arguments: Sequence[Any]) -> None:
    """Measures what it is asked to until it is asked for None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    works: dict[Case, Work | None] = {}
    try:
        program = find(target)(*arguments)
        connection.send(None)
        while (request := connection.recv()) is not None:
            connection.send(answer(program, works, *request))
    except EOFError:  # the parent is gone
        pass
    except Exception as error:  # whatever it is, the parent says which program it was
        connection.send(Refused(f"{type(error).__name__}: {error}".splitlines()[0]))


# --- In the process that asks


class Worker:
    """A program in a process of its own. Raises Refused if it does not open."""

    def __init__(self, name: str, target: str, *arguments: Any) -> None:
        self.name = name
        self._connection, there = SPAWN.Pipe()
        self._process = SPAWN.Process(target=serve, args=(there, target, arguments), daemon=True)
        self._process.start()
        there.close()
        self._receive()

    def _receive(self) -> Any:
        try:
            found = self._connection.recv()
        except EOFError:
            self._process.join()
            raise Refused(f"its process ended with {self._process.exitcode}") from None
        if isinstance(found, Refused):
            raise found
        return found

    def ask(self, case: Case, least: float) -> tuple[float, int] | None:
        """Tokens per second, peak bytes or 0; None for what the program can't do. Raises Refused."""
        self._connection.send((case, least))
        return self._receive()

    def close(self) -> None:
        """Ends the process."""
        try:
            self._connection.send(None)
        except OSError:  # it ended before
            pass
        self._process.join()


def call(target: str, arguments: Sequence[Any]) -> Any:
    return find(target)(*arguments)


def apart(target: str, *arguments: Any) -> Any:
    """Calls a function in a process of its own and returns what it returns, or raises what it raises."""
    with ProcessPoolExecutor(1, SPAWN) as pool:
        return pool.submit(call, target, arguments).result()


@dataclass
class Found:
    """What was measured in a case. speeds: tokens per second, memory: peak bytes after the first turn."""

    case: Case
    speeds: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)


Programs = Iterable[tuple[str, str, Sequence[Any]]]  # name, target, arguments


def alternate(
    programs: Programs, cases: Sequence[Case], repeats: int, least: float, note: Callable[[str], None]
) -> list[Found]:
    """Measures all cases with all programs in turns of `least` seconds; note is told what did not work."""
    workers: dict[str, Worker] = {}
    found = [Found(case) for case in cases]

    def refused(name: str, error: Refused) -> None:
        note(f"{name}: {error}")
        workers.pop(name, None)

    try:
        for name, target, arguments in programs:
            try:
                workers[name] = Worker(name, target, *arguments)
            except Refused as error:
                refused(name, error)
        for _ in range(repeats):
            for one in found:
                for name, worker in list(workers.items()):
                    try:
                        measured = worker.ask(one.case, least)
                    except Refused as error:
                        refused(name, error)
                        continue
                    if measured is not None:
                        one.speeds.setdefault(name, []).append(measured[0])
                        if measured[1]:
                            one.memory.setdefault(name, measured[1])
    finally:
        for worker in workers.values():
            worker.close()
    return found
