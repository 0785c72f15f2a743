"""What happens to an open Llama in a process that is forked off.

A child has the memory of its parent, but of its threads only the one that forked. What another thread was at
is half done there for ever, and a lock that it held has nobody to release it.
"""

from __future__ import annotations

import os
import threading
from typing import Any
from weakref import WeakSet

OPEN: WeakSet[Any] = WeakSet()  # what has a _lock while it is at work, and close()


def close_busy() -> None:
    """Closes what other threads of the parent were inside of; the rest is as good as in the parent."""
    for busy in [each for each in OPEN if each._lock.locked()]:
        busy._lock = threading.Lock()
        busy.close()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=close_busy)
