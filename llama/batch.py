"""Many texts at once on one model: continuous batching over sequences that share one cache.

    with Llama("model.bin") as llama, Batch(llama, sequences=8) as batch:
        one = batch.join(llama.encode("Once upon a time"), max_tokens=50)
        two = batch.join(llama.encode("The wind"), max_tokens=80, seed=1)
        while batch.busy:
            for event in batch.step():
                print(event.request is one, event.text, event.finish)

Requests join and leave at any time. A step is one call of C without the GIL: it runs the newest token of
every text and a part of the prompts, draws, and turns tokens into text. What one writes is, to the bit, what
it would write alone. A prompt that begins as another one did, running or finished, shares its pages of the
cache and does not run the common tokens again.

join and cancel may be called from any thread; all else belongs to the thread that calls step. Left out on
purpose: limits, fairness and waiting, which are a server's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from llama._engine import ffi, lib
from llama.errors import ResourceError, UsageError
from llama.native import (
    alive,
    c_strings,
    call,
    check,
    check_tokens,
    context_init,
    create,
    error_of,
    sampler_init,
    sequence_restore,
    sequence_save,
    token_ids,
    vocab_size,
    within,
    wrong,
)

if TYPE_CHECKING:
    from llama.engine import Llama

# LLAMA_RUNNING, LLAMA_STOP_TOKEN, ... in their order
FINISH = (None, "stop_token", "stop_string", "length", "error")
# Tokens drawn so far to those allowed next: a buffer of uint32 words, a bit for each (llama_sampler_mask).
Mask = Callable[[list[int]], Any]
# All ids of a text so far to guesses of those that come next (llama.speculation).
Guesser = Callable[[list[int]], Sequence[int]]
PAGE = 16  # positions; fewer are not worth waiting for
DEFAULTS = {"temperature": 1.0, "top_p": 0.9, "repeat_penalty": 1.0}  # of Llama.generate that are not 0
SAMPLING = (*DEFAULTS, "top_k", "min_p", "presence_penalty", "frequency_penalty")


@dataclass(eq=False)
class Request:
    """A text that is being written in a batch. Made by Batch.join.

    prompt: its ids. tokens: those drawn so far. reused: how many of the prompt were not run again. slot: the
    sequence that it has, None before it begins and after it ends. finish: None while the text goes on, then
    "stop_token", "stop_string", "length", "error" (error says why) or "cancelled". prompt_seconds: until the
    first token was drawn; generate_seconds: from there to the last one. guessed: tokens that its guesser
    gave; accepted: how many of them saved a pass. paused: as of Batch.pause.
    """

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    reused: int = 0
    slot: int | None = None
    finish: str | None = None
    error: Exception | None = None
    prompt_seconds: float = 0.0
    generate_seconds: float = 0.0
    guessed: int = 0
    accepted: int = 0
    paused: bool = False
    _sampler: Any = field(default=None, repr=False)
    _stops: list[Any] = field(default_factory=list, repr=False)
    _limit: int = 0  # as of llama_generation_feed
    _logprobs: int = -1
    _mask: Mask | None = None
    _guesser: Guesser | None = None
    _allowed: Any = field(default=None, repr=False)  # the mask of the next token, which C reads
    _masked: int | None = None  # how many tokens had been drawn when it was asked for
    _handle: Any = field(default=None, repr=False)  # the LlamaGeneration, while it has a slot


class Event(NamedTuple):
    """What a step gave a request: a token, or the end.

    text: whole characters, may be empty. token: the one drawn, None where the end came without one. finish:
    as of Request. logprob: of the token, and top: the most likely tokens with theirs, where they were asked
    for, as natural logarithms of the model's own probabilities, before bias, penalties, mask and temperature.
    """

    request: Request
    text: str
    token: int | None
    finish: str | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Slot:
    """A sequence of the context. ids: the tokens that it holds, or will when its request's prompt has run."""

    index: int
    ids: list[int] = field(default_factory=list)
    request: Request | None = None
    used: int = 0  # when its last request began


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids a and b begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def drained(requests: deque[Request]) -> list[Request]:
    """Takes all that is in a deque, to which other threads may append meanwhile."""
    return [requests.popleft() for _ in range(len(requests))]


def logprobs_of(request: Request, piece: Any) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """logprob and top of an Event."""
    if request._logprobs < 0:
        return None, ()
    top = ffi.unpack(piece.top, piece.n_top) if piece.n_top else ()
    return piece.logprob, tuple((entry.token, entry.logprob) for entry in top)


