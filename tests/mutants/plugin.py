"""What pytest does while mutants are tried: hypothesis looks for one failure and does not make it small.

With MUTANTS_REACHED, it writes which mutants each test reaches, and how long that takes, to MUTANTS_TESTS.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, settings

REACHED = os.environ.get("MUTANTS_REACHED")
tests: dict[str, tuple[float, list[int]]] = {}  # seconds, numbers of mutants


@pytest.hookimpl(trylast=True)  # the tests' own profile comes before
def pytest_configure() -> None:
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", settings(), phases=phases, derandomize=True, database=None)
    settings.load_profile("mutants")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if not REACHED:
        return (yield)
    with Path(REACHED).open("r+b") as file, mmap.mmap(file.fileno(), 0) as reached:
        reached[:] = bytes(len(reached))
        start = time.monotonic()
        result = yield
        tests[item.nodeid] = time.monotonic() - start, [n for n, byte in enumerate(reached) if byte]
    return result


def pytest_sessionfinish() -> None:
    if REACHED:
        Path(os.environ["MUTANTS_TESTS"]).write_text(json.dumps(tests), encoding="utf-8")
