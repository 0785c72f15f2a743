"""Sequences share pages and nobody sees it; what is saved comes back, nothing else does; hidden states."""

from __future__ import annotations

import struct
import threading
import zlib

import checkpoints
import numpy as np
import pytest
import torch
from checkpoints import Shape
from hypothesis import given, settings
from hypothesis import strategies as st
from test_export import config_of, named
from test_forward import Engine, check, isas, random_ids
from torch_formats import export_v3

import llama
from llama._engine import ffi, lib
from llama.native import KV, sequence_restore, sequence_save
from model import Llama

SHAPE = Shape(dim=48, hidden_dim=64, n_heads=4, n_kv_heads=2, max_seq_len=100)
N = 6  # sequences
CHECKED = 16  # where the part of a saved sequence begins that its checksum is of


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.bin"
    checkpoints.write(path, SHAPE)
    return path


def copy(engine: Engine, source: int, target: int, n: int) -> None:
    error = ffi.new("LlamaError *")
    check(lib.llama_sequence_copy(engine.context, source, target, n, error), error)


def trim(engine: Engine, sequence: int, n: int) -> None:
    error = ffi.new("LlamaError *")
    check(lib.llama_sequence_trim(engine.context, sequence, n, error), error)


def pages_of(n: int) -> int:
    return -(-n // 16)


# --- Sharing


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from("wct"), st.integers(0, N - 1), st.integers(0, N - 1), st.integers(0, 100)),
        max_size=25,
    ),
    st.sampled_from(range(len(KV))),
)
def test_sharing_is_invisible(path, actions, kv):
    """Whatever is written, copied and trimmed, each sequence gives the logits of its own tokens."""
    engine, alone = Engine(path, sequences=N, kv=kv), Engine(path, kv=kv)
    texts: list[list[int]] = [[] for _ in range(N)]
    for i, (action, a, b, n) in enumerate(actions):
        held = min(n, len(texts[a]))
        if action == "w":  # goes back to held, and on from there
            new = random_ids(SHAPE, min(1 + n % 37, 100 - held), seed=i)
            texts[a] = texts[a][:held] + new
            if new:
                engine.logits(new, start=held, sequence=a)
        elif action == "c":
            copy(engine, a, b, held)
            texts[b] = texts[a][:held]
        else:
            trim(engine, a, held)
            texts[a] = texts[a][:held]
    for sequence, text in enumerate(texts):
        assert lib.llama_sequence_length(engine.context, sequence) == len(text)
        if len(text) < 100:
            found = engine.logits([7], start=len(text), sequence=sequence)
            assert np.array_equal(found, alone.logits([*text, 7])[-1:])
        trim(engine, sequence, 0)
    assert lib.llama_cache_free(engine.context) == N * pages_of(100) * 16


def test_a_full_cache_refuses_and_changes_nothing(path):
    engine = Engine(path, sequences=3, cache=112)
    texts = [random_ids(SHAPE, 50, seed=seed) for seed in (1, 2)]
    for sequence, text in enumerate(texts[:2]):
        engine.logits(text[:48], sequence=sequence)
    copy(engine, 0, 2, 48)
    assert lib.llama_cache_free(engine.context) == 16
    rows = [(1, 48, sequence, 1) for sequence in (0, 1)]
    with pytest.raises(RuntimeError, match="the cache of 112 positions is full"):
        engine.forward(rows)
    assert lib.llama_cache_free(engine.context) == 16
    assert [lib.llama_sequence_length(engine.context, i) for i in range(3)] == [48, 48, 48]
    expected = Engine(path).logits([*texts[0][:48], 1])[-1:]
    assert np.array_equal(engine.forward(rows[:1]), expected)
    trim(engine, 1, 0)
    assert np.array_equal(engine.logits([1], start=48, sequence=2), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda engine: copy(engine, 0, 6, 0), "sequence = 6, allowed 0 to 5"),
        (lambda engine: copy(engine, -1, 0, 0), "sequence = -1, allowed 0 to 5"),
        (lambda engine: copy(engine, 0, 1, 4), "positions = 4, sequence 0 holds 3"),
        (lambda engine: trim(engine, 0, -1), "positions = -1, sequence 0 holds 3"),
    ],
)
def test_what_is_not_there_is_not_shared(path, call, message):
    engine = Engine(path, sequences=N)
    engine.logits([1, 2, 3])
    with pytest.raises(RuntimeError, match=message):
        call(engine)
    assert lib.llama_sequence_length(engine.context, N) == 0


