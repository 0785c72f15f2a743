"""Batch: what one request writes is what it writes alone, whoever joins, leaves, or shares its beginning."""

from __future__ import annotations

import random
import threading
import time

import checkpoints
import numpy as np
import pytest
from checkpoints import Shape
from helpers import write_ranked
from hypothesis import given, settings
from hypothesis import strategies as st

import llama
from llama import batch as batch_module
from llama.batch import Batch, common_prefix

PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), " ", *"abcdefghij"]
SHAPE = Shape(dim=32, hidden_dim=64, n_heads=4, n_kv_heads=2, vocab_size=len(PIECES) + 1, max_seq_len=96)
SAMPLERS = [{"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.8}, {"top_k": 20, "repeat_penalty": 1.2}]
ENDLESS = {"logit_bias": {1: -float("inf"), 2: -float("inf")}}  # neither BOS nor EOS ends a text
EXHAUSTED = 400  # steps that no test needs


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    checkpoints.write(folder / "model.bin", SHAPE)
    write_ranked(folder / "tokenizer.bin", [*PIECES, "unused"])
    with llama.Llama(folder / "model.bin", threads=1) as model:
        yield model


def ids(n: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, SHAPE.vocab_size), k=n)


def finish(batch: Batch) -> dict[batch_module.Request, str]:
    """Runs all that is in a batch to its end. Returns the texts."""
    texts: dict[batch_module.Request, str] = {}
    for _ in range(EXHAUSTED):
        if not batch.busy:
            return texts
        for event in batch.step():
            texts[event.request] = texts.get(event.request, "") + event.text
    raise AssertionError("the batch never ends")


def alone(model: llama.Llama, prompt: list[int], **options) -> str:
    return "".join(model.generate(prompt, **options))


def words(allowed: set[int]) -> np.ndarray:
    """A mask of these tokens."""
    mask = np.zeros((SHAPE.vocab_size + 31) // 32, np.uint32)
    for token in allowed:
        mask[token // 32] |= np.uint32(1 << token % 32)
    return mask


# --- Batched is alone


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 12),  # the step at which it joins
            st.integers(1, 40),  # tokens of its prompt
            st.integers(0, 2),  # the text that its prompt is the beginning of
            st.integers(1, 30),  # tokens at most
            st.integers(0, len(SAMPLERS) - 1),
            st.one_of(st.none(), st.integers(1, 20)),  # steps after which it is cancelled
        ),
        min_size=1,
        max_size=9,
    ),
    st.integers(1, 4),
    st.sampled_from([0, 1, 7, 16]),
    st.booleans(),
)
def test_batched_is_alone_to_the_bit(model, requests, sequences, prefill, tight):
    texts = [ids(40, seed) for seed in range(3)]
    cache = 96 + 16 * sequences if tight and sequences > 2 else None
    with Batch(model, sequences=sequences, prefill=prefill, cache=cache, threads=2) as batch:
        joined, written = {}, {}
        for now in range(EXHAUSTED):
            for i, (start, n, text, max_tokens, sampler, _) in enumerate(requests):
                if start == now:
                    options = {"max_tokens": max_tokens, "seed": i + 1} | SAMPLERS[sampler]
                    joined[i] = batch.join(texts[text][:n], **options), texts[text][:n], options
            for i, request in enumerate(requests):
                if request[-1] is not None and request[0] + request[-1] == now:
                    batch.cancel(joined[i][0])
            for event in batch.step():
                written[event.request] = written.get(event.request, "") + event.text
            if now > 12 and not batch.busy:
                break
    assert not batch.busy
    for request, prompt, options in joined.values():
        expected = alone(model, prompt, **options)
        if request.finish in ("cancelled", "error"):  # of a cache that is full
            assert expected.startswith(written.get(request, ""))
            assert request.finish == "cancelled" or isinstance(request.error, llama.ResourceError)
        else:
            assert written[request] == expected


def test_a_common_beginning_is_not_run_again(model):
    prompt = ids(60, 1)
    with Batch(model, sequences=4) as batch:
        together = [batch.join(prompt, max_tokens=10, seed=seed) for seed in range(1, 7)]
        texts = finish(batch)
        assert [request.reused for request in together] == [0, 59, 59, 59, 59, 59]
        later = batch.join([*prompt[:40], *ids(10, 2)], max_tokens=10, temperature=0)
        texts |= finish(batch)
        assert later.reused == 40
        assert texts[later] == alone(model, later.prompt, max_tokens=10, temperature=0)
    for seed, request in enumerate(together, 1):
        assert texts[request] == alone(model, prompt, max_tokens=10, seed=seed)


