"""The thread that runs the model. It owns a Batch; requests come from the event loop, events go back there.

Each turn of the thread joins what waits while there are sequences, runs a step of the batch, and reads one
chunk of a text that is only to be read. So no stream waits for more than a step and a chunk, whatever others
ask for. Texts that wait take turns by client (fair.py), and when too many do, new ones are refused. Texts of
a client that has more than its share of the places are paused in turn while others need them.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llama._engine import lib
from llama.batch import Batch, Event, Guesser, Request, drained
from llama.engine import Llama
from llama.errors import BadFileError, LlamaError, ResourceError
from llama.native import call
from llama.server.errors import ApiError
from llama.server.fair import FairQueue, chosen, may_begin
from llama.speculation import guesser

T = TypeVar("T")
DRAFT_ROWS = 128  # of prompts, that a draft reads in a turn for all texts together


@dataclass(frozen=True)
class Task:
    """A text to write: the ids of its prompt, and the options of Batch.join."""

    prompt: Sequence[int]
    options: dict[str, Any]


@dataclass(eq=False)
class Job:
    """A task of a request. index: which of its tasks. request: None until the batch has it."""

    task: Task
    index: int
    writing: Writing
    request: Request | None = None


@dataclass(eq=False)
class Chore:
    """A text to read. future: what it comes to."""

    reading: Generator[None, None, Any]
    future: asyncio.Future


class Writing:
    """The texts of one request, being written. Made by Engine.write, which see."""

    def __init__(self, engine: Engine, client: str, tasks: Sequence[Task]) -> None:
        self._engine, self.client = engine, client
        self.jobs = [Job(task, i, self) for i, task in enumerate(tasks)]
        self.running = len(self.jobs)
        self.events: asyncio.Queue[tuple[int, Event] | Exception] = asyncio.Queue()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        """What the batch says of each text, until all have ended, with the text's index.

        Raises what goes wrong with one of them: LlamaError, ApiError.
        """
        while self.running:
            item = await self.events.get()
            if isinstance(item, Exception):
                raise item
            self.running -= item[1].finish is not None
            yield item

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *raised: object) -> None:
        """Ends what still runs, within a step."""
        if self.running:
            self._engine.call(lambda: self._engine.drop(self.jobs))


def sequences(parallel: int) -> int:
    """Texts that are held at most: as many again as are written side by side may be paused."""
    return 2 * parallel


@dataclass(eq=False)
class Engine:
    """The model of a server, from start to stop.

    parallel: texts written side by side. queue: texts that may wait. batch: options of Batch. draft: who
    guesses ahead, as of Llama.generate; a Llama needs sequences(parallel).
    totals: counts for metrics: prompt_tokens (reused_tokens of them not run again), generated_tokens,
    guessed_tokens (accepted_tokens of them saved a pass), requests, refused, cancelled. failed: why the
    thread has ended, if it has. Raises UsageError for a draft with other tokens.
    """

    llama: Llama
    parallel: int = 4
    queue: int = 64
    batch: dict[str, Any] = field(default_factory=dict)
    draft: str | Llama | None = None

    def __post_init__(self) -> None:
        self._guesser()  # checks the draft
        for llama in self._llamas():
            call(lib.llama_guard, llama._model)
            llama._tokenizer = llama.tokenizer.copied()  # small, and so not guarded
        self.texts = self._batch()
        self.waiting: FairQueue[Job] = FairQueue(self.queue)
        self.chores: FairQueue[Chore] = FairQueue(self.queue)
        self.totals: Counter[str] = Counter()
        self.failed: Exception | None = None
        self._running: dict[Request, Job] = {}
        self._turns = 0
        self._chore: Chore | None = None
        self._calls: deque[Callable[[], None]] = deque()
        self._wake, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._file = Path(self.llama.path).open("rb")  # noqa: SIM115, to know its size whatever becomes of its name
        self._size = os.fstat(self._file.fileno()).st_size

    def _batch(self) -> Batch:
        """With sequences for texts that are paused, if there is memory for them."""
        try:
            return Batch(self.llama, sequences=sequences(self.parallel), **self.batch)
        except ResourceError:
            return Batch(self.llama, sequences=self.parallel, **self.batch)

    # --- From the event loop

    def start(self) -> None:
        """Begins to run. To be called in the event loop that is to get the events."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """Ends the thread after the step that it is in; what still runs ends with an error."""
        self._stopping = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)
        self.texts.close()
        for llama in self._llamas():
            lib.llama_unguard(llama._model)
        self._file.close()

    def _llamas(self) -> list[Llama]:
        """That of the texts, and the draft."""
        return [one for one in (self.llama, self.draft) if isinstance(one, Llama)]

    def write(self, client: str, tasks: Sequence[Task]) -> Writing:
        """Begins to write texts: with engine.write(...) as writing: async for index, event in writing: ...

        client: whose they are, for taking turns. Raises ApiError when too many texts wait.
        """
        writing = Writing(self, client, tasks)
        self._push(self.waiting, client, writing.jobs)
        return writing

    async def read(self, client: str, readings: Sequence[Generator[None, None, T]]) -> list[T]:
        """What generators of reading.py return, in turns with the texts. Raises as they do, ApiError."""
        chores = [Chore(reading, self._loop.create_future()) for reading in readings]
        self._push(self.chores, client, chores)
        try:
            return [await chore.future for chore in chores]
        finally:
            for chore in chores:
                chore.future.cancel()
                self.chores.remove(client, chore)

    async def ask(self, function: Callable[[Batch], T]) -> T:
        """What a function of the batch returns, called between two steps. Raises what it raises."""
        future = self._loop.create_future()

        def answer() -> None:
            try:
                result = function(self.texts)
            except Exception as error:
                self._post(settle, future, None, error)
            else:
                self._post(settle, future, result, None)

        self.check()
        self.call(answer)
        return await future

    def check(self) -> None:
        """Raises ApiError where the thread does not run any more, or must not."""
        why = self.failed or ("the server ends" if self._stopping else self._damage())
        if why:
            raise ApiError(503, f"the model does not run: {why}", code="unavailable")

    @property
    def retry_after(self) -> int:
        """Seconds after which the queue has probably moved on."""
        tokens = self.totals["generated_tokens"] / max(1, self.totals["requests"])
        seconds = self.totals["generate_ms"] / 1000 / max(1, self.totals["generated_tokens"])
        return min(60, max(1, round(tokens * seconds * len(self.waiting) / self.parallel)))

    def _push(self, queue: FairQueue[Any], client: str, items: Sequence[Any]) -> None:
        self.check()
        if not queue.push(client, list(items)):
            self.totals["refused"] += 1
            headers = {"Retry-After": str(self.retry_after)}
            raise ApiError(429, f"{queue.limit} texts wait already", code="queue_full", headers=headers)
        self._wake.set()
        self.check()  # again: the thread may have ended before it saw them

    @property
    def running(self) -> int:
        """Texts being written."""
        return len(self._running)

    # --- From any thread

    def call(self, function: Callable[[], None]) -> None:
        """Has the thread call a function between two steps."""
        self._calls.append(function)
        self._wake.set()

    def _post(self, function: Callable[..., None], *arguments: Any) -> None:
        """Has the event loop call a function. One that is closed needs to hear nothing any more."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    # --- The thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._wake.clear()
                if not self._turn():
                    self._wake.wait()
            self._give_up(ApiError(503, "the server ends", code="unavailable"))
        except Exception as error:  # of the model itself: those of requests end these
            self.failed = error
            self._give_up(ApiError(500, f"the model does not run any more: {error}"))

    def _turn(self) -> bool:
        """A step of everything. Returns whether there is more to do."""
        for function in drained(self._calls):
            function()
        self._join()
        self._give_places()
        if self.texts.busy:
            events = self.texts.step()
            self._check_file()
            self._hand_out(events)
        self._read()
        return bool(self._running or self.waiting or self._chore or self._calls)

    def _damage(self) -> BadFileError | None:
        """Why nothing that the model says is to be believed: what its file has lost reads as zeros."""
        if os.fstat(self._file.fileno()).st_size >= self._size:
            return None
        return BadFileError(
            f"{self.llama.path}: has shrunk below {self._size} bytes while it is being served"
        )

    def _check_file(self) -> None:
        """Raises BadFileError for a file that has shrunk."""
        if damage := self._damage():
            raise damage

    def _join(self) -> None:
        """Begins texts that wait, as far as their clients may have more."""
        held = Counter(job.writing.client for job in self._running.values())
        most = len(self.texts.slots)
        while job := self.waiting.pop(lambda client: may_begin(client, held, self.parallel, most)):
            try:
                job.request = self.texts.join(job.task.prompt, guesser=self._guesser(), **job.task.options)
            except LlamaError as error:
                self._post(job.writing.events.put_nowait, error)
            else:
                self._running[job.request] = job
                held[job.writing.client] += 1

    def _give_places(self) -> None:
        """Pauses texts where there are more than places, in turns that are fair between clients."""
        held = [(job.writing.client, request) for request, job in self._running.items()]
        places = set(chosen(held, self.parallel, self._turns))
        for request in self._running:
            self.texts.pause(request, request not in places)
        self._turns += len(held) > self.parallel

    def _guesser(self) -> Guesser | None:
        """Who guesses for one text. Raises UsageError for a draft with other tokens."""
        chunk = max(1, DRAFT_ROWS // self.parallel)  # each text asks its own
        return guesser(self.draft, self.llama.config.vocab_size, chunk)

    def _hand_out(self, events: Sequence[Event]) -> None:
        told: list[tuple[Job, Event]] = []
        for event in events:
            job = self._running[event.request]
            if event.finish is not None:
                del self._running[event.request]
                self._count(event)
            told.append((job, event))
        if told:
            self._post(deliver, told)

    def _count(self, event: Event) -> None:
        request = event.request
        self.totals["requests"] += 1
        self.totals["cancelled"] += event.finish == "cancelled"
        self.totals["prompt_tokens"] += len(request.prompt)
        self.totals["reused_tokens"] += request.reused
        self.totals["generated_tokens"] += len(request.tokens)
        self.totals["guessed_tokens"] += request.guessed
        self.totals["accepted_tokens"] += request.accepted
        self.totals["prompt_ms"] += round(1000 * request.prompt_seconds)
        self.totals["generate_ms"] += round(1000 * request.generate_seconds)

    def _read(self) -> None:
        """Reads a chunk of a text."""
        if self._chore is None:
            self._chore = self.chores.pop()
        if (chore := self._chore) is None:
            return
        try:
            if not chore.future.cancelled():
                next(chore.reading)
                return
        except StopIteration as end:
            self._check_file()
            self._post(settle, chore.future, end.value, None)
        except LlamaError as error:
            self._post(settle, chore.future, None, error)
        self._chore = self.chores.pop()

    def drop(self, jobs: Sequence[Job]) -> None:
        """Ends jobs that have not ended. To be called in the thread."""
        for job in jobs:
            if job.request is not None:
                self.texts.cancel(job.request)
            else:
                self.waiting.remove(job.writing.client, job)

    def _give_up(self, error: ApiError) -> None:
        """Ends all that waits or runs."""
        for job in self._running.values():
            self._post(job.writing.events.put_nowait, error)
        while job := self.waiting.pop():
            self._post(job.writing.events.put_nowait, error)
        while chore := self._chore or self.chores.pop():
            self._post(settle, chore.future, None, error)
            self._chore = None


# --- In the event loop


def deliver(told: Sequence[tuple[Job, Event]]) -> None:
    """Gives events to those who wait for them."""
    for job, event in told:
        error = event.request.error
        if isinstance(error, ResourceError):
            error = ApiError(503, f"the cache is full: {error}", code="cache_full")
        job.writing.events.put_nowait((job.index, event) if error is None else error)


def settle(future: asyncio.Future, result: Any, error: Exception | None) -> None:
    """Ends a future, unless who waited for it has gone."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
