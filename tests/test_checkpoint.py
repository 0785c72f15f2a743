"""Hostile checkpoints and tokenizers: both programs refuse them in one line that says what is wrong.

    python -m pytest tests/test_checkpoint.py                          with ./run
    RUN_BINARY=/path/to/run python -m pytest tests/test_checkpoint.py  with another build of it

Left out on purpose: what a valid checkpoint computes (test_forward.py), the records of a tokenizer.bin
(test_tokenizer.py).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import resource
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from checkpoints import Shape
from helpers import PROGRAMS, assert_refused, run, write_pieces
from sentencepiece import SentencePieceTrainer

import llama
from llama._engine import ffi, lib

SHAPE = Shape(dim=16, hidden_dim=24, n_heads=4, n_kv_heads=2, vocab_size=32, max_seq_len=16, group_size=8)
HEADER = {0: 28, 1: 256, 2: 256}
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
each_program = pytest.mark.parametrize("program", PROGRAMS)
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


def file_size(version: int, shape: Shape) -> int:
    """What a file of this shape has, header included."""
    d, h, n, kv_dim = shape.dim, shape.hidden_dim, shape.n_layers, shape.n_kv_heads * shape.head_dim
    matrices = (shape.vocab_size * d) * (1 if shape.tied else 2) + n * (
        2 * d * d + 2 * kv_dim * d + 3 * h * d
    )
    norms, rope = 4 * d * (2 * n + 1), 4 * shape.max_seq_len * shape.head_dim if version == 0 else 0
    weight_bytes = matrices + 4 * matrices // shape.group_size if version == 2 else 4 * matrices
    return HEADER[version] + norms + rope + weight_bytes


def cpu_seconds() -> float:
    """What the programs run so far have used. Unlike the clock it does not depend on what else is running."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def assert_bad_file(program: str, model: Path, message: str, *options: str | Path) -> None:
    """Exit code 3, the message as the only line on stderr, nothing on stdout, within a second."""
    before = cpu_seconds()
    result = run(program, model, "-t", "0", *options, cwd=model.parent)
    assert_refused(result, 3, message)
    assert result.stdout == b""
    assert cpu_seconds() - before < 1


def assert_bad_bytes(program: str, path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    assert_bad_file(program, path, f"{path}: {message}")


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


# --- Other kinds of files


def zip_archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 1000)
    return file.getvalue()


def sentencepiece_model() -> bytes:
    model = io.BytesIO()
    text = iter(["one two three", "four five six"] * 5)
    options = {"vocab_size": 32, "hard_vocab_limit": False, "model_type": "bpe", "minloglevel": 2}
    SentencePieceTrainer.train(sentence_iterator=text, model_writer=model, **options)
    return model.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


HTML = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n"
STATE = {"weights": list(range(200))}
KINDS = {
    "gguf": (lambda: b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + bytes(400), "a GGUF file"),
    "zip": (zip_archive, "a zip archive, such as a PyTorch checkpoint (.pt, .pth)"),
    "pickle2": (lambda: pickle.dumps(STATE, 2), "a Python pickle, such as an old PyTorch checkpoint"),
    "pickle4": (lambda: pickle.dumps(STATE, 4), "a Python pickle"),
    "pickle5": (lambda: pickle.dumps(STATE, 5), "a Python pickle"),
    "safetensors": (safetensors, "a safetensors file"),
    "html": (lambda: HTML, "an HTML page"),
    "html-lower": (lambda: HTML.lower() * 10, "an HTML page"),
    "html-bare": (lambda: HTML[16:], "an HTML page"),
    "lfs": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 60816028\n",
        "a Git LFS pointer: run git lfs pull",
    ),
    "json": (lambda: json.dumps(STATE).encode(), "a JSON file"),
    "json-short": (lambda: b"{}", "a JSON file"),
    "gzip": (lambda: gzip.compress(bytes(random.Random(1).randbytes(500))), "a gzip archive"),
    "elf": (lambda: b"\x7fELF\2\1\1".ljust(600, b"\0"), "a program"),
    "sentencepiece": (sentencepiece_model, "a sentencepiece model, not a tokenizer.bin"),
}


