"""llama.cpp's endpoints: /completion, /infill, /embedding, /tokenize, /apply-template, /props, /slots ..."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request

from llama import __version__
from llama.batch import Batch
from llama.errors import BadFileError, UsageError
from llama.native import c_bytes, chat_of
from llama.server.choices import Choice, Piece, chat_logprobs, is_text, shown, spellings
from llama.server.errors import ApiError, unsupported
from llama.server.schemas import (
    DetokenizeBody,
    InfillBody,
    NativeBody,
    NativeCompletionBody,
    NativeEmbeddingBody,
    SlotBody,
    TemplateBody,
    TokenizeBody,
)
from llama.server.service import Service, event_stream, is_one, plain, told
from llama.templates import render_chat, template_of

MAX_NAME = 255  # bytes of the name of a file
MAX_SHORT = 32760  # of an embedding in 16 bits
STOP_TYPES = {"stop_token": "eos", "stop_string": "word", "length": "limit"}  # of finish


# --- Completions


def timings(choice: Choice) -> dict[str, Any]:
    """How long a text took."""
    request = choice.request
    if request is None:
        return {}
    read, drawn = len(request.prompt) - request.reused, max(0, len(request.tokens) - 1)
    counts = {"cache_n": request.reused}
    for name, n, seconds in (
        ("prompt", read, request.prompt_seconds),
        ("predicted", drawn, request.generate_seconds),
    ):
        speed = n / seconds if seconds else None
        counts |= {f"{name}_n": n, f"{name}_ms": 1000 * seconds, f"{name}_per_second": speed}
    guesses = {"draft_n": request.guessed, "draft_n_accepted": request.accepted}
    return counts | guesses if request.guessed else counts


def part(
    service: Service, body: NativeBody, text: str, tokens: list[int], pieces: Sequence[Piece]
) -> dict[str, Any]:
    """What is said of new text."""
    likely = {"completion_probabilities": chat_logprobs(service.tokenizer, pieces)} if body.n_probs else {}
    return {"content": text, "tokens": tokens if body.return_tokens else []} | likely


def final(service: Service, choice: Choice, index: int) -> dict[str, Any]:
    """What is said of a text that has ended."""
    request = choice.request
    prompt, drawn = (len(request.prompt), len(request.tokens)) if request else (0, 0)
    return {
        "index": index,
        "model": service.alias,
        "stop": True,
        "stop_type": STOP_TYPES.get(choice.finish or "", "none"),
        "tokens_evaluated": prompt,
        "tokens_predicted": drawn,
        "tokens_cached": request.reused if request else 0,
        "truncated": False,
        "timings": timings(choice),
    }


async def complete(
    service: Service, request: Request, body: NativeBody, prompts: list[list[int]], several: bool
) -> Any:
    """The answer to /completion and /infill. several: a list of answers. Raises ApiError, UsageError."""
    options = service.options(body, body.n_predict, body.n_probs or None)
    if body.seed == -1:
        options["seed"] = None
    tasks = await service.tasks(prompts, 1, options, body.json_schema)
    choices = service.choices(tasks)

    async def parts() -> AsyncGenerator[dict[str, Any], None]:
        with service.engine.write(service.client(request), tasks) as writing:
            before = [0] * len(tasks)
            async for i, choice, text, pieces in told(writing, choices):
                new, before[i] = choice.tokens[before[i] :], len(choice.tokens)
                end = final(service, choice, i) if choice.finish else {"index": i, "stop": False}
                yield part(service, body, text, new, pieces) | end

    if body.stream:
        return await event_stream(request, parts(), None)
    await service.finish(request, tasks, choices)
    answers = [
        part(service, body, choice.text, choice.tokens, choice.pieces) | final(service, choice, i)
        for i, choice in enumerate(choices)
    ]
    return answers if several else answers[0]


# --- Embeddings


def length(vector: Any, norm: int) -> float:
    """What llama.cpp divides an embedding by. norm: -1 none, 0 the largest as MAX_SHORT, else the p-norm."""
    sizes = abs(vector.astype(float))
    largest = float(sizes.max())
    if norm < 0 or not largest:
        return 1.0
    if norm == 0:
        return largest / MAX_SHORT
    return largest * float(((sizes / largest) ** norm).sum()) ** (1 / norm)


# --- Slots


def slot_states(batch: Batch) -> list[dict[str, Any]]:
    """What each sequence does. Texts are not said: they are other clients'."""
    return [
        {
            "id": slot.index,
            "n_ctx": batch.context,
            "n_tokens": len(slot.ids),
            "is_processing": bool(slot.request),
        }
        for slot in batch.slots
    ]


def slot_file(service: Service, name: str) -> Path:
    """The file of a saved slot. Raises ApiError for a name that is none, or where nothing is saved."""
    if service.slot_folder is None:
        raise unsupported("saved slots without --slot-save-path")
    if not name or name.startswith(".") or not name.isprintable() or set(name) & set("/\\:"):
        raise ApiError(400, "filename: allowed is the name of a file, without a folder", "filename")
    if len(name.encode()) > MAX_NAME:
        raise ApiError(400, f"filename: is longer than {MAX_NAME} bytes", "filename")
    path = Path(service.slot_folder, name)
    if path.exists() and not path.is_file():
        raise ApiError(400, f"filename: {name} is there, and no file", "filename")
    return path


