"""Any number of threads: work is cut evenly, a team waits for each other, and results are the same.

Left out on purpose: how fast it is; a team beside busy programs and after a fork (test_engine.py).
"""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from checkpoints import Shape, write
from test_forward import Engine, random_ids

HERE = Path(__file__).parent


@pytest.mark.parametrize("openmp", [True, False])
def test_work_is_cut_evenly_and_barriers_hold(openmp, tmp_path):
    compiler = shlex.split(os.environ.get("CC", "cc"))
    flags = ["-O2", "-Wno-unknown-pragmas", *(["-fopenmp"] if openmp else [])]
    subprocess.run([*compiler, *flags, HERE / "threads.c", "-o", tmp_path / "threads", "-lm"], check=True)
    done = subprocess.run([tmp_path / "threads"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("version", [1, 2])
def test_more_threads_than_heads_or_tiles_compute_the_same(version, tmp_path):
    shape = Shape(n_heads=6, n_kv_heads=3, dim=96, hidden_dim=192)
    write(tmp_path / "model.bin", shape, version)
    ids = random_ids(shape)
    alone = Engine(tmp_path / "model.bin", threads=1).logits(ids)
    for threads in (3, 5, 16, 64):
        for batch in (1, 17):
            logits = Engine(tmp_path / "model.bin", threads=threads, batch=batch).logits(ids)
            assert np.array_equal(alone, logits), f"{threads} threads, batch {batch} change the result"