@pytest.mark.parametrize(
    ("cache", "allowed"), [(99, False), (100, True), (672, True), (673, False), (-1, False)]
)
def test_how_large_a_cache_may_be(path, cache, allowed):
    if allowed:
        engine = Engine(path, sequences=N, cache=cache)
        assert lib.llama_cache_free(engine.context) == pages_of(cache) * 16
    else:
        with pytest.raises(RuntimeError, match=f"cache = {cache}, allowed 100, the context, to 672"):
            Engine(path, sequences=N, cache=cache)


def test_a_smaller_cache_takes_less_memory(path):
    whole, part = Engine(path, sequences=4), Engine(path, sequences=4, cache=112)
    saved = lib.llama_context_bytes(whole.context) - lib.llama_context_bytes(part.context)
    values = 2 * SHAPE.n_layers * 3 * 112 * SHAPE.n_kv_heads * SHAPE.head_dim
    assert saved >= 4 * values


# --- Saving


@pytest.mark.parametrize("kv", range(len(KV)))
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 99])
def test_what_is_saved_comes_back(path, n, kv):
    text, engine = random_ids(SHAPE, n, seed=n), Engine(path, sequences=2, kv=kv)
    engine.logits(random_ids(SHAPE, 70, seed=100), sequence=1)  # leaves something in pages
    trim(engine, 1, 0)
    if n:
        engine.logits(text, sequence=1)
    data = sequence_save(engine.context, 1, text)
    other = Engine(path, sequences=3, kv=kv)
    other.logits(random_ids(SHAPE, 40, seed=101), sequence=2)
    assert sequence_restore(other.context, 2, data) == text
    assert np.array_equal(other.logits([5], start=n, sequence=2), Engine(path, kv=kv).logits([*text, 5])[-1:])
    trim(other, 2, n)
    assert sequence_save(other.context, 2, text) == data  # nothing of other texts is in it


def test_a_restored_sequence_shares_no_pages_with_what_was_there(path):
    engine, text, saved = (
        Engine(path, sequences=2),
        random_ids(SHAPE, 40, seed=1),
        random_ids(SHAPE, 40, seed=2),
    )
    engine.logits(saved)
    data = sequence_save(engine.context, 0, saved)
    engine.logits(text)
    copy(engine, 0, 1, 40)
    sequence_restore(engine.context, 1, data)
    assert np.array_equal(engine.logits([5], start=40), Engine(path).logits([*text, 5])[-1:])


def sealed(data: bytes, at: int, kind: str, value: int) -> bytes:
    """Saved bytes with another field, and the checksum of that."""
    changed = bytearray(data)
    struct.pack_into("<" + kind, changed, at, value)
    struct.pack_into("<I", changed, 12, zlib.crc32(bytes(changed[CHECKED:])))
    return bytes(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "these 0 bytes are no saved sequence"),
        (lambda data: b"x" + data[1:], "are no saved sequence"),
        (lambda data: data[:47], "are no saved sequence"),
        (lambda data: data[:-1], r"saved sequence: has \d+ bytes, should have \d+"),
        (lambda data: data + b"\0", r"saved sequence: has \d+ bytes, should have \d+"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "saved sequence: checksum = .*, stored is "),
        (lambda data: sealed(data, 8, "I", 2), "saved sequence: version = 2, allowed 1"),
        (lambda data: sealed(data, 24, "I", 7), "saved sequence: is of model 00000007, this is model "),
        (lambda data: sealed(data, 28, "i", 3), "saved sequence: n_layers = 3, this model has 2"),
        (lambda data: sealed(data, 32, "i", -1), "saved sequence: n_kv_heads = -1, this model has 2"),
        (lambda data: sealed(data, 36, "i", 48), "saved sequence: head_dim = 48, this model has 12"),
        (
            lambda data: sealed(data, 40, "i", 1),
            "saved sequence: keys and values are bf16, this context has fp32",
        ),
        (lambda data: sealed(data, 40, "i", 99), "saved sequence: keys and values are unknown, this context"),
        (lambda data: sealed(data, 44, "i", 101), "saved sequence: has 101 positions, this context has 100"),
        (lambda data: sealed(data, 44, "i", -1), "saved sequence: has -1 positions, this context has 100"),
        (lambda data: sealed(data, 44, "i", 99), r"saved sequence: has \d+ bytes, 99 positions take \d+"),
    ],
)
def test_damaged_or_foreign_bytes_are_refused_and_change_nothing(path, change, message):
    engine, text = Engine(path), random_ids(SHAPE, 20)
    engine.logits(text)
    data = sequence_save(engine.context, 0, text)
    with pytest.raises(llama.BadFileError, match=message):
        sequence_restore(engine.context, 0, change(data))
    assert sequence_save(engine.context, 0, text) == data


