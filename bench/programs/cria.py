"""Our engine, as one of the programs that are measured."""

from __future__ import annotations

import time
from pathlib import Path

from bench.shapes import Case, Shape, ordinary_logits
from bench.turns import Work
from llama import bench
from llama._engine import ffi, lib
from llama.config import model_config
from llama.native import call, model_open, sampler_init


class Model:
    """A checkpoint, on a number of threads. kv: type of the cache."""

    def __init__(self, path: Path, threads: int, kv: str) -> None:
        self._model, self._threads, self._kv = model_open(path), threads, kv

    def work(self, case: Case) -> Work:
        at_once = case.what == "prefill"
        case_here = bench.Case(case.tokens, case.prompt, case.sequences, at_once)
        work = bench.Work(self._model, case_here, self._threads, self._kv)
        return Work(work.step, work.width)


def token_bytes(path: Path) -> int:
    """Bytes of weights that one decoded token reads."""
    return lib.llama_token_bytes(model_open(path))


def about_file(path: Path) -> tuple[Shape, str]:
    """The shape of a model, and which of bench.shapes.TYPES its weights are."""
    model = model_open(path)
    config = model_config(model)
    shape = {
        name: getattr(config, name) for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim")
    }
    shape |= {name: getattr(config, name) for name in ("vocab_size", "max_seq_len", "tied")}
    old = "" if config.version == 3 else "-v0" if config.weight_type == "fp32" else "-v2"
    return shape, config.weight_type + old


class Sampler:
    """Top-p."""

    def __init__(self, top_p: float) -> None:
        self._top_p = top_p

    def work(self, case: Case) -> Work:
        sampling = {"temperature": 1.0, "top_p": self._top_p, "repeat_penalty": 1.0}
        sampler = sampler_init(case.tokens, {}, 1, **sampling)
        fresh = ffi.new("float[]", ordinary_logits(case.tokens))
        logits, token = ffi.new("float[]", case.tokens), ffi.new("int32_t *")

        def step() -> float:
            ffi.memmove(logits, fresh, ffi.sizeof(fresh))
            start = time.perf_counter()
            call(lib.llama_sample, sampler, logits, token)
            return time.perf_counter() - start

        return Work(step)
