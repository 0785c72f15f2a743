"""Guesses change no text and no distribution, whoever guesses; those that are right save passes."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import checkpoints
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batch import ENDLESS, PIECES, SAMPLERS, SHAPE, finish, ids, write_ranked

import llama
from llama.batch import Batch
from llama.speculation import Draft, Lookup


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    checkpoints.write(folder / "model.bin", SHAPE)
    checkpoints.write(folder / "draft.bin", SHAPE, seed=1)
    write_ranked(folder / "tokenizer.bin", [*PIECES, "unused"])
    return folder


@pytest.fixture(scope="module")
def model(folder):
    with llama.Llama(folder / "model.bin", threads=1, sequences=3) as model:
        yield model


@pytest.fixture(scope="module")
def draft(folder):
    with llama.Llama(folder / "draft.bin", threads=1) as draft:
        yield draft


def of_future(tokens: list[int], wrong: float, seed: int):
    """A guesser that knows what comes, but for some of it."""
    rng = random.Random(seed)

    def guess(ids: list[int]) -> list[int]:
        found = tokens[len(ids) : len(ids) + rng.randint(0, 16)]
        return [rng.randrange(SHAPE.vocab_size) if rng.random() < wrong else token for token in found]

    return guess


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 40), st.integers(1, 60), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.integers(0, 2)
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 3),
    st.integers(0, 1000),
)
def test_no_text_depends_on_guesses(model, requests, sequences, seed):
    """Nor on those of the texts beside it, nor what is remembered of a text for a later one."""
    expected, joined = [], []
    cache = 96 + 16 * sequences if sequences > 2 else None
    with Batch(model, sequences=sequences, cache=cache) as batch:
        for i, (n, max_tokens, wrong, sampler) in enumerate(requests):
            prompt, options = ids(n, n % 3), {"max_tokens": max_tokens, "seed": i + 1} | SAMPLERS[sampler]
            expected.append(model.generate(prompt, **options))
            "".join(expected[-1])
            whole = prompt + expected[-1].request.tokens
            joined.append(batch.join(prompt, guesser=of_future(whole, wrong, seed + i), **options))
        finish(batch)
        for request, alone in zip(joined, expected, strict=True):
            if request.finish == "error":  # a cache that is full
                assert isinstance(request.error, llama.ResourceError)
                assert alone.request.tokens[: len(request.tokens)] == request.tokens
            else:
                assert (request.tokens, request.finish) == (alone.request.tokens, alone.finish)
        for slot in batch.slots:
            assert batch.save(slot.index)  # what is held has the ids that are said


@pytest.mark.parametrize("sampling", SAMPLERS)
def test_a_draft_changes_no_text(model, draft, sampling):
    prompt, options = ids(20, 1), {"max_tokens": 60, "seed": 7} | ENDLESS | sampling
    plain = model.generate(prompt, **options)
    text = "".join(plain)
    for other in ("lookup", draft, model_of_itself(model)):
        guessed = model.generate(prompt, draft=other, **options)
        assert "".join(guessed) == text
        assert guessed.request.tokens == plain.request.tokens


def model_of_itself(model: llama.Llama) -> llama.Llama:
    return llama.Llama(model.path, threads=1)


def test_right_guesses_save_passes(model):
    """Four of five tokens are drawn without a pass where a draft of four is always right."""
    with model_of_itself(model) as same:
        text = model.generate(ids(10, 1), draft=same, max_tokens=50, temperature=0, **ENDLESS)
        "".join(text)
    assert 36 <= text.request.accepted <= text.request.guessed


def test_a_draft_reads_a_long_text_in_chunks(model, monkeypatch):
    prompt, read = ids(60, 1), []
    with model_of_itself(model) as same:
        expected = Draft(same)(prompt)
    with model_of_itself(model) as same:
        generate = same.generate

        def counted(*arguments, **options):
            text = generate(*arguments, **options)
            read.append(text.request)
            return text

        monkeypatch.setattr(same, "generate", counted)
        draft = Draft(same, chunk=16)
        assert [draft(prompt) for _ in range(4)] == [[], [], [], expected]
    assert [len(request.prompt) - request.reused for request in read] == [16, 16, 16, 12]


def test_lookup_guesses_what_followed_the_last_time():
    lookup = Lookup(n=3)
    assert lookup([1, 2, 3, 4]) == []
    assert lookup([1, 2, 3, 4, 5, 2, 3]) == [4, 5, 2]
    assert lookup([1, 2, 3, 4, 5, 2, 3, 6, 2, 3]) == [6, 2, 3]
    assert lookup([1, 2, 3, 4, 5, 2, 3, 6, 2, 3, 4]) == [
        5,
        2,
        3,
    ]  # three tokens count more than the last time


def branches(model: llama.Llama, prompt: list[int], width: int) -> dict[int, float]:
    """The most likely tokens after a prompt, with probabilities that add up to 1, as top_k has them."""
    logits = model.logits(prompt)[-1].astype(np.float64)
    logits[1:3] = -np.inf  # as ENDLESS says
    top = np.argsort(-logits)[:width]
    likelihoods = np.exp(logits[top] - logits[top].max())
    return dict(zip(top.tolist(), likelihoods / likelihoods.sum(), strict=True))


def test_the_distribution_is_that_without_guesses(model):
    """Chi-square over the first three tokens of many texts; the third one comes after a guess."""
    prompt, n, rng, width = ids(10, 2), 6000, random.Random(0), 3
    expected, favourite = {}, {}
    for one, p in branches(model, prompt, width).items():
        for two, q in branches(model, [*prompt, one], width).items():
            favourite.setdefault(one, two)
            for three, r in branches(model, [*prompt, one, two], width).items():
                expected[one, two, three] = n * p * q * r
    sampling = {"temperature": 1.0, "top_p": 0, "top_k": width} | ENDLESS

    def guess(tokens: list[int]) -> list[int]:
        return [favourite[tokens[10]]] if len(tokens) == 11 else []

    with Batch(model, sequences=8) as batch:
        options = {"max_tokens": 4, "guesser": guess} | sampling
        requests = [batch.join(prompt, seed=rng.getrandbits(64), **options) for _ in range(n)]
        while batch.busy:
            batch.step()
    found = Counter(tuple(request.tokens[:3]) for request in requests)
    assert found.keys() <= expected.keys()
    assert sum(request.accepted for request in requests) > n // 4
    chi_square = sum((found[key] - value) ** 2 / value for key, value in expected.items())
    assert chi_square < 61.7  # 26 degrees of freedom, 1 in 10,000


def test_a_guesser_that_fails_ends_its_text_alone(model):
    def fail(ids: list[int]) -> list[int]:
        raise RuntimeError("no idea")

    prompt = ids(5, 1)
    with Batch(model, sequences=2) as batch:
        bad, good = batch.join(prompt, guesser=fail, **ENDLESS), batch.join(prompt, max_tokens=9, **ENDLESS)
        wrong = batch.join(prompt, guesser=lambda ids: [SHAPE.vocab_size], **ENDLESS)
        finish(batch)
    assert (bad.finish, good.finish, wrong.finish) == ("error", "length", "error")
    assert str(bad.error) == "no idea"
    assert isinstance(wrong.error, llama.UsageError)


def test_a_draft_that_does_not_fit_is_refused(model, tmp_path):
    checkpoints.write(tmp_path / "other.bin", dataclasses.replace(SHAPE, vocab_size=SHAPE.vocab_size + 1))
    with (
        llama.Llama(tmp_path / "other.bin") as other,
        pytest.raises(llama.UsageError, match="tokens, the model"),
    ):
        model.generate("a", draft=other)
    with pytest.raises(llama.UsageError, match="draft = 'guess', allowed 'lookup' or a Llama"):
        model.generate("a", draft="guess")
    with pytest.raises(llama.UsageError, match="draft = 5, allowed 'lookup' or a Llama"):
        model.generate("a", draft=5)
    with pytest.raises(llama.UsageError, match="draft = the Llama itself"):
        model.generate("a", draft=model)
