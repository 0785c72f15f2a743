"""Logits equal the reference, and do not depend on threads, batches, or how rows are grouped."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from checkpoints import Shape, Weights, reference_logits
from test_export import config_of, named
from torch_formats import export_v3

from llama._engine import ffi, lib
from llama.native import adapter_open
from model import Llama

HEADS = {"MHA": 8, "GQA": 4, "MQA": 1}
LENGTH = 140  # more than the largest batch
# Bounds: of a logit for fp32 (they spread over a few units), of the relative error for int8.
FP32_BOUND = 1e-4
INT8_EXACT = 1e-5  # texts of one token, against a reference that quantises activations as the engine does
INT8_FLIPS = (
    0.03  # a long text: where a value rounds to the other side of a half, later rows see it in the cache
)
INT8_BOUND = 0.05  # a long text, against the dequantised weights with exact activations


def check(code: int, error) -> None:
    if code:
        raise RuntimeError(ffi.string(error.text).decode())


class Engine:
    """A checkpoint with a context, without a tokenizer. lora: the file of an adapter."""

    def __init__(self, path: Path, lora: Path | None = None, scale: float = 1.0, **options) -> None:
        error, model, context = ffi.new("LlamaError *"), ffi.new("LlamaModel **"), ffi.new("LlamaContext **")
        check(lib.llama_open(str(path).encode(), model, error), error)
        self.model = ffi.gc(model[0], lib.llama_close)
        self.kernels = ffi.new("char[]", options["kernels"].encode()) if "kernels" in options else ffi.NULL
        self.adapter = adapter_open(lora, scale, self.model) if lora else ffi.NULL
        special = {"kernels": self.kernels, "adapter": self.adapter}
        self.options = ffi.new("LlamaContextOptions *", {**options, **special})
        check(lib.llama_context_init(self.model, self.options, context, error), error)
        self.context = ffi.gc(context[0], lib.llama_context_free)

    def forward(self, rows: list[tuple[int, int, int, int]]) -> np.ndarray:
        """Rows of (token, position, sequence, wants_logits) to the logits of those that want them."""
        error = ffi.new("LlamaError *")
        wanted = sum(row[3] for row in rows)
        logits = np.full((wanted, lib.llama_config(self.model).vocab_size), np.nan, np.float32)
        out = ffi.from_buffer("float[]", logits, require_writable=True) if wanted else ffi.NULL
        check(lib.llama_forward(self.context, rows, len(rows), out, error), error)
        return logits

    def logits(self, ids: list[int], start: int = 0, sequence: int = 0) -> np.ndarray:
        return self.forward([(token, start + i, sequence, 1) for i, token in enumerate(ids)])


def isas(path: Path) -> list[str]:
    """The kernels that this CPU has; scalar is always among them."""
    try:
        Engine(path, kernels="none")
    except RuntimeError as error:
        return str(error).split(":")[1].split()
    raise AssertionError("an unknown name was accepted")


def random_ids(shape: Shape, n: int = LENGTH, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, shape.vocab_size, n).tolist()


def relative(difference: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference, relative to that of what was expected."""
    return np.linalg.norm(difference) / np.linalg.norm(expected)


def fp32_equality(shape: Shape, weights: Weights, ids: list[int]) -> Callable[[Engine], None]:
    """What asserts that the logits of an engine equal the reference, which is computed once for many."""
    expected = reference_logits(shape, weights, ids)

    def equals(engine: Engine) -> None:
        np.testing.assert_allclose(engine.logits(ids), expected, rtol=0, atol=FP32_BOUND)

    return equals


def int8_equality(shape: Shape, weights: Weights, ids: list[int]) -> Callable[[Engine], None]:
    """The same of weights in int8: one token at a time, and a long text."""
    weights, size = checkpoints.dequantised(weights, shape.group_size), shape.group_size
    ones = [(t, reference_logits(shape, weights, [t], group_size=size)) for t in ids[:20]]
    bounds = {size: INT8_FLIPS, 0: INT8_BOUND}  # by the groups of the activations
    long = [(reference_logits(shape, weights, ids, group_size=n), bound) for n, bound in bounds.items()]

    def equals(engine: Engine) -> None:
        assert np.median([relative(engine.logits([t]) - one, one) for t, one in ones]) < INT8_EXACT
        logits = engine.logits(ids)
        for expected, bound in long:
            assert relative(logits - expected, expected) < bound

    return equals


EQUALITY = {0: fp32_equality, 1: fp32_equality, 2: int8_equality}  # by version of the file


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.bin"


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_the_reference_for_every_isa_thread_count_and_batch(path, version, heads, tied):
    shape = Shape(n_kv_heads=HEADS[heads], tied=tied)
    weights, ids = checkpoints.write(path, shape, version), random_ids(shape)
    equals = EQUALITY[version](shape, weights, ids)
    for isa in isas(path):
        equals(Engine(path, kernels=isa))
        first = Engine(path, kernels=isa, threads=1, batch=1).logits(ids)
        for threads, batch in itertools.product((1, 2, 4), (1, 3, 17, 128)):
            logits = Engine(path, kernels=isa, threads=threads, batch=batch).logits(ids)
            assert np.array_equal(first, logits), f"{isa}: {threads} threads, batch {batch} change the result"


