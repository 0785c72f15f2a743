"""LiteLLM, which speaks to any server of OpenAI's API by the name openai/MODEL."""

from __future__ import annotations

import json

import litellm
import pytest

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.fixture(scope="module")
def where(chatty) -> dict[str, str]:
    return {"model": "openai/any", "api_base": f"{chatty.url}/v1", "api_key": "none"}


def test_a_chat(where):
    answer = litellm.completion(messages=MESSAGES, temperature=0, **where)
    assert answer.choices[0].message.content == ANSWER
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_chat_as_a_stream(where):
    parts = litellm.completion(messages=MESSAGES, temperature=0, stream=True, **where)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == ANSWER


def test_an_answer_by_a_schema(where):
    form = {"type": "json_schema", "json_schema": {"name": "number", "schema": SCHEMA}}
    answer = litellm.completion(
        messages=MESSAGES, temperature=0, response_format=form, max_tokens=50, **where
    )
    assert isinstance(json.loads(answer.choices[0].message.content)["n"], int)


def test_embeddings(where, chatty):
    found = litellm.embedding(input=["a fox", "a hare"], encoding_format="float", **where)
    assert [len(one["embedding"]) for one in found.data] == [chatty.engine.llama.config.dim] * 2


def test_an_error_is_one_of_theirs(where):
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=MESSAGES, temperature=-1, **where)
