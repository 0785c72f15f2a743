"""OpenAI's endpoints: /v1/completions, /v1/chat/completions, /v1/embeddings, /v1/models."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request

from llama import reading
from llama.native import chat_of
from llama.server.choices import Choice, Piece, as_base64, chat_logprobs, completion_logprobs, placed
from llama.server.engine import Task
from llama.server.errors import ApiError, unsupported
from llama.server.limits import while_connected
from llama.server.schemas import ChatBody, CompletionBody, EmbeddingBody, OpenAIBody, ResponseFormat
from llama.server.service import Service, event_stream, is_one, of_field, told, usage
from llama.templates import template_of

OBJECT = {"type": "object"}  # the schema of response_format json_object


@dataclass(frozen=True)
class Frame:
    """What all parts of an answer begin with, and whether streams tell of usage."""

    id: str
    object: str
    model: str
    created: int
    with_usage: bool

    def chunk(self, choices: list[dict[str, Any]], counts: dict[str, Any] | None = None) -> dict[str, Any]:
        """An answer, or a part of a stream."""
        head = {"id": self.id, "object": self.object, "created": self.created, "model": self.model}
        return head | {"choices": choices} | ({"usage": counts} if counts or self.with_usage else {})


def check_stream(body: OpenAIBody) -> None:
    """Raises ApiError for options of a stream where there is none."""
    if "stream_options" in body.model_fields_set and not body.stream:
        raise ApiError(400, "stream_options: goes with stream = true", "stream_options")


def frame(service: Service, body: OpenAIBody, prefix: str, name: str) -> Frame:
    with_usage = body.stream and body.stream_options.include_usage
    return Frame(f"{prefix}-{uuid.uuid4().hex}", name, service.alias, int(time.time()), with_usage)


# --- Completions


@dataclass
class Echo:
    """What is told of a prompt in front of its texts."""

    text: str = ""
    pieces: Sequence[Piece] = ()


async def echoed(
    service: Service, request: Request, body: CompletionBody, prompts: Sequence[list[int]]
) -> list[Echo]:
    """What is told of each prompt: nothing without echo."""
    if not body.echo:
        return [Echo() for _ in prompts]
    given: Any = [body.prompt] if is_one(body.prompt) else body.prompt
    texts = [text if isinstance(text, str) else service.tokenizer.decode(text) for text in given]
    if body.logprobs is None:
        return [Echo(text) for text in texts]
    reads = [reading.logprobs(service.reader, ids, body.logprobs) for ids in prompts]
    scored = await service.engine.read(service.client(request), reads)
    pieces = [placed(service.tokenizer, ids, found) for ids, found in zip(prompts, scored, strict=True)]
    return [Echo(*told) for told in zip(texts, pieces, strict=True)]


def infill(service: Service, body: CompletionBody) -> list[list[int]]:
    """The prompt of a text between two others. Raises UsageError for a model that can't, ApiError."""
    if not isinstance(body.prompt, str) or body.echo:
        raise ApiError(400, "suffix: goes with one prompt of text, and without echo", "suffix")
    with of_field("suffix"):
        ids = service.llama.encode_infill(body.prompt, body.suffix or "")
    return [service.fitting(ids)]


