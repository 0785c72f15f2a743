"""Every way to cut a model among ranks learns what one process does, and goes on as any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import alone, on_ranks, whole, whole_weights
from torch import Tensor

from llama.errors import UsageError
from llama.formats import tokenizers
from model import Config, Llama
from training import checkpoints, models, parallel, states, toy
from training.checkpoints import About
from training.options import Options
from training.parallel import Cut, Ranks
from training.saving import Saver
from training.step import Run, make_run, train_step

SHAPE = Config(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=64, vocab_size=64, max_seq_len=16)
ON_TWO = {
    "fsdp": Cut(),
    "replicas": Cut(replicas=2),
    "tensor": Cut(tensor=2),
    "offload": Cut(offload=True),
    "deferred": Cut(deferred=True),
}
ON_FOUR = {"fsdp": Cut(), "replicas": Cut(replicas=2), "tensor": Cut(tensor=2), "all": Cut(2, 2)}


class Numbers:
    """Other random tokens in each step, of which a rank gets its part."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(64, (8, 17), generator=torch.Generator().manual_seed(step))
        part = tokens.chunk(self.ranks.data_size)[self.ranks.data_rank]
        return part[:, :-1], part[:, 1:]

    def weight_of(self, step: int) -> float:
        return 128.0


def begin(ranks: Ranks) -> Run:
    """A fresh run, of micro batches of one sequence on four parts of the data."""
    with torch.device("meta"):
        model = Llama(SHAPE)
    options = Options(batch_size=8, micro_batch_size=1, max_seq_len=16, warmup_steps=0, learning_rate=0.01)
    run = make_run(model, options, ranks, Numbers(ranks))
    torch.manual_seed(1)
    models.fill_weights(model, None)
    return run


def steps(run: Run, n: int) -> list[float]:
    """The mean loss of each of n steps."""
    found = []
    for _ in range(n):
        sums, weight, _ = train_step(run)
        run.progress.step += 1
        found.append(float(run.ranks.sum(sums[0])[0]) / weight)
    return found


def everything(run: Run) -> dict[str, Tensor]:
    """Weights and the optimizers' tensors, whole, by name."""
    state = states.state_of(parallel.unwrap(run.model), run.optimizers)
    found = {name: whole(weight) for name, weight in state["model"].items()}
    return found | {
        f"{name} {part}": whole(tensor)
        for name, parts in state["optimizer"].items()
        for part, tensor in parts.items()
    }


def resumed(folder: Path, ranks: Ranks) -> Run:
    """A run that goes on from a checkpoint."""
    run = begin(ranks)
    run.progress = checkpoints.load(folder, run.model, run.optimizers, run.scaler, ranks)
    return run


def two(ranks: Ranks) -> dict[str, Any]:
    """What each cut on two ranks learns; saves a checkpoint of it, and trains while that is written."""
    folder, found = Path.cwd(), {}
    tokenizer = tokenizers.load(folder / "data")
    for name, cut in ON_TWO.items():
        run = begin(replace(ranks, cut=cut))
        losses = steps(run, 2)
        saver = Saver(folder / name, run.ranks, tokenizer, keep=1, about=About())
        saver.begin(run.model, run.optimizers, run.scaler, run.progress)
        saved = everything(run)
        losses += steps(run, 1)
        saver.wait()
        saver.close()
        found[name] = losses, saved, whole_weights(run.model)
    return found


def four(ranks: Ranks) -> dict[str, Any]:
    """What each cut on four ranks finds in the checkpoints of two, and learns next."""
    found = {}
    for name, cut in ON_FOUR.items():
        before = "tensor" if name == "all" else name
        run = resumed(checkpoints.newest(Path.cwd() / before), replace(ranks, cut=cut))
        found[name] = before, everything(run), steps(run, 1)
    return found


@pytest.fixture(scope="module")
def cuts(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A folder with a checkpoint of each cut on two ranks, and what each learnt."""
    folder = tmp_path_factory.mktemp("cuts")
    toy.make_reverse(folder / "data", count=10, val_count=5, seed=1, workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        first, second = on_ranks(folder / "two", 2, "fsdp", two)
    for name in first:
        assert first[name][0] == second[name][0]
    return folder, first


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor], atol: float) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=atol, msg=lambda t, n=name: n + t)


@pytest.mark.parametrize("name", ON_TWO)
def test_a_cut_on_two_ranks_learns_what_one_process_does(cuts, name):
    run = begin(alone())
    losses, _, weights = cuts[1][name]
    assert losses == pytest.approx(steps(run, 3), abs=1e-5)
    assert_equal(weights, whole_weights(run.model), atol=2e-5)


@pytest.mark.parametrize("name", ON_TWO)
def test_one_process_finds_in_the_checkpoint_of_two_ranks_all_to_the_bit(cuts, name):
    folder, found = cuts
    losses, saved, _ = found[name]
    run = resumed(checkpoints.newest(folder / name), alone())
    assert run.progress.step == 2
    assert_equal(everything(run), saved, atol=0)
    assert steps(run, 1) == pytest.approx(losses[2:], abs=1e-5)


def test_four_ranks_find_in_the_checkpoints_of_two_all_to_the_bit(cuts, monkeypatch):
    folder, found = cuts
    monkeypatch.chdir(folder)
    of_four, *_ = on_ranks(folder / "four", 4, "fsdp", four)
    for before, state, losses in of_four.values():
        assert_equal(state, found[before][1], atol=0)
        assert losses == pytest.approx(found[before][0][2:], abs=1e-5)


@pytest.mark.parametrize(
    ("cut", "ranks", "kind", "message"),
    [
        (
            Cut(replicas=2),
            3,
            "fsdp",
            "replicas = 2, tensor_parallel = 1, 3 ranks: the ranks must be a multiple",
        ),
        (Cut(offload=True), 2, "ddp", "parallel = ddp, allowed fsdp on several ranks with replicas, tensor"),
        (Cut(tensor=2), 1, "none", "parallel = none, allowed fsdp on several ranks with"),
    ],
)
def test_a_cut_that_can_not_be_is_refused(cut, ranks, kind, message):
    with pytest.raises(UsageError, match=message):
        cut.check(ranks, kind)
