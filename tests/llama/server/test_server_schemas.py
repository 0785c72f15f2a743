"""What a request may say is checked in a time that does not grow with what is wrong with it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from llama.server.schemas import (
    MAX_IDS,
    MAX_MESSAGES,
    MAX_NAMES,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    NativeCompletionBody,
    TemplateBody,
)

MANY = 100_000  # errors of which take ten seconds and hundreds of megabytes
CHAT = {"messages": [{"role": "user", "content": "a"}]}
NAN = float("nan")


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (CompletionBody, {"prompt": [True] * MANY}),
        (CompletionBody, {"prompt": [[1.5] * MANY] * 2}),
        (CompletionBody, {"prompt": "a", "stop": [1] * MANY}),
        (CompletionBody, {"prompt": "a", "logit_bias": {str(i): "x" for i in range(MANY)}}),
        (CompletionBody, {"prompt": "a"} | {str(i): 1 for i in range(MANY)}),
        (NativeCompletionBody, {"prompt": [True] * MANY}),
        (NativeCompletionBody, {"prompt": [1, "a", [[1.5] * MANY]]}),
        (NativeCompletionBody, {"prompt": [[1.5] * MANY] * 2}),
        (NativeCompletionBody, {"prompt": "a", "logit_bias": [[i, "x"] for i in range(MANY)]}),
        (ChatBody, {"messages": [1] * MANY}),
        (ChatBody, {"messages": [{"role": "user", "content": [1] * MANY}]}),
        (ChatBody, CHAT | {"modalities": ["smell"] * MANY}),
    ],
)
def test_of_many_errors_few_are_made(body, fields):
    with pytest.raises(ValidationError) as raised:
        body.model_validate(fields)
    assert raised.value.error_count() < 10


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (ChatBody, {"messages": CHAT["messages"] * (MAX_MESSAGES + 1)}),
        (
            ChatBody,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * (MAX_MESSAGES + 1)}]},
        ),
        (TemplateBody, {"messages": CHAT["messages"] * (MAX_MESSAGES + 1)}),
        (DetokenizeBody, {"tokens": [1] * (MAX_IDS + 1)}),
    ],
)
def test_what_takes_long_to_turn_into_text_is_bounded(body, fields):
    with pytest.raises(ValidationError, match="at most"):
        body.model_validate(fields)


def test_what_is_not_looked_at_makes_no_errors():
    CompletionBody.model_validate({"prompt": "a", "metadata": {"a": [NAN] * MANY}})
    ChatBody.model_validate(CHAT | {"tools": [NAN] * MANY})


@pytest.mark.parametrize("prompt", [1, [1.5], ["a", 1], [[1], "a"], {}])
def test_a_prompt_of_another_kind_is_told_the_kinds(prompt):
    with pytest.raises(ValidationError) as raised:
        CompletionBody.model_validate({"prompt": prompt})
    [error] = raised.value.errors()
    assert error["loc"] == ("prompt",)
    assert error["msg"] == "allowed are a text, a list of ids, and a list of either"


def test_as_many_biases_as_are_allowed():
    bias = {str(i): 1.0 for i in range(MAX_NAMES)}
    assert CompletionBody.model_validate({"prompt": "a", "logit_bias": bias}).logit_bias == bias
