"""The engine's sampler (csrc/sampling/sampler.h) for the tests, and its reference: a full sort in float64."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import product
from types import SimpleNamespace

import numpy as np

from llama._engine import ffi, lib

NUDGE = 1e-6  # how near a coin or a threshold may be to a boundary before rounding may decide


@dataclass
class Options:
    temperature: float = 1.0
    top_p: float = 0.0
    min_p: float = 0.0
    top_k: int = 0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 1


@dataclass
class Told:
    """What a sampler is told before it draws."""

    bias: dict[int, float] = field(default_factory=dict)
    prompt: list[int] = field(default_factory=list)
    generated: list[int] = field(default_factory=list)


class Refused(Exception):
    """An error of the engine: its code and its text."""


def refuse(code: int, error: SimpleNamespace) -> None:
    if code != lib.LLAMA_OK:
        assert error.code == code
        raise Refused(code, ffi.string(error.text).decode())


class Sampler:
    def __init__(self, vocab_size: int, told: Told | None = None, **options: float) -> None:
        self.vocab_size = vocab_size
        self.error, out = ffi.new("LlamaError *"), ffi.new("LlamaSampler **")
        sampling = ffi.new("LlamaSampling *", vars(Options(**options)))
        refuse(lib.llama_sampler_init(vocab_size, sampling, out, self.error), self.error)
        self.handle = ffi.gc(out[0], lib.llama_sampler_free)
        told = told or Told()
        for token, bias in told.bias.items():
            self.bias(token, bias)
        for token in told.prompt:
            self.accept(token, 0)
        for token in told.generated:
            self.accept(token, 1)

    def bias(self, token: int, bias: float) -> None:
        refuse(lib.llama_sampler_bias(self.handle, token, bias, self.error), self.error)

    def accept(self, token: int, generated: int) -> None:
        refuse(lib.llama_sampler_accept(self.handle, token, generated, self.error), self.error)

    def mask(self, tokens: Iterable[int] | None) -> None:
        """Allows these alone; None: all."""
        if tokens is None:
            self.words = ffi.NULL
        else:
            self.words = ffi.new("uint32_t[]", (self.vocab_size + 31) // 32)
            for token in tokens:
                self.words[token // 32] |= 1 << token % 32
        lib.llama_sampler_mask(self.handle, self.words)

    def reset(self) -> None:
        lib.llama_sampler_reset(self.handle)

    def sample(self, logits: np.ndarray) -> tuple[int, np.ndarray]:
        """The token, and what is left in the logits: adjusted ones at temperature 0, else likelihoods."""
        left, token = np.array(logits, dtype=np.float32), ffi.new("int32_t *", -1)
        pointer = ffi.from_buffer("float[]", left, require_writable=True)
        refuse(lib.llama_sample(self.handle, pointer, token, self.error), self.error)
        return token[0], left

    def draw(self, logits: np.ndarray) -> int:
        return self.sample(logits)[0]


# ------------------------------------------------------------------------------------------------------
# The reference


def coins(state: int) -> Iterator[float]:
    """The coins of llama2.c: xorshift64*, the upper 24 of the upper 32 bits."""
    word = (1 << 64) - 1
    while True:
        state ^= state >> 12
        state ^= (state << 25) & word
        state ^= state >> 27
        yield (((state * 0x2545F4914F6CDD1D) & word) >> 40) / 2**24


def adjusted(logits: np.ndarray, options: Options, told: Told) -> np.ndarray:
    x = np.array(logits, dtype=np.float64)
    for token, bias in told.bias.items():
        x[token] += bias
    for token in set(told.prompt + told.generated):
        r = options.repeat_penalty
        x[token] = x[token] / r if x[token] > 0 else x[token] * r
        times = told.generated.count(token)
        x[token] -= options.presence_penalty * (times > 0) + options.frequency_penalty * times
    return x


def likelihoods(x: np.ndarray, temperature: float) -> np.ndarray:
    return np.exp((x - x.max()) / float(np.float32(temperature)))


def kept(e: np.ndarray, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """The tokens that get through the filters, the most likely first."""
    order = np.argsort(-e, kind="stable")
    order = order[e[order] > 0][: top_k or None]
    if 0 < top_p < 1:
        exceeds = np.cumsum(e[order]) > top_p * e[order].sum()
        order = order[: exceeds.argmax() + 1 if exceeds.any() else None]
    return order[e[order] >= min_p]


def draw(e: np.ndarray, options: Options, coin: float, nudge: tuple[float, float, float] = (0, 0, 0)) -> int:
    """The token that llama2.c's rule draws, with the coin and the thresholds nudged."""
    # The engine compares in float32: a threshold that was given in it is meant.
    top_p, min_p = float(np.float32(options.top_p)), float(np.float32(options.min_p))
    top_k = options.top_k if options.top_k < len(e) else 0
    order = np.flatnonzero(e)
    if top_k or 0 < top_p < 1 or min_p:
        order = kept(e, top_k, top_p and top_p + nudge[1], min_p * (1 + nudge[2]))
    if not len(order):  # min_p = 1, nudged
        order = np.array([e.argmax()])
    total = np.cumsum(e[order])
    index = np.searchsorted(total, (coin + nudge[0]) * total[-1], side="right")
    return int(order[min(index, len(order) - 1)])


def allowed(e: np.ndarray, options: Options, coin: float) -> set[int]:
    nudges = product((-NUDGE, 0, NUDGE), repeat=3)
    return {draw(e, options, coin, nudge) for nudge in nudges}
