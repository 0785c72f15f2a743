"""How likely tokens are (llama/csrc/sampling/score.h), against a log-softmax and a stable sort in float64."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import numpy as np
import pytest
from checkpoints import Shape
from test_forward import Engine

from llama._engine import ffi, lib

SIZES = (1, 2, 255, 256, 257, 700)  # of vocabularies; most_likely looks at blocks of 256 tokens


def smallest(vocab_size: int) -> Shape:
    return Shape(2, 2, 1, 1, 1, vocab_size=vocab_size, max_seq_len=32)


def write(path: Path, vocab_size: int) -> Path:
    checkpoints.write(path, smallest(vocab_size))
    return path


def logprobs(
    engine: Engine, logits: np.ndarray, token: int, n_top: int
) -> tuple[float, list[int], list[float]]:
    """The log-probability of a token, the most likely tokens, and theirs."""
    error, found, top = ffi.new("LlamaError *"), ffi.new("double *"), ffi.new("LlamaLogprob[]", max(1, n_top))
    copy = np.array(logits, np.float32)
    pointer = ffi.from_buffer("float[]", copy, require_writable=True)
    if lib.llama_logprobs(engine.context, pointer, token, found, top, n_top, error):
        raise ValueError(ffi.string(error.text).decode())
    return found[0], [top[i].token for i in range(n_top)], [top[i].logprob for i in range(n_top)]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64) - logits.max()
    return x - np.log(np.exp(x).sum())


@pytest.mark.parametrize("n", SIZES)
def test_the_most_likely_are_those_of_a_stable_sort(tmp_path, n):
    engine, random = Engine(write(tmp_path / "m.bin", n)), np.random.default_rng(n)
    ties, ordinary = random.normal(0, 2, n).round(), random.normal(0, 3, n)
    for logits in (ties, ordinary, np.sort(ordinary), -np.sort(ordinary), np.zeros(n)):
        logits = logits.astype(np.float32)
        expected, order = log_softmax(logits), np.argsort(-logits, kind="stable")
        for n_top in {0, 1, min(2, n), min(7, n), min(128, n)}:
            token = int(random.integers(n))
            logprob, tokens, tops = logprobs(engine, logits, token, n_top)
            assert logprob == pytest.approx(expected[token], abs=1e-5)
            assert tokens == order[:n_top].tolist()
            assert tops == pytest.approx(expected[order[:n_top]].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("token", "n_top", "message"),
    [
        (-1, 0, "token = -1, allowed 0 to 9"),
        (10, 0, "token = 10, allowed 0 to 9"),
        (0, -1, "n_top = -1, allowed 0 to 10"),
        (9, 11, "n_top = 11, allowed 0 to 10"),
    ],
)
def test_what_there_is_not_is_refused(tmp_path, token, n_top, message):
    with pytest.raises(ValueError, match=message):
        logprobs(Engine(write(tmp_path / "m.bin", 10)), np.zeros(10), token, n_top)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(tmp_path, value):
    engine = Engine(write(tmp_path / "m.bin", 300))
    with pytest.raises(ValueError, match="n_top = 129, allowed 0 to 128"):
        logprobs(engine, np.zeros(300), 0, 129)
    for at in (0, 299):
        logits = np.zeros(300)
        logits[at] = value
        with pytest.raises(ValueError, match="a logit of the model is not a finite number"):
            logprobs(engine, logits, 1, 0)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_a_text_is_scored_token_by_token_however_it_is_cut(tmp_path, batch):
    path, ids = write(tmp_path / "m.bin", 50), np.random.default_rng(1).integers(0, 50, 11).tolist()
    engine = Engine(path, batch=batch)
    expected = [
        log_softmax(row)[token] for row, token in zip(Engine(path).logits(ids), ids[1:], strict=False)
    ]
    for n in (0, 1, 2, 4, 11):
        scores, error = ffi.new("double[]", [7.0] * 11), ffi.new("LlamaError *")
        assert lib.llama_score(engine.context, ids, n, scores, error) == lib.LLAMA_OK
        assert list(scores)[: max(0, n - 1)] == pytest.approx(expected[: max(0, n - 1)], abs=1e-5)
        assert list(scores)[max(0, n - 1) :] == [7.0] * (11 - max(0, n - 1))
    ids[5] = 50
    assert lib.llama_score(engine.context, ids, 11, scores, error) == lib.LLAMA_ERROR_USAGE
