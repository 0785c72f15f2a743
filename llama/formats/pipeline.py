"""Work in stages that overlap, each in threads of its own: one piece is written while others are packed.

The stages spend their time where Python's lock is not held: in C, in numpy, in zlib, waiting for a disk.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

MOST_WORKERS = 16  # of a stage: bounds the memory
FLUSHED_AT_ONCE = 1 << 26  # bytes


class Stage(NamedTuple):
    """work: takes what the stage before gives. workers: threads that do it, each for a piece of its own."""

    work: Callable[[Any], Any]
    workers: int = 1


def processors() -> int:
    """Threads that a stage of nothing but computing should have."""
    here = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(len(here), MOST_WORKERS)


def run(work: Callable[[Any], Any], before: Future[Any]) -> Any:
    return work(before.result())


def depth(stages: Iterable[Stage]) -> int:
    """How many pieces are on their way at most: one for each thread, the caller's, and one that waits."""
    return sum(stage.workers for stage in stages) + 2


def pipeline(pieces: Iterable[Any], *stages: Stage) -> Iterator[Any]:
    """What comes out of the last stage for each piece, in order.

    An error of a stage is raised where its result would come; when the caller stops, Ctrl-C included, the
    threads end after what they are at.
    """
    pools = [ThreadPoolExecutor(stage.workers) for stage in stages]
    waiting: deque[Future[Any]] = deque()
    try:
        for piece in pieces:
            future: Future[Any] = Future()
            future.set_result(piece)
            for pool, stage in zip(pools, stages, strict=True):
                future = pool.submit(run, stage.work, future)
            waiting.append(future)
            del future, piece
            if len(waiting) == depth(stages):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in pools:
            pool.shutdown()


class Flusher:
    """with Flusher(file) as flusher: ... flusher.wrote(n) sends to the disk what is written, meanwhile.

    Else most of a large file is still in memory when all is written, and who wants it on the disk waits then.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._waiting = file, 0
        self._pool = ThreadPoolExecutor(1)
        self._flushed: Future[None] | None = None

    def wrote(self, n: int) -> None:
        """n more bytes were written. Raises OSError for earlier ones that the disk refused."""
        self._waiting += n
        if self._waiting < FLUSHED_AT_ONCE or (self._flushed and not self._flushed.done()):
            return
        if self._flushed:
            self._flushed.result()
        self._waiting, self._flushed = 0, self._pool.submit(os.fsync, self._file.fileno())

    def __enter__(self) -> Flusher:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()
