"""Texts of a Llama with several sequences: together as alone, awaited, cancelled, begun as an earlier one."""

from __future__ import annotations

import asyncio
import gc
import threading

import checkpoints
import numpy as np
import pytest
from test_batch import ENDLESS, PIECES, SHAPE, ids, write_ranked

import llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    checkpoints.write(folder / "model.bin", SHAPE)
    write_ranked(folder / "tokenizer.bin", [*PIECES, "unused"])
    return folder


@pytest.fixture
def model(folder):
    with llama.Llama(folder / "model.bin", threads=1, sequences=3) as model:
        yield model


@pytest.fixture
def single(folder):
    with llama.Llama(folder / "model.bin", threads=1) as single:
        yield single


LONG = {"max_tokens": 40} | ENDLESS


def test_all_texts_are_what_each_is_alone(model, single):
    """More than there are sequences, in whatever order they are read."""
    prompts = ["abc", ids(7, 1), "abc", "", ids(60, 2)]
    texts = model.generate_all(prompts, samples=2, seed=5, max_tokens=30)
    found = ["".join(text) for text in texts[::-1]][::-1]
    expected = [
        "".join(single.generate(prompt, seed=seed, max_tokens=30)) for prompt in prompts for seed in (5, 6)
    ]
    assert found == expected
    assert all(text.finish in ("length", "stop_token") for text in texts)


def test_texts_may_be_read_in_turns(model, single):
    texts = [model.generate("ab", seed=seed, **LONG) for seed in (1, 2, 3)]
    found = ["".join(pieces) for pieces in zip(*zip(*texts, strict=False), strict=True)]
    for seed, text in zip((1, 2, 3), found, strict=True):
        assert "".join(single.generate("ab", seed=seed, **LONG)).startswith(text)
        assert text


def test_one_text_more_than_sequences_ends_the_oldest(model):
    texts = [model.generate("ab", seed=seed, **LONG) for seed in range(4)]
    with pytest.raises(llama.ClosedError, match="another one was begun"):
        next(texts[0])
    for text in texts[1:]:
        assert "".join(text)


def test_a_text_that_nobody_has_takes_no_sequence(model):
    kept = [model.generate("ab", seed=seed, **LONG) for seed in range(2)]
    for _ in range(5):
        next(model.generate("ab", **LONG))
        gc.collect()
    assert all("".join(text) for text in kept)


def test_reading_beside_texts(model, single):
    texts = [model.generate("ab", seed=seed, **LONG) for seed in range(2)]
    first = [next(text) for text in texts]
    assert np.array_equal(model.logits(ids(50, 1)), single.logits(ids(50, 1)))
    assert model.score(ids(50, 1)) == single.score(ids(50, 1))
    assert np.array_equal(model.embed("ab"), single.embed("ab"))
    for seed, text in enumerate(texts):
        assert first[seed] + "".join(text) == "".join(single.generate("ab", seed=seed, **LONG))


def test_a_common_beginning_is_not_run_again(single):
    prompt, reused = ids(50, 3), []

    def write(prompt: list[int]) -> list[int]:
        text = single.generate(prompt, seed=1, max_tokens=10, **ENDLESS)
        "".join(text)
        reused.append(text.request.reused)
        return text.request.tokens

    tokens = write(prompt)
    assert write(prompt) == tokens
    write([*prompt, *tokens, 5])
    write([*prompt[:20], *ids(20, 4)])
    assert reused == [0, 49, 59, 20]


def test_async_texts_go_on_together(model, single):
    async def read(prompt: str, seed: int) -> str:
        return "".join([piece async for piece in model.generate(prompt, seed=seed, **LONG)])

    async def read_all() -> list[str]:
        return await asyncio.gather(read("a", 1), read("bc", 2), read("d", 3))

    expected = ["".join(single.generate(p, seed=s, **LONG)) for p, s in (("a", 1), ("bc", 2), ("d", 3))]
    assert asyncio.run(read_all()) == expected


def test_a_task_that_is_cancelled_cancels_its_text(model):
    text = model.generate("a", **LONG)

    async def read() -> None:
        async for _ in text:
            await asyncio.sleep(0)

    async def interrupt() -> None:
        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupt())
    assert text.finish == "cancelled"


def test_cancel_ends_a_text_and_not_the_others(model, single):
    one, two = (model.generate("ab", seed=seed, **LONG) for seed in (1, 2))
    assert next(one)
    assert next(two)
    threading.Thread(target=one.cancel).start()
    "".join(two)
    assert list(one) == []
    assert (one.finish, two.finish) == ("cancelled", "length")
    one.cancel()
    assert two.finish == "length"


def test_perplexity_is_that_of_the_scores(model):
    found, tokens = model.perplexity("abc cab"), model.encode("abc cab")
    assert found.log_probability == pytest.approx(sum(model.score(tokens)))
    assert (found.documents, found.tokens) == (1, len(tokens) - 1)


@pytest.mark.parametrize("texts", [(), ("",), ("", "")])
def test_nothing_has_no_perplexity(model, texts):
    with pytest.raises(llama.UsageError, match="no token to predict"):
        model.perplexity(*texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "abc"}, "prompts = 'abc', allowed a list"),
        ({"prompts": {"a": 1}}, "prompts = {'a': 1}, allowed a list"),
        ({"prompts": 5}, "prompts = 5, allowed a list"),
        ({"samples": 0}, "samples = 0, allowed 1 and more"),
        ({"samples": 1.5}, "samples = 1.5, allowed a whole number"),
        ({"samples": True}, "samples = True, allowed a whole number"),
        ({"seed": "x"}, "seed = 'x', allowed a whole number"),
        ({"seed": -1}, "seed = -1, allowed 0 to 18446744073709551615"),
        ({"seed": 2**64}, "seed = 18446744073709551616, allowed 0 to 18446744073709551615"),
    ],
)
def test_wrong_options_of_many_texts_are_refused(model, options, message):
    with pytest.raises(llama.UsageError, match=message):
        model.generate_all(**{"prompts": ["a"]} | options)


def test_without_a_number_there_is_one_sequence(folder):
    with llama.Llama(folder / "model.bin", sequences=0) as one:
        assert one.sequences == 1


def test_wrong_numbers_of_sequences_are_refused(folder):
    with pytest.raises(llama.UsageError, match="sequences"):
        llama.Llama(folder / "model.bin", sequences=-1)