def test_a_conversation_goes_on_in_its_own_slot(model):
    with Batch(model, sequences=2) as batch:
        first = batch.join(ids(20, 1), max_tokens=8, temperature=0, **ENDLESS)
        finish(batch)
        held = first.prompt + first.tokens[:-1]  # the last token drawn is not run
        second = batch.join([*held, *ids(5, 2)], max_tokens=8, temperature=0)
        finish(batch)
        assert second.reused == len(held) == 27
        assert [slot.ids == [] for slot in batch.slots] == [False, True]


def test_sharing_takes_no_memory_until_texts_part(model):
    prompt = ids(64, 3)
    with Batch(model, sequences=4) as batch:
        batch.join(prompt, max_tokens=1)
        finish(batch)
        before = batch.free
        assert before == 4 * 96 - 64
        for seed in range(1, 4):
            batch.join(prompt, max_tokens=8, seed=seed, **ENDLESS)
        finish(batch)
        assert before - batch.free == 3 * (16 + 16)  # a copy of the last page, and what was written behind it


def test_a_prompt_is_read_between_the_tokens_of_others(model):
    with Batch(model, sequences=2, prefill=8) as batch:
        text = batch.join(ids(3, 1), max_tokens=40, temperature=0, **ENDLESS)
        batch.step()
        batch.join(ids(60, 2), max_tokens=2)
        for n in range(2, 10):  # every step brings a token, while the prompt of 60 takes 8 steps
            batch.step()
            assert len(text.tokens) == n
        finish(batch)


def test_a_long_prompt_does_not_hold_up_short_ones(model):
    """Two short texts, one after the other, are done while the prompt of 80 is read, 4 tokens a step."""
    with Batch(model, sequences=2, prefill=4) as batch:
        long = batch.join(ids(80, 1), max_tokens=2, **ENDLESS)
        batch.step()
        for seed in (2, 3):
            short = batch.join(ids(6, seed), max_tokens=3, **ENDLESS)
            while short.finish is None:
                batch.step()
        assert not long.tokens
        finish(batch)
        assert len(long.tokens) == 2


@pytest.mark.parametrize("options", [{"rope_theta": 500.0}, {"exact": True}, {"kv": "bf16"}])
def test_a_batch_has_the_options_of_its_llama(tmp_path, options):
    path, prompt = tmp_path / "model.bin", ids(40, 5)
    checkpoints.write(path, SHAPE, version=2)  # int8, for exact to change something
    write_ranked(tmp_path / "tokenizer.bin", [*PIECES, "unused"])
    with llama.Llama(path, threads=1) as plain, llama.Llama(path, threads=1, **options) as other:
        others, without = (log_softmax(one.logits(prompt)[-1]).max() for one in (other, plain))
        assert abs(others - without) > 1e-5
        with Batch(other, sequences=1) as batch:
            batch.join(prompt, max_tokens=1, temperature=0, logprobs=0)
            (found,) = [event.logprob for event in batch.step() if event.token is not None]
        assert found == pytest.approx(others, abs=1e-6)


def test_a_cache_that_is_full_forgets_old_texts_then_ends_the_newest(model):
    with Batch(model, sequences=3, cache=96) as batch:
        old = batch.join(ids(40, 1), max_tokens=2)
        finish(batch)
        options = {"max_tokens": 60, "temperature": 0} | ENDLESS
        one, two = (batch.join(ids(30, seed), **options) for seed in (2, 3))
        texts = finish(batch)
        assert old.finish is not None
        assert batch.slots[0].ids[:40] != old.prompt
        assert one.finish == "length"
        assert texts[one] == alone(model, one.prompt, **options)
        assert two.finish == "error"
        assert str(two.error) == "the cache of 96 positions is full"


def test_cancel_takes_a_request_out_of_the_queue_and_of_the_batch(model):
    with Batch(model, sequences=1) as batch:
        runs, waits = batch.join(ids(5, 1), seed=1), batch.join(ids(5, 2), seed=1)
        batch.step()
        batch.cancel(waits)
        batch.cancel(runs)
        events = batch.step()
        assert {(event.request, event.finish) for event in events} == {
            (runs, "cancelled"),
            (waits, "cancelled"),
        }
        assert not batch.busy
        batch.cancel(runs)  # has ended
        assert batch.step() == []