@each_program
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_called_by_its_name(path, program, kind):
    make, name = KINDS[kind]
    assert_bad_bytes(program, path, make(), f"is {name}, not a llama2.c checkpoint")


@each_program
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_no_tokenizer(path, program, kind):
    make, name = KINDS[kind]
    path.write_bytes(valid(1))
    other = path.with_name("other")
    other.write_bytes(make())
    message = f"{other}: can't be read as a tokenizer: it is {name}"
    assert_bad_file(program, path, message, "-z", other)


@each_program
@pytest.mark.parametrize("text", [b"no model\n" * 100, b"\0" * 1000, b"\xff" * 1000, b"\n", b"\x89PNG\r\n"])
def test_a_file_of_no_known_kind_is_refused_by_its_header(path, program, text):
    path.write_bytes(text)
    result = run(program, path, cwd=path.parent)
    assert_refused(result, 3)
    assert result.stderr.startswith(b"error: " + os.fsencode(path) + b": ")
    assert b", allowed " in result.stderr or b" bytes, the header alone has 28" in result.stderr
    assert result.stdout == b""


# --- What is no file, or can't be read


def make_directory(path: Path) -> None:
    path.mkdir()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_nothing(path: Path) -> None:
    pass


def make_unreadable(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read every file")
    path.write_bytes(valid(1))
    path.chmod(0)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


UNREADABLE = [
    (make_directory, "is a directory, not a file"),
    (make_fifo, "is a pipe or a device, not a file"),
    (make_nothing, "No such file or directory"),
    (make_unreadable, "Permission denied"),
    (make_loop, "Too many levels of symbolic links"),
]


@each_program
@pytest.mark.parametrize("option", ["model", "tokenizer"])
@pytest.mark.parametrize(("make", "message"), UNREADABLE, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_not_a_file_is_refused_and_not_waited_for(path, program, option, make, message):
    other = path.with_name("other")
    make(other)
    if option == "model":
        assert_bad_file(program, other, f"{other}: {message}")
    else:
        path.write_bytes(valid(1))
        assert_bad_file(program, path, f"{other}: {message}", "-z", other)


@each_program
def test_the_name_of_a_file_may_be_any_bytes(path, program):
    name = os.fsdecode(b"caf\xe9 \xff %s%n.bin")
    assert_bad_file(program, path.with_name(name), f"{path.with_name(name)}: No such file or directory")


# --- Tokenizers


@each_program
@pytest.mark.parametrize("size", [3, 31, 33, 512])
def test_a_tokenizer_of_another_size_is_refused_with_both_sizes(path, program, size):
    path.write_bytes(valid(1))
    other = write_pieces(path.with_name("other"), [("<unk>", 0), ("<s>", 0)] + [("x", 0)] * (size - 2))
    assert_bad_file(program, path, f"{other}: has {size} tokens, the model's vocab_size = 32", "-z", other)


@each_program
def test_a_tokenizer_that_is_cut_is_refused(path, program):
    path.write_bytes(valid(1))
    other, data = path.with_name("other"), path.with_name("tok32.bin").read_bytes()
    for size, message in (
        (0, "is empty"),
        (3, "has no tokens"),
        (4, "has no tokens"),
        (11, "token 0 has 7 bytes of its record, needed are at least 8"),
        (len(data) - 1, "token 31 has length = 1, but the file ends after 0 bytes"),
    ):
        other.write_bytes(data[:size])
        assert_bad_file(program, path, f"{other}: {message}", "-z", other)


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
    """A model of 8 MB, all zeros and so without a block on disk, whose whole context takes 1.1 TB."""
    shape = replace(SHAPE, dim=64, hidden_dim=1, n_layers=128, n_heads=1, n_kv_heads=1, max_seq_len=1 << 24)
    path.write_bytes(checkpoints.header_v1(shape, 1))
    os.truncate(path, file_size(1, shape))
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
