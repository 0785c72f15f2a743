"""export.py from and to GGUF: the engine and llama.cpp tell the same text, whatever way a model went.

What compares with llama.cpp needs llama-cpp-python, and is left out where that is not installed.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from gguf_files import SMALL, LlamaCpp, library_file, random_source, tokenizer_bin
from helpers import TEXTS
from references import needs_llama_cpp
from torch_formats import export_bin, export_gguf, open_source

from llama import Llama, convert
from llama.formats import tokenizers
from model import Config
from training.tokenizers import train as train_tokenizer
from training.weights import save_weights

PROMPT = "a big cat"


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.gguf"


@pytest.fixture(params=["sentencepiece", "llama3"])
def model(tmp_path, request) -> Path:
    """A checkpoint, with a tokenizer beside it."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    if request.param == "llama3":
        known = request.getfixturevalue("llama3")
        (folder / "tokenizer.model").write_bytes(known.path.read_bytes())
    else:
        known = train_tokenizer(TEXTS * 3, 330, folder / "tokenizer.model")
    config = Config(**SMALL | {"vocab_size": known.vocab_size, "tied": False})
    tensors = random_source(config).tensors
    if request.param == "llama3":  # visible letters are likely, the special tokens are not
        tensors["output.weight"][32:127] *= 10
        tensors["output.weight"][267:] *= 0.1
    save_weights(folder / "model.safetensors", config, tensors)
    return folder


def run(*arguments: str | Path) -> None:
    assert convert.main([*map(str, arguments)]) == 0


def text_of(path: Path, prompt: str = PROMPT) -> str:
    """The text of the engine, greedily, without the tokens that end one."""
    with Llama(path) as engine:
        return "".join(engine.generate(prompt, max_tokens=40, temperature=0))


def test_by_way_of_gguf_a_model_tells_the_same_text(model, path, tmp_path):
    ours, theirs = tmp_path / "direct.bin", tmp_path / "by gguf.bin"
    run(model, ours, "--version", "3")
    run(model, path)
    run(path, theirs, "--version", "3")
    expected = text_of(ours)
    assert len(set(expected)) > 5
    assert text_of(theirs) == expected


@needs_llama_cpp
def test_llama_cpp_tells_the_text_of_the_engine(model, path, tmp_path):
    run(model, tmp_path / "direct.bin", "--version", "3")
    run(model, path)
    assert LlamaCpp(path).text(PROMPT, 40) == text_of(tmp_path / "direct.bin")


def test_a_v3_file_holds_what_the_gguf_file_says_of_texts(model, path, tmp_path):
    out, known = tmp_path / "model.bin", tokenizers.load(model)
    run(model, path, "--template", "llama2")
    path = path.rename(tmp_path / "told by its content")
    run(path, out, "--version", "3")
    data = out.read_bytes()
    bos, n_stops, *stops = struct.unpack_from("<10i", data, 76)
    assert (bos, tuple(stops[:n_stops])) == (known.bos_id, open_source(path).stops)
    assert known.eos_id in stops[:n_stops]
    assert struct.unpack_from("<i", data, 116) == (1,)  # the template
    begin, size = struct.unpack_from("<2Q", data, 128)
    assert data[begin : begin + size] == open_source(path).vocabulary().indexed


@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 0.01), ("int8", 0.01), ("int4", 0.15)])
def test_every_type_is_written_and_reported(model, path, capsys, dtype, bound):
    run(model, path, "--dtype", dtype, "--ends-dtype", "bf16")
    out, groups = capsys.readouterr().out, "" if dtype == "bf16" else " in groups of 32"
    assert out.startswith(f"{path}: GGUF, {dtype}{groups}, {path.stat().st_size:,} bytes, ")
    assert out.count("error of the rounding, relative rms: ") == 3
    name = "layers.1.feed_forward.w2.weight"
    found, expected = (open_source(file).tensors[name].float() for file in (path, model))
    assert 0 < (found - expected).norm() / expected.norm() < bound


def test_the_usual_type_loses_nothing(model, path, capsys):
    run(model, path)
    assert f"{path}: GGUF, fp32, " in capsys.readouterr().out
    source = open_source(model)
    halves = {name: tensor.bfloat16() for name, tensor in source.tensors.items()}
    save_weights(model / "model.safetensors", source.config, halves)
    run(model, path)
    assert f"{path}: GGUF, bf16, " in capsys.readouterr().out


