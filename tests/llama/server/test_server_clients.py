"""Clients that others wrote, unmodified: the openai package, curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess

import openai
import pytest

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def client(chatty):
    with openai.OpenAI(base_url=f"{chatty.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat(client):
    answer = client.chat.completions.create(
        model="any", messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=3
    )
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == (
        "assistant",
        ANSWER,
        "stop",
    )
    told = choice.logprobs.content
    assert "".join(entry.token for entry in told) == ANSWER
    assert all(bytes(entry.bytes).decode() == entry.token for entry in told)
    assert all(
        entry.top_logprobs[0].logprob == entry.logprob and len(entry.top_logprobs) == 3 for entry in told
    )
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_what_only_concerns_openai_changes_no_answer(client):
    fields = {"user": "me", "service_tier": "auto", "store": False, "metadata": {"a": "b"}}
    fields |= {"safety_identifier": "me", "prompt_cache_key": "key"}
    answer = client.chat.completions.create(model="any", messages=MESSAGES, temperature=0, **fields)
    assert answer.choices[0].message.content == ANSWER


def test_a_chat_as_a_stream(client):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *parts, last = client.chat.completions.create(model="any", messages=MESSAGES, temperature=0, **options)
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content for part in parts) == ANSWER
    assert parts[-1].choices[0].finish_reason == "stop"
    assert last.choices == []
    assert last.usage.completion_tokens == len(ANSWER.split()) + 2  # the full stop, and what ends the text


def test_many_chats_at_once(chatty):
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{chatty.url}/v1", api_key="none") as client:

            async def one() -> str:
                stream = await client.chat.completions.create(
                    model="any", messages=MESSAGES, temperature=0, stream=True
                )
                return "".join([part.choices[0].delta.content async for part in stream])

            return await asyncio.gather(*(one() for _ in range(6)))

    assert asyncio.run(ask()) == [ANSWER] * 6


def test_completions_embeddings_and_models(client, smollm2):
    text = (
        client.completions.create(model="any", prompt="Once upon", temperature=0, max_tokens=8)
        .choices[0]
        .text
    )
    assert text == "".join(smollm2.generate("Once upon", temperature=0, max_tokens=8))
    one, other = client.embeddings.create(model="any", input=["a fox", "a hare"]).data
    assert len(one.embedding) == len(other.embedding) == smollm2.config.dim
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "cria"


def test_an_answer_that_was_begun_goes_on(client):
    begun = [*MESSAGES, {"role": "assistant", "content": "The capital of"}]
    answer = client.chat.completions.create(model="any", messages=begun, temperature=0)
    assert "The capital of" + answer.choices[0].message.content == ANSWER


def test_errors_are_those_of_the_package(client):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="any", messages=MESSAGES, temperature=-1)
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model="any", prompt="abc " * 2000)
    assert raised.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")
    again = client.with_options(max_retries=2)
    with pytest.raises(openai.APIStatusError) as raised:
        again.chat.completions.create(model="any", messages=MESSAGES, tools=[{"type": "function"}])
    assert raised.value.status_code == 501
    assert raised.value.request.headers["x-stainless-retry-count"] == "0"


# --- Answers that are held to a schema

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_that_is_held_to_a_schema(client, temperature):
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    answer = client.chat.completions.create(
        model="any", messages=MESSAGES, temperature=temperature, seed=3, response_format=form, max_tokens=200
    )
    found = json.loads(answer.choices[0].message.content)
    assert set(found) == set(PERSON["required"])
    assert 0 <= found["age"] <= 99
    assert set(found["tags"]) <= {"a", "b"}
    assert answer.choices[0].finish_reason == "stop"


def test_an_answer_that_is_an_object(client):
    form = {"type": "json_object"}
    asked = [{"role": "user", "content": 'Answer {"city": "Paris"}.'}]
    answer = client.chat.completions.create(
        model="any", messages=asked, temperature=0, response_format=form, max_tokens=200
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


# --- curl


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not here")
def test_curl(chatty):
    body = json.dumps({"messages": MESSAGES, "temperature": 0})
    line = [
        "curl",
        "-sS",
        f"{chatty.url}/v1/chat/completions",
        "-H",
        "Content-Type: application/json",
        "-d",
        body,
    ]
    answer = json.loads(subprocess.run(line, capture_output=True, check=True, timeout=60).stdout)
    assert answer["choices"][0]["message"]["content"] == ANSWER
