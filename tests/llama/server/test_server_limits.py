"""What limits.py does between a request and the app, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count

import pytest
from fastapi import Request

from llama.server import limits
from llama.server.errors import ApiError
from llama.server.service import event_stream

BODY = {"type": "http.request", "body": b"{}", "more_body": True}


async def turns(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


@pytest.mark.parametrize("late", range(3))
def test_to_be_cancelled_is_not_missed_where_a_message_comes_at_once(late):
    """So who reads for a client that has left ends, whatever else arrives in that moment."""

    async def ends() -> bool:
        message = asyncio.get_running_loop().create_future()
        receive = limits.bounded(lambda: message)
        task = asyncio.create_task(receive())
        await turns(4)
        message.set_result(BODY)
        await turns(late)
        if task.done():
            return True
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(ends())


def test_a_body_that_is_late_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.05)

    async def never() -> None:
        await asyncio.sleep(60)

    async def read() -> None:
        await limits.bounded(never)()

    with pytest.raises(ApiError, match=r"the body took more than 0\.05 seconds"):
        asyncio.run(read())


def test_a_client_that_leaves_while_it_is_sent_something_ends_its_stream():
    """With nobody to collect garbage, and a client that takes nothing."""
    ended, left = [], asyncio.Event()

    async def events() -> AsyncIterator[int]:
        try:
            for i in count():
                yield i
        finally:
            ended.append(True)

    async def receive() -> dict:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        left.set()
        await asyncio.sleep(60)

    async def stream() -> list[bool]:
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "method": "POST", "headers": []}
        answer = await event_stream(Request(scope, receive), events(), None)
        await answer(scope, receive, send)
        return list(ended)

    assert asyncio.run(stream()) == [True]
