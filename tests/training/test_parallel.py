"""Several ranks on this CPU, each a process of its own, joined by gloo."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ranks import alone, on_ranks
from torch.distributed.tensor import DTensor

from llama.errors import BadFileError
from model import Config, Llama
from training import checkpoints, evaluation, parallel
from training.checkpoints import About
from training.options import Options
from training.parallel import Flag, Ranks
from training.shards import Shard

SHAPE = Config(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=64, max_seq_len=16)


@pytest.mark.parametrize(("vocab_size", "kept"), [(64, 2), (1 << 25, 0)])
def test_freed_memory_is_kept_beside_a_small_model_alone(monkeypatch, vocab_size, kept):
    """A heap that keeps what FSDP gathers of a large one would grow until nothing is left."""
    said = []
    monkeypatch.setattr(
        parallel.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *_: said.append(_))
    )
    with torch.device("meta"):
        parallel.keep_memory(Llama(replace(SHAPE, vocab_size=vocab_size)))
    assert len(said) == kept


# --- The flag that ends a run


def polls(ranks: Ranks) -> list[bool]:
    """Rank 1 raises a flag at the third of six polls."""
    flag = Flag(ranks)
    return [flag.poll(ranks.rank == 1 and step >= 2) for step in range(6)] + [flag.last()]


def test_a_flag_that_one_rank_raises_is_seen_by_all_at_the_next_step(tmp_path):
    assert on_ranks(tmp_path, 2, "ddp", polls) == [[False] * 3 + [True] * 4] * 2


def test_a_flag_of_one_process_is_seen_at_once():
    flag = Flag(alone())
    assert [flag.poll(False), flag.poll(True), flag.last()] == [False, True, False]


# --- Evaluation


def shard(n_tokens: int) -> Shard:
    """Random tokens, in memory."""
    tokens = np.random.default_rng(1).integers(3, SHAPE.vocab_size, n_tokens, dtype=np.uint16)
    return Shard(Path("random"), tokens, np.array([n_tokens], np.uint64), SHAPE.vocab_size, "", 1, None)


def validation_losses(ranks: Ranks) -> list[tuple[float, int]]:
    """Mean loss and number of targets of 1 to 5 windows, the last cut off, and of the first 3 of 5."""
    torch.manual_seed(1)
    model = parallel.wrap(Llama(SHAPE), ranks, "float32", compiled=False)
    found = []
    for n, most in [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (5, 3)]:
        options = Options(max_seq_len=16, batch_size=4, micro_batch_size=2, eval_windows=most)
        result = evaluation.evaluate(model, [shard(16 * n - 3)], options, ranks)
        found.append((result.loss, result.weight))
    return found


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_evaluation_ends_and_is_the_same_whatever_the_number_of_windows(tmp_path, kind):
    losses, counts = zip(*validation_losses(alone()), strict=True)
    assert counts == (12, 28, 44, 60, 76, 48)
    for found in on_ranks(tmp_path, 2, kind, validation_losses):
        assert [n for _, n in found] == list(counts)
        assert [loss for loss, _ in found] == pytest.approx(losses, rel=1e-5)


# --- The memory of FSDP


def bytes_of_weights_kept(ranks: Ranks) -> tuple[int, int, list[bool]]:
    """Bytes of blocks' weights in bfloat16: kept for the backward pass, and all; after the first of two micro
    batches, whether each gradient is cut."""
    torch.manual_seed(1)
    model = Llama(SHAPE)
    shapes = {p.shape for p in model.layers.parameters() if p.ndim == 2}
    shapes |= {torch.Size(reversed(shape)) for shape in shapes}
    whole = sum(2 * p.numel() for p in model.layers.parameters())
    model = parallel.wrap(model, ranks, "bfloat16", compiled=False)
    tokens, saved = torch.arange(8).expand(1, 8), []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with parallel.synchronised(model, ranks, last=False):
        keeping = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with keeping, parallel.autocast(ranks, "bfloat16"):
            loss, _ = model(tokens, tokens)
        copies = [t for t in saved if t.dtype == torch.bfloat16 and t.shape in shapes]
        kept = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in copies}
        loss.backward()
    cut = [isinstance(p.grad, DTensor) for p in model.parameters()]
    return sum(kept.values()), whole, cut


def test_fsdp_keeps_neither_copies_of_weights_nor_whole_gradients(tmp_path):
    kept, whole, _ = bytes_of_weights_kept(alone())
    assert kept > 0.9 * whole  # all but the norms: what one process keeps, and each rank did
    for kept, _, cut in on_ranks(tmp_path, 2, "fsdp", bytes_of_weights_kept):
        assert kept == 0
        assert all(cut)


LARGE = Config(dim=512, n_layers=16, n_heads=8, vocab_size=64)  # 200 MB in float32


def most_bytes() -> int:
    """The most memory that this process ever had."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def memory_of_a_beginning(ranks: Ranks) -> tuple[int, float]:
    """The most bytes that a process grew by while it made a model, and the sum of its weights."""
    wrapped = parallel.wrap(Llama(SHAPE), ranks, "float32", compiled=False)  # loads what is loaded once
    parallel.fill(wrapped, lambda name, shape: torch.zeros(shape))
    before = most_bytes()
    with torch.device("meta"):
        model = Llama(LARGE)
    parallel.wrap(model, ranks, "float32", compiled=False)
    torch.manual_seed(1)
    parallel.fill(model, lambda name, shape: model.init_weight(name, torch.empty(shape)))
    grown = most_bytes() - before
    weights = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return grown, sum(w.double().sum().item() for w in weights)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_rank_of_fsdp_begins_with_its_shards_alone(tmp_path):
    whole = 4 * sum(p.numel() for p in Llama(LARGE).parameters())
    (alone, wanted), *ranks = (
        *on_ranks(tmp_path / "1", 1, "none", memory_of_a_beginning),
        *on_ranks(tmp_path / "2", 2, "fsdp", memory_of_a_beginning),
    )
    assert whole < alone < 1.2 * whole
    for grown, found in ranks:
        assert grown < 0.6 * whole
        assert found == pytest.approx(wanted, rel=1e-9)


# --- Where a resume goes on


def refusal(ranks: Ranks) -> str:
    """What a rank says where only rank 0 has the folder of the run."""
    out_dir = Path(os.environ["OUT_DIR"]) / str(ranks.rank)
    try:
        return checkpoints.chosen(out_dir, ranks).name
    except BadFileError as error:
        return str(error)


def test_a_node_without_the_folder_of_the_run_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT_DIR", str(tmp_path))
    nowhere = f"{tmp_path / '0'}: has no checkpoint to resume from"
    assert on_ranks(tmp_path / "a", 2, "ddp", refusal) == [nowhere, nowhere]
    folder = tmp_path / "0" / "step-0000004"
    folder.mkdir(parents=True)
    checkpoints.fill_folder(folder, SHAPE, Llama(SHAPE).state_dict(), {}, [], About(), {})
    first, second = on_ranks(tmp_path / "b", 2, "ddp", refusal)
    assert first == "step-0000004"
    assert "is not on the node of rank 1, only on that of rank 0: out_dir must be a folder that" in second