@pytest.mark.parametrize("n_kv_heads", [3, 1])
def test_a_long_text_does_not_depend_on_who_has_its_spans(path, n_kv_heads):
    """Behind 512 positions, threads between which heads do not divide share those of a single row."""
    shape = Shape(dim=48, hidden_dim=32, n_heads=6, n_kv_heads=n_kv_heads, max_seq_len=1100)
    weights, ids = checkpoints.write(path, shape), random_ids(shape, 1100)
    expected = reference_logits(shape, weights, ids)
    for isa in isas(path):
        whole = Engine(path, kernels=isa, threads=1).logits(ids)
        np.testing.assert_allclose(whole, expected, rtol=0, atol=FP32_BOUND)
        for threads in (2, 5):
            engine = Engine(path, kernels=isa, threads=threads)
            assert np.array_equal(engine.logits(ids[:-3]), whole[:-3])
            for position in range(1097, 1100):
                assert np.array_equal(engine.logits(ids[position:][:1], position), whole[position:][:1])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "shape",
    [
        Shape(dim=32, hidden_dim=48, n_heads=4, n_kv_heads=2, group_size=16),  # head_dim 8
        Shape(dim=96, hidden_dim=288, n_heads=2, n_kv_heads=2, group_size=48),  # head_dim 48
        Shape(dim=128, hidden_dim=384, n_heads=2, n_kv_heads=1, group_size=128),  # head_dim 64
        Shape(dim=256, hidden_dim=704, n_heads=2, n_kv_heads=2, group_size=64, vocab_size=97),  # head_dim 128
        Shape(
            dim=60, hidden_dim=172, n_heads=6, n_kv_heads=3, group_size=4, vocab_size=33
        ),  # nothing fills a block
        Shape(dim=30, hidden_dim=45, n_heads=3, n_kv_heads=3, group_size=3, vocab_size=1),  # unaligned scales
        Shape(
            dim=2, hidden_dim=1, n_heads=1, n_kv_heads=1, group_size=1, n_layers=1
        ),  # the smallest there is
    ],
    ids=lambda shape: f"dim{shape.dim}-head{shape.head_dim}-group{shape.group_size}",
)
def test_logits_equal_the_reference_for_odd_shapes(path, version, shape):
    weights, ids = checkpoints.write(path, shape, version), random_ids(shape, 40)
    equals = {0: EQUALITY[version](shape, weights, ids)}  # by whether it is exact
    if version == 2:
        equals[1] = fp32_equality(shape, checkpoints.dequantised(weights, shape.group_size), ids)
    for isa in isas(path):
        for threads, exact in itertools.product((1, 2), equals):
            equals[exact](Engine(path, kernels=isa, threads=threads, batch=16, exact=exact))


def test_logits_equal_pytorch_in_float32(path):
    shape = Shape(dim=128, hidden_dim=352, n_layers=4)
    weights, ids = checkpoints.write(path, shape, 0), random_ids(shape)
    expected = reference_logits(shape, weights, ids, dtype=torch.float32)
    np.testing.assert_allclose(Engine(path).logits(ids), expected, rtol=0, atol=FP32_BOUND)


@pytest.mark.parametrize("version", [0, 2])
def test_sequences_side_by_side_equal_each_alone(path, version):
    shape = Shape()
    checkpoints.write(path, shape, version)
    texts = [random_ids(shape, n, seed=n) for n in (5, 1, 40, 23)]
    alone = [Engine(path).logits(text) for text in texts]
    engine = Engine(path, sequences=len(texts), batch=7)
    rows = [(t, i, s, 1) for i in range(40) for s, text in enumerate(texts) for t in text[i : i + 1]]
    together = engine.forward(rows)
    for sequence, expected in enumerate(alone):
        chosen = [i for i, row in enumerate(rows) if row[2] == sequence]
        assert np.array_equal(together[chosen], expected)


def test_only_the_rows_that_want_logits_get_them(path):
    shape = Shape()
    checkpoints.write(path, shape, 0)
    ids, engine = random_ids(shape, 30), Engine(path, batch=8)
    everything = engine.logits(ids)
    wanted = [0, 7, 8, 22, 29]
    rows = [(token, i, 0, int(i in wanted)) for i, token in enumerate(ids)]
    assert np.array_equal(engine.forward(rows), everything[wanted])
    assert engine.forward([(ids[0], 0, 0, 0)]).shape == (0, shape.vocab_size)


def test_going_back_forgets_what_came_after(path):
    shape = Shape()
    checkpoints.write(path, shape, 0)
    engine = Engine(path)
    first, second = random_ids(shape, 30, seed=2), random_ids(shape, 30, seed=3)
    engine.logits(first)
    branch = engine.logits(second[10:], start=10)
    assert np.array_equal(branch, Engine(path).logits(first[:10] + second[10:])[10:])
    with pytest.raises(RuntimeError, match="position = 31, sequence 0 holds only 30"):
        engine.logits([1], start=31)


