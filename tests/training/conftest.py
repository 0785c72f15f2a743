"""What tests of training share."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import QUIET, SHAPE, train

from training import parallel, toy


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """The toy task: a vocabulary and shards that need nothing from outside."""
    folder = tmp_path_factory.mktemp("reverse")
    toy.make_reverse(folder, count=2000, val_count=50, seed=1, workers=1)
    return folder


@pytest.fixture(scope="session")
def alone(data, tmp_path_factory) -> Path:
    """20 steps of one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    train(data, out, "--max_steps=20", "--save_interval=10")
    return out


@pytest.fixture
def train_here(monkeypatch) -> Callable[..., None]:
    """train.py in this process, where one of its own would say no more. Signals are left alone."""
    program = importlib.import_module("train")
    monkeypatch.setattr(program, "listen", lambda run: None)
    monkeypatch.setattr(parallel, "keep_memory", lambda model: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    return lambda *said: program.run_from([os.devnull, *SHAPE, *QUIET, *said])
