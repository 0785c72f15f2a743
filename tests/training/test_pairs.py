"""Preferences: the loss is TRL's, however pairs are cut and shared out, and what was said before is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import alone
from test_parallel import SHAPE

from llama.errors import BadFileError
from model import Llama
from training import evaluation, pairs
from training.batches import Batches, Shuffled, in_turn
from training.objectives import Preference, log_probabilities, preference_loss
from training.options import Options
from training.pairs import Answers
from training.parallel import Ranks
from training.shards import Shard
from training.sources import open_batches
from training.step import make_run, train_step


def answers(n: int = 7, seed: int = 1) -> Shard:
    """Random pairs that share the beginning, in memory."""
    random = np.random.default_rng(seed)
    parts, weights = [], []
    for _ in range(n):
        prompt = random.integers(3, SHAPE.vocab_size, random.integers(2, 6))
        for _ in range(2):
            answer = random.integers(3, SHAPE.vocab_size, random.integers(1, 9))
            parts.append(np.concatenate((prompt, answer)))
            weights += [0.0] * len(prompt) + [1.0] * len(answer)
    ends, size = np.cumsum([*map(len, parts)]).astype(np.uint64), SHAPE.vocab_size
    tokens, weights = np.concatenate(parts).astype(np.uint16), np.array(weights, np.float16)
    return Shard(Path("pairs"), tokens, ends, size, "", -1, None, kind="pairs", weights=weights)


def model_of(seed: int) -> Llama:
    torch.manual_seed(seed)
    return Llama(SHAPE)


def alone_each(model: Llama, shard: Shard) -> torch.Tensor:
    """The log-probability of each answer by itself, by PyTorch's own: (n, 2)."""
    found, ends = [], shard.ends.astype(int)
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        ids = torch.from_numpy(shard.read(begin, end))
        picked = model(ids[None, :-1])[0].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        found.append((picked * torch.from_numpy(shard.weights[begin + 1 : end].astype("f4"))).sum())
    return torch.stack(found).unflatten(0, (-1, 2))


def test_log_probabilities_are_those_of_each_answer_alone():
    model, shard = model_of(1), answers()
    (batch,) = in_turn(Answers([shard], 16), 100)
    found, expected = log_probabilities(model, batch), alone_each(model, shard)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    sums = [torch.autograd.grad(p.square().sum(), list(model.parameters())) for p in (found, expected)]
    for gradient, other in zip(*sums, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-4)


def test_the_loss_is_that_of_the_papers():
    policy, reference = torch.randn(2, 5, 2, dtype=torch.float64).unbind()
    (pc, pr), (rc, rr) = policy.unbind(1), reference.unbind(1)
    plain = torch.log1p(torch.exp(-0.3 * ((pc - pr) - (rc - rr))))
    found, rewards = preference_loss(policy, reference, 0.3)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(rewards, 0.3 * (policy - reference))
    swapped, _ = preference_loss(policy.flip(1), reference.flip(1), 0.3)
    smooth, _ = preference_loss(policy, reference, 0.3, smoothing=0.2)
    torch.testing.assert_close(smooth, 0.8 * plain + 0.2 * swapped)
    less_likely = torch.relu(rc - pc)
    positive, _ = preference_loss(policy, reference, 0.3, positive=5.0)
    expected = torch.log1p(torch.exp(-0.3 * ((pc - pr) - (rc - rr) - 5 * less_likely)))
    torch.testing.assert_close(positive, expected)


def test_what_was_said_before_is_cached_kept_and_resumed(tmp_path):
    model, shard = model_of(1), answers()
    split = Answers([shard], 16)
    pairs.refer(model, split, 2, alone(), "float32")
    torch.testing.assert_close(split.reference, alone_each(model, shard).detach(), rtol=1e-5, atol=1e-5)
    (batch,) = in_turn(split, 100)
    sums, n = Preference(0.1)(model, batch)
    assert n == 7
    assert sums[0].item() == pytest.approx(7 * np.log(2), rel=1e-5)
    pairs.save_reference(tmp_path, {"train": split})
    again = Answers([shard], 16)
    pairs.load_reference(tmp_path, {"train": again})
    assert torch.equal(again.reference, split.reference)
    with pytest.raises(BadFileError, match="has 7 pairs for train, the data has 3"):
        pairs.load_reference(tmp_path, {"train": Answers([answers(3)], 16)})
    with pytest.raises(BadFileError, match=r"reference\.safetensors: is missing"):
        pairs.load_reference(tmp_path / "none", {"train": again})


def after_steps(ranks: Ranks, size: int = 1) -> list[torch.Tensor]:
    """The references, the weights after three steps, and what an evaluation says then."""
    options = Options(batch_size=4, micro_batch_size=size, max_seq_len=16, warmup_steps=0, learning_rate=0.01)
    model = model_of(1)
    run = make_run(model, options, ranks, open_batches([answers()], options, ranks))
    run.objective, val = Preference(0.5, 0.1, 1.0), Answers([answers(5, seed=2)], 16)
    for split in (run.batches.sequences.items, val):
        pairs.refer(run.model, split, size, ranks, "float32")
    for _ in range(3):
        train_step(run)
        run.progress.step += 1
    batches = in_turn(val, size, ranks.rank, ranks.world_size)
    result = evaluation.evaluate(run.model, [answers(5, seed=2)], options, ranks, run.objective, batches)
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p.data for p in model.parameters()]
    return [val.reference, *whole, torch.tensor([*result.means.values(), result.weight])]


def test_however_a_step_is_cut_the_same_is_learnt():
    for weight, other in zip(after_steps(alone(), 1), after_steps(alone(), 4), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4)


def test_the_chosen_answers_win():
    options = Options(batch_size=7, max_seq_len=16, warmup_steps=0, learning_rate=0.02)
    split = Answers([answers()], 16)
    run = make_run(model_of(1), options, alone(), Batches(Shuffled(split, seed=1), 7))
    run.objective = Preference(0.1)
    pairs.refer(run.model, split, 7, alone(), "float32")
    first, *_ = train_step(run)
    for _ in range(8):
        run.progress.step += 1
        last, *_ = train_step(run)
    assert last[0] < first[0] / 2
    assert last[4] == 7  # of 7
    assert last[3] > 0


def test_pairs_that_are_cut_off_before_an_answer_are_left_out():
    shard = answers()
    assert 0 < len(Answers([shard], 3)) < 7
    with pytest.raises(BadFileError, match="pairs = 0 in 1 tokens"):
        Answers([shard], 1)
