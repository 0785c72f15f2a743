"""All endpoints as one ASGI app, behind the limits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Depends, FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import llama
from llama.server import allamo, llamacpp, metrics, openai
from llama.server.errors import add_handlers
from llama.server.limits import Limits
from llama.server.service import Service

PAGE = Path(llama.__file__).parent / "page"


def page_files() -> dict[str, Path]:
    """The files of the page by path: what a browser asks for before anybody has typed a key."""
    files = [path for path in PAGE.rglob("*") if path.is_file()]
    found = {f"/{path.relative_to(PAGE).as_posix()}": path for path in files}
    return found | ({"/": found["/index.html"]} if found else {})


def add_page(app: FastAPI) -> None:
    """Serves the page. Each file has a route, so that all other paths stay errors of the API."""
    for path, file in page_files().items():

        async def get_file(request: Request, file: Path = file) -> FileResponse:
            return FileResponse(file)

        app.add_route(path, get_file, include_in_schema=False)


def routes(service: Service) -> FastAPI:
    """The endpoints. The engine runs while the app does."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await service.engine.stop()

    async def whole(request: Request) -> None:
        """Nothing reads a model, or its tokenizer, whose file has shrunk."""
        service.engine.check()

    # Pages of documentation would load scripts from elsewhere; /openapi.json is for all tools that want one.
    app = FastAPI(
        title="cria",
        version=llama.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(whole)],
    )
    add_handlers(app)
    for kind in (openai, llamacpp, allamo):
        app.include_router(kind.router(service))
    figures = metrics.registry(service.engine)

    @app.get("/metrics", response_class=Response)
    async def get_metrics() -> Response:
        return Response(generate_latest(figures), media_type=CONTENT_TYPE_LATEST)

    add_page(app)
    return app


def create_app(
    service: Service, keys: Collection[str] = (), hosts: Collection[str] = (), origins: Collection[str] = ()
) -> Limits:
    """The app. keys, hosts: as of Limits. origins: pages of other servers that may ask."""
    app = routes(service)
    if origins:
        methods, headers = ["GET", "POST"], ["Authorization", "Content-Type"]
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=headers
        )
    return Limits(app, keys, hosts, page_files())
