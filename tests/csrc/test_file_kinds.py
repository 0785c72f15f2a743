"""What is no checkpoint or no tokenizer: it is called by its name, in one line, and never waited for.

Left out on purpose: checkpoints that are damaged (test_checkpoint.py), the records of a tokenizer.bin
(test_tokenizer.py), files that export.py does not read (test_export.py).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import checkpoints
import pytest
from checkpoints import Shape
from helpers import assert_bad_bytes, assert_bad_file, assert_refused, each_program, run, write_pieces
from sentencepiece import SentencePieceTrainer

SHAPE = Shape(dim=16, hidden_dim=24, n_heads=4, n_kv_heads=2, vocab_size=32, max_seq_len=16)


@pytest.fixture
def path(tmp_path) -> Path:
    write_pieces(tmp_path / "tok32.bin", [("<unk>", 0), ("<s>", 0), ("</s>", 0)] + [("x", 0)] * 29)
    return tmp_path / "model.bin"


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


TOKENIZERS = {  # that tokenizer.py reads
    "gguf": "a model",
    "json": "a JSON file, such as a tokenizer.json",
    "sentencepiece": "a sentencepiece model",
}


def told(kind: str, path: Path) -> str:
    """The message for a tokenizer that the engine does not open."""
    return f"{path}: is {kind}; for a tokenizer.bin made of it: python tokenizer.py export {path}"


@each_program
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_called_by_its_name(path, program, kind):
    make, name = KINDS[kind]
    is_model = any(word in name for word in ("GGUF", "safetensors", "PyTorch"))
    way = ": python -m llama.run reads it" if is_model else ""
    assert_bad_bytes(program, path, make(), f"is {name}, not a llama2.c checkpoint{way}")


@each_program
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_no_tokenizer(path, program, kind):
    make, name = KINDS[kind]
    checkpoints.write(path, SHAPE, 1)
    other = path.with_name("other")
    other.write_bytes(make())
    message = f"{other}: can't be read as a tokenizer: it is {name}"
    if kind in TOKENIZERS:
        message = told(TOKENIZERS[kind], other)
    if kind in ("gguf", "sentencepiece") and program == "python":
        pytest.skip("python -m llama.run reads such a file")
    assert_bad_file(program, path, message, "-z", other)


@pytest.mark.parametrize("line", [b"IQ== 0\nIg== 1\n", b"AAAAAAA= 123\r\nIQ== 124\r\n"])
def test_a_tiktoken_file_is_told_how_to_become_a_tokenizer(path, line):
    checkpoints.write(path, SHAPE, 1)
    other = path.with_name("other")
    other.write_bytes(line)
    assert_bad_file("native", path, told("a tiktoken file, as of Llama 3", other), "-z", other)


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
    checkpoints.write(path, SHAPE, 1)
    path.chmod(0)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


FOLDER = (
    "is no folder of a model, allowed is one with config.json (Hugging Face), params.json (Meta), "
    "model.safetensors (train.py)"
)
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
    if option == "model" and make is make_directory and program == "python":  # it takes folders of models
        result = run(program, other, cwd=other, CRIA_CACHE=str(path.parent / "cache"))
        assert_refused(result, 3, f"{other}: {FOLDER}")
    elif option == "model":
        assert_bad_file(program, other, f"{other}: {message}")
    else:
        checkpoints.write(path, SHAPE, 1)
        assert_bad_file(program, path, f"{other}: {message}", "-z", other)


@each_program
def test_the_name_of_a_file_may_be_any_bytes(path, program):
    name = os.fsdecode(b"caf\xe9 \xff %s%n.bin")
    assert_bad_file(program, path.with_name(name), f"{path.with_name(name)}: No such file or directory")


# --- Tokenizers


@each_program
@pytest.mark.parametrize("size", [3, 31, 33, 512])
def test_a_tokenizer_of_another_size_is_refused_with_both_sizes(path, program, size):
    checkpoints.write(path, SHAPE, 1)
    other = write_pieces(path.with_name("other"), [("<unk>", 0), ("<s>", 0)] + [("x", 0)] * (size - 2))
    assert_bad_file(program, path, f"{other}: has {size} tokens, the model's vocab_size = 32", "-z", other)


@each_program
def test_a_tokenizer_that_is_cut_is_refused(path, program):
    checkpoints.write(path, SHAPE, 1)
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
