"""What a server takes from strangers: sizes, times, numbers, hosts and keys.

Time and number of connections are minded by Connection, below HTTP; the rest by Limits, around the app.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain
from typing import Any

import anyio
import h11
import uvicorn
from fastapi import Request
from starlette.datastructures import Headers
from uvicorn.protocols.http.h11_impl import H11Protocol

from llama.server.errors import ApiError, is_json

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BODY_BYTES = 4 << 20
HEADER_BYTES = 32 << 10
CONNECTIONS = 256
HEADER_SECONDS = 10  # until the headers of a request are there, from its first byte or the connection's start
BODY_SECONDS = 30  # until the body is
SEND_SECONDS = 30  # for which a client may take nothing of what waits for it
KEEP_ALIVE_SECONDS = 30
SHUTDOWN_SECONDS = 5  # that answers may take once the server is to end
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
CLOSE = {"Connection": "close"}
OPEN_PATHS = ("/health", "/v1/health")  # what needs no key, besides the page


class Gone(Exception):
    """The client has left: nobody needs an answer."""


class Connection(H11Protocol):
    """A connection of uvicorn that closes when headers take too long, and when there are too many of it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        minded = transport.get_extra_info("socket")
        # asyncio leaves it out for sockets that name no protocol. Without it the second packet of an answer,
        # and each token of a stream, waits for the client to acknowledge the one before: up to 40 ms.
        minded.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: ends it, whatever is left in buffers
            minded.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * SEND_SECONDS)
        self._deadline: asyncio.TimerHandle | None = None
        if len(self.connections) > CONNECTIONS:
            self._refuse(503, "too many connections")
        else:
            self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._forget_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget_deadline()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _busy(self) -> bool:
        """Whether a request has arrived that has not been answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _wait_for_headers(self) -> None:
        if self._busy():
            self._forget_deadline()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._too_late)

    def _too_late(self) -> None:
        if not self._busy() and not self.transport.is_closing():
            self._refuse(408, f"no request came in {HEADER_SECONDS} seconds")

    def _refuse(self, status: int, message: str) -> None:
        """Answers without looking at a request, and closes."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = ApiError(status, message).response()
            headers = [*response.raw_headers, (b"connection", b"close")]
            reason = HTTPStatus(status).phrase.encode()
            for event in (
                h11.Response(status_code=status, headers=headers, reason=reason),
                h11.Data(data=response.body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def config(app: Any, **options: Any) -> uvicorn.Config:
    """How uvicorn is to serve an app. options: of uvicorn.Config."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        server_header=False,
        **options,
    )


# --- Around the app


def host_of(header: str) -> str:
    """The name in a Host header, without the port."""
    name = header.rpartition(":")[0] if header.rpartition(":")[2].isdigit() else header
    return name.strip("[]").lower()


def is_local(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Answer:
    """What is sent of an answer. It may be cut off: uvicorn cancels those that it does not wait for."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = self._streams = self._whole = False

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kind = Headers(raw=list(message["headers"])).get("content-type", "")
            self._begun, self._streams = True, kind.startswith("text/event-stream")
        await self._send(message)
        self._whole = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def cut_off(self, scope: Scope, receive: Receive) -> None:
        """Says that the server ends, as the answer, or as the last event of a stream."""
        response = ApiError(503, "the server ends", code="unavailable", headers=CLOSE).response()
        if not self._begun:
            await response(scope, receive, self._send)
        elif self._streams and not self._whole:
            await self._send({"type": "http.response.body", "body": b"data: %s\n\n" % response.body})


@dataclass
class Limits:
    """An ASGI app around another one.

    keys: those that may ask, none: all. hosts: names that a request may be for, none: any. A page of
    somebody else's, whose name comes to mean this machine, asks by that name and is refused so. One that asks
    by ours has the leave of nobody to send JSON, and nothing else is taken from a page, not even no body.
    pages: paths that anybody may get.
    """

    app: Any
    keys: Collection[str] = ()
    hosts: Collection[str] = ()
    pages: Collection[str] = ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = Answer(send)
        try:
            self._check(scope, Headers(scope=scope))
            await self.app(scope, bounded(receive), answer.send)
        except ApiError as error:
            await error.response()(scope, receive, send)
        except asyncio.CancelledError:
            await answer.cut_off(scope, receive)
        except Gone:
            pass

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises ApiError for a request that is not to be looked at."""
        if self.hosts and (name := host_of(headers.get("host", ""))) not in self.hosts:
            raise ApiError(403, f"Host = {name[:100]!r}, allowed {', '.join(dict.fromkeys(self.hosts))}")
        if len(scope["raw_path"]) + sum(map(len, chain(*scope["headers"]))) > HEADER_BYTES:
            raise ApiError(431, f"the headers are larger than {HEADER_BYTES} bytes", headers=CLOSE)
        open_to_all = scope["path"] in (*OPEN_PATHS, *self.pages) or scope["method"] == "OPTIONS"
        if self.keys and not open_to_all and not self._knows(headers.get("authorization", "")):
            headers_of = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key", headers=headers_of)
        typed = headers.get("content-type", "")
        if scope["method"] == "POST" and "origin" in headers and not is_json(typed):
            raise ApiError(415, f"Content-Type = {typed[:100]!r}, allowed application/json to a page")
        if (encoding := headers.get("content-encoding", "")).lower() not in ("", "identity"):
            raise ApiError(415, f"Content-Encoding = {encoding[:100]!r}, allowed identity")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > BODY_BYTES:
            raise too_large()

    def _knows(self, header: str) -> bool:
        """Whether a key is one of ours, in a time that says nothing about them."""
        scheme, _, key = header.partition(" ")
        given = key.strip().encode()
        known = [hmac.compare_digest(given, ours.encode()) for ours in self.keys]
        return any(known) and scheme.lower() == "bearer"


def too_large() -> ApiError:
    return ApiError(413, f"the body is larger than {BODY_BYTES} bytes", headers=CLOSE)


def bounded(receive: Receive) -> Receive:
    """receive, with a limit on a body's size and time. Raises ApiError."""
    loop = asyncio.get_running_loop()
    deadline, size, whole = loop.time() + BODY_SECONDS, 0, False

    async def limited() -> MutableMapping[str, Any]:
        nonlocal size, whole
        if whole:
            return await receive()  # says when the client leaves
        try:
            with anyio.fail_after(deadline - loop.time()):  # asyncio.wait_for may lose a cancellation
                message = await receive()
        except TimeoutError:
            raise ApiError(408, f"the body took more than {BODY_SECONDS} seconds", headers=CLOSE) from None
        size += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if size > BODY_BYTES:
            raise too_large()
        return message

    return limited


async def while_connected(request: Request, work: Awaitable[Any]) -> Any:
    """What work comes to, ended when the client leaves. Raises Gone, and what work raises."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise Gone
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