def test_a_bin_file_and_a_folder_of_hugging_face_go_by_gguf_too(tmp_path, path):
    source = random_source(Config(**SMALL))
    export_bin(tmp_path / "model.bin", source.config, source.tensors)
    tokenizer_bin(tmp_path)
    run(tmp_path / "model.bin", path)
    run(path, tmp_path / "v3.bin", "--version", "3")
    expected = text_of(tmp_path / "model.bin")
    assert text_of(tmp_path / "v3.bin") == expected
    run(path, tmp_path / "folder")
    run(tmp_path / "folder", path, "--tokenizer", tmp_path / "tokenizer.bin")
    run(path, tmp_path / "v3.bin", "--version", "3")
    assert text_of(tmp_path / "v3.bin") == expected


def test_a_file_without_a_tokenizer_takes_the_one_beside_it(tmp_path, path):
    export_gguf(path, random_source(Config(**SMALL)))
    run(path, tmp_path / "a.bin", "--version", "3")
    tokenizer_bin(tmp_path)
    run(path, tmp_path / "b.bin", "--version", "3")
    assert (tmp_path / "b.bin").stat().st_size > (tmp_path / "a.bin").stat().st_size


def test_ids_of_tokens_that_are_not_there_mean_nothing(path):
    keys = {"tokenizer.ggml.model": "no_vocab", "tokenizer.ggml.bos_token_id": 1}
    library_file(path, random_source(Config(**SMALL)), keys=keys)
    source = open_source(path)
    assert (source.bos, source.stops, source.vocabulary()) == (-1, (), None)


# --- What is refused

USAGE = {
    ("--version", "3"): "--version is for OUT.bin, OUT = ",
    ("--group-size", "32"): "--group-size is for --version 2",
    ("--dtype", "q4"): "argument --dtype: invalid choice: 'q4'",
}


@pytest.mark.parametrize("options", USAGE, ids=" ".join)
def test_a_wrong_command_line_is_one_line(path, capsys, options):
    with pytest.raises(SystemExit) as end:
        convert.main(["model", str(path), *options])
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (2, 1)
    assert error.startswith(f"error: {USAGE[options]}")


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str | Path) -> str:
    """What a command says that fails with this exit code, one line."""
    capsys.readouterr()
    assert convert.main([*map(str, arguments)]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_wrong_tokenizer_is_refused_and_the_old_file_stays(tmp_path, path, model, capsys):
    path.write_bytes(b"old")
    other = tmp_path / "other"
    other.mkdir()
    tokenizer_bin(other)
    n = tokenizers.load(model).vocab_size
    error = refused(capsys, 3, model, path, "--tokenizer", other / "tokenizer.bin")
    assert error == f"error: {other / 'tokenizer.bin'}: has 300 tokens, the model's vocab_size = {n}\n"
    assert path.read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["checkpoint", "model.gguf", "other"]


def test_a_model_is_not_written_over_itself(model, path, capsys):
    run(model, path)
    expected = path.read_bytes()
    assert refused(capsys, 2, path, path, "--dtype", "int4") == f"error: {path}: is the model itself\n"
    assert path.read_bytes() == expected


@pytest.mark.parametrize("data", [b"", b"GGUF", b"GGUF" + bytes(60), b"noise" * 9])
def test_a_damaged_file_is_refused_under_its_name(tmp_path, path, capsys, data):
    path.write_bytes(data)
    assert refused(capsys, 3, path, tmp_path / "out.bin").startswith(f"error: {path}: ")
    assert list(tmp_path.iterdir()) == [path]


def test_a_tokenizer_that_gguf_cannot_hold_is_refused_by_field(model, path, capsys, monkeypatch):
    monkeypatch.setattr(
        "llama.formats.gguf_vocabulary.problem_of", lambda vocabulary: "pattern = 0, allowed 1"
    )
    assert "GGUF can't hold the tokenizer: pattern = 0, allowed 1" in refused(capsys, 3, model, path)
    assert not path.exists()


def test_without_the_library_the_message_says_what_to_install(model, path, capsys, monkeypatch):
    """It is needed to write; most types are read without it."""
    run(model, path, "--dtype", "int4")
    monkeypatch.setitem(sys.modules, "gguf", None)
    run(path, path.with_suffix(".bin"))
    assert "pip install gguf" in refused(capsys, 3, model, path.with_name("other.gguf"))
