"""Keys and values in fewer bits: rounded and nothing else, near fp32, in half or a quarter of the memory."""

from __future__ import annotations

import dataclasses
import itertools

import checkpoints
import numpy as np
import pytest
import torch
from checkpoints import Shape, reference_logits
from helpers import ROOT
from test_forward import Engine, isas, random_ids, relative
from test_shipped import STORY

import llama
from llama import perplexity
from llama._engine import ffi, lib
from llama.native import KV

FP32, BF16, FP16, INT8 = lib.LLAMA_KV_FP32, lib.LLAMA_KV_BF16, lib.LLAMA_KV_FP16, lib.LLAMA_KV_INT8
TORCH = {BF16: torch.bfloat16, FP16: torch.float16, INT8: torch.int8}
# Relative errors of the logits of a text, beside fp32 and beside a reference in float64, in which a value
# halfway between two may round to the other one.
NEAR = {BF16: 1e-2, FP16: 1e-3, INT8: 2e-2}
FLIPS = {BF16: 1e-3, FP16: 2e-4, INT8: 1e-3}
each_type = pytest.mark.parametrize("kv", list(TORCH), ids=lambda kv: KV[kv])
each_shape = pytest.mark.parametrize(
    "shape",
    [
        Shape(),  # head_dim 8, two queries a head
        Shape(dim=96, hidden_dim=96, n_heads=2, n_kv_heads=2),  # 48
        Shape(dim=192, hidden_dim=64, n_heads=3, n_kv_heads=1),  # 64, three queries a head
        Shape(dim=256, hidden_dim=64, n_heads=2, n_kv_heads=1),  # 128
        Shape(dim=60, hidden_dim=44, n_heads=6, n_kv_heads=2),  # 10: fills no vector
    ],
    ids=lambda shape: f"head{shape.head_dim}-share{shape.n_heads // shape.n_kv_heads}",
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.bin"


# --- Values


@each_type
@each_shape
def test_logits_equal_a_reference_that_rounds_keys_and_values(path, shape, kv):
    weights, ids = checkpoints.write(path, shape), random_ids(shape)
    expected = reference_logits(shape, weights, ids, kv=TORCH[kv])
    for isa in isas(path):
        logits = Engine(path, kernels=isa, kv=kv, context=len(ids)).logits(ids)
        assert relative(logits - expected, expected) < FLIPS[kv]


@each_type
@each_shape
def test_logits_are_near_those_of_fp32(path, shape, kv):
    checkpoints.write(path, shape)
    ids = random_ids(shape)
    exact = Engine(path).logits(ids)
    error = relative(Engine(path, kv=kv).logits(ids) - exact, exact)
    assert NEAR[kv] / 100 < error < NEAR[kv]


@each_type
@pytest.mark.parametrize("n_kv_heads", [8, 4, 1])
def test_threads_and_batches_do_not_change_the_result(path, n_kv_heads, kv):
    shape = Shape(n_kv_heads=n_kv_heads)
    checkpoints.write(path, shape)
    ids = random_ids(shape)
    for isa in isas(path):
        first = Engine(path, kernels=isa, kv=kv, threads=1, batch=1).logits(ids)
        for threads, batch in itertools.product((1, 2), (1, 3, 17, 128)):
            logits = Engine(path, kernels=isa, kv=kv, threads=threads, batch=batch).logits(ids)
            assert np.array_equal(first, logits), f"{isa}: {threads} threads, batch {batch} change the result"


@each_type
@pytest.mark.parametrize(
    "shape", [Shape(dim=192, n_heads=6, n_kv_heads=3), Shape(dim=256, n_heads=2, n_kv_heads=1)]
)
def test_a_prompt_depends_on_neither_threads_nor_batches_nor_neighbours(path, shape, kv):
    """Of heads of 32 and 128: AMX has a kernel for rows that want no logits."""
    weights, ids, other = checkpoints.write(path, shape), random_ids(shape), random_ids(shape, seed=2)
    expected = reference_logits(shape, weights, ids, kv=TORCH[kv])[-1]
    rows = [(token, i, 0, int(i == len(ids) - 1)) for i, token in enumerate(ids)]
    beside = [(token, i, 1, 0) for i, token in enumerate(other)]
    for isa in isas(path):
        first = Engine(path, kernels=isa, kv=kv, threads=1, batch=1).forward(rows)
        assert relative(first - expected, expected) < FLIPS[kv]
        for threads, batch in itertools.product((1, 2, 3), (17, 128)):
            engine = Engine(path, kernels=isa, kv=kv, threads=threads, batch=batch, sequences=2)
            assert np.array_equal(first, engine.forward(rows)), f"{isa}: {threads} threads, batch {batch}"
            mixed = engine.forward([row for pair in zip(beside, rows, strict=True) for row in pair])
            assert np.array_equal(first, mixed), f"{isa}: neighbours, {threads} threads, batch {batch}"


@each_type
def test_sequences_side_by_side_equal_each_alone(path, kv):
    shape = Shape()
    checkpoints.write(path, shape)
    texts = [random_ids(shape, n, seed=n) for n in (5, 1, 40, 23)]
    engine = Engine(path, sequences=len(texts), batch=7, kv=kv, context=41)
    rows = [(t, i, s, 1) for i in range(40) for s, text in enumerate(texts) for t in text[i : i + 1]]
    together = engine.forward(rows)
    for sequence, text in enumerate(texts):
        chosen = [i for i, row in enumerate(rows) if row[2] == sequence]
        assert np.array_equal(together[chosen], Engine(path, kv=kv).logits(text))


def test_keys_that_fp16_can_not_hold_are_an_error(path):
    shape = Shape()
    weights = checkpoints.random_weights(shape)
    weights["wk"][1] *= 1e6
    path.write_bytes(checkpoints.v0(shape, weights))
    ids = random_ids(shape, 30)
    assert np.isfinite(Engine(path, kv=FP32).logits(ids)).all()
    assert np.isfinite(Engine(path, kv=BF16).logits(ids)).all()
    with (
        llama.Llama(path, kv="fp16") as model,
        pytest.raises(llama.BadFileError, match="not a finite"),
    ):
        model.score(ids)


# --- Memory


@each_type
def test_the_cache_takes_as_many_bytes_as_its_type(path, kv):
    shape = Shape()
    checkpoints.write(path, shape)
    options = {"context": 100, "sequences": 3, "threads": 1}
    whole, less = (Engine(path, kv=kind, **options) for kind in (FP32, kv))
    heads = 2 * shape.n_layers * 3 * 112 * shape.n_kv_heads  # whole blocks of 16 positions
    saved = lib.llama_context_bytes(whole.context) - lib.llama_context_bytes(less.context)
    head = shape.head_dim + 4 if kv == INT8 else 2 * shape.head_dim  # int8 has a scale
    assert saved == heads * (4 * shape.head_dim - head)


def test_a_context_that_does_not_fit_is_named_with_the_size_of_its_type(path):
    shape = Shape(dim=2048, hidden_dim=1, n_layers=1 << 11, n_heads=1, n_kv_heads=1, vocab_size=1, tied=True)
    shape = dataclasses.replace(shape, max_seq_len=1 << 24)
    checkpoints.write_zeros(path, shape)
    for kv, size in ((FP32, "34359738368"), (FP16, "17179869184"), (BF16, "17179869184")):
        with pytest.raises(RuntimeError, match=rf"a context of 16777216 positions needs {size}\.0 GiB"):
            Engine(path, sequences=1 << 16, threads=1, batch=1, kv=kv)


# --- The option


def test_fp32_is_the_default(path):
    checkpoints.write(path, Shape())
    engine = Engine(path)
    assert lib.llama_context_options(engine.context).kv == FP32
    ids = random_ids(Shape(), 20)
    assert np.array_equal(engine.logits(ids), Engine(path, kv=FP32).logits(ids))


@pytest.mark.parametrize("kv", [-1, 4, 2**31 - 1])
def test_an_unknown_type_is_refused(path, kv):
    checkpoints.write(path, Shape())
    with pytest.raises(RuntimeError, match=f"kv = {kv}, allowed 0 to 3"):
        Engine(path, kv=kv)


def test_names_are_those_of_c():
    assert [ffi.string(lib.llama_kv_name(kv)).decode() for kv in range(len(KV))] == list(KV)
    assert ffi.string(lib.llama_kv_name(len(KV))) == b"unknown"


# --- The model that ships


def test_the_model_that_ships_tells_the_same_story():
    """But where two tokens are as good as equally likely, which no type is asked to decide alike."""
    model = ROOT / "llama/models/stories.bin"  # by name: a build elsewhere does not find it
    for isa in isas(model):
        engine, ids, logits = Engine(model, kernels=isa, context=128), [1], []
        for position in range(120):
            logits.append(engine.logits(ids[-1:], position)[0])
            ids.append(int(logits[-1].argmax()))
        exact = np.array(logits)
        second, first = np.sort(exact)[:, -2:].T
        for kv in TORCH:
            rounded = Engine(model, kernels=isa, context=128, kv=kv).logits(ids[:-1])
            assert relative(rounded - exact, exact) < 2e-2
            changed = rounded.argmax(axis=1) != ids[1:]
            assert (first - second)[changed].max(initial=0) < 0.2, f"{isa}, {KV[kv]}"


def test_the_model_that_ships_predicts_as_well():
    found = {}
    for kv in KV:
        with llama.Llama(kv=kv) as model:
            assert model.kv == kv
            found[kv] = perplexity.measure(model, iter([STORY])).bits_per_byte
    assert abs(found["fp16"] - found["fp32"]) < 1e-3
    assert abs(found["int8"] - found["fp32"]) < 2e-3
    assert abs(found["bf16"] - found["fp32"]) < 5e-3
    assert len(set(found.values())) == 4
