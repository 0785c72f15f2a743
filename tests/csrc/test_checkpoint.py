"""Hostile checkpoints: both programs refuse them in one line that says what is wrong.

    python -m pytest tests/test_checkpoint.py                          with ./run
    RUN_BINARY=/path/to/run python -m pytest tests/test_checkpoint.py  with another build of it

Left out on purpose: what a valid checkpoint computes (test_forward.py), v3 (test_v3.py), files that are no
checkpoints at all (test_file_kinds.py).
"""

from __future__ import annotations

import os
import random
import struct
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from checkpoints import HEADER, Shape, file_size
from helpers import PROGRAMS, assert_bad_bytes, assert_refused, each_program, run, write_pieces

import llama
from llama._engine import ffi, lib

SHAPE = Shape(dim=16, hidden_dim=24, n_heads=4, n_kv_heads=2, vocab_size=32, max_seq_len=16, group_size=8)
FIELDS_AT = {0: 0, 1: 8, 2: 8}
MAX = {
    "dim": 1 << 17,
    "hidden_dim": 1 << 20,
    "n_layers": 1 << 12,
    "n_heads": 1 << 12,
    "n_kv_heads": 1 << 12,
    "vocab_size": 1 << 24,
    "max_seq_len": 1 << 24,
}
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
# A Python process takes long to start, so it gets the files of one version.
PAIRS = [("native", 0), ("native", 1), ("native", 2), ("python", 1)]
each_version = pytest.mark.parametrize("version", [0, 1, 2])
each_pair = pytest.mark.parametrize(("program", "version"), PAIRS)


@pytest.fixture
def path(tmp_path) -> Path:
    write_pieces(tmp_path / "tok32.bin", [("<unk>", 0), ("<s>", 0), ("</s>", 0)] + [("x", 0)] * 29)
    return tmp_path / "model.bin"


def valid(version: int, shape: Shape = SHAPE) -> bytes:
    return checkpoints.WRITERS[version](shape, checkpoints.random_weights(shape))


def patched(data: bytes, at: int, form: str, *values) -> bytes:
    """data with other values from offset `at` on."""
    value = struct.pack(form, *values)
    return data[:at] + value + data[at + len(value) :]


def with_fields(version: int, shape: Shape = SHAPE, **fields: int) -> bytes:
    """A valid file with other values in its header."""
    data = valid(version, shape)
    for name, value in fields.items():
        data = patched(data, FIELDS_AT[version] + 4 * list(MAX).index(name), "<i", value)
    return data


def open_model(path: Path) -> tuple[int, str, object]:
    """llama_open in this process: its code, its message and the model."""
    error, model = ffi.new("LlamaError *"), ffi.new("LlamaModel **")
    code = lib.llama_open(os.fsencode(path), model, error)
    return code, os.fsdecode(ffi.string(error.text)), ffi.gc(model[0], lib.llama_close)


def forward(model, ids: list[int]) -> tuple[int, np.ndarray]:
    """The code and the logits of ids in a context that has room for no more."""
    options = {"context": len(ids), "batch": 4, "threads": 1}
    context, logits = (
        ffi.new("LlamaContext **"),
        np.zeros((len(ids), lib.llama_config(model).vocab_size), "f4"),
    )
    code = lib.llama_context_init(model, ffi.new("LlamaContextOptions *", options), context, ffi.NULL)
    if code:
        return code, logits
    handle = ffi.gc(context[0], lib.llama_context_free)
    rows = [(token, i, 0, 1) for i, token in enumerate(ids)]
    out = ffi.from_buffer("float[]", logits, require_writable=True)
    return lib.llama_forward(handle, rows, len(rows), out, ffi.NULL), logits


# --- Sizes


def truncated_message(version: int, size: int, whole: int) -> str:
    if size == 0:
        return "is empty"
    header = HEADER[version] if size >= 8 else HEADER[0]  # without its first 8 bytes a file has no version
    if size < header:
        return f"has {size} bytes, the header alone has {header}"
    return f"has {size} bytes, its header asks for {whole}"