def test_another_model_of_the_same_shape_is_refused(path, tmp_path):
    weights = checkpoints.random_weights(SHAPE)
    weights["ffn_norm"][1, 3] += 1
    (tmp_path / "other.bin").write_bytes(checkpoints.v0(SHAPE, weights))
    engine = Engine(path)
    engine.logits([1, 2])
    data = sequence_save(engine.context, 0, [1, 2])
    for other in (Engine(tmp_path / "other.bin"), Engine(path, rope_theta=5e5)):
        with pytest.raises(llama.BadFileError, match=r"is of model .*, this is model"):
            sequence_restore(other.context, 0, data)


def test_a_sequence_that_the_cache_has_no_room_for_is_refused(path):
    engine = Engine(path, sequences=2, cache=112)
    text = random_ids(SHAPE, 90, seed=1)
    engine.logits(text)
    data = sequence_save(engine.context, 0, text)
    with pytest.raises(llama.ResourceError, match="the cache of 112 positions is full"):
        sequence_restore(engine.context, 1, data)
    assert lib.llama_sequence_length(engine.context, 1) == 0
    assert sequence_restore(engine.context, 0, data) == text


# --- Cancelling


def test_forward_ends_between_passes_when_the_flag_says_so(path):
    engine, flag = Engine(path, batch=4), ffi.new("int *")
    lib.llama_context_watch(engine.context, flag)
    text = random_ids(SHAPE, 40)
    assert np.array_equal(engine.logits(text), Engine(path).logits(text))
    flag[0] = 1
    error = ffi.new("LlamaError *")
    rows = [(token, i, 0, 0) for i, token in enumerate(text)]
    assert lib.llama_forward(engine.context, rows, 40, ffi.NULL, error) == lib.LLAMA_ERROR_CANCELLED
    assert ffi.string(error.text) == b"cancelled"
    assert lib.llama_sequence_length(engine.context, 0) == 40  # nothing ran
    lib.llama_context_watch(engine.context, ffi.NULL)
    assert np.array_equal(engine.logits(text), Engine(path).logits(text))


def test_another_thread_cancels_a_prefill(path):
    engine, flag = Engine(path, batch=1, threads=1), ffi.new("int *")
    lib.llama_context_watch(engine.context, flag)
    rows = [(1, i % 100, 0, 0) for i in range(200_000)]  # seconds
    timer = threading.Timer(0.05, lambda: flag.__setitem__(0, 1))
    timer.start()
    code = lib.llama_forward(engine.context, rows, len(rows), ffi.NULL, ffi.NULL)
    timer.join()
    assert code == lib.LLAMA_ERROR_CANCELLED == llama.CancelledError.code


# --- Hidden states


