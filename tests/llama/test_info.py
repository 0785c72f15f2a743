"""What is said of the files that the engine runs, against how they were written (others: test_headers.py)."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import checkpoints
import pytest
import torch
from checkpoints import Shape
from helpers import PIECES, ROOT, assert_refused, run, write_pieces, write_ranked
from sentencepiece import SentencePieceTrainer
from test_export import random_model
from torch_formats import export_bin, export_v3

import llama
from llama import headers, info
from llama._engine import ffi, lib
from llama.formats.chat_templates import Chat
from llama.formats.source import tensor_shapes
from llama.formats.v3 import Extras
from llama.headers import Tensor
from llama.native import call, context_init, model_open
from model import Config, Llama, RopeScaling

SHAPES = {"tied": Shape(vocab_size=len(PIECES)), "untied": Shape(vocab_size=len(PIECES), tied=False)}
LAYER = ("attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w3", "w2")
SCALING = RopeScaling("llama3", 32, 1, 4, 64)


def write_model(folder: Path, kind: str, shape: Shape) -> Path:
    """A model: v0, v1, v2, or a type of v3, which has its tokenizer inside; others get one beside them."""
    path = folder / f"{kind}.bin"
    pieces = write_ranked(folder / "tokenizer.bin", PIECES)
    if kind.startswith("v"):
        checkpoints.write(path, shape, int(kind[1:]))
    else:
        config, weights = random_model(shape)
        extras = Extras(pieces.read_bytes(), stops=(7, 9), chat=Chat("llama3"))
        export_v3(path, config, weights, kind, extras=extras)
        pieces.unlink()
    return path


def numbers(shape: Shape) -> int:
    """Weights of a model."""
    weights = checkpoints.random_weights(shape)
    return sum(values.size for name, values in weights.items() if not (shape.tied and name == "output"))


# --- Tensors


def test_layers_are_folded_in_time_that_grows_as_their_number():
    assert info.numbers([0, 1, 2, 4, 7, 8]) == "0-2,4,7-8"
    assert info.numbers(range(0, 400_000, 2)).count(",") == 199_999


@pytest.mark.parametrize("kind", ["v0", "v1", "v2", "fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_tensors_are_those_of_the_file(tmp_path, kind, name):
    shape = SHAPES[name]
    path = write_model(tmp_path, kind, shape)
    found = info.info(str(path))
    layers = [f"layers.{layer}.{part}" for layer in range(shape.n_layers) for part in LAYER]
    assert [t.name for t in found.tensors] == [
        "tok_embeddings",
        *layers,
        "norm",
        *(["output"] * (not shape.tied)),
    ]
    assert sum(t.values for t in found.tensors) == found.parameters == numbers(shape)
    weights = checkpoints.random_weights(shape)
    for tensor in found.tensors:
        values = weights[tensor.name.rpartition(".")[2]]
        assert tensor.shape == (values[0] if tensor.name.startswith("layers.") else values).shape
    assert found.memory.weights == sum(t.bytes for t in found.tensors)
    assert found.bytes == path.stat().st_size
    if kind in ("v1", "v2"):
        assert found.bytes == 256 + found.memory.weights
    if kind == "v0":
        assert found.bytes == 28 + found.memory.weights + 4 * shape.max_seq_len * shape.head_dim


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "int4"])
def test_the_bytes_of_a_v3_file_are_known_before_it_is_written(tmp_path, kind):
    small, large = (info.info(str(write_model(tmp_path, k, SHAPES["untied"]))).memory for k in (kind, "v0"))
    assert small.weights == small.weights_as[kind] == large.weights_as[kind]


def test_there_is_no_tensor_beside_them(tmp_path):
    model = model_open(write_model(tmp_path, "int8", SHAPES["tied"]))
    for i in (-1, lib.llama_n_tensors(model)):
        assert lib.llama_tensor(model, i).name == ffi.NULL
        with pytest.raises(llama.UsageError, match=f"tensor {i}, allowed 0 to 19"):
            call(lib.llama_check_tensor, model, i)


def test_a_checksum_that_does_not_fit_is_named(tmp_path):
    path = write_model(tmp_path, "int8", SHAPES["untied"])
    assert info.info(str(path), check=True).checksums == "all fit"
    whole = path.read_bytes()
    for i, name in ((0, "tok_embeddings"), (2, "wq of layer 0"), (18, "w2 of layer 1"), (20, "output")):
        data = bytearray(whole)
        data[struct.unpack_from("<Q", data, 256 + 32 * i + 16)[0] + 70] ^= 1
        path.write_bytes(data)
        assert info.info(str(path)).checksums == "not compared"
        with pytest.raises(
            llama.BadFileError, match=f"{path}: checksum of {name} = [0-9a-f]{{8}}, stored is"
        ):
            info.info(str(path), check=True)
    assert info.info(str(write_model(tmp_path, "v2", SHAPES["tied"])), check=True).checksums.startswith(
        "none"
    )


# --- Memory


@pytest.mark.parametrize("kind", ["v0", "v2", "int4"])
@pytest.mark.parametrize("context", [0, 1, 17, 160])
def test_the_memory_is_what_a_context_takes(tmp_path, kind, context):
    shape = SHAPES["tied"]
    path = write_model(tmp_path, kind, shape)
    memory = info.info(str(path), context=context).memory
    taken = lib.llama_context_bytes(context_init(model_open(path), context))
    assert memory.cache + memory.scratch == taken
    positions = -(-(context or 160) // 16) * 16
    assert memory.cache == 2 * 4 * shape.n_layers * shape.n_kv_heads * shape.head_dim * positions
    assert memory.context == (context or 160)
    half = lib.llama_context_bytes(context_init(model_open(path), context, kv="fp16"))
    assert memory.cache_half + memory.scratch == half


def test_a_context_that_this_machine_has_no_memory_for_can_be_looked_at(tmp_path):
    path = tmp_path / "long.bin"
    checkpoints.write(path, Shape(vocab_size=32, max_seq_len=1 << 24), version=1)
    found = info.info(str(path)).memory
    assert found.cache == 2 * 4 * 2 * 32 * (1 << 24)
    assert run("native", path, "--info", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("kind", ["v0", "fp32"])
def test_more_positions_than_the_model_has_are_refused(tmp_path, kind):
    with pytest.raises(llama.UsageError, match="context = 161, allowed 1 to 160"):
        info.info(str(write_model(tmp_path, kind, SHAPES["tied"])), context=161)


def test_more_positions_than_the_engine_counts_are_refused(tmp_path):
    path = write_model(tmp_path, "v0", SHAPES["tied"])
    for more in (2**31, 2**64):
        with pytest.raises(llama.UsageError, match=f"context = {more}"):
            info.info(str(path), context=more)


# --- Configuration, tokenizer, template


def test_what_a_v3_file_says_is_said(tmp_path):
    config = Config(
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        head_dim=16,
        hidden_dim=40,
        vocab_size=len(PIECES),
        rope_theta=5e5,
        norm_eps=1e-6,
        rope_scaling=SCALING,
    )
    weights = Llama(config).state_dict()
    tokenizer = write_pieces(tmp_path / "t.bin", [(piece, 0.0) for piece in PIECES]).read_bytes()
    export_v3(
        tmp_path / "a.bin",
        config,
        weights,
        "bf16",
        extras=Extras(tokenizer, stops=(7, 9), chat=Chat("llama3")),
    )
    found = info.info(str(tmp_path / "a.bin"))
    for name in (*headers.OURS, "tied", "norm_eps", "rope_theta"):
        assert found.config[name] == getattr(config, name), name
    said = ("kind", "factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len")
    assert found.config["rope_scaling"] == {name: getattr(SCALING, name) for name in said}
    assert (found.kind, found.type, found.template, found.stops) == ("v3", "bf16", "llama3", [7, 9])
    ids = {"vocab_size": len(PIECES), "bos": 1, "eos": 2}
    assert found.tokenizer == {"file": "in the file", "kind": "sentencepiece BPE", **ids}
    said = info.text(found)
    assert (
        "rope         theta 500000, llama3 scaling: factor 32.0, low 1.0, high 4.0, original context 64"
        in said
    )


def test_a_tokenizer_may_be_missing_or_named_but_not_bad(tmp_path):
    path = write_model(tmp_path, "v0", SHAPES["tied"])
    assert info.info(str(path)).tokenizer["file"] == "beside the file or here"
    other = (tmp_path / "tokenizer.bin").rename(tmp_path / "other.bin")
    assert info.info(str(path)).tokenizer is None
    assert info.info(str(path), str(other)).tokenizer["file"] == str(other)
    with pytest.raises(llama.BadFileError, match=r"none\.bin: No such file"):
        info.info(str(path), str(tmp_path / "none.bin"))


def test_a_folder_of_meta_has_the_template_of_its_tokenizers_family(tmp_path):
    (tmp_path / "params.json").write_text('{"dim": 64, "n_layers": 1, "n_heads": 2}')
    assert info.info(str(tmp_path)).template == "none"
    (tmp_path / "tokenizer.model").write_bytes(b"YQ== 0\nYg== 1\n")
    assert info.info(str(tmp_path)).template == "llama3, as the tokenizer is of that family"
    sentencepiece = {"vocab_size": 8, "hard_vocab_limit": False, "minloglevel": 2}
    with (tmp_path / "tokenizer.model").open("wb") as out:
        SentencePieceTrainer.train(sentence_iterator=iter(["abc"]), model_writer=out, **sentencepiece)
    assert info.info(str(tmp_path)).template == "llama2, as the tokenizer is of that family"


# --- Text and JSON


def test_layers_are_folded_where_they_are_equal():
    tensors = [Tensor(f"layers.{i}.wq", "int4" if i == 2 else "int8", (4, 8), 40) for i in range(5)]
    found = [
        (name, tensor.type, n)
        for name, tensor, n in info.folded([Tensor("norm", "fp32", (8,), 32), *tensors])
    ]
    assert found == [("norm", "fp32", 1), ("layers.0-1,3-4.wq", "int8", 4), ("layers.2.wq", "int4", 1)]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.0 kB"), (512, "0.5 kB"), (999_949, "999.9 kB"), (60_816_028, "60.8 MB"), (4.4e9, "4.4 GB")],
)
def test_sizes_have_units(size, text):
    assert info.size_text(size) == text


def test_the_text_has_a_line_for_each_fact_and_for_each_kind_of_tensor(tmp_path, capsys):
    path = write_model(tmp_path, "int4", SHAPES["untied"])
    info.main([str(path), "--check"])
    folded = capsys.readouterr().out
    assert folded.startswith(f"{path}: v3, int4, ")
    lines = dict(line.split(maxsplit=1) for line in folded.splitlines() if len(line.split(maxsplit=1)) == 2)
    assert lines["dim"] == "64"
    assert lines["tokenizer"].strip() == f"in the file: sentencepiece BPE, {len(PIECES)} tokens, bos 1, eos 2"
    assert lines["stop"].split() == ["ids", "7,", "9"]
    assert lines["layers.0-1.wq"].split() == ["2", "int4", "64", "x", "64", "4.6", "kB"]
    table = folded.partition("\ntensor")[2].splitlines()
    assert len({len(line) for line in table[1:]}) == 1
    info.main([str(path), "--tensors"])
    assert len(capsys.readouterr().out.splitlines()) == len(folded.splitlines()) + len(LAYER)


def test_json_holds_the_same(tmp_path, capsys):
    path = write_model(tmp_path, "int8", SHAPES["tied"])
    info.main([str(path), "--json", "-c", "32"])
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["norm_eps"] == 1e-5
    assert found["memory"]["context"] == 32
    assert found["tensors"][1] == {
        "name": "layers.0.attention_norm",
        "type": "fp32",
        "shape": [64],
        "bytes": 256,
    }
    assert found == json.loads(json.dumps(info.info(str(path), context=32).to_dict()))


def test_without_a_model_it_is_the_one_that_ships(capsys):
    info.main([])
    assert "stories.bin: v3, int8, 1.9 MB, 1.7 M parameters" in capsys.readouterr().out


# --- ./run --info


@pytest.mark.parametrize("kind", ["v0", "v2", "int8", "int4"])
def test_both_programs_say_the_core_of_it(tmp_path, kind):
    path = write_model(tmp_path, kind, SHAPES["untied"])
    native, python = (
        run(program, path.name, "--info", "-c", "100", cwd=tmp_path) for program in ("native", "python")
    )
    assert (native.returncode, native.stdout, native.stderr) == (0, python.stdout, python.stderr)
    found, said = info.info(str(path), context=100), native.stdout.decode()
    assert said.startswith(f"{kind}.bin: {found.kind}, {found.type}, {info.size_text(found.bytes)}, ")
    for name in headers.OURS:
        assert f"\n{name:<13} {found.config[name]}\n" in said
    memory = f"cache for 100 positions {info.size_text(found.memory.cache)}, scratch"
    assert memory in said
    assert ("\nstop ids      7 9\n" in said) == (kind.startswith("int"))


def test_what_a_token_reads_and_what_int8_would_save(tmp_path):
    config = Config(dim=256, n_layers=1, n_heads=2, hidden_dim=22_000, vocab_size=300)
    weights = Llama(config).state_dict()
    export_v3(tmp_path / "fp32.bin", config, weights, "fp32")
    export_v3(tmp_path / "int8.bin", config, weights, "int8")
    said = [run("native", f"{name}.bin", "--info", cwd=tmp_path).stdout.decode() for name in ("fp32", "int8")]
    offer = "python -m llama.convert --dtype int8 makes that 18.3 MB"
    assert said[0].endswith(f"tokens        read 68.9 MB of weights each; {offer}\n")
    assert said[1].endswith("tokens        read 18.3 MB of weights each\n")


def test_a_large_file_of_rows_is_told_of_tiles(tmp_path):
    config = Config(dim=256, n_layers=1, n_heads=2, hidden_dim=88_064, vocab_size=300)
    weights = {name: torch.zeros(shape) for name, shape in tensor_shapes(config).items()}
    export_bin(tmp_path / "v2.bin", config, weights, 2, group_size=64)
    said = run("native", "v2.bin", "--info", cwd=tmp_path).stdout.decode()
    offer = "python -m llama.convert makes v3 of them, which reads prompts in half the time"
    assert said.endswith(f"tokens        read 72.2 MB of weights each; {offer}\n")


def test_both_programs_say_how_rope_is_scaled(tmp_path):
    for scaling, text in (
        (SCALING, "llama3 scaling: factor 32, low 1, high 4, original context 64"),
        (RopeScaling("linear", 2.5), "linear scaling: factor 2.5"),
        (
            RopeScaling("yarn", 4, original_max_seq_len=64),
            "yarn scaling: factor 4, beta_fast 32, beta_slow 1, attention factor 1.138629, "
            "original context 64",
        ),
    ):
        config = Config(dim=16, n_layers=1, n_heads=2, vocab_size=9, rope_theta=5e5, rope_scaling=scaling)
        export_v3(tmp_path / "a.bin", config, Llama(config).state_dict(), "fp32")
        for program in ("native", "python"):
            said = run(program, "a.bin", "--info", cwd=tmp_path).stdout.decode()
            assert f"\nrope          theta 500000, {text}\n" in said
            assert "\ntokenizer     not found\n" in said


@pytest.mark.parametrize("program", ["native", "python"])
def test_what_is_asked_for_must_be_there(tmp_path, program):
    path = write_model(tmp_path, "v0", SHAPES["tied"])
    assert_refused(run(program, "none.bin", "--info", cwd=tmp_path), 3, "none.bin: No such file or directory")
    result = run(program, path.name, "--info", "-z", "none.bin", cwd=tmp_path)
    assert_refused(result, 3, "none.bin: No such file or directory")
    result = run(program, path.name, "--info", "-m", "chat", cwd=tmp_path)
    assert_refused(result, 2, "only one of --info, --perplexity and --mode chat can be given")


def test_a_long_path_is_cut_off_and_nothing_else_happens(tmp_path):
    folder = tmp_path.joinpath(*["long" * 50] * 15)
    folder.mkdir(parents=True)
    path = write_model(folder, "v0", SHAPES["tied"])
    result = run("native", path, "--info", cwd=tmp_path)
    assert result.returncode == 0
    text, error = ffi.new("char[10]"), ffi.new("LlamaError *")
    code = lib.llama_info(model_open(path), ffi.NULL, ffi.NULL, text, 10, error)
    assert (code, ffi.string(text)) == (lib.LLAMA_OK, str(path).encode()[:9])


@pytest.mark.parametrize(
    ("data", "message"), [(None, "No such file"), (b'{"a": 1}' + b" " * 300, "JSON"), (b"", "is empty")]
)
def test_what_the_engine_refuses_is_refused_in_its_words(tmp_path, data, message):
    path = tmp_path / "a.bin"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(llama.BadFileError, match=message):
        info.info(str(path))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_output_that_is_full_is_one_line_and_one_that_is_closed_none(tmp_path, options):
    path = write_model(tmp_path, "v0", SHAPES["tied"])
    reader, closed = os.pipe()
    os.close(reader)
    with Path("/dev/full").open("wb") as full, os.fdopen(closed, "wb") as pipe:
        error = "error: standard output: No space left on device\n"
        for output, expected in ((full, (4, error)), (pipe, (141, ""))):
            line = [sys.executable, "-m", "llama.info", str(path), "--tensors", *options]
            result = subprocess.run(line, stdout=output, stderr=subprocess.PIPE, cwd=ROOT, check=False)
            assert (result.returncode, result.stderr.decode()) == expected