def slot_action(service: Service, slot: int, action: str, name: str) -> Callable[[Batch], dict[str, Any]]:
    """What a slot is to do, as a function for the engine's thread. Raises ApiError."""
    if action == "erase":
        return lambda batch: batch.erase(slot) or {"id_slot": slot}
    path = slot_file(service, name)

    def save(batch: Batch) -> dict[str, Any]:
        try:
            written = path.write_bytes(batch.save(slot))
        except OSError as error:  # which would say where the folder is
            raise ApiError(500, f"{name}: {error.strerror}", "filename") from None
        return {
            "id_slot": slot,
            "filename": name,
            "n_saved": len(batch.slots[slot].ids),
            "n_written": written,
        }

    def restore(batch: Batch) -> dict[str, Any]:
        if not path.is_file():
            raise ApiError(404, f"{name}: is not there", "filename")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ApiError(500, f"{name}: {error.strerror}", "filename") from None
        try:
            batch.restore(data, slot)
        except BadFileError as error:
            raise ApiError(400, f"{name}: {error}", "filename") from None
        return {
            "id_slot": slot,
            "filename": name,
            "n_restored": len(batch.slots[slot].ids),
            "n_read": len(data),
        }

    return save if action == "save" else restore


# --- Routes


def props(service: Service) -> dict[str, Any]:
    """What the model is."""
    tokenizer, engine = service.tokenizer, service.engine
    template, ends = "", {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    defaults = NativeBody().model_dump(exclude={"json_schema", "stream"})
    with suppress(UsageError):
        template = template_of(chat_of(service.llama._model))
    return {
        "default_generation_settings": {"n_ctx": engine.texts.context, "params": defaults},
        "total_slots": engine.parallel,
        "model_alias": service.alias,
        "model_path": c_bytes(Path(service.llama.path).name).decode(),  # which may be any bytes
        "chat_template": template,
        "build_info": f"cria {__version__}",
        "modalities": {"vision": False, "audio": False},
        **{name: tokenizer.name(token) if token >= 0 else "" for name, token in ends.items()},
    }


def tokens_of(service: Service, body: TokenizeBody) -> list[Any]:
    """The tokens of a text, with what spells each where that is asked for."""
    bos = body.add_special and service.llama.config.add_bos
    ids = service.tokenizer.encode(body.content, bos=bos, special=body.parse_special)
    if not body.with_pieces:
        return ids
    spelt = [spellings(service.tokenizer, False, token)[1] for token in ids]
    pieces = [shown(data) if is_text(data) else list(data) for data in spelt]
    return [{"id": token, "piece": piece} for token, piece in zip(ids, pieces, strict=True)]


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["llama.cpp"])

    @routes.get("/health")
    @routes.get("/v1/health")
    async def health() -> Any:
        return {"status": "ok"}  # or else a request comes no further than app.whole

    @routes.get("/props")
    async def get_props() -> Any:
        return props(service)

    @routes.post("/completion")
    async def completion(body: NativeCompletionBody, request: Request) -> Any:
        """Continues a prompt, in which names of special tokens mean the tokens, as in llama.cpp."""
        prompts = await service.prompts(body.prompt, special=True)
        return await complete(service, request, body, prompts, not is_one(body.prompt))

    @routes.post("/infill")
    async def infill(body: InfillBody, request: Request) -> Any:
        encode = service.llama.encode_infill
        ids = await asyncio.to_thread(encode, body.input_prefix + body.prompt, body.input_suffix)
        return await complete(service, request, body, [service.fitting(ids)], False)

    @routes.post("/embedding")
    async def embedding(body: NativeEmbeddingBody, request: Request) -> Any:
        prompts = await service.prompts(body.content, special=True, field="content")
        vectors = await service.embeddings(request, prompts, body.pooling)
        lengths = [length(vector, body.embd_normalize) for vector in vectors]
        return [
            {"index": i, "embedding": [(vector / by).tolist()]}
            for i, (vector, by) in enumerate(zip(vectors, lengths, strict=True))
        ]

    @routes.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Any:
        return {"tokens": await asyncio.to_thread(tokens_of, service, body)}

    @routes.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Any:
        service.check_ids(body.tokens, "tokens")
        return {"content": await asyncio.to_thread(service.tokenizer.decode, body.tokens)}

    @routes.post("/apply-template")
    async def apply_template(body: TemplateBody) -> Any:
        messages = [plain(message) for message in body.messages]
        model, tokenizer = service.llama._model, service.tokenizer.handle
        begin = body.add_generation_prompt
        return {"prompt": await asyncio.to_thread(render_chat, model, tokenizer, messages, begin)}

    @routes.get("/slots")
    async def slots() -> Any:
        return await service.engine.ask(slot_states)

    @routes.post("/slots/{slot}")
    async def act_on_slot(
        slot: int, action: Literal["save", "restore", "erase"], body: SlotBody | None = None
    ) -> Any:
        return await service.engine.ask(slot_action(service, slot, action, body.filename if body else ""))

    return routes
