"""llama.cpp, through the C interface in llama-cpp-python, as one of the programs that are measured.

python -m bench.programs.llamacpp FILE.gguf STEPS THREADS     writes a text of so many positions

Its flash attention is for prompts; behind thousands of positions it writes at a quarter of the speed that it
has without, so each case has what is faster. The cache has the type that ours has. All else is left at
llama.cpp's defaults: weights that it repacks are copied at opening.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import llama_cpp
from llama_cpp import llama_cpp as api

from bench.shapes import Case, arbitrary_ids, ordinary_logits
from bench.turns import Refused, Work

KV = {"fp32": 0, "fp16": 1, "int8": 8, "bf16": 30}  # its types of a cache, as ggml numbers them; int8 is Q8_0
CELLS = 256  # positions of a sequence come in multiples of this
QUIET = api.llama_log_callback(lambda level, text, data: None)
api.llama_log_set(QUIET, ctypes.c_void_p())

Row = tuple[int, int, int, bool]  # token, position, sequence, whether it wants logits


def open_model(path: Path) -> Any:
    """Raises Refused."""
    api.llama_backend_init()
    model = api.llama_model_load_from_file(bytes(path), api.llama_model_default_params())
    if not model:
        raise Refused(f"llama.cpp can't open {path}")
    return model


def open_context(
    model: Any, positions: int, sequences: int, rows: int, threads: int, kv: str = "fp16", flash: bool = False
) -> Any:
    """Raises Refused. rows: of a pass, at most. flash: attention without scores in memory."""
    options = api.llama_context_default_params()
    options.n_ctx = sequences * -(-positions // CELLS) * CELLS
    options.n_seq_max = sequences
    options.n_batch = max(rows, options.n_batch)
    options.n_threads = options.n_threads_batch = threads
    options.type_k = options.type_v = KV[kv]
    options.flash_attn_type = int(flash)
    context = api.llama_init_from_model(model, options)
    if not context:
        raise Refused(f"llama.cpp makes no context of {sequences} x {positions} positions")
    return context


def batch_of(rows: Iterable[Row]) -> Any:
    rows = list(rows)
    batch = api.llama_batch_init(len(rows), 0, 1)
    batch.n_tokens = len(rows)
    for i, (token, position, sequence, logits) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.logits[i] = token, position, logits
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
    return batch


def run(context: Any, batch: Any) -> None:
    """A pass. Raises Refused."""
    if code := api.llama_decode(context, batch):
        raise Refused(f"llama_decode returned {code}")
    api.llama_synchronize(context)


class Model:
    """A GGUF file, on a number of threads. kv: type of the cache."""

    def __init__(self, path: Path, threads: int, kv: str) -> None:
        self._model, self._threads, self._kv = open_model(path), threads, kv
        self._vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))

    def work(self, case: Case) -> Work:
        n, rows = case.prompt + case.tokens, case.sequences * max(case.prompt, 1)
        rows = max(case.tokens, rows) if case.what == "prefill" else rows
        flash = case.what == "prefill" or self._kv == "int8"  # whose values it can't have otherwise
        context = open_context(self._model, n, case.sequences, rows, self._threads, self._kv, flash)
        memory, ids = api.llama_get_memory(context), arbitrary_ids(n, self._vocab_size)
        sequences = range(case.sequences)
        if case.prompt:
            run(context, batch_of((ids[i], i, s, False) for s in sequences for i in range(case.prompt)))
        if case.what == "prefill":
            prompt = batch_of((ids[i], i, 0, i == n - 1) for i in range(case.prompt, n))

            def step() -> None:
                api.llama_memory_seq_rm(memory, 0, case.prompt, -1)
                run(context, prompt)

            return Work(step, case.tokens)
        batches = [batch_of((ids[i], i, s, True) for s in sequences) for i in range(case.prompt, n)]
        turn = itertools.cycle(range(case.tokens))

        def step_once() -> None:
            if (i := next(turn)) == 0:
                for sequence in sequences:
                    api.llama_memory_seq_rm(memory, sequence, case.prompt, -1)
            run(context, batches[i])

        return Work(step_once, case.sequences)


class Sampler:
    """Top-p and a draw. Making the array of candidates is left out of the time."""

    def __init__(self, top_p: float) -> None:
        self._chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
        api.llama_sampler_chain_add(self._chain, api.llama_sampler_init_top_p(top_p, 1))
        api.llama_sampler_chain_add(self._chain, api.llama_sampler_init_dist(1))

    def work(self, case: Case) -> Work:
        array = api.llama_token_data * case.tokens
        fresh = array(*((i, logit, 0.0) for i, logit in enumerate(ordinary_logits(case.tokens))))
        tokens = array()

        def step() -> float:
            ctypes.memmove(tokens, fresh, ctypes.sizeof(fresh))
            candidates = api.llama_token_data_array(tokens, case.tokens, -1, False)
            start = time.perf_counter()
            api.llama_sampler_apply(self._chain, ctypes.byref(candidates))
            return time.perf_counter() - start

        return Work(step)


def about() -> str:
    """The version, and what it was built for."""
    features = api.llama_print_system_info().decode().strip(" |")
    return f"llama-cpp-python {llama_cpp.__version__}, {features.replace(' | ', ', ')}"


def main() -> None:
    path, steps, threads = sys.argv[1:]
    model = open_model(Path(path))
    context = open_context(model, int(steps), 1, 1, int(threads))
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    api.llama_sampler_chain_add(chain, api.llama_sampler_init_greedy())
    token, text = 1, []
    for position in range(int(steps)):
        run(context, batch_of([(token, position, 0, True)]))
        token = api.llama_sampler_sample(chain, context, -1)
        text.append(token)
    print(text)


if __name__ == "__main__":
    main()
