"""Training on a GPU: what it learns in each type, equality with the CPU, compiled, wrapped and resumed.

    python3 -m pytest -m gpu tests/training/test_gpu.py

A minute or two; `make gpu` measures speed besides. Needs PyTorch with CUDA and nothing of the C engine. The
reference is the same code on the CPU in float32.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import ROOT
from ranks import whole_weights

from bench.training import Same
from llama.formats import tokenizers
from llama.formats.source import Source
from model import Config, Llama
from training import checkpoints, models, toy
from training.checkpoints import About
from training.options import Options
from training.parallel import Ranks
from training.recomputing import recompute
from training.saving import Saver
from training.step import Run, make_run, train_step
from training.weights import TorchWeights

DEVICE = "cuda"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]

SHAPE = Config(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=172, vocab_size=512, max_seq_len=128)
BATCH = 8
EXACT = {"rtol": 0, "atol": 0}


@pytest.fixture(autouse=True)
def whole_float32():
    """float32 products in float32, where train.py takes TF32, so that the tolerances can be narrow."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(1)
    yield
    torch.set_float32_matmul_precision(before)
    torch.compiler.reset()


def batches(documents: bool = False) -> Same:
    """The same batch in every step, so that a few steps learn it. documents: of 40 tokens, as doc_ids too."""
    ids = torch.randint(3, SHAPE.vocab_size, (BATCH, SHAPE.max_seq_len + 1), generator=seeded())
    same = Same(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())
    if documents:
        doc_ids = (torch.arange(SHAPE.max_seq_len) // 40).expand(BATCH, -1).contiguous()
        same.batch = (*same.batch[:2], doc_ids)
    return same


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def begin(ranks: Ranks | None = None, documents: bool = False, dropout: float = 0.0, **values) -> Run:
    """A run of the small model on the device, or of given ranks. values: options."""
    torch.manual_seed(1)
    ranks = ranks or Ranks(0, 1, torch.device(DEVICE), "none")
    sizes = {"batch_size": BATCH, "max_seq_len": SHAPE.max_seq_len, "warmup_steps": 5, "max_steps": 1000}
    options = Options(**sizes | {"learning_rate": 3e-3} | values)
    model = Llama(Config(**{**SHAPE.to_dict(), "dropout": dropout}))
    if options.checkpointing:
        recompute(model, options.checkpointing_keeps)
    return make_run(model.to(ranks.device), options, ranks, batches(documents))


def steps(run: Run, n: int) -> list[float]:
    """The mean loss of each of n steps."""
    found = []
    for _ in range(n):
        loss, n_targets, _ = train_step(run)
        run.progress.step += 1
        found.append(float(loss) / float(n_targets))
    return found


def weights(run: Run) -> dict[str, torch.Tensor]:
    """A copy of the weights as they are now, on the CPU."""
    return whole_weights(run.model)


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], **tolerance) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(
            found[name], wanted[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


# --- What is learnt


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_type_learns_a_batch(dtype, compiled):
    run = begin(dtype=dtype, compile=compiled)
    assert run.scaler.is_enabled() == (dtype == "float16")
    losses = steps(run, 40)
    assert losses[0] == pytest.approx(6.24, abs=0.1)  # of 512 tokens, none of which is likelier: ln 512
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": "muon"},
        {"optimizer": "adamw_8bit"},
        {"checkpointing": True, "micro_batch_size": 2},
        {"documents": True},
        {"documents": True, "compile": True},
        {"dropout": 0.1},
    ],
    ids=lambda values: " ".join(values),
)
def test_every_way_to_train_learns_a_batch(values):
    losses = steps(begin(dtype="bfloat16", **values), 40)
    assert losses[-1] < 0.7 * losses[0]


def test_float16_goes_on_after_a_step_whose_gradients_overflow():
    run = begin(dtype="float16")
    run.scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**40)  # too large: it falls by half each step
    before = weights(run)
    steps(run, 1)
    assert_close(weights(run), before, **EXACT)
    assert steps(run, 80)[-1] < 6


