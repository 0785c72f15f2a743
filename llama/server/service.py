"""What the endpoints share: requests to prompts and options, streams of events to HTTP."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse

from llama import reading
from llama.batch import SAMPLING, Mask
from llama.engine import Llama
from llama.errors import LlamaError, UsageError
from llama.native import c_bytes, encode_prompt
from llama.server.choices import Choice, Piece
from llama.server.constrain import Grammars, stop_ids
from llama.server.engine import Engine, Task, Writing
from llama.server.errors import ApiError, explained, unsupported
from llama.server.limits import Receive, Scope, Send, while_connected
from llama.server.schemas import MAX_CHOICES, Message, MixedPrompt, OtherPart, Prompt, Sampling
from llama.tokenizer import Tokenizer

MAX_STOPS = 16
T = TypeVar("T")
SHORT = 1 << 12  # characters, or tokens: encoded within a millisecond
UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # of nginx


@dataclass(eq=False)
class Service:
    """A model that is served. alias: what it is called. keyed: clients are told apart by their keys."""

    engine: Engine
    alias: str
    keyed: bool = False
    slot_folder: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.llama: Llama = self.engine.llama
        self.tokenizer: Tokenizer = self.llama.tokenizer
        self.reader = self.llama._context  # the C context of texts that are only read
        self.context = self.engine.texts.context
        self.grammars = Grammars(self.llama)

    def client(self, request: Request) -> str:
        """Whose turn a request takes."""
        host = request.client.host if request.client else ""
        return request.headers.get("authorization", "") if self.keyed else host

    # --- Prompts

    def check_ids(self, ids: Sequence[int], field: str = "prompt") -> None:
        """Raises ApiError for an id that is not in the vocabulary."""
        if bad := next((token for token in ids if not 0 <= token < self.llama.config.vocab_size), None):
            raise ApiError(400, f"token = {bad}, allowed 0 to {self.llama.config.vocab_size - 1}", field)

    def check_length(self, n: int, field: str) -> None:
        """Raises ApiError for a prompt of no tokens, and of more than the context."""
        if not 0 < n <= self.context:
            found = f"a prompt has {n} tokens, allowed 1 to {self.context}, the context"
            raise ApiError(400, found, field, "context_length_exceeded")

    def fitting(self, ids: list[int], field: str = "prompt") -> list[int]:
        """The ids of a prompt, if the model can read them. field: that has it. Raises ApiError."""
        self.check_length(len(ids), field)
        self.check_ids(ids, field)
        return ids

    def encode(self, text: str, special: bool) -> list[int]:
        """The ids of a prompt. special: names of special tokens in it mean the tokens."""
        if special and text:
            return self.llama.encode(text, special=True)
        return encode_prompt(self.llama._model, self.tokenizer.handle, c_bytes(text))

    def joined(self, parts: Sequence[int | str], special: bool, field: str) -> list[int]:
        """The ids of a prompt of ids and texts; a text in front begins as a prompt does. Raises ApiError."""
        self.check_length(len(parts), field)
        ids: list[int] = []
        for i, part in enumerate(parts):
            if isinstance(part, int):
                ids.append(part)
            elif i == 0:
                ids += self.encode(part, special)
            else:
                ids += self.llama.encode(part, bos=False, special=special)
        return ids

    async def prompts(
        self, prompt: Prompt | MixedPrompt, special: bool = False, each: int = 1, field: str = "prompt"
    ) -> list[list[int]]:
        """The ids of each prompt of a field. Raises ApiError for too many, with `each` texts to write."""
        several: Sequence[Any] = [prompt] if is_one(prompt) else prompt
        if not 0 < len(several) * each <= MAX_CHOICES:
            found = f"{len(several)} prompts, {each} texts each"
            raise ApiError(400, f"{found}: allowed are 1 to {MAX_CHOICES} texts in all", field)

        def encode() -> list[list[int]]:
            texts = ([one] if isinstance(one, str) else one for one in several)
            return [self.fitting(self.joined(parts, special, field), field) for parts in texts]

        return await done(encode, sum(map(size, several)))

    async def conversation(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation by the model's template, which go on with an answer that it ends with."""
        told = [plain(message) for message in messages]
        begun = told.pop()["content"] if told[-1]["role"] == "assistant" else ""

        def encode() -> list[int]:
            answer = self.llama.encode(begun, bos=False) if begun else []
            return self.fitting(self.llama.encode_chat(told) + answer, "messages")

        return await done(encode, sum(len(message["content"]) for message in told) + len(begun))

    # --- Options

    def options(self, body: Sampling, max_tokens: int | None, logprobs: int | None) -> dict[str, Any]:
        """The options of Batch.join. max_tokens: None and negative for any number. Raises ApiError."""
        penalties = (body.repeat_penalty != 1, body.presence_penalty, body.frequency_penalty)
        if any(penalties) and -1 < body.repeat_last_n < self.context:
            found = f"repeat_last_n = {body.repeat_last_n} with a penalty"
            allowed = f"-1 for all tokens, and {self.context}, the context, and more"
            raise ApiError(400, f"{found}, allowed {allowed}", "repeat_last_n")
        stop = [body.stop] if isinstance(body.stop, str) else body.stop
        if len(stop) > MAX_STOPS or not all(stop):
            raise ApiError(400, f"stop: allowed are {MAX_STOPS} strings, none of them empty", "stop")
        if any("\0" in text for text in stop):
            raise ApiError(400, "stop: a string has a NUL character, allowed are all others", "stop")
        bias = {self._token(token): value for token, value in body.logit_bias.items()}
        if body.ignore_eos:
            ends = {*stop_ids(self.llama), self.llama.tokenizer.bos_id} - {-1}  # BOS ends a text, too
            bias |= dict.fromkeys(ends, -math.inf)
        seed = None if body.seed is None else body.seed % 2**64
        chosen = {name: getattr(body, name) for name in SAMPLING}
        rest = {
            "max_tokens": None if max_tokens is None or max_tokens < 0 else max_tokens,
            "logprobs": logprobs,
            "stop": stop,
            "logit_bias": bias,
            "seed": seed,
        }
        return chosen | rest

    def _token(self, name: str) -> int:
        is_number = len(name) <= 12 and name.isascii() and name.isdecimal() and name == str(int(name))
        if not is_number or int(name) >= self.llama.config.vocab_size:
            found = f"logit_bias: token {name[:20]!r}"
            raise ApiError(400, f"{found}, allowed 0 to {self.llama.config.vocab_size - 1}", "logit_bias")
        return int(name)

    async def tasks(
        self,
        prompts: Sequence[Sequence[int]],
        n: int,
        options: dict[str, Any],
        schema: Any = None,
        field: str = "json_schema",
    ) -> list[Task]:
        """n texts for each prompt, JSON by a schema if there is one.

        Those of one prompt have seeds that follow each other. Raises ApiError for a bad schema, which is of a
        field.
        """
        count, seed = len(prompts) * n, options["seed"]
        masks: Sequence[Mask | None] = [None] * count
        if schema is not None:
            with of_field(field):
                masks = await asyncio.to_thread(self.grammars.masks, schema, count)
        seeds = [None if seed is None else (seed + i % n) % 2**64 for i in range(count)]
        own = ({"seed": seed, "mask": mask} for seed, mask in zip(seeds, masks, strict=True))
        return [Task(prompts[i // n], options | chosen) for i, chosen in enumerate(own)]

    # --- Texts

    async def embeddings(self, request: Request, prompts: Sequence[list[int]], pooling: str) -> list[Any]:
        """A vector of each prompt, float32 (dim). Raises what engine.read does, Gone."""
        reads = [reading.embedding(self.reader, ids, pooling) for ids in prompts]
        return await while_connected(request, self.engine.read(self.client(request), reads))

    def choices(self, tasks: Sequence[Task]) -> list[Choice]:
        return [Choice(self.tokenizer, task.prompt[-1]) for task in tasks]

    async def finish(self, request: Request, tasks: Sequence[Task], choices: Sequence[Choice]) -> None:
        """Writes texts to their ends. Raises LlamaError, ApiError, Gone."""

        async def work() -> None:
            with self.engine.write(self.client(request), tasks) as writing:
                async for _ in told(writing, choices):
                    pass

        await while_connected(request, work())


@contextmanager
def of_field(name: str) -> Iterator[None]:
    """A UsageError of the block is an ApiError that names a field of the request."""
    try:
        yield
    except UsageError as error:
        raise ApiError(400, str(error), name) from None


async def done(work: Callable[[], T], size: int) -> T:
    """What work returns. Beyond some size of text a thread does it, and the event loop goes on meanwhile.

    A thread waits for a processor while the model has them all, so that requests which came together would
    be begun one by one.
    """
    return work() if size <= SHORT else await asyncio.to_thread(work)


def is_one(prompt: Any) -> bool:
    """Whether a field holds one prompt: a text, or ids, which may have texts among them."""
    return isinstance(prompt, str) or any(isinstance(part, int) for part in prompt)


def size(prompt: Any) -> int:
    """About how long a prompt takes: characters of texts, and ids."""
    if isinstance(prompt, str):
        return len(prompt)
    return sum(len(part) if isinstance(part, str) else 1 for part in prompt)


def plain(message: Message) -> dict[str, str]:
    """A message as templates take it. Raises ApiError for what is no text."""
    calls = message.tool_calls or message.tool_call_id or message.function_call
    if calls or message.role in ("tool", "function"):
        raise unsupported("tool calls", "messages")
    if message.audio:
        raise unsupported("audio", "messages")
    content = message.content or ""
    if not isinstance(content, str):
        if other := [part.type for part in content if isinstance(part, OtherPart)]:
            raise unsupported(f"a message of type {other[0][:100]!r}", "messages")
        content = "".join(part.text for part in content)
    return {"role": "system" if message.role == "developer" else message.role, "content": content}


async def told(
    writing: Writing, choices: Sequence[Choice]
) -> AsyncIterator[tuple[int, Choice, str, list[Piece]]]:
    """What each event adds to the choice of its index: text and tokens, either may be empty."""
    async for index, event in writing:
        yield index, choices[index], *choices[index].take(event)


# --- Server-sent events


def sse(data: Any) -> str:
    """An event."""
    return f"data: {data if isinstance(data, str) else json.dumps(data, separators=(',', ':'))}\n\n"


class EventStream(StreamingResponse):
    """An answer of events. When it ends, however that is, so do they: a client that leaves while it is being
    sent something would leave them waiting to be collected, and their texts being written.
    """

    def __init__(self, body: AsyncIterator[str], events: AsyncGenerator[Any, None]) -> None:
        super().__init__(body, media_type="text/event-stream", headers=UNBUFFERED)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


async def event_stream(
    request: Request, events: AsyncGenerator[Any, None], end: str | None
) -> StreamingResponse:
    """An answer of events. What goes wrong before the first one is raised, later it is the last event."""
    first = await while_connected(request, anext(events))

    async def body() -> AsyncIterator[str]:
        yield sse(first)
        try:
            async for event in events:
                yield sse(event)
        except (LlamaError, ApiError) as error:
            yield sse(explained(error).body)
        if end is not None:
            yield sse(end)

    return EventStream(body(), events)


# --- Answers


def usage(prompts: Sequence[Sequence[int]], choices: Sequence[Choice]) -> dict[str, Any]:
    """Tokens of a request, as OpenAI counts them. choices: as many for each prompt."""
    requests = [choice.request for choice in choices if choice.request]
    first = requests[:: max(1, len(choices) // max(1, len(prompts)))]  # the others share its prompt
    prompt, drawn = sum(map(len, prompts)), sum(len(request.tokens) for request in requests)
    cached = {"cached_tokens": sum(request.reused for request in first)}
    counts = {"prompt_tokens": prompt, "completion_tokens": drawn, "total_tokens": prompt + drawn}
    return counts | {"prompt_tokens_details": cached}
