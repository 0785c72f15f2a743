"""Servers that several files ask: of a tiny random model, and of one that chats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from references import smollm2_path
from serving import SLOW, Server, serving, write_model

from llama import Llama


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Iterator[Llama]:
    """A model of the same weights as that of `server`, to compare with."""
    with Llama(write_model(tmp_path_factory.mktemp("tiny")), threads=1) as llama:
        yield llama


@pytest.fixture(scope="session")
def server(tiny) -> Iterator[Server]:
    with Llama(tiny.path, threads=1) as llama, serving(llama) as server:
        yield server


@pytest.fixture(scope="session")
def slow_path(tmp_path_factory) -> Path:
    """A model that takes seconds to fill its context."""
    return write_model(tmp_path_factory.mktemp("slow"), SLOW)


@pytest.fixture(scope="session")
def slow(slow_path) -> Iterator[Server]:
    with Llama(slow_path, threads=1) as llama, serving(llama) as server:
        yield server


@pytest.fixture(scope="session")
def smollm2() -> Iterator[Llama]:
    with Llama(smollm2_path(), context=1024) as llama:
        yield llama


@pytest.fixture(scope="session")
def chatty(smollm2) -> Iterator[Server]:
    with Llama(smollm2.path, context=1024) as llama, serving(llama, context=1024, threads=2) as server:
        yield server