@each_version
@pytest.mark.parametrize("tied", [True, False])
def test_a_file_cut_anywhere_is_refused_with_both_sizes(path, version, tied):
    shape = replace(SHAPE, tied=tied)
    path.write_bytes(valid(version, shape))
    whole = path.stat().st_size
    assert whole == file_size(version, shape)
    assert open_model(path)[0] == lib.LLAMA_OK
    for size in [*range(whole - 1, 600, -7), *range(600, -1, -1)]:
        os.truncate(path, size)
        code, text, _ = open_model(path)
        assert (code, text) == (3, f"{path}: {truncated_message(version, size, whole)}")


@each_pair
def test_programs_refuse_a_file_that_is_too_short_or_too_long(path, program, version):
    data = valid(version)
    whole = len(data)
    for size in (0, 1, 7, 8, 27, 28, 29, 36, 40, 255, 256, 257, whole // 2, whole - 1, whole + 1, 2 * whole):
        message = truncated_message(version, size, whole)
        assert_bad_bytes(program, path, data.ljust(size, b"\0")[:size], message)


@each_version
def test_a_longer_file_is_refused_with_both_sizes(path, version):
    data = valid(version)
    for extra in (1, 3, 4, 64, 4096, 1 << 20):
        path.write_bytes(data + bytes(extra))
        message = f"{path}: has {len(data) + extra} bytes, its header asks for {len(data)}"
        assert open_model(path)[:2] == (3, message)


def test_the_size_of_the_largest_model_does_not_overflow(path):
    fields = {**MAX, "n_kv_heads": MAX["n_heads"]}
    for version in (0, 1, 2):
        size = file_size(version, replace(SHAPE, **fields, group_size=MAX["dim"]))
        data = with_fields(version, **fields)
        if version == 2:
            data = patched(data, 37, "<i", MAX["dim"])
        path.write_bytes(data)
        assert open_model(path)[:2] == (3, f"{path}: has {len(data)} bytes, its header asks for {size}")


# --- Fields of the header


@each_pair
@pytest.mark.parametrize("name", MAX)
def test_a_field_out_of_range_is_named_with_what_is_allowed(path, program, version, name):
    least = 2 if name == "dim" else 1
    values = [0, -1, INT32_MIN, INT32_MAX, MAX[name] + 1]
    if (version, name) == (0, "vocab_size"):
        values.remove(-1)  # the sign says that the classifier is not shared
    for value in values:
        message = f"{name} = {value}, allowed {least} to {MAX[name]}"
        assert_bad_bytes(program, path, with_fields(version, **{name: value}), message)


@each_pair
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_heads": 3}, "n_heads = 3 does not divide dim = 16"),
        ({"n_heads": 32}, "n_heads = 32 does not divide dim = 16"),
        ({"n_kv_heads": 3}, "n_kv_heads = 3 does not divide n_heads = 4"),
        ({"n_kv_heads": 8}, "n_kv_heads = 8 does not divide n_heads = 4"),
        ({"n_heads": 16}, "head_dim = 1 (dim / n_heads), allowed even numbers"),
        ({"dim": 12}, "head_dim = 3 (dim / n_heads), allowed even numbers"),
    ],
)
def test_fields_that_do_not_fit_each_other_are_named(path, program, version, fields, message):
    assert_bad_bytes(program, path, with_fields(version, **fields), message)


@each_program
def test_a_negative_vocabulary_of_v0_asks_for_a_classifier(path, program):
    data = with_fields(0, vocab_size=-32)
    asked = file_size(0, replace(SHAPE, tied=False))
    assert_bad_bytes(program, path, data, f"has {len(data)} bytes, its header asks for {asked}")
    for value in (-(1 << 24) - 1, -INT32_MAX):
        message = f"vocab_size = {-value}, allowed 1 to {1 << 24}"
        assert_bad_bytes(program, path, with_fields(0, vocab_size=value), message)