class Batch:
    """Requests on one model that run together.

    llama: the model, its exact, rope_theta and adapter; its context is left alone. sequences: requests that
    run side by side, and texts that are remembered. context: positions of each (the model's). cache:
    positions of all together, at least `context` (sequences x context); finished texts give way when it is
    full, then the newest request ends with an error. prefill: tokens of prompts in a step at most, which
    bounds how long texts wait for one another's prompts; 0: what fills a batch of 128 rows. threads, kv: as
    of Llama.
    Raises UsageError, ResourceError, BadFileError without a tokenizer.
    """

    def __init__(
        self,
        llama: Llama,
        sequences: int = 8,
        context: int | None = None,
        cache: int | None = None,
        prefill: int = 0,
        threads: int | None = None,
        kv: str | None = None,
    ) -> None:
        if not hasattr(llama, "_model"):
            raise wrong("llama", llama, "a Llama")
        most = within(prefill, "prefill", 0, 2**31 - 1)
        model, same = alive(llama._model, "Llama"), lib.llama_context_options(llama._context)
        options = {"threads": threads, "kv": llama.kv if kv is None else kv, "cache": cache}
        options |= {"exact": same.exact, "rope_theta": same.rope_theta, "adapter": llama._adapter}
        self._over(context_init(model, context, sequences=sequences, **options), llama.tokenizer.handle)
        self.prefill = most

    @classmethod
    def over(cls, context: Any, tokenizer: Any) -> Batch:
        """The batch of all sequences of a C context, by a C tokenizer."""
        self = cls.__new__(cls)
        self._over(context, tokenizer)
        return self

    def _over(self, context: Any, tokenizer: Any) -> None:
        options = lib.llama_context_options(context)
        self._context, self._tokenizer, sequences = context, tokenizer, options.sequences
        self.context: int = options.context
        self.vocab_size, self.prefill = vocab_size(context), 0
        self.slots = [Slot(i) for i in range(sequences)]
        self._joined: deque[Request] = deque()  # since the last step
        self._cancelled: deque[Request] = deque()
        self._waiting: list[Request] = []  # for a slot, or for what another one will hold
        self._running: list[Request] = []  # in the order in which they began
        self._order: list[Request] = []  # the same, in the order in which C reads their prompts
        self._stepping: list[Request] = []  # the same, without those that are paused
        self._ended: list[Event] = []  # what the next step says of them
        self._clock = 0
        self._generations = ffi.new("LlamaGeneration *[]", sequences)
        self._pieces = ffi.new("LlamaPiece[]", sequences)
        self._error = ffi.new("LlamaError *")

    # --- From any thread

    def join(
        self,
        prompt: Iterable[int],
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        mask: Mask | None = None,
        guesser: Guesser | None = None,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        **sampling: float,
    ) -> Request:
        """A request that begins with the next step, or when a sequence is free.

        logprobs: 0 to 128 most likely tokens to report with each one drawn. mask: called before each token
        with those drawn so far. guesser: called before a pass, for tokens to check in it. sampling:
        temperature, top_p and so on, and all else, as of Llama.generate.
        Raises UsageError.
        """
        if unknown := sampling.keys() - set(SAMPLING):
            raise TypeError(f"join() has no option {', '.join(sorted(unknown))}")
        ids = token_ids(prompt, "prompt")
        if not 0 < len(ids) <= self.context:
            raise UsageError(f"the prompt has {len(ids)} tokens, allowed 1 to {self.context}, the context")
        check_tokens(ids, self.vocab_size)
        most = 0 if max_tokens is None else within(max_tokens, "max_tokens", 1)
        top = -1 if logprobs is None else within(logprobs, "logprobs", 0, lib.LLAMA_MAX_TOP)
        request = Request(ids, _mask=mask, _guesser=guesser, _stops=c_strings(stop), _logprobs=top)
        create("LlamaStream", lib.llama_stream_init, request._stops, len(request._stops))  # checks them
        request._sampler = sampler_init(self.vocab_size, logit_bias, seed, **DEFAULTS | sampling)
        request._limit = min(len(ids) + most - 1, self.context) if most else 0
        self._joined.append(request)
        return request

    def cancel(self, request: Request) -> None:
        """Ends a request with the next step. One that has ended stays as it is."""
        self._cancelled.append(request)

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._running or self._waiting or self._joined)

    # --- From the thread of step

    def step(self) -> list[Event]:
        """Runs a token of every text, and a part of the prompts, and says what came of it.

        Raises ClosedError. What goes wrong with a request ends that one.
        """
        alive(self._context, "Batch")
        events, self._ended = self._ended + self._leave(), []
        self._begin()
        self._take_turns()
        events += self._ask_masks() + self._guess()
        while self._stepping and (error := self._run()):
            events += self._make_room(error)
        return events + self._events()

    def pause(self, request: Request, paused: bool = True) -> None:
        """Leaves a request out of the steps, or takes it in again. Its text stays the same."""
        if request.paused != paused:
            request.paused = paused
            self._number()

    def save(self, slot: int) -> bytes:
        """What a slot holds, to restore it later, elsewhere too. Raises UsageError, ClosedError."""
        held = self._held(self._slot(slot))
        return sequence_save(self._context, slot, self.slots[slot].ids[:held])

    def restore(self, data: bytes, slot: int | None = None) -> int:
        """Remembers what was saved, in that slot or the one that was used longest ago, and returns which.

        Raises UsageError for a slot that a request has, BadFileError for damaged bytes or those of another
        model, ResourceError, ClosedError.
        """
        free = self._idle() if slot is None else [self._slot(slot)]
        if not free or free[0].request:
            raise UsageError("every slot has a request" if slot is None else f"slot {slot} has a request")
        free[0].ids = sequence_restore(self._context, free[0].index, data)
        return free[0].index

    def erase(self, slot: int) -> None:
        """Forgets what a slot holds. Raises UsageError for one that a request has, ClosedError."""
        if self._slot(slot).request:
            raise UsageError(f"slot {slot} has a request")
        self._forget(self.slots[slot])

    def settle(self) -> None:
        """Lets go of requests that were cancelled, now and not with the next step. Raises ClosedError."""
        alive(self._context, "Batch")
        self._ended += self._leave()

    def lend(self) -> int:
        """A slot that no request has, emptied, whose sequence is the caller's until the next step.

        Raises UsageError where every slot has a request, ClosedError.
        """
        self.settle()
        if not (idle := self._idle()):
            raise UsageError("every slot has a request")
        self._forget(idle[0])
        return idle[0].index

    @property
    def free(self) -> int:
        """Positions that the cache has room for, in whole pages. Texts that have ended take room too."""
        return lib.llama_cache_free(alive(self._context, "Batch"))

    def close(self) -> None:
        """Lets go of the context. Requests that run stay unfinished. May be called twice."""
        self._context = None
        for requests in (self._running, self._order, self._stepping, self._waiting, self._joined):
            requests.clear()

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # --- Slots

    def _slot(self, index: int) -> Slot:
        alive(self._context, "Batch")
        if not 0 <= index < len(self.slots):
            raise UsageError(f"slot = {index}, allowed 0 to {len(self.slots) - 1}")
        return self.slots[index]

    def _held(self, slot: Slot) -> int:
        return lib.llama_sequence_length(self._context, slot.index)

    def _idle(self) -> list[Slot]:
        """Slots without a request, the one that was used longest ago first."""
        return sorted((slot for slot in self.slots if slot.request is None), key=lambda slot: slot.used)

    def _forget(self, slot: Slot) -> None:
        call(lib.llama_sequence_trim, self._context, slot.index, 0)
        slot.ids = []

    def _donor(self, prompt: list[int]) -> tuple[Slot, int] | None:
        """The slot that holds most of the beginning of a prompt, and how much: not the last token, which has
        to run. None: wait, as another request, whose prompt is being run, will soon hold a page more.
        """
        best, most, soon = self.slots[0], 0, 0
        for slot in self.slots:
            common = common_prefix(prompt[:-1], slot.ids)
            held = min(common, self._held(slot))
            soon = max(soon, common if slot.request and not slot.request.paused else held)
            if held > most:
                best, most = slot, held
        return None if soon >= most + PAGE else (best, most)

    # --- Requests

    def _end(self, request: Request, finish: str, error: Exception | None = None) -> Event:
        """Ends a request; what its slot holds is remembered."""
        request.finish, request.error = finish, error
        if request.slot is not None:
            slot, stats = self.slots[request.slot], lib.llama_generation_stats(request._handle)
            request.prompt_seconds, request.generate_seconds = stats.prompt_seconds, stats.generate_seconds
            held = min(self._held(slot), len(slot.ids))  # guesses may have run beyond
            call(lib.llama_sequence_trim, self._context, slot.index, held)
            slot.ids, slot.request = slot.ids[:held], None
            self._running.remove(request)
            self._order.remove(request)
            self._number()
        request._handle = request._sampler = request.slot = None
        return Event(request, "", None, finish)

    def _number(self) -> None:
        """Tells C which generations run, in which order."""
        self._stepping = [request for request in self._order if not request.paused]
        for i, request in enumerate(self._stepping):
            self._generations[i] = request._handle

    def _leave(self) -> list[Event]:
        """Takes in what join and cancel left, and ends the requests that were cancelled."""
        cancelled = drained(self._cancelled)  # first: each of them has joined before
        self._waiting += drained(self._joined)
        events = []
        for request in cancelled:
            if request.finish is None:
                if request.slot is None:
                    self._waiting.remove(request)
                events.append(self._end(request, "cancelled"))
        return events

    def _begin(self) -> None:
        """Gives slots to the requests that have none, in their order, as far as there are any."""
        for request in list(self._waiting):
            if not (idle := self._idle()):
                break
            if found := self._donor(request.prompt):
                self._waiting.remove(request)
                self._start(request, idle[0], *found)

    def _start(self, request: Request, slot: Slot, donor: Slot, shared: int) -> None:
        """Begins in an idle slot, or in the donor itself where nothing of it is lost."""
        if donor.request is None and shared > 0 and shared == len(donor.ids):
            slot = donor
        call(lib.llama_sequence_copy, self._context, donor.index, slot.index, shared)
        prompt, stops = request.prompt, request._stops
        new, sampler = lib.llama_generation_init, request._sampler
        handle = create(
            "LlamaGeneration", new, self._context, self._tokenizer, sampler, slot.index, stops, len(stops)
        )
        call(lib.llama_generation_logprobs, handle, request._logprobs)
        call(lib.llama_generation_reuse, handle, prompt, shared)
        call(lib.llama_generation_feed, handle, prompt[shared:], len(prompt) - shared, request._limit)
        self._clock += 1
        slot.ids, slot.request, slot.used = list(prompt), request, self._clock
        request._handle, request.slot, request.reused = handle, slot.index, shared
        self._running.append(request)
        self._order.append(request)
        self._number()

    # --- A step

    def _take_turns(self) -> None:
        """The prompt that C reads first is another one with each step, so that a long one holds up none."""
        reading = [request for request in self._stepping if not request.tokens]
        if len(reading) > 1:
            self._order.remove(reading[0])
            self._order.append(reading[0])
            self._number()

    def _ask_masks(self) -> list[Event]:
        """Asks for the masks of the next tokens. One that fails ends its request."""
        events = []
        for request in [r for r in self._stepping if r._mask and r._masked != len(r.tokens)]:
            if len(request.prompt) + len(request.tokens) > (request._limit or self.context):
                continue  # the end comes next
            try:
                words = ffi.from_buffer("uint32_t[]", request._mask(request.tokens))
                if len(words) < (needed := (self.vocab_size + 31) // 32):
                    raise UsageError(f"the mask has {len(words)} words, {needed} are needed")
            except Exception as error:  # whatever the caller's function raises
                events.append(self._end(request, "error", error))
                continue
            lib.llama_sampler_mask(request._sampler, words)
            request._allowed, request._masked = words, len(request.tokens)
        return events

    def _guess(self) -> list[Event]:
        """Asks for guesses of the next tokens where none is left. One that fails ends its request."""
        events = []
        for request in [r for r in self._stepping if r._guesser and r.tokens]:
            if lib.llama_generation_ahead(request._handle):
                request.accepted += 1
                continue
            try:
                guesses = request._guesser(self.slots[request.slot].ids)[: lib.LLAMA_MAX_GUESSES]
                call(lib.llama_generation_guess, request._handle, guesses, len(guesses))
                request.guessed += len(guesses)
            except Exception as error:  # whatever the caller's function raises
                events.append(self._end(request, "error", error))
        return events

    def _run(self) -> ResourceError | None:
        """The call of C. Returns the error of a cache that is full."""
        n = len(self._stepping)
        code = lib.llama_generation_step(self._generations, n, self.prefill, self._pieces, self._error)
        try:
            check(code, self._error)
        except ResourceError as full:
            return full
        return None

    def _make_room(self, error: ResourceError) -> list[Event]:
        """Forgets the text that was used longest ago, or ends the newest request where none is idle."""
        for slot in self._idle():
            if slot.ids:
                self._forget(slot)
                return []
        newest = self._running[-1]
        slot = self.slots[newest.slot]
        event = self._end(newest, "error", error)
        self._forget(slot)
        return [event]

    def _events(self) -> list[Event]:
        """What C has said of each request that runs, but for those whose prompt is still being read."""
        events = []
        for request, piece in zip(self._stepping[:], self._pieces, strict=False):
            token, finish = piece.token, FINISH[piece.finish]
            if token < 0 and finish is None:
                continue
            text = ffi.unpack(piece.text, piece.length).decode()
            if token < 0:
                events.append(Event(request, text, None, finish))
            else:
                request.tokens.append(token)
                self.slots[request.slot].ids.append(token)
                events.append(Event(request, text, token, finish, *logprobs_of(request, piece)))
            if finish is not None:
                self._end(request, finish, error_of(piece.error))
        return events
