"""What all tests share."""

import signal
from pathlib import Path

import pytest
from tiny_models import write_noise


def pytest_configure() -> None:
    """Ctrl-C interrupts, here and in programs that are started: the background job of a shell ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def noise(tmp_path_factory) -> Path:
    """A folder with a random model of versions 0, 1 and 2, their tokenizer, and files to read as prompts."""
    return write_noise(tmp_path_factory.mktemp("noise"))
