"""Work in stages that overlap, each in a thread of its own: while one piece is written, the next is packed.

The stages spend their time where Python's lock is not held: in C, in numpy, in zlib, waiting for a disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

DEPTH = 4  # pieces on their way at once: bounds the memory


def run(stage: Callable[[Any], Any], before: Future[Any]) -> Any:
    return stage(before.result())


def pipeline(pieces: Iterable[Any], *stages: Callable[[Any], Any], depth: int = DEPTH) -> Iterator[Any]:
    """What comes out of the last stage for each piece, in order; a stage takes what the one before gives.

    At most depth pieces are on their way, that of the caller among them. An error of a stage is raised where
    its result would come; when the caller stops, Ctrl-C included, the threads end after what they are at.
    """
    pools = [ThreadPoolExecutor(1) for _ in stages]
    waiting: deque[Future[Any]] = deque()
    try:
        for piece in pieces:
            future: Future[Any] = Future()
            future.set_result(piece)
            for pool, stage in zip(pools, stages, strict=True):
                future = pool.submit(run, stage, future)
            waiting.append(future)
            del future, piece
            if len(waiting) == depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in pools:
            pool.shutdown()