@pytest.mark.parametrize(
    "values",
    [{}, {"documents": True}, {"compile": True}, {"documents": True, "compile": True}, {"dtype": "float16"}],
    ids=lambda values: " ".join(values) or "eager",
)
def test_no_step_waits_for_the_device(values):
    run = begin(**{"dtype": "bfloat16", "micro_batch_size": 2} | values)
    steps(run, 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            train_step(run)
            run.progress.step += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- Equalities


@pytest.mark.parametrize("documents", [False, True], ids=["causal", "documents"])
def test_losses_and_gradients_are_those_of_the_cpu(documents):
    runs = [begin(Ranks(0, 1, torch.device(device), "none"), documents) for device in ("cpu", DEVICE)]
    for run in runs:
        tokens, targets, doc_ids = (None if t is None else t.to(run.ranks.device) for t in run.batches.at(0))
        loss, n_targets = run.model(tokens, targets, doc_ids)
        (loss / n_targets).backward()
    cpu, gpu = ({name: p.grad.cpu() for name, p in run.model.named_parameters()} for run in runs)
    assert_close(gpu, cpu, rtol=1e-3, atol=1e-6)
    first, second = (steps(begin(run.ranks, documents), 5) for run in runs)
    assert second == pytest.approx(first, rel=1e-4)


def test_logits_in_bfloat16_are_near_those_of_the_cpu():
    model = begin().model.eval()
    tokens = batches().at(0)[0]
    with torch.no_grad():
        with torch.autocast(DEVICE, torch.bfloat16):
            found = model(tokens.to(DEVICE)).float().cpu()
        wanted = model.cpu()(tokens)
    assert (found - wanted).norm() < 0.02 * wanted.norm()


@pytest.mark.parametrize("documents", [False, True], ids=["causal", "documents"])
def test_compiled_equals_eager(documents):
    eager, compiled = (begin(documents=documents, compile=flag) for flag in (False, True))
    assert steps(compiled, 5) == pytest.approx(steps(eager, 5), rel=1e-4)
    found, wanted = weights(compiled), weights(eager)
    for name in wanted:  # as a whole: Adam's first steps are as large where a gradient is only noise
        assert (found[name] - wanted[name]).norm() < 1e-3 * wanted[name].norm(), name


def test_steps_beside_a_model_in_4_bits_are_those_of_the_cpu():
    source = Source("random", SHAPE, TorchWeights(Llama(SHAPE).state_dict()))
    sizes = {"batch_size": BATCH, "max_seq_len": SHAPE.max_seq_len, "warmup_steps": 0}
    options = Options(**sizes, lora_rank=4, qlora=True)
    found = {}
    for device in ("cpu", DEVICE):
        ranks = Ranks(0, 1, torch.device(device), "none")
        model = models.make_model(options, ranks, SHAPE, models.lora_of(options, "random"))
        run = make_run(model, options, ranks, batches())
        torch.manual_seed(1)
        models.fill_weights(model, source)
        found[device] = steps(run, 5)
    assert found[DEVICE] == pytest.approx(found["cpu"], rel=1e-4)
    assert found["cpu"][-1] < found["cpu"][0]


def test_micro_batches_equal_one_batch():
    whole, parts = begin(), begin(micro_batch_size=2)
    assert steps(parts, 5) == pytest.approx(steps(whole, 5), rel=1e-4)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_group_of_one_rank_equals_none(kind, dtype, tmp_path):
    alone = steps(begin(dtype=dtype, micro_batch_size=4), 5)
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        device = torch.device(DEVICE, 0) if DEVICE == "cuda" else torch.device(DEVICE)
        run = begin(Ranks(0, 1, device, kind), dtype=dtype, micro_batch_size=4)
        assert steps(run, 5) == pytest.approx(alone, rel=1e-4 if dtype == "float32" else 2e-3)
    finally:
        dist.destroy_process_group()


# --- Resume


def test_a_resume_is_bitwise_where_the_run_was(tmp_path):
    """The state is equal to the bit, and so is the next loss, whose dropout draws on the GPU. Later ones are
    equal up to the order in which the GPU's kernels add gradients, which is not the same every time."""
    options = {"dtype": "float16", "dropout": 0.2}
    run = begin(**options)
    steps(run, 5)
    toy.make_reverse(tmp_path / "data", count=10, val_count=5, seed=1, workers=1)
    saver = Saver(tmp_path, run.ranks, tokenizers.load(tmp_path / "data"), keep=1, about=About())
    saver.begin(run.model, run.optimizers, run.scaler, run.progress)
    saved, wanted = weights(run), steps(run, 4)
    saver.wait()
    resumed = begin(**options)
    folder = checkpoints.newest(tmp_path)
    parts = (resumed.model, resumed.optimizers, resumed.scaler, resumed.ranks)
    resumed.progress = checkpoints.load(folder, *parts)
    assert resumed.progress.step == 5
    assert_close(weights(resumed), saved, **EXACT)
    found = steps(resumed, 4)
    assert found[0] == wanted[0]
    assert found == pytest.approx(wanted, rel=1e-3)


def train(*options: str) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), f"--device={DEVICE}", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def logged(out_dir: Path) -> dict[int, float]:
    with (out_dir / "log.csv").open(newline="") as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file) if row["loss"]}


def test_a_whole_run_evaluates_saves_and_resumes(tmp_path):
    toy.make_reverse(tmp_path / "data", count=500, val_count=20, seed=1, workers=1)
    folders = [f"--data={tmp_path / 'data'}", f"--out_dir={tmp_path / 'out'}"]
    shape = ["--dim=32", "--n_layers=2", "--n_heads=4", "--max_seq_len=32", "--batch_size=8", "--documents"]
    often = ["--eval_interval=5", "--log_interval=1", "--sample_tokens=8", "--max_steps=10"]
    options = [*folders, *shape, *often, "--dtype=bfloat16"]
    train(*options)
    whole = logged(tmp_path / "out")
    assert sorted(whole) == list(range(1, 11))
    shutil.rmtree(tmp_path / "out" / "step-0000010")
    train(*options, "--init_from=resume")
    assert logged(tmp_path / "out") == pytest.approx(whole, rel=1e-2)
