"""Adapters beside a model: unmerged is merged, for every type and instruction set; bad files are refused."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from checkpoints import Shape
from helpers import DATA
from test_export import config_of, named
from test_forward import FP32_BOUND, INT8_BOUND, Engine, isas, random_ids, relative
from torch_formats import export_bin, export_v3

from llama.errors import BadFileError, UsageError
from llama.formats.adapter_file import MATRICES, write_adapter
from llama.formats.adapters import Adapter, Merged
from llama.formats.export import export_v3 as write_v3
from llama.formats.models import open_source
from llama.formats.source import tensor_shapes
from llama.formats.tensor import Tensor
from llama.native import context_init, sequence_restore, sequence_save

SHAPE = Shape(dim=60, hidden_dim=172, n_heads=6, n_kv_heads=3, vocab_size=45, max_seq_len=100)
SOME = ("attention.wq", "attention.wv", "attention.wo", "feed_forward.w3", "feed_forward.w2")
SCALE = 0.7
FILES = {  # how a model of each type is written
    "v0": lambda path, *model: export_bin(path, *model),
    "v2": lambda path, *model: export_bin(path, *model, 2, 4),
    **{
        dtype: lambda path, *model, dtype=dtype: export_v3(path, *model, dtype)
        for dtype in ("fp32", "bf16", "int8", "int4")
    },
}


def random_adapter(shape: Shape, matrices: tuple[str, ...] = MATRICES, rank: int = 5) -> Adapter:
    """An adapter that changes a model a good deal; ranks differ from layer to layer."""
    values, pairs = np.random.default_rng(7), {}
    for name, (rows, cols) in (item for item in tensor_shapes(config_of(shape)).items() if len(item[1]) == 2):
        _, _, part = name.removesuffix(".weight").split(".", 2) if "layers" in name else ("", "", "")
        if part in matrices:
            r = rank + int(name.split(".")[1])
            halves = (values.normal(0, 0.2, size).astype(np.float32) for size in ((r, cols), (rows, r)))
            pairs[name] = tuple(map(Tensor.of, halves))
    return Adapter("adapter", "", SCALE, pairs)


def write_model(path: Path, shape: Shape, kind: str = "v0") -> Path:
    FILES[kind](path, config_of(shape), named(shape, checkpoints.random_weights(shape)))
    return path


def write_merged(path: Path, model: Path, adapter: Adapter, scale: float = 1.0) -> Path:
    """The weights that the file of a model stands for, with the adapter, in fp32."""
    found = open_source(model)
    write_v3(path, found.config, Merged(found.tensors, adapter, scale), "fp32")
    return path


@pytest.fixture
def lora(tmp_path) -> Path:
    write_adapter(tmp_path / "x.lora.bin", random_adapter(SHAPE), config_of(SHAPE))
    return tmp_path / "x.lora.bin"


@pytest.mark.parametrize("kind", FILES)
def test_unmerged_is_merged_for_every_isa_thread_count_and_batch(tmp_path, lora, kind):
    model, ids = write_model(tmp_path / "model.bin", SHAPE, kind), random_ids(SHAPE, 40)
    merged = write_merged(tmp_path / "merged.bin", model, random_adapter(SHAPE))
    expected, without = Engine(merged).logits(ids), Engine(model, exact=1).logits(ids)
    assert relative(expected - without, without) > 0.2
    for isa in isas(model):
        exact = Engine(model, lora, kernels=isa, exact=1).logits(ids)
        np.testing.assert_allclose(exact, expected, rtol=0, atol=FP32_BOUND)
        first = Engine(model, lora, kernels=isa, threads=1, batch=1).logits(ids)
        assert relative(first - expected, expected) < INT8_BOUND
        for threads, batch in itertools.product((1, 3), (3, 17, 128)):
            logits = Engine(model, lora, kernels=isa, threads=threads, batch=batch).logits(ids)
            assert np.array_equal(first, logits), f"{isa}: {threads} threads, batch {batch} change the result"


@pytest.mark.parametrize("matrices", [("attention.wq",), ("feed_forward.w3",), SOME])
def test_some_matrices_and_a_scale(tmp_path, matrices):
    model, ids = write_model(tmp_path / "model.bin", SHAPE, "fp32"), random_ids(SHAPE, 20)
    adapter = random_adapter(SHAPE, matrices)
    write_adapter(tmp_path / "x.lora.bin", adapter, config_of(SHAPE))
    write_adapter(tmp_path / "half.lora.bin", adapter, config_of(SHAPE), 0.5)
    merged = write_merged(tmp_path / "merged.bin", model, adapter, -0.5)
    expected = Engine(merged).logits(ids)
    for file, scale in (("x.lora.bin", -0.5), ("half.lora.bin", -1.0)):
        found = Engine(model, tmp_path / file, scale).logits(ids)
        np.testing.assert_allclose(found, expected, rtol=0, atol=FP32_BOUND)
    assert np.array_equal(Engine(model, tmp_path / "x.lora.bin", 0.0).logits(ids), Engine(model).logits(ids))


def test_rows_of_other_sequences_change_nothing(tmp_path, lora):
    model, ids = write_model(tmp_path / "model.bin", SHAPE, "int8"), random_ids(SHAPE, 12)
    alone = Engine(model, lora).logits(ids)
    engine = Engine(model, lora, sequences=3, threads=2)
    rows = [(token, i, s, s == 1) for i, token in enumerate(ids) for s in range(3)]
    assert np.array_equal(engine.forward(rows), alone)


def test_a_saved_sequence_is_of_its_adapter(tmp_path, lora):
    model = write_model(tmp_path / "model.bin", SHAPE)
    engine = Engine(model, lora)
    engine.logits([1, 2])
    data = sequence_save(engine.context, 0, [1, 2])
    assert sequence_restore(Engine(model, lora).context, 0, data) == [1, 2]
    for other in (Engine(model), Engine(model, lora, 0.5)):
        with pytest.raises(BadFileError, match=r"is of model .*, this is model"):
            sequence_restore(other.context, 0, data)


def test_an_adapter_of_another_model_is_refused(tmp_path, lora):
    first, second = (write_model(tmp_path / f"{i}.bin", SHAPE) for i in range(2))
    adapter = Engine(first, lora).adapter
    with pytest.raises(UsageError, match="the adapter was opened for another model"):
        context_init(Engine(second).model, adapter=adapter)


# --- Files

SAMPLE = Shape(dim=32, hidden_dim=40, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=20, max_seq_len=16)


def test_the_stored_sample_is_what_is_written_today(tmp_path):
    """A change of the format shows here, and must come with a new version number."""
    write_adapter(tmp_path / "x.lora.bin", random_adapter(SAMPLE, SOME, 2), config_of(SAMPLE))
    assert (tmp_path / "x.lora.bin").read_bytes() == (DATA / "sample_adapter.lora.bin").read_bytes()
    with_it = Engine(DATA / "sample_v3.bin", DATA / "sample_adapter.lora.bin").logits([1, 2])
    assert not np.array_equal(with_it, Engine(DATA / "sample_v3.bin").logits([1, 2]))


def sealed(data: bytes, at: int, value: bytes) -> bytes:
    """A file with other bytes at a place, and the checksum that belongs to them."""
    data = data[:at] + value + data[at + len(value) :]
    return data[:36] + struct.pack("<I", zlib.crc32(data[40:], zlib.crc32(data[:36]))) + data[40:]


def i32(value: int) -> bytes:
    return struct.pack("<i", value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:63], "is no adapter, allowed is an adapter that cria convert has made"),
        (lambda data: b"GGUF" + data[4:], "is a GGUF file, allowed is an adapter"),
        (lambda data: sealed(data, 4, i32(2)), "version = 2, allowed 1"),
        (lambda data: data[:-1], r"has \d+ bytes, its header says \d+"),
        (lambda data: data + bytes(64), r"has \d+ bytes, its header says \d+"),
        (lambda data: data[:-1] + b"\1", "checksum = .*, stored is "),
        (lambda data: sealed(data, 8, i32(64)), "is for dim = 64, the model has 60"),
        (lambda data: sealed(data, 16, i32(-1)), "is for n_layers = -1, the model has 2"),
        (lambda data: sealed(data, 28, i32(12)), "is for head_dim = 12, the model has 10"),
        (lambda data: sealed(data, 64, i32(-1)), "rank of wq of layer 0 = -1, allowed 0 to 4096"),
        (lambda data: sealed(data, 64 + 9 * 4, i32(4097)), "rank of wv of layer 1 = 4097, allowed 0 to 4096"),
        (lambda data: sealed(data, 64, i32(4096)), r"has \d+ bytes, its ranks ask for \d+"),
        (lambda data: sealed(data, 64, i32(0)), r"has \d+ bytes, its ranks ask for \d+"),
        (lambda data: sealed(data[:64], 40, struct.pack("<Q", 64)), "has 64 bytes, its ranks ask for "),
    ],
)
def test_a_bad_file_is_refused(tmp_path, lora, change: Callable[[bytes], bytes], message):
    model = write_model(tmp_path / "model.bin", SHAPE)
    lora.write_bytes(change(lora.read_bytes()))
    with pytest.raises(BadFileError, match=rf"x\.lora\.bin: {message}"):
        Engine(model, lora)


def test_a_scale_that_is_no_number_is_refused(tmp_path, lora):
    model = write_model(tmp_path / "model.bin", SHAPE)
    with pytest.raises(UsageError, match=r"x\.lora\.bin: scale = inf, allowed finite numbers"):
        Engine(model, lora, float("inf"))
    with pytest.raises(BadFileError, match="No such file"):
        Engine(model, tmp_path / "none.lora.bin")


def test_values_that_no_file_holds_are_refused(tmp_path):
    adapter = random_adapter(SHAPE, SOME)
    name = next(iter(adapter.pairs))
    broken = Tensor.of(np.full(adapter.pairs[name][0].shape, np.nan, np.float32))
    bad = Adapter("bad", "", 1.0, {**adapter.pairs, name: (broken, adapter.pairs[name][1])})
    with pytest.raises(BadFileError, match=f"bad: adapter of {name} has values that are not finite"):
        write_adapter(tmp_path / "x.lora.bin", bad, config_of(SHAPE))
    assert not (tmp_path / "x.lora.bin").exists()
