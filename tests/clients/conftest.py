"""Servers that the clients ask. `make clients` runs these tests; without its packages they are left out."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from references import smollm2_path
from serving import Server, serving

from llama import Llama, convert

NEEDED = ("langchain_openai", "litellm", "lm_eval")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]


@pytest.fixture(scope="session")
def chatty() -> Iterator[Server]:
    """SmolLM2-135M-Instruct as it comes."""
    with Llama(smollm2_path(), context=2048) as llama, serving(llama, threads=2, context=2048) as server:
        yield server


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """The same model as a folder in fp32, for transformers."""
    path = tmp_path_factory.mktemp("smollm2") / "folder"
    convert.main([str(smollm2_path()), str(path)])
    return path