def test_join_and_cancel_from_other_threads(model):
    with Batch(model, sequences=4, threads=1) as batch:
        requests = []

        def come_and_go() -> None:
            for seed in range(1, 40):
                requests.append(batch.join(ids(5, seed), max_tokens=5, seed=seed))
                batch.cancel(requests[-seed % len(requests)])

        threads = [threading.Thread(target=come_and_go) for _ in range(3)]
        for thread in threads:
            thread.start()
        while batch.busy or any(thread.is_alive() for thread in threads):
            batch.step()
        assert all(request.finish in ("cancelled", "length", "stop_token") for request in requests)
        assert len(requests) == 117


def test_stop_strings_and_times(model):
    options = {"max_tokens": 30, "seed": 3, "mask": lambda _: words(set(range(260, 270)))}  # letters
    with Batch(model, sequences=2) as batch:
        first = batch.join(ids(5, 7), **options)
        whole = finish(batch)[first]
        request = batch.join(ids(5, 7), stop=["zzz", whole[4:7]], **options)
        assert finish(batch)[request] == whole[: whole.index(whole[4:7])]
        assert request.finish == "stop_string"
        assert request.prompt_seconds > 0
        assert request.generate_seconds > 0


def test_a_stop_that_is_a_text_is_one_string(model):
    with Batch(model, sequences=1) as batch:
        assert len(batch.join([3], stop="abc")._stops) == 1


# --- Log-probabilities


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


@pytest.mark.parametrize("n", [0, 1, 5, 128])
def test_logprobs_are_those_of_the_models_own_logits(model, n):
    prompt, events = ids(12, 4), []
    with Batch(model, sequences=2) as batch:
        request = batch.join(prompt, max_tokens=12, seed=5, temperature=0.3, logprobs=n, **ENDLESS)
        other = batch.join(ids(3, 1), max_tokens=20)
        while batch.busy:
            events += [
                event for event in batch.step() if event.request is request and event.token is not None
            ]
    assert [event.token for event in events] == request.tokens
    assert other.tokens
    logits = model.logits(prompt + request.tokens)
    for event, row in zip(events, logits[len(prompt) - 1 :], strict=False):
        expected = log_softmax(row)
        assert event.logprob == pytest.approx(expected[event.token], abs=1e-5)
        order = np.argsort(-row, kind="stable")[:n]
        assert [token for token, _ in event.top] == order.tolist()
        np.testing.assert_allclose([logprob for _, logprob in event.top], expected[order], atol=1e-5)


def test_without_the_wish_there_are_none(model):
    with Batch(model, sequences=1) as batch:
        batch.join(ids(3, 1), max_tokens=1)
        event = batch.step()[0]
        assert event.logprob is None
        assert event.top == ()


# --- Masks


@pytest.mark.parametrize("options", SAMPLERS)
def test_only_tokens_of_the_mask_are_drawn(model, options):
    asked = []

    def mask(tokens: list[int]) -> np.ndarray:
        asked.append(list(tokens))
        return words({10 + len(tokens), 60})

    with Batch(model, sequences=2, prefill=4) as batch:
        request = batch.join(
            ids(20, 1), max_tokens=12, mask=mask, seed=3, presence_penalty=50, logit_bias={9: 99}, **options
        )
        batch.join(ids(5, 2), max_tokens=30)
        finish(batch)
    assert len(request.tokens) == 12
    for i, token in enumerate(request.tokens):
        assert token in (10 + i, 60)
    assert asked == [request.tokens[:i] for i in range(12)]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda _: words(set()), "the mask allows no token"),
        (lambda _: np.zeros(2, np.uint32), "the mask has 2 words, 9 are needed"),
        (lambda _: 1 / 0, "division by zero"),
    ],
)
def test_a_mask_that_fails_ends_its_request_alone(model, mask, message):
    with Batch(model, sequences=2) as batch:
        bad, good = batch.join(ids(4, 1), mask=mask), batch.join(ids(4, 2), max_tokens=9, seed=1)
        texts = finish(batch)
    assert bad.finish == "error"
    assert message in str(bad.error)
    assert texts[good] == alone(model, good.prompt, max_tokens=9, seed=1)


# --- Saved sequences


def test_a_restored_sequence_is_one_never_saved(model):
    options = {"max_tokens": 20, "temperature": 0}
    with Batch(model, sequences=2) as batch:
        batch.join(ids(37, 1), max_tokens=5, temperature=0, **ENDLESS)
        finish(batch)
        data, held = batch.save(0), list(batch.slots[0].ids)
        assert len(held) == 41
    with Batch(model, sequences=3) as batch:
        batch.join(ids(50, 9), max_tokens=3)  # leaves something in the pages that are taken
        finish(batch)
        batch.erase(0)
        slot = batch.restore(data)
        assert batch.slots[slot].ids == held
        assert batch.save(slot) == data
        request = batch.join([*held, 5], **options)
        texts = finish(batch)
        assert request.reused == 41
        assert texts[request] == alone(model, [*held, 5], **options)


