"""/v1/completions: what it writes is what Llama.generate writes, and says of it what Llama.score says."""

from __future__ import annotations

import base64
import math
import threading
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import PIECES

PROMPT = "abc def"
PIECE_A = str(PIECES.index("a"))
LETTERS = {str(PIECES.index(letter)): 50 for letter in "abcdefghij"}


def joined(lists) -> list:
    return list(chain.from_iterable(lists))


def written(server, **fields) -> dict:
    answer = server.post("/v1/completions", {"prompt": PROMPT, "seed": 7} | fields)
    assert answer.status == 200, answer.body
    return answer.json


def text(server, **fields) -> str:
    return written(server, **fields)["choices"][0]["text"]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_p": 0.8},
        {"top_k": 5, "repeat_penalty": 1.3},
        {"min_p": 0.2, "presence_penalty": 0.5, "frequency_penalty": 0.25},
    ],
)
def test_a_text_is_that_of_generate(server, tiny, sampling):
    expected = "".join(tiny.generate(PROMPT, max_tokens=30, seed=7, **{"top_p": 1.0} | sampling))
    assert text(server, max_tokens=30, **sampling) == expected


def test_a_prompt_may_be_text_ids_or_several_of_either(server, tiny):
    other = "j i h"
    ids = [tiny.encode(PROMPT), tiny.encode(other)]
    expected = [text(server, prompt=prompt) for prompt in (PROMPT, other)]
    assert text(server, prompt=ids[0]) == expected[0]
    for several in ([PROMPT, other], ids):
        answer = written(server, prompt=several)
        assert [choice["text"] for choice in answer["choices"]] == expected
        assert [choice["index"] for choice in answer["choices"]] == [0, 1]
        assert answer["usage"]["prompt_tokens"] == len(ids[0]) + len(ids[1])


def test_n_texts_have_seeds_that_follow_each_other(server):
    choices = written(server, n=3)["choices"]
    assert [choice["text"] for choice in choices] == [text(server, seed=seed) for seed in (7, 8, 9)]


def test_a_stream_comes_to_the_same(server):
    fields = {"n": 2, "max_tokens": 20, "logprobs": 3, "echo": True}
    whole = written(server, **fields)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    answer = server.post("/v1/completions", {"prompt": PROMPT, "seed": 7} | fields | options)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.body.endswith(b"\n\ndata: [DONE]\n\n")
    *parts, last = answer.events
    assert last["choices"] == []
    counts = [
        tuple(usage[f"{kind}_tokens"] for kind in ("prompt", "completion"))
        for usage in (last["usage"], whole["usage"])
    ]
    assert counts[0] == counts[1]
    for i, choice in enumerate(whole["choices"]):
        own = [part["choices"][0] for part in parts if part["choices"][0]["index"] == i]
        assert "".join(part["text"] for part in own) == choice["text"]
        for name in ("tokens", "token_logprobs", "text_offset", "token_ids"):
            assert joined(part["logprobs"][name] for part in own) == choice["logprobs"][name]
        assert [part["finish_reason"] for part in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]


def test_a_stop_string_and_its_tokens_are_not_told(server):
    fields = {"prompt": PROMPT, "seed": 7, "max_tokens": 40, "logprobs": 0, "logit_bias": LETTERS}
    whole = written(server, **fields)["choices"][0]
    middle = whole["text"][10:13]
    expected = whole["text"][: whole["text"].index(middle)]
    for stream in (False, True):
        answer = server.post("/v1/completions", fields | {"stop": [middle], "stream": stream})
        parts = [event["choices"][0] for event in answer.events] if stream else answer.json["choices"]
        assert "".join(part["text"] for part in parts) == expected
        assert "".join(joined(part["logprobs"]["tokens"] for part in parts)) == expected
        assert parts[-1]["finish_reason"] == "stop"


# --- Log-probabilities


def test_those_of_a_prompt_are_those_of_score(server, tiny):
    choice = written(server, echo=True, logprobs=5, max_tokens=0)["choices"][0]
    found, ids = choice["logprobs"], tiny.encode(PROMPT)
    assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
    assert found["token_ids"] == ids
    assert found["token_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(tiny.score(ids), abs=1e-5)
    for token, likely, logprob in zip(
        found["tokens"], found["top_logprobs"], found["token_logprobs"], strict=True
    ):
        assert (likely is None) == (logprob is None)
        assert likely is None or (likely[token] == logprob and len(likely) in (5, 6))


def test_those_of_a_text_are_those_of_a_prompt(server):
    first = written(server, logprobs=2, max_tokens=20, echo=True)["choices"][0]["logprobs"]
    again = written(server, prompt=first["token_ids"], logprobs=2, max_tokens=0, echo=True)["choices"][0][
        "logprobs"
    ]
    assert again["token_logprobs"][1:] == pytest.approx(first["token_logprobs"][1:], abs=1e-4)
    assert again["tokens"] == first["tokens"]
    assert again["text_offset"] == first["text_offset"]


@settings(max_examples=40, deadline=None)
@given(st.text("abc déf 日本🙂", min_size=1, max_size=30))
def test_an_offset_is_where_a_token_begins(server, prompt):
    choice = written(server, prompt=prompt, echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert choice["text"] == prompt
    tokens, offsets = choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"]
    assert offsets == sorted(offsets)
    for token, offset in zip(tokens, offsets, strict=True):
        if not token.startswith("bytes:") and "<s>" not in token:
            assert prompt[offset:].startswith(token) or prompt[offset - 1 :].startswith(token)


def test_bias_and_eos_are_minded(server):
    assert text(server, logit_bias={PIECE_A: 100}, max_tokens=4) == "aaaa"
    assert written(server, ignore_eos=True, max_tokens=60)["choices"][0]["finish_reason"] == "length"
    bos = {"max_tokens": 60, "logit_bias": {"1": 50}}  # BOS ends a text, too
    assert written(server, **bos)["choices"][0]["finish_reason"] == "stop"
    assert written(server, ignore_eos=True, **bos)["choices"][0]["finish_reason"] == "length"


# --- Many at once


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.text("abcdefghij ", max_size=30), st.integers(1, 30)), min_size=2, max_size=8))
def test_together_is_alone(server, tiny, asked):
    found = [""] * len(asked)

    def ask(i: int) -> None:
        found[i] = text(server, prompt=asked[i][0], max_tokens=asked[i][1], temperature=0)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["".join(tiny.generate(prompt, max_tokens=n, temperature=0)) for prompt, n in asked]


def test_a_known_beginning_is_not_run_again(server):
    prompt = "abc" * 20
    written(server, prompt=prompt)
    usage = written(server, prompt=prompt)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1


# --- Embeddings


def test_embeddings_are_means_in_floats_and_in_base64(server, tiny):
    for body in ({"input": PROMPT}, {"input": tiny.encode(PROMPT)}, {"input": [PROMPT, "j"]}):
        floats = server.post("/v1/embeddings", body).json["data"]
        coded = server.post("/v1/embeddings", body | {"encoding_format": "base64"}).json["data"]
        for one, other in zip(floats, coded, strict=True):
            values = np.frombuffer(base64.b64decode(other["embedding"]), "<f4")
            assert values.tolist() == pytest.approx(one["embedding"])
            assert len(values) == tiny.config.dim
            assert math.isfinite(sum(values))
