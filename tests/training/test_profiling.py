"""The profile of a window of steps: what is in it, and no more."""

from __future__ import annotations

import gzip
import json

import pytest
import torch
from ranks import alone

from llama.errors import UsageError
from training.profiling import Profiler, window_of


def products_in(tmp_path, window: str, last: int) -> tuple[int, str]:
    """The products of matrices in the trace of a run with one a step, and its table."""
    profiler, matrix = Profiler(window, tmp_path, alone()), torch.ones(8, 8)
    for step in range(1, last + 1):
        profiler.before(step)
        matrix @ matrix
        profiler.after(step, done=step == last)
    with gzip.open(tmp_path / "profile" / "rank0.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    return sum(e.get("name") == "aten::mm" for e in events), (tmp_path / "profile/rank0.txt").read_text()


@pytest.mark.parametrize(("window", "n"), [("2-4", 3), ("3", 1), ("5-9", 2)])  # the last one is cut off
def test_a_window_leaves_a_trace_and_a_table_of_its_steps(tmp_path, capsys, window, n):
    products, table = products_in(tmp_path, window, last=6)
    assert products == n
    (row,) = (line for line in table.splitlines() if line.startswith("| aten::mm |"))
    assert row.endswith("| 1 |")
    assert "| cudaStreamSynchronize | 0 | 0.00 |" in table
    assert f"profile of steps {window[0]} to" in capsys.readouterr().out


def test_no_window_leaves_nothing(tmp_path):
    profiler = Profiler("", tmp_path, alone())
    for step in (1, 2):
        profiler.before(step)
        profiler.after(step, done=step == 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("window", ["0-2", "4-2", "x", "-3", "1-2-3"])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(UsageError, match="allowed steps such as 10-12"):
        window_of(window)
