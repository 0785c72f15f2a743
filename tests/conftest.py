"""Fixtures that several test files use."""

from pathlib import Path

import pytest
from tiny_models import write_noise


@pytest.fixture(scope="session")
def noise(tmp_path_factory) -> Path:
    """A folder with a random model of versions 0, 1 and 2, their tokenizer, and files to read as prompts."""
    return write_noise(tmp_path_factory.mktemp("noise"))
