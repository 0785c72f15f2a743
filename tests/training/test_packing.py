"""Packed conversations are learnt as if each were alone, however they are packed, cut and shared out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import alone
from test_parallel import SHAPE

from llama.errors import BadFileError
from model import IGNORE, Llama
from training import evaluation
from training.batches import Batches, Shuffled, in_turn
from training.options import Options
from training.packing import Rows, best_fit
from training.parallel import Ranks
from training.shards import Shard, documents
from training.sources import open_batches
from training.step import make_run, train_step


def chats(n: int = 25, longest: int = 12, seed: int = 1) -> Shard:
    """Random conversations, in memory; most targets count nothing, others 1, or a half."""
    random = np.random.default_rng(seed)
    ends = random.integers(3, longest + 1, n).cumsum().astype(np.uint64)
    tokens = random.integers(3, SHAPE.vocab_size, int(ends[-1]), dtype=np.uint16)
    weights = random.choice([0, 0, 1, 0.5], len(tokens)).astype(np.float16)
    weights[ends.astype(int) - 1] = 1  # each has something to learn
    return Shard(Path("chats"), tokens, ends, SHAPE.vocab_size, "", -1, None, kind="chat", weights=weights)


@given(st.data())
def test_every_document_is_in_one_row_and_no_row_is_too_full(data):
    room = data.draw(st.integers(1, 40))
    lengths = data.draw(st.lists(st.integers(1, room), min_size=1, max_size=60))
    rows = best_fit(lengths, room)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    used = [sum(lengths[i] for i in row) for row in rows]
    assert max(used) <= room
    assert len(rows) == 1 or sum(sorted(used)[:2]) > room  # no two would have fitted into one


def separate(model: Llama, shard: Shard, seq_len: int) -> tuple[float, float]:
    """The weighed loss of each conversation alone, by PyTorch's own, and the weights."""
    total = count = 0.0
    for ids, weights in documents([shard]):
        tokens, counts = torch.from_numpy(ids)[: seq_len + 1], torch.from_numpy(weights)[1 : seq_len + 1]
        logits = model(tokens[None, :-1])[0]
        losses = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
        total, count = total + (losses * counts).sum(), count + counts.sum()
    return total, count


@pytest.mark.parametrize("seq_len", [16, 8], ids=["whole", "some cut off"])
def test_packed_equals_separate(seq_len):
    torch.manual_seed(1)
    model, shard = Llama(SHAPE).double(), chats()
    expected, count = separate(model, shard, seq_len)
    (batch,) = in_turn(Rows([shard], seq_len), 1000)
    loss, found = model(*batch)
    assert found.item() == count.item() == pytest.approx(sum(Rows([shard], seq_len).weights))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    for gradient, other in zip(torch.autograd.grad(loss, list(model.parameters())), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-7)


def test_an_epoch_has_each_row_once_and_steps_of_all_ranks_are_one_batch():
    rows = Shuffled(Rows([chats()], 16), seed=1)
    whole, n = Batches(rows, 4), len(rows)
    seen = [row for step in range(n) for row in rows.numbers(whole.index(step))]
    assert sorted(seen[:n]) == sorted(seen[n : 2 * n]) == list(range(n))
    assert seen[:n] != seen[n : 2 * n]
    parts = [Batches(rows, 4, rank, 2).at(3) for rank in range(2)]
    for part, expected in zip(zip(*parts, strict=True), whole.at(3), strict=True):
        assert torch.equal(torch.cat(part), expected)
    tokens, targets, _, weights = whole.at(3)
    assert weights.sum().item() == whole.weight_of(3)
    assert torch.equal(targets == IGNORE, weights == 0)
    assert tokens.shape == (4, 16)


def test_how_many_are_cut_off_is_said():
    assert str(Rows([chats()], 16)) == "25 conversations in 11 rows of 16"
    long = sum(len(ids) > 8 + 1 for ids, _ in documents([chats()]))
    assert str(Rows([chats()], 8)) == f"25 conversations in 20 rows of 8, {long} of them cut off"


def test_conversations_without_a_target_are_left_out():
    shard = chats()
    shard.weights[: int(shard.ends[2])] = 0
    assert Rows([shard], 16).spans[0][1] == int(shard.ends[2])
    shard.weights[:] = 0
    with pytest.raises(BadFileError, match="targets = 0 in 16 tokens"):
        Rows([shard], 16)


def weights_after(ranks: Ranks, size: int = 1, optimizer: str = "adamw") -> list[torch.Tensor]:
    """The weights after three steps, the last validation loss behind them."""
    torch.manual_seed(1)
    options = Options(batch_size=4, micro_batch_size=size, max_seq_len=16, warmup_steps=0, learning_rate=0.01)
    options.optimizer = optimizer
    model = Llama(SHAPE)
    run = make_run(model, options, ranks, open_batches([chats()], options, ranks))
    for _ in range(3):
        train_step(run)
        run.progress.step += 1
    result = evaluation.evaluate(run.model, [chats(seed=2)], options, ranks)
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p.data for p in model.parameters()]
    return [*whole, torch.tensor([result.loss, result.weight])]


def test_however_a_step_is_cut_the_same_is_learnt():
    for weight, other in zip(weights_after(alone(), 1), weights_after(alone(), 4), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-4, atol=2e-5)


def test_every_rank_has_as_many_rows_to_evaluate_on():
    for n in range(1, 6):
        ranks = [list(in_turn(Rows([chats(n)], 16), 1, rank, 3)) for rank in range(3)]
        assert len({len(batches) for batches in ranks}) == 1
        total = sum(batch[3].sum().item() for batches in ranks for batch in batches)
        assert total == sum(Rows([chats(n)], 16).weights)