@each_program
@pytest.mark.parametrize("value", [0, 4, 5, -1, INT32_MIN, INT32_MAX])
def test_an_unknown_version_is_refused(path, program, value):
    message = f"version = {value}, allowed 1, 2 and 3 (and 0, without magic)"
    assert_bad_bytes(program, path, patched(valid(1), 4, "<i", value), message)


@pytest.mark.parametrize(("program", "version"), [("native", 1), ("native", 2), ("python", 2)])
def test_a_shared_flag_that_is_neither_0_nor_1_is_refused(path, program, version):
    for flag in (2, 128, 255):
        message = f"shared classifier = {flag}, allowed 0 and 1"
        assert_bad_bytes(program, path, patched(valid(version), 36, "<B", flag), message)


@each_program
@pytest.mark.parametrize("size", [0, -1, -8, 3, 16, 32, INT32_MIN, INT32_MAX])
def test_a_group_size_that_does_not_divide_the_rows_is_refused(path, program, size):
    message = f"group_size = {size}, allowed divisors of dim = 16 and hidden_dim = 24"
    assert_bad_bytes(program, path, patched(valid(2), 37, "<i", size), message)


@each_program
def test_a_group_that_runs_over_the_rows_of_w2_is_refused_though_it_divides_dim(path, program):
    shape = Shape(dim=64, hidden_dim=172, vocab_size=32, max_seq_len=16, group_size=64)
    data = valid(2, replace(shape, group_size=4))  # w2 has 64 * 172 values, which groups of 64 divide too
    data = patched(data, 37, "<i", 64)[: file_size(2, shape)]
    message = "group_size = 64, allowed divisors of dim = 64 and hidden_dim = 172"
    assert_bad_bytes(program, path, data, message)


# --- Weights


POISONS = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


def poisoned(version: int, name: str, value: float) -> bytes:
    """A file with one weight, or where weights are int8 one scale, that is not a number."""
    weights = checkpoints.random_weights(SHAPE)
    if version == 2 and name not in checkpoints.NORMS:
        layers = len(weights[name]) if weights[name].ndim == 3 else 1
        marks = np.float32(12345.0)  # stands for one scale, to be found in the file
        weights[name].reshape(layers, -1)[0, :8] = marks * 127
        data = checkpoints.v2(SHAPE, weights)
        assert data.count(marks.tobytes()) == (2 if name == "output" else 1)
        return data.replace(marks.tobytes(), np.float32(value).tobytes())
    weights[name].reshape(-1)[0] = value
    return checkpoints.WRITERS[version](SHAPE, weights)


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("name", ["tok_embeddings", "attention_norm", "wv", "w2", "norm"])
@each_version
def test_weights_that_are_not_numbers_give_an_error_and_no_text(path, version, name, poison):
    path.write_bytes(poisoned(version, name, POISONS[poison]))
    for options in (("-t", "0"), ("-t", "1", "-s", "1"), ("-t", "1", "-p", "0", "--top-k", "3")):
        result = run("native", path, *options, cwd=path.parent)
        assert_refused(result, 3)
        assert result.stderr.startswith(b"error: %b: logit of token " % os.fsencode(path))
        assert result.stderr.endswith(b", allowed finite numbers\n")
        assert result.stdout == b""


@each_version
def test_weights_that_are_not_numbers_give_the_same_error_in_python(path, version):
    path.write_bytes(poisoned(version, "norm", np.nan))
    results = [run(program, path, "-t", "0", cwd=path.parent) for program in PROGRAMS]
    for result in results:
        assert_refused(result, 3, f"{path}: logit of token 0 is nan, allowed finite numbers")
        assert result.stdout == b""


# --- Memory