@dataclass
class Completion:
    """A request for completions, ready to be run. echoes: one for each prompt, choices: n for each."""

    service: Service
    request: Request
    body: CompletionBody
    frame: Frame
    prompts: list[list[int]]
    echoes: list[Echo]
    tasks: list[Task]
    choices: list[Choice]

    def echo(self, index: int) -> Echo:
        """What is told in front of a choice."""
        return self.echoes[index // self.body.n]

    def told(self, index: int, text: str, pieces: Sequence[Piece], finish: str | None) -> dict[str, Any]:
        """A choice, or what is new of it."""
        likely = None
        if self.body.logprobs is not None:
            likely = completion_logprobs(self.service.tokenizer, pieces, self.body.logprobs)
        return {"index": index, "text": text, "logprobs": likely, "finish_reason": finish}

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        if self.tasks:
            await self.service.finish(self.request, self.tasks, self.choices)
        texts = []
        for i, choice in enumerate(self.choices):
            echo, finish = self.echo(i), choice.reason if self.tasks else "length"
            texts.append(self.told(i, echo.text + choice.text, [*echo.pieces, *choice.pieces], finish))
        return self.frame.chunk(texts, usage(self.prompts, self.choices))

    async def parts(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as a stream."""
        if self.body.echo or not self.tasks:
            finish = None if self.tasks else "length"
            for i in range(len(self.choices)):
                yield self.frame.chunk([self.told(i, self.echo(i).text, self.echo(i).pieces, finish)])
        if self.tasks:
            client = self.service.client(self.request)
            with self.service.engine.write(client, self.tasks) as writing:
                async for i, choice, text, pieces in told(writing, self.choices):
                    if text or pieces or choice.reason:
                        yield self.frame.chunk([self.told(i, text, pieces, choice.reason)])
        if self.frame.with_usage:
            yield self.frame.chunk([], usage(self.prompts, self.choices))


async def completion(service: Service, request: Request, body: CompletionBody) -> Completion:
    """Reads a request. Raises ApiError, UsageError."""
    check_stream(body)
    if body.best_of not in (1, body.n):
        raise ApiError(400, "best_of: is not offered, ask for n and choose", "best_of")
    if body.suffix is not None:
        prompts = await asyncio.to_thread(infill, service, body)
    else:
        prompts = await service.prompts(body.prompt, body.special, body.n)
    options = service.options(body, body.max_tokens, body.logprobs)
    echoes = await echoed(service, request, body, prompts)
    tasks = await service.tasks(prompts, body.n, options)
    choices = service.choices(tasks)
    for i, choice in enumerate(choices):
        choice.place(len(echoes[i // body.n].text))
    head = frame(service, body, "cmpl", "text_completion")
    return Completion(
        service, request, body, head, prompts, echoes, tasks if body.max_tokens else [], choices
    )


# --- Chats


def thinks(service: Service) -> bool:
    """Whether a model's template knows of thinking, by any name. Raises UsageError without a template."""
    template = template_of(chat_of(service.llama._model))
    return any(word in template for word in ("think", "reason"))


def check_chat(service: Service, body: ChatBody) -> None:
    """Raises ApiError for what a chat can't do here, UsageError without a template."""
    for name, choice in (("tools", body.tool_choice), ("functions", body.function_call)):
        if getattr(body, name) or choice not in (None, "none", "auto"):
            raise unsupported(name, name)
    if body.reasoning_effort == "none" and thinks(service):
        found = "reasoning_effort = 'none' of a model that thinks"
        raise ApiError(400, f"{found}, allowed 'medium'", "reasoning_effort")
    if "audio" in body.modalities:
        raise unsupported("audio", "modalities")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs: goes with logprobs = true", "top_logprobs")


def schema_of(form: ResponseFormat) -> Any:
    """The schema that a text is held to, None for any text. Raises ApiError."""
    if form.schema_ is not None and form.type != "json_object":
        found = f"response_format: type = {form.type!r}"
        raise ApiError(400, f"{found}, allowed: schema goes with the type json_object", "response_format")
    if (form.type == "json_schema") != (form.json_schema is not None):
        found = f"response_format: type = {form.type!r}"
        allowed = "json_schema goes with the type json_schema, and it with no other"
        raise ApiError(400, f"{found}, allowed: {allowed}", "response_format")
    if form.json_schema is not None:
        return form.json_schema.schema_
    whole = OBJECT if form.schema_ is None else form.schema_
    return whole if form.type == "json_object" else None


@dataclass
class Chat:
    """A request for answers, ready to be run."""

    service: Service
    request: Request
    body: ChatBody
    frame: Frame
    prompt: list[int]
    tasks: list[Task]
    choices: list[Choice]

    def logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if not self.body.logprobs:
            return None
        return {"content": chat_logprobs(self.service.tokenizer, pieces), "refusal": None}

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        await self.service.finish(self.request, self.tasks, self.choices)
        answers = [
            {
                "index": i,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self.logprobs(choice.pieces),
                "finish_reason": choice.reason,
            }
            for i, choice in enumerate(self.choices)
        ]
        return self.frame.chunk(answers, usage([self.prompt], self.choices))

    async def parts(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as a stream. The first part of each choice says whose it is."""
        begun: set[int] = set()
        with self.service.engine.write(self.service.client(self.request), self.tasks) as writing:
            async for i, choice, text, pieces in told(writing, self.choices):
                delta = {} if i in begun else {"role": "assistant"}
                begun.add(i)
                if text or pieces or delta or choice.reason:
                    part = {"index": i, "delta": delta | {"content": text}, "logprobs": self.logprobs(pieces)}
                    yield self.frame.chunk([part | {"finish_reason": choice.reason}])
        if self.frame.with_usage:
            yield self.frame.chunk([], usage([self.prompt], self.choices))


async def chat(service: Service, request: Request, body: ChatBody) -> Chat:
    """Reads a request. Raises ApiError, UsageError."""
    check_stream(body)
    check_chat(service, body)
    prompt = await service.conversation(body.messages)
    most = body.max_completion_tokens or body.max_tokens  # neither is 0
    options = service.options(body, most, body.top_logprobs if body.logprobs else None)
    tasks = await service.tasks([prompt], body.n, options, schema_of(body.response_format), "response_format")
    name = "chat.completion.chunk" if body.stream else "chat.completion"
    head = frame(service, body, "chatcmpl", name)
    return Chat(service, request, body, head, prompt, tasks, service.choices(tasks))


# --- Embeddings


async def embeddings(service: Service, request: Request, body: EmbeddingBody) -> dict[str, Any]:
    prompts = await service.prompts(body.input, field="input")
    vectors = await service.embeddings(request, prompts, body.pooling)
    as_asked = as_base64 if body.encoding_format == "base64" else lambda vector: vector.tolist()
    data = [
        {"object": "embedding", "index": i, "embedding": as_asked(vector)} for i, vector in enumerate(vectors)
    ]
    n = sum(map(len, prompts))
    counts = {"prompt_tokens": n, "total_tokens": n}
    return {"object": "list", "data": data, "model": service.alias, "usage": counts}


# --- Routes


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["OpenAI"])
    model = {"id": service.alias, "object": "model", "created": service.created, "owned_by": "cria"}
    model |= {"max_model_len": service.engine.texts.context}  # as vLLM says it

    @routes.get("/v1/models")
    async def list_models() -> Any:
        return {"object": "list", "data": [model]}

    @routes.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> Any:
        if name != service.alias:
            raise ApiError(404, f"the model is called {service.alias}", "model", "model_not_found")
        return model

    @routes.post("/v1/completions")
    async def create_completion(body: CompletionBody, request: Request) -> Any:
        made = await while_connected(request, completion(service, request, body))
        return await (event_stream(request, made.parts(), "[DONE]") if body.stream else made.whole())

    @routes.post("/v1/chat/completions")
    @routes.post("/chat/completions")  # as llama.cpp has it, too
    async def create_chat_completion(body: ChatBody, request: Request) -> Any:
        made = await while_connected(request, chat(service, request, body))
        return await (event_stream(request, made.parts(), "[DONE]") if body.stream else made.whole())

    @routes.post("/v1/embeddings")
    async def create_embeddings(body: EmbeddingBody, request: Request) -> Any:
        return await embeddings(service, request, body)

    @routes.api_route("/v1/rerank", methods=["POST"], include_in_schema=False)
    @routes.api_route("/v1/images/{what:path}", methods=["POST"], include_in_schema=False)
    @routes.api_route("/v1/audio/{what:path}", methods=["POST"], include_in_schema=False)
    async def not_here() -> Any:
        raise unsupported("rerank, images and audio")

    return routes
