"""Mixtures: each part has its share at every step, ranks and resumes find the same; and when a run ends."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import losses
from test_packing import chats
from test_parallel import SHAPE, shard

from llama.errors import BadFileError, UsageError
from model import Llama
from training import toy
from training.batches import Batches, Shuffled
from training.mixture import Mixture, parse_mixture, places
from training.options import Options, from_arguments, seconds_of
from training.packing import Rows
from training.shards import open_split
from training.windows import Windows


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=5), st.integers(0, 10**9))
def test_each_part_has_its_share_and_all_of_its_sequences_in_turn(shares, begin):
    whole = sum(shares)
    of_each = [Fraction(share, whole) for share in shares]
    part, at = places(begin + np.arange(500), of_each)
    for number, share in enumerate(of_each):
        here = at[part == number]
        assert np.array_equal(here, here[:1] + np.arange(len(here)))
        assert abs(len(here) - 500 * share) < 3
        assert len(here) == 0 or abs(here[0] - begin * share) < begin / 10**5 + 3


def test_the_first_sequences_are_the_first_of_each_part():
    part, at = places(np.arange(100), [Fraction(1, 2), Fraction(3, 10), Fraction(1, 5)])
    assert np.bincount(part).tolist() == [50, 30, 20]
    assert all(at[part == number][0] == 0 for number in range(3))


def mixture() -> Mixture:
    """Text and conversations."""
    text, talk = Windows([shard(400)], 16, seed=1), Shuffled(Rows([chats()], 16), seed=1)
    return Mixture([("text", Fraction(1, 4), text), ("talk", Fraction(3, 4), talk)], alike=False)


def test_ranks_share_a_step_and_its_weight_is_that_of_its_targets():
    whole = Batches(mixture(), 8)
    parts = [Batches(mixture(), 8, rank, 2).at(5) for rank in range(2)]
    for tensor, *others in zip(whole.at(5), *parts, strict=True):
        assert torch.equal(tensor, torch.cat(others))
    weights = whole.at(5)[3]
    assert weights.sum().item() == whole.weight_of(5)
    assert (weights.sum(dim=1) == 16).sum() == 2  # of text: every token is a target


def test_the_loss_of_a_mixture_is_that_of_its_parts():
    torch.manual_seed(1)
    model, mixed = Llama(SHAPE), mixture()
    loss, count = model(*mixed.take(np.arange(8)))
    found = [model(*part.take(np.arange(n))) for part, n in zip(mixed.parts, (2, 6), strict=True)]
    assert count.item() == sum(n.item() for _, n in found)
    assert loss.item() == pytest.approx(sum(total.item() for total, _ in found), rel=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:0.5", "allowed two folders or more, each once"),
        ("a:0.5,a:0.5", "allowed two folders or more, each once"),
        ("a:0.5,b", "mixture = 'b', allowed FOLDER:SHARE"),
        ("a:0.5,b:1e99999999", "mixture = 'b:1e99999999', allowed FOLDER:SHARE, .* below 1000000"),
        ("a:0.5,b:1000000", "mixture = 'b:1000000', allowed FOLDER:SHARE, .* below 1000000"),
        ("a:0.5,b:0.0", "mixture = 'b:0.0', allowed FOLDER:SHARE, a share above 0"),
        (":0.5,b:1", "mixture = ':0.5', allowed FOLDER:SHARE"),
        ("a:0.5,b:-1", "mixture = 'b:-1', allowed FOLDER:SHARE, a share above 0"),
    ],
)
def test_what_is_no_mixture_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse_mixture(text)
    assert parse_mixture("a:7,b:3") == [("a", Fraction(7, 10)), ("b", Fraction(3, 10))]


def test_choices_give_way_as_a_whole(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('data = "x"\nmax_steps = 7\n')
    options, _ = from_arguments([str(recipe), "--mixture=a:1,b:1", "--epochs=2"])
    assert (options.data, options.mixture, options.epochs) == ("a", "a:1,b:1", 2)
    with pytest.raises(UsageError, match=r"max_steps = 3, epochs = 2\.0: allowed one of them"):
        from_arguments([str(recipe), "--max_steps=3", "--epochs=2"])
    with pytest.raises(UsageError, match="data = x, mixture = a:1,b:1: allowed one of them"):
        from_arguments([str(recipe), "--data=x", "--mixture=a:1,b:1"])


def test_times():
    assert [seconds_of(text) for text in ("90s", "1.5m", "2h", "1d")] == [90, 90, 7200, 86400]
    for text in ("90", "-1h", "h", "infh"):
        with pytest.raises(UsageError, match="allowed a number with s, m, h or d behind it"):
            Options(max_time=text)


def test_a_run_on_a_mixture_ends_when_it_is_said_to(data, tmp_path, train_here, capsys):
    toy.make_reverse(tmp_path / "other", count=40, val_count=10, seed=2, workers=1)
    mixture = f"--mixture={data}:1,{tmp_path / 'other'}:3"
    n = sum(len(Windows(open_split(folder, "train"), 32, 1)) for folder in (data, tmp_path / "other"))
    out, line = tmp_path / "out", [f"--out_dir={tmp_path / 'out'}", "--warmup_steps=0"]
    train_here(*line, mixture, "--epochs=0.05", "--max_time=0.000001s")
    assert list(losses(out)) == [1]
    told = capsys.readouterr().out
    assert f"0.75 of {tmp_path / 'other'}: " in told
    assert "stopped: --max_time=0.000001s is over; --init_from=resume goes on" in told
    with pytest.raises(BadFileError, match=r"mixture = .*, this run has"):
        train_here(*line, f"--data={data}", "--init_from=resume")
    train_here(*line, mixture, "--epochs=0.05", "--init_from=resume")
    assert list(losses(out)) == list(range(1, 1 + -(-n // 20 // 8)))
    told = capsys.readouterr().out
    assert f"{data}: val_loss" in told
