"""bench.gpu on a CPU: rows, what a fault costs, how operations are counted, no need of the engine."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from helpers import ROOT, environment
from ranks import alone

from bench import gpu
from bench.gpu import Case, Plan, Settings
from bench.shapes import SHAPES
from model import Config, Llama
from training import models
from training.options import Options

QUICK = Plan(32, 2, 3600, (Case(1, compile=False), Case(2, compile=False, documents=True)))
WAYS = {way: Case(1, compile=False, checkpointing=True, **{way: True}) for way in ("lora", "qlora")}


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings("cpu", "float32", 0.01, tmp_path / "profile.txt")


def found_rows(settings: Settings, seconds: float = 3600) -> list[list[str]]:
    end = time.monotonic() + seconds
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in gpu.rows("260K", settings, end)]


def test_every_case_is_a_row_and_the_first_has_a_profile(monkeypatch, settings):
    monkeypatch.setitem(gpu.PLANS, "260K", QUICK)
    rows = found_rows(settings)
    assert [row[:2] for row in rows] == [["1", "eager"], ["2", "eager, documents"]]
    assert all(len(row) == len(gpu.COLUMNS) for row in rows)
    assert all(float(row[-1]) == pytest.approx(6.24, abs=0.1) for row in rows)  # ln 512
    text = settings.profile.read_text()
    assert text.count("## 260K, micro batch 1, eager") == text.count("##") == 1
    assert "aten::mm" in text


def test_adapters_are_trained_beside_weights_of_4_bits(monkeypatch, settings):
    monkeypatch.setitem(gpu.PLANS, "260K", Plan(32, 2, 3600, (WAYS["qlora"],)))
    (row,) = found_rows(settings)
    assert row[1] == "eager, checkpointing, qlora"
    assert float(row[-1]) == pytest.approx(6.24, abs=0.1)


def test_a_case_that_fails_is_one_line_and_the_others_go_on(monkeypatch, settings):
    monkeypatch.setitem(gpu.PLANS, "260K", Plan(32, 3, 3600, (Case(2, compile=False), QUICK.cases[0])))
    failed, measured = found_rows(settings)
    message = "batch_size = 3, micro_batch_size = 2, 1 ranks: batch_size must be a multiple of the other two"
    assert failed == ["2", "eager", f"failed: UsageError: {message}"]
    assert len(measured) == len(gpu.COLUMNS)


def test_what_there_is_no_time_for_is_left_out(monkeypatch, settings):
    monkeypatch.setitem(gpu.PLANS, "260K", QUICK)
    _, left_out = found_rows(settings, seconds=0.01)
    assert left_out[2].startswith("left out: ")


def test_a_shape_that_takes_too_long_is_stopped(capfd, settings):
    start = time.monotonic()
    gpu.supervise("260K", settings, 0.1)
    assert time.monotonic() - start < 30
    assert "260K: stopped after 0 s, its limit" in capfd.readouterr().out


def test_frozen_weights_count_four_operations_and_not_six():
    config = Config(**SHAPES["260K"] | {"tied": False})
    whole = Llama(config)
    looked_up = whole.tok_embeddings.weight.numel()
    frozen = sum(w.numel() for w in whole.parameters()) - looked_up
    for case in WAYS.values():
        options = Options(lora_rank=4, qlora=case.qlora)
        tuned = models.make_model(options, alone(), config, models.lora_of(options, "260K"))
        adapters = sum(w.numel() for w in tuned.parameters() if w.requires_grad)
        wanted = gpu.flops_per_token(whole, 64) - 2 * frozen + 6 * adapters
        assert gpu.flops_per_token(tuned, 64) == wanted


WITHOUT_THE_ENGINE = """
import sys
sys.modules["llama._engine"] = None  # as where it is not built
import bench.gpu, pytest
sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:xdist", "-m", "gpu", "tests/training/test_gpu.py"]))
"""


def test_neither_it_nor_the_tests_before_it_need_the_engine():
    command = [sys.executable, "-c", WITHOUT_THE_ENGINE]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:]
    assert "test_gpu.py::" in result.stdout