def test_going_back_within_one_call_is_the_same_as_in_two(path):
    shape = Shape()
    checkpoints.write(path, shape, 0)
    a, b = random_ids(shape, 9, seed=4), random_ids(shape, 9, seed=5)
    rows = [(token, i, 0, 1) for text in (a, b) for i, token in enumerate(text)]
    expected = np.concatenate([Engine(path).logits(a), Engine(path).logits(b)])
    assert np.array_equal(Engine(path).forward(rows), expected)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((96, 0, 0, 1), "token = 96, allowed 0 to 95"),
        ((-1, 0, 0, 1), "token = -1, allowed 0 to 95"),
        ((0, 160, 0, 1), "position = 160, allowed 0 to 159"),
        ((0, -1, 0, 1), "position = -1, allowed 0 to 159"),
        ((0, 0, 2, 1), "sequence = 2, allowed 0 to 1"),
        ((0, 4, 0, 1), "position = 4, sequence 0 holds only 3"),
    ],
)
def test_a_bad_row_is_refused_and_changes_nothing(path, row, message):
    shape = Shape()
    checkpoints.write(path, shape, 0)
    engine, ids = Engine(path, sequences=2), random_ids(shape, 6)
    expected = Engine(path).logits(ids)
    assert np.array_equal(engine.logits(ids[:3]), expected[:3])
    with pytest.raises(RuntimeError, match=message):
        engine.forward([(0, 0, 1, 1), row])
    with pytest.raises(RuntimeError, match="sequence 1 holds only 0"):
        engine.forward([(0, 1, 1, 1)])
    assert np.array_equal(engine.logits(ids[3:], start=3), expected[3:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 161}, "context = 161, allowed 1 to 160"),
        ({"context": -1}, "context = -1, allowed 1 to 160"),
        ({"threads": 5000}, "threads = 5000, allowed 1 to 1024"),
        ({"batch": 1 << 20}, "batch = 1048576, allowed 1 to 4096"),
        ({"kernels": "sse9"}, "kernels = sse9, this CPU has:.* scalar"),
    ],
)
def test_bad_context_options_are_refused(path, options, message):
    checkpoints.write(path, Shape(), 0)
    with pytest.raises(RuntimeError, match=message):
        Engine(path, **options)


def test_a_cache_beyond_64_bits_is_refused(path):
    # 2 caches of 2^62 floats: their bytes are 0 modulo 2^64
    shape = Shape(dim=2048, hidden_dim=1, n_layers=1 << 11, n_heads=1, n_kv_heads=1, vocab_size=1, tied=True)
    shape = dataclasses.replace(shape, max_seq_len=1 << 24)
    checkpoints.write_zeros(path, shape)  # 137 GB
    with pytest.raises(RuntimeError, match=r"a context of 16777216 positions needs 34359738368\.0 GiB"):
        Engine(path, sequences=1 << 16, threads=1, batch=1)


def test_nan_in_the_weights_reaches_the_logits(path):
    shape = Shape()
    for version in (0, 2):
        weights = checkpoints.random_weights(shape)
        weights["attention_norm"][1, 3] = np.nan
        path.write_bytes(checkpoints.WRITERS[version](shape, weights))
        for isa in isas(path):
            assert np.isnan(Engine(path, kernels=isa).logits([1, 2, 3])).all()


# --- Another base of RoPE than the file's


@pytest.mark.parametrize("version", [0, 1, 3])
def test_another_base_of_rope_is_that_of_model_py(tmp_path, version):
    shape, ids = Shape(vocab_size=40), random_ids(Shape(vocab_size=40))
    config, weights = config_of(shape), named(shape, checkpoints.random_weights(shape))
    if version == 3:
        export_v3(tmp_path / "m.bin", config, weights, "fp32")
    else:
        checkpoints.write(tmp_path / "m.bin", shape, version)
    for theta in (10000.0, 1e6):
        model = Llama(dataclasses.replace(config, rope_theta=theta)).eval()
        model.load_state_dict(weights, strict=False)
        with torch.no_grad():
            expected = model(torch.tensor([ids]))[0].numpy()
        found = Engine(tmp_path / "m.bin", rope_theta=theta).logits(ids)
        np.testing.assert_allclose(found, expected, rtol=0, atol=FP32_BOUND)
        plain = Engine(tmp_path / "m.bin").logits(ids)
        assert np.array_equal(found, plain) == (theta == 10000)


@pytest.mark.parametrize("theta", [-1.0, float("nan"), float("inf")])
def test_a_base_of_rope_that_can_not_be_is_refused(tmp_path, theta):
    checkpoints.write(tmp_path / "m.bin", Shape())
    with pytest.raises(RuntimeError, match=r"rope_theta = .*, allowed finite numbers above 0"):
        Engine(tmp_path / "m.bin", rope_theta=theta)
