"""A text being written by a Llama, for whoever iterates over it, in step with the others of that Llama."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from llama.batch import Event, Request

if TYPE_CHECKING:
    from llama.engine import Llama


class Generation(Iterator[str], AsyncIterator[str]):
    """A text being written: iterate over it for its pieces, with for or async for. Made by Llama.generate.

    request: its ids: prompt, how many of it were not run again (reused), and tokens drawn so far.
    """

    def __init__(self, llama: Llama, request: Request) -> None:
        self._llama, self.request = llama, request
        self._pieces: deque[str] = deque()  # that other texts' steps have brought
        self._finish: str | None = None
        self._error: Exception | None = None

    @property
    def finish(self) -> str | None:
        """None while the text goes on, then "stop_token", "stop_string", "length", "cancelled" or "error"."""
        return None if self._pieces else self._finish

    def __next__(self) -> str:
        """The next piece, never empty. Raises ClosedError once the Llama is closed or has ended the text for
        another one, ResourceError or BadFileError where it can't go on.
        """
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self._finish is not None:
                self._llama._settle()
                raise StopIteration
            self._llama._step(self)
        return self._pieces.popleft()

    async def __anext__(self) -> str:
        """The next piece, while other tasks go on. To cancel the task cancels the text."""
        import asyncio  # it takes longer to import than to open a model

        try:
            piece = await asyncio.to_thread(next, self, None)
        except asyncio.CancelledError:
            self.cancel()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    def __aiter__(self) -> Generation:
        return self

    def cancel(self) -> None:
        """Ends the text; from any thread. What runs meanwhile ends with its step."""
        self._end("cancelled")

    def __del__(self) -> None:
        self._end("cancelled")  # nobody is going to read it

    def _take(self, event: Event) -> None:
        """What a step has brought."""
        if self._finish is None:
            if event.text:
                self._pieces.append(event.text)
            self._finish, self._error = event.finish, event.request.error

    def _end(self, finish: str, error: Exception | None = None) -> None:
        """Ends a text that goes on."""
        if self._finish is None:
            self._finish, self._error = finish, error
            self._pieces.clear()
            self._llama._leave(self.request)
