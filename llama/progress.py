"""A progress bar on standard error for what takes more than a moment: done, speed, time left.

Left out on purpose: tqdm's many forms; this package runs without tqdm.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

INTERVAL = 0.1  # seconds between two drawings
WIDTH = 24  # of the bar, in characters


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Bar:
    """Bytes done of a total, drawn while the block runs and wiped at its end.

    shown: None: where standard error is a terminal.
    """

    def __init__(self, label: str, total: int, shown: bool | None = None) -> None:
        self.label, self.total, self.done = label, total, 0
        self._file: TextIO | None = sys.stderr
        if shown is None:
            shown = self._file is not None and self._file.isatty()
        self._shown, self._start, self._last = shown and self._file is not None, time.monotonic(), 0.0

    def update(self, n: int) -> None:
        """Counts n bytes more."""
        self.done += n
        now = time.monotonic()
        if self._shown and now - self._last >= INTERVAL:
            self._last = now
            print(f"\r{self.line(now - self._start)}\x1b[K", end="", file=self._file, flush=True)

    def line(self, seconds: float) -> str:
        """What the bar says after some seconds."""
        share = min(1.0, self.done / self.total) if self.total else 1.0
        bar = "#" * round(WIDTH * share)
        speed = self.done / seconds / 1e6 if seconds > 0 else 0.0
        left = duration(seconds / share * (1 - share)) if share > 0 else "?"
        return f"{self.label} [{bar:<{WIDTH}}] {share:4.0%}, {speed:,.0f} MB/s, {left} left"

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown and self._last:
            print("\r\x1b[K", end="", file=self._file, flush=True)