def test_slots_with_a_request_are_not_touched(model):
    with Batch(model, sequences=1) as batch:
        batch.join(ids(5, 1), seed=1)
        data = batch.save(0)
        batch.step()
        for refused in (lambda: batch.restore(data, 0), lambda: batch.erase(0)):
            with pytest.raises(llama.UsageError, match="slot 0 has a request"):
                refused()
        with pytest.raises(llama.UsageError, match="every slot has a request"):
            batch.restore(data)
        with pytest.raises(llama.UsageError, match="slot = 1, allowed 0 to 0"):
            batch.save(1)


# --- Refusals


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "the prompt has 0 tokens, allowed 1 to 96"),
        (range(3, 100), {}, "the prompt has 97 tokens, allowed 1 to 96"),
        ([3, SHAPE.vocab_size], {}, f"token = {SHAPE.vocab_size}, allowed 0 to {SHAPE.vocab_size - 1}"),
        ([1.0], {}, "prompt = \\[1.0\\], allowed token ids"),
        ("abc", {}, "prompt = 'abc', allowed token ids"),
        ([3], {"max_tokens": 0}, "max_tokens = 0, allowed 1 and more"),
        ([3], {"max_tokens": True}, "max_tokens = True, allowed a whole number"),
        ([3], {"logprobs": True}, "logprobs = True, allowed a whole number"),
        ([3], {"stop": {"a": 1}}, "stop = {'a': 1}, allowed a string"),
        ([3], {"logprobs": 129}, "logprobs = 129, allowed 0 to 128"),
        ([3], {"temperature": -1.0}, "temperature = -1, allowed 0 or more"),
        ([3], {"stop": [""]}, "stop string 1 is empty"),
        ([3], {"stop": ["a\0"]}, "NUL"),
    ],
)
def test_a_bad_request_is_refused_when_it_joins(model, prompt, options, message):
    with Batch(model, sequences=1) as batch, pytest.raises(llama.UsageError, match=message):
        batch.join(prompt, **options)
    assert not batch.busy


def test_an_unknown_option_is_a_type_error(model):
    with Batch(model, sequences=1) as batch, pytest.raises(TypeError, match="join\\(\\) has no option heat"):
        batch.join([3], heat=1)


def test_a_closed_batch_says_so(model):
    batch = Batch(model, sequences=1)
    batch.close()
    batch.close()
    with pytest.raises(llama.ClosedError, match="this Batch is closed"):
        batch.step()


def test_the_cache_holds_a_text_of_the_whole_context_at_least(model):
    with pytest.raises(llama.UsageError, match="cache = 95, allowed 96, the context, to 192"):
        Batch(model, sequences=2, cache=95)


# --- The rest


def test_common_prefix():
    assert common_prefix([], [1]) == 0
    assert common_prefix([1, 2, 3], [1, 2, 3]) == 3
    assert common_prefix([1, 2, 3, 4], [1, 2, 9, 4]) == 2
    for n in range(20):
        assert common_prefix([*range(n), -1, 7], [*range(n), -2, 7]) == n


def test_defaults_are_those_of_generate(model):
    with Batch(model, sequences=1) as batch:
        request = batch.join(ids(5, 1), max_tokens=20, seed=4)
        assert finish(batch)[request] == alone(model, ids(5, 1), max_tokens=20, seed=4)


def test_python_adds_microseconds_to_a_step(model, monkeypatch):
    """Of 8 sequences: the time of steps less that of C. The bound is ten times what was measured."""
    spent, step = [], batch_module.lib.llama_generation_step
    lib = type("Timed", (), {name: getattr(batch_module.lib, name) for name in dir(batch_module.lib)})

    def timed(*arguments: object) -> int:
        start = time.perf_counter()
        code = step(*arguments)
        spent.append(time.perf_counter() - start)
        return code

    lib.llama_generation_step = staticmethod(timed)
    monkeypatch.setattr(batch_module, "lib", lib)
    with Batch(model, sequences=8, threads=1) as batch:
        for seed in range(1, 9):
            batch.join(ids(5, seed), seed=seed, **ENDLESS)
        whole = []
        while batch.busy:
            start = time.perf_counter()
            batch.step()
            whole.append(time.perf_counter() - start)
    added = sorted(a - b for a, b in zip(whole, spent, strict=False))
    assert added[len(added) // 2] < 300e-6
