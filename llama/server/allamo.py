"""allamo's endpoints: /completions, /embeddings, /tokens."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from llama.server.schemas import AllamoBody, AllamoCompletionBody
from llama.server.service import Service


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["allamo"])

    @routes.post("/completions")
    async def completions(body: AllamoCompletionBody, request: Request) -> Any:
        """Several texts, each with its prompt in front and without blanks at its ends."""
        prompts = await service.prompts(body.prompt, each=body.num_samples)
        options = service.options(body.sampling, body.max_new_tokens, None)
        tasks = await service.tasks(prompts, body.num_samples, options)
        choices = service.choices(tasks)
        await service.finish(request, tasks, choices)
        return {"completions": [(body.prompt + choice.text).strip() for choice in choices]}

    @routes.post("/embeddings")
    async def embeddings(body: AllamoBody, request: Request) -> Any:
        """The hidden state of the last token."""
        if not body.prompt:
            return {"embeddings": []}
        [ids] = await service.prompts(body.prompt)
        [last] = await service.embeddings(request, [ids], "last")
        return {"embeddings": last.tolist()}

    @routes.post("/tokens")
    async def tokens(body: AllamoBody) -> Any:
        [ids] = await service.prompts(body.prompt)
        return {"tokens": ids, "length": len(ids)}

    return routes
