"""LangChain's adapter for OpenAI, pointed at the server."""

from __future__ import annotations

import asyncio

import pytest
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


@pytest.fixture(scope="module")
def where(chatty) -> dict[str, str]:
    return {"base_url": f"{chatty.url}/v1", "api_key": "none", "model": "any"}


@pytest.fixture(scope="module")
def chat(where) -> ChatOpenAI:
    return ChatOpenAI(temperature=0, max_retries=0, **where)


def test_a_chat(chat):
    answer = chat.invoke([("system", "You are a helpful assistant."), ("human", QUESTION)])
    assert "Paris" in answer.content
    assert answer.usage_metadata["output_tokens"] > 3
    assert chat.invoke(QUESTION).content == ANSWER


def test_a_chat_as_a_stream(chat):
    parts = list(chat.stream(QUESTION))
    assert "".join(part.content for part in parts) == ANSWER
    assert len(parts) > 5


def test_many_at_once(chat):
    async def ask() -> list[str]:
        return [answer.content for answer in await chat.abatch([QUESTION] * 6)]

    assert asyncio.run(ask()) == [ANSWER] * 6


def test_structured_output(chat):
    structured = chat.with_structured_output(Person, method="json_schema")
    person = structured.invoke("John is 30 years old. Who is he?")
    assert isinstance(person, Person)


def test_a_completion(where, chatty):
    text = OpenAI(temperature=0, max_tokens=8, **where).invoke("Once upon")
    assert text == "".join(chatty.engine.llama.generate("Once upon", temperature=0, max_tokens=8))


def test_embeddings(where, chatty):
    embeddings = OpenAIEmbeddings(check_embedding_ctx_length=False, **where)
    one, other = embeddings.embed_documents(["a fox", "a hare"])
    assert len(one) == len(other) == chatty.engine.llama.config.dim
    assert one == pytest.approx(embeddings.embed_query("a fox"), abs=1e-6)