@pytest.fixture
def large(path) -> Path:
    """A model of 8 MB, whose whole context takes 1.1 TB."""
    shape = replace(SHAPE, dim=64, hidden_dim=1, n_layers=128, n_heads=1, n_kv_heads=1, max_seq_len=1 << 24)
    checkpoints.write_zeros(path, shape)
    return path


@each_program
def test_a_context_that_memory_can_not_hold_is_refused_with_both_sizes(large, program):
    result = run(program, large, "-n", "0", cwd=large.parent)
    assert_refused(result, 4)
    cache = 2 * 128 * (1 << 24) * 64 * 4 / 2**30
    rope = (1 << 24) * 64 * 4 / 2**30
    words = result.stderr.decode().split()
    expected = "error: a context of 16777216 positions needs N GiB, this machine has M GiB"
    needed, available = float(words[7]), float(words[12])
    assert [*words[:7], "N", *words[8:12], "M", *words[13:]] == expected.split()
    assert cache + rope <= needed < cache + 2 * rope
    assert available == pytest.approx(
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, abs=0.1
    )
    assert result.stdout == b""


@each_program
@pytest.mark.parametrize("options", [("-n", "16"), ("-c", "16", "-n", "0")])
def test_a_model_with_a_large_context_runs_in_a_small_one(large, program, options):
    result = run(program, large, "-t", "0", "-j", "1", *options, cwd=large.parent)
    assert result.returncode == 0, result.stderr
    assert b"generated: 16 tokens" in result.stderr


def test_the_package_says_that_memory_is_too_small(large):
    with pytest.raises(llama.ResourceError, match="a context of 16777216 positions needs"):
        llama.Llama(large)
    assert llama.Llama(large, context=16).logits([0]).shape == (1, 32)


# --- Random damage


def damaged(data: bytes, version: int, rng: random.Random) -> bytes:
    """data with a few bits, bytes or fields of its header changed, or a few bits anywhere."""
    out = bytearray(data)
    kind = rng.randrange(4)
    for _ in range(rng.randint(1, 3)):
        if kind == 0:
            out[rng.randrange(HEADER[version])] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[rng.randrange(HEADER[version])] = rng.randrange(256)
        elif kind == 2:
            value = rng.choice([*range(-2, 66), 1 << rng.randrange(31), rng.randint(INT32_MIN, INT32_MAX)])
            struct.pack_into("<i", out, FIELDS_AT[version] + 4 * rng.randrange(7), value)
        else:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


@each_version
def test_a_damaged_file_is_refused_or_runs(path, version):
    data, rng, counts = valid(version), random.Random(version), {0: 0, 3: 0}
    for _ in range(600):
        path.write_bytes(damaged(data, version, rng))
        code, text, model = open_model(path)
        counts[code] += 1
        if code:
            assert text.startswith(f"{path}: ")
            assert "\n" not in text
            continue
        size = lib.llama_config(model).vocab_size
        n = min(6, lib.llama_config(model).max_seq_len)
        assert forward(model, [i % size for i in range(n)])[0] == 0
    assert min(counts.values()) > 50, counts  # both branches were seen


@each_version
def test_random_bytes_after_a_valid_beginning_are_refused_or_run(path, version):
    data, rng = valid(version), random.Random(version)
    for _ in range(100):
        at = rng.choice([0, 4, 8, 28, 256])
        path.write_bytes(data[:at] + rng.randbytes(len(data) - at))
        code, _, model = open_model(path)
        assert code in (0, 3)
        if code == 0:
            assert forward(model, [0, 1, 2])[0] == 0
            assert at >= 28  # a header of random bytes fits no file


@each_version
def test_programs_survive_damaged_files(path, version):
    data, rng = valid(version), random.Random(100 + version)
    for i in range(40):
        path.write_bytes(damaged(data, version, rng))
        result = run("python" if i % 10 == 0 else "native", path, "-n", "4", "-s", "1", cwd=path.parent)
        if result.returncode == 0:
            assert result.stderr.startswith(b"prompt: 1 tokens")
        else:
            assert_refused(result, 3)
