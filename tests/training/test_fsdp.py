"""What two ranks of FSDP learn is what one process learns: of conversations, of pairs, by adapters, by Muon.

All in one test, as the ranks take longer to start than to learn.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from ranks import alone, on_ranks, whole_weights
from test_packing import weights_after
from test_pairs import after_steps
from test_parallel import SHAPE
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from model import Llama
from training import models
from training.lora import Lora, add_lora
from training.muon import Muon
from training.options import Options
from training.parallel import Ranks
from training.step import make_run, train_step


class Numbers:
    """Batches of the same random tokens, of which a rank gets its part."""

    def __init__(self, ranks: Ranks) -> None:
        tokens = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(1))
        part = tokens.chunk(ranks.world_size)[ranks.rank]
        self.batch = part[:, :-1], part[:, 1:]

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.batch

    def weight_of(self, step: int) -> float:
        return 64.0


def adapters_after(ranks: Ranks) -> dict[str, torch.Tensor]:
    """The adapters after three steps."""
    with torch.device("meta"):
        model = Llama(SHAPE)
        add_lora(model, Lora("", 4, 8.0, 0.0, "wq,wk,wo,w1,w2"))
    options = Options(batch_size=4, max_seq_len=16, warmup_steps=0, learning_rate=0.01)
    run = make_run(model, options, ranks, Numbers(ranks))
    torch.manual_seed(1)
    models.fill_weights(model, None)
    for _ in range(3):
        train_step(run)
        run.progress.step += 1
    return whole_weights(run.model, adapters=True)


def tables_after(ranks: Ranks) -> tuple[list[list[str]], dict[str, torch.Tensor]]:
    """Of an embedding and a classifier: which are whole as blocks begin, and the weights after two steps."""
    with torch.device("meta"):
        model = Llama(replace(SHAPE, tied=False))
    options = Options(batch_size=4, max_seq_len=16, warmup_steps=0, learning_rate=0.01)
    run = make_run(model, options, ranks, Numbers(ranks))
    torch.manual_seed(1)
    models.fill_weights(model, None)
    tables, whole = {"embedding": model.tok_embeddings, "classifier": model.output}, []

    def look(*_: Any) -> None:
        whole.append([name for name, table in tables.items() if not isinstance(table.weight, DTensor)])

    for block in model.layers:
        block.register_forward_pre_hook(look)
    for _ in range(2):
        train_step(run)
        run.progress.step += 1
    return whole, whole_weights(run.model)


def matrices_after(ranks: Ranks) -> list[torch.Tensor]:
    """Matrices after three steps of Muon, as many as do not divide by the ranks, nor do their rows."""
    random = torch.Generator().manual_seed(1)
    shapes = [(33, 16), (16, 40), (1, 8), (7, 24)]
    weights = [torch.randn(shape, generator=random) for shape in shapes]

    def shared(whole: torch.Tensor) -> torch.Tensor:
        mesh = init_device_mesh("cpu", (ranks.world_size,)) if ranks.world_size > 1 else None
        place = Shard(int(whole.shape == (7, 24)))  # the last by columns, as tensor parallelism cuts some
        return distribute_tensor(whole, mesh, [place]) if mesh else whole

    parameters = [torch.nn.Parameter(shared(weight.clone())) for weight in weights]
    muon = Muon(parameters, 0.02, 0.1)
    for _ in range(3):
        for parameter, shape in zip(parameters, shapes, strict=True):
            parameter.grad = shared(torch.randn(shape, generator=random))
        muon.step()
    return [p.full_tensor() if ranks.world_size > 1 else p.data for p in parameters]


def test_muon_is_that_of_pytorch():
    random = torch.Generator().manual_seed(1)
    ours, theirs = (
        [torch.nn.Parameter(torch.ones(shape)) for shape in ((33, 16), (8, 40))] for _ in range(2)
    )
    steps = [Muon(ours, 0.02, 0.1), torch.optim.Muon(theirs, 0.02, 0.1, adjust_lr_fn="match_rms_adamw")]
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = other.grad = torch.randn(mine.shape, generator=random)
        for optimizer in steps:
            optimizer.step()
    assert all(map(torch.equal, ours, theirs))


def all_of(ranks: Ranks) -> dict[str, Any]:
    time.sleep(0.3 * ranks.rank)  # nobody has to be in time, not at the end either
    return {
        "matrices": matrices_after(ranks),
        "muon": weights_after(ranks, optimizer="muon"),
        "conversations": weights_after(ranks),
        "pairs": after_steps(ranks),
        "adapters": adapters_after(ranks),
        "tables": tables_after(ranks),
    }


def test_two_ranks_learn_what_one_process_learns(tmp_path):
    ranks = on_ranks(tmp_path, 2, "fsdp", all_of)
    packed, preferred, adapted = weights_after(alone(), 4), after_steps(alone(), 4), adapters_after(alone())
    matrices, by_muon = matrices_after(alone()), weights_after(alone(), 4, "muon")
    for found in ranks:
        assert all(map(torch.equal, found["matrices"], matrices))
        for weight, other in zip(found["muon"], by_muon, strict=True):
            torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-3)  # of steps of 0.01
        for weight, other in zip(found["conversations"], packed, strict=True):
            torch.testing.assert_close(weight, other, rtol=1e-4, atol=2e-5)
        for weight, other in zip(found["pairs"], preferred, strict=True):
            torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4)
    found = ranks[0]["adapters"]
    assert len(found) == 2 * 2 * 5
    assert found.keys() == adapted.keys()
    for name, weight in adapted.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5)
    (whole, found), (_, expected) = ranks[0]["tables"], tables_after(alone())
    assert whole == [[]] * 4  # two blocks, twice
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4, msg=name)