def hidden_states(engine: Engine, rows: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """The logits and the hidden states of the rows that want them."""
    config, error = lib.llama_config(engine.model), ffi.new("LlamaError *")
    logits = np.full((sum(row[3] for row in rows), config.vocab_size), np.nan, np.float32)
    hidden = np.full((sum(row[4] for row in rows), config.dim), np.nan, np.float32)
    outs = [ffi.from_buffer("float[]", array, require_writable=True) for array in (logits, hidden)]
    check(lib.llama_forward_hidden(engine.context, rows, len(rows), *outs, error), error)
    return logits, hidden


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_hidden_states_are_those_of_model_py(tmp_path, dtype):
    shape = Shape(vocab_size=40)
    config, weights = config_of(shape), named(shape, checkpoints.random_weights(shape))
    export_v3(tmp_path / "m.bin", config, weights, dtype)
    model, ids = Llama(config).eval(), random_ids(shape, 60)
    model.load_state_dict(weights, strict=False)
    states = []
    model.norm.register_forward_hook(lambda module, inputs, output: states.append(output))
    with torch.no_grad():
        model(torch.tensor([ids]))
    expected, bound = states[0][0].numpy(), {"fp32": 1e-4, "bf16": 2e-2, "int8": 3e-2}[dtype]
    for isa in isas(tmp_path / "m.bin"):
        engine = Engine(tmp_path / "m.bin", kernels=isa, batch=17, threads=2)
        _, found = hidden_states(engine, [(token, i, 0, 0, 1) for i, token in enumerate(ids)])
        assert np.linalg.norm(found - expected) < bound * np.linalg.norm(expected)


def test_only_the_rows_that_want_outputs_get_them(path):
    ids = random_ids(SHAPE, 30)
    logits, hidden = hidden_states(Engine(path), [(token, i, 0, 1, 1) for i, token in enumerate(ids)])
    shown, wanted = [3, 8, 21], [0, 8, 29]
    rows = [(token, i, 0, int(i in wanted), int(i in shown)) for i, token in enumerate(ids)]
    some_logits, some_hidden = hidden_states(Engine(path, batch=7), rows)
    assert np.array_equal(some_hidden, hidden[shown])
    assert np.array_equal(some_logits, logits[wanted])
    assert np.array_equal(some_logits, Engine(path).logits(ids)[wanted])
    with pytest.raises(RuntimeError, match="hidden = NULL, but a row wants it"):
        Engine(path).forward([(1, 0, 0, 0, 1)])


# --- A step of generations


def generation(engine: Engine, sampler: object, sequence: int) -> object:
    out, error = ffi.new("LlamaGeneration **"), ffi.new("LlamaError *")
    check(
        lib.llama_generation_init(engine.context, ffi.NULL, sampler, sequence, ffi.NULL, 0, out, error), error
    )
    return ffi.gc(out[0], lib.llama_generation_free)


def test_generations_that_do_not_go_together_are_refused(path):
    engine, error = Engine(path, sequences=2), ffi.new("LlamaError *")
    other = Engine(path)
    one, two, foreign = (generation(e, ffi.NULL, s) for e, s in ((engine, 0), (engine, 1), (other, 0)))
    pieces = ffi.new("LlamaPiece[3]")
    for generations, prefill, message in [
        ([one, one], 0, b"generation 1: another one has its sequence 0"),
        ([one, foreign], 0, b"generation 1 is of another context than the first"),
        ([one, two], 129, b"prefill = 129, allowed 0 to 128, the batch"),
        ([one, two], -1, b"prefill = -1, allowed 0 to 128, the batch"),
    ]:
        code = lib.llama_generation_step(generations, len(generations), prefill, pieces, error)
        assert code == lib.LLAMA_ERROR_USAGE
        assert ffi.string(error.text) == message
    assert lib.llama_generation_step([], 0, 0, pieces, error) == lib.LLAMA_OK
    with pytest.raises(RuntimeError, match="sequence = 2, allowed 0 to 1"):
        generation(engine, ffi.NULL, 2)
    assert lib.llama_generation_reuse(one, [1], 1, error) == lib.LLAMA_ERROR_USAGE
    assert ffi.string(error.text) == b"1 tokens to reuse, sequence 0 holds 0"
    assert lib.llama_generation_logprobs(one, 129, error) == lib.LLAMA_ERROR_USAGE
    assert ffi.string(error.text) == b"logprobs = 129, allowed 0 to 128, or -1 for none"
