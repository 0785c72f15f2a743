"""A v3 file is a source as any other: what is read is what lies in it, and goes on to every other format.

What a file says is read by checkpoints.read_v3, which knows nothing but the format's description.
"""

from __future__ import annotations

import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import checkpoints
import pytest
import torch
from gguf_files import SMALL, random_source, tokenizer_bin
from test_export import config_of, named
from test_v3 import SHAPES, TYPES
from torch_formats import checked_tensors, export_v3, open_source

from llama import convert
from llama.errors import BadFileError
from llama.formats import v3
from llama.formats.chat_templates import Chat
from llama.formats.v3 import Extras, extras_of
from model import Config, RopeScaling

CONFIGS = {
    "tied": Config(**SMALL),
    "untied GQA": Config(**SMALL, n_kv_heads=2, tied=False, rope_theta=5e5, norm_eps=1e-6),
    "wide heads": Config(**SMALL, n_kv_heads=1, head_dim=32, norm_eps=3.3e-6, rope_theta=142857.14),
    "llama3": Config(**SMALL, rope_theta=5e5, rope_scaling=RopeScaling("llama3", 32.0, 1.1, 4.3, 64)),
    "linear": Config(**SMALL, rope_scaling=RopeScaling("linear", 2.5)),
    "one token": Config(dim=8, n_layers=1, n_heads=2, hidden_dim=16, vocab_size=1, tied=False),
}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.bin"


def run(*arguments: str | Path) -> None:
    assert convert.main([*map(str, arguments)]) == 0


def again(path: Path, dtype: str, **options: object) -> Path:
    """The file, read and written once more."""
    source, out = open_source(path), path.with_name("again.bin")
    vocabulary = source.vocabulary()
    extras = extras_of(source, vocabulary)
    export_v3(out, source.config, source.tensors, dtype, extras=extras, **options)
    return out


# --- Values


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_values_are_those_that_the_description_of_the_format_gives(path, name, dtype):
    shape = SHAPES[name]
    export_v3(path, config_of(shape), named(shape, checkpoints.random_weights(shape)), dtype, dtype)
    expected, source = named(shape, checkpoints.read_v3(path)[1]), open_source(path)
    assert source.config == config_of(shape)
    assert source.name == str(path)
    found = checked_tensors(source)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key].dtype == (torch.bfloat16 if dtype == "bf16" and values.ndim == 2 else torch.float32)
        assert torch.equal(found[key].float(), values), key


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_file_that_is_read_and_written_holds_the_same(path, config, dtype):
    """int8 and int4 too: what was rounded once is exact when it is rounded again."""
    source = random_source(config)
    export_v3(path, config, source.tensors, dtype, dtype, Extras(bos=0, stops=(0,)))
    assert open_source(path).config == config
    out = again(path, dtype, ends_dtype=dtype)
    if dtype == "int4":  # a group with 7 and -7 has two forms, with q and -q
        found, expected = open_source(out).tensors, open_source(path).tensors
        assert all(torch.equal(found[name], expected[name]) for name in source.tensors)
    else:
        assert out.read_bytes() == path.read_bytes()


def test_types_of_layers_and_ends_may_differ(path):
    source = random_source(CONFIGS["untied GQA"])
    export_v3(path, source.config, source.tensors, "int4", "bf16")
    found = open_source(path).tensors
    assert found["output.weight"].dtype == torch.bfloat16
    assert torch.equal(found["output.weight"], source.tensors["output.weight"].bfloat16())
    assert found["layers.0.attention.wq.weight"].dtype == torch.float32


def test_a_file_cannot_be_changed_through_its_tensors(path):
    source = random_source(CONFIGS["tied"])
    export_v3(path, source.config, source.tensors, "fp32")
    with pytest.raises(ValueError, match="read-only"):
        open_source(path).tensors.ours["norm.weight"].values()[:] = 3


# --- Text


@pytest.fixture
def whole(tmp_path, path) -> Path:
    """A file with a tokenizer, ids and a template."""
    config = Config(**SMALL, tied=False, rope_scaling=RopeScaling(factor=8.0, original_max_seq_len=64))
    data = tokenizer_bin(tmp_path)
    source = random_source(config)
    extras = Extras(data, bos=1, stops=(2, 270), chat=Chat("llama2"))
    export_v3(path, config, source.tensors, "fp32", extras=extras)
    (tmp_path / "tokenizer.bin").unlink()
    return path


def text_part(path: Path) -> tuple[bytes, bytes]:
    """Stop ids, BOS and template of a file, and its tokenizer."""
    data = path.read_bytes()
    begin, size = struct.unpack_from("<2Q", data, 128)
    return data[76:120], data[begin : begin + size]


def test_tokenizer_template_and_stop_ids_go_along(whole, tmp_path):
    """Also by way of GGUF, which has a place for all of them."""
    source = open_source(whole)
    assert (source.bos, source.stops, source.chat.kind) == (1, (2, 270), "llama2")
    run(whole, tmp_path / "direct.bin", "--version", "3")
    run(whole, tmp_path / "model.gguf")
    run(tmp_path / "model.gguf", tmp_path / "by gguf.bin", "--version", "3")
    said, tokenizer = text_part(tmp_path / "direct.bin")
    assert said == whole.read_bytes()[76:120]
    assert tokenizer == source.vocabulary().indexed
    assert text_part(tmp_path / "by gguf.bin") == (said, tokenizer)
    for name in ("direct.bin", "by gguf.bin"):
        found = open_source(tmp_path / name)
        assert found.config == source.config
        assert all(torch.equal(found.tensors[key], source.tensors[key]) for key in source.tensors)


def test_options_say_otherwise(whole, tmp_path):
    tokenizer = tokenizer_bin(tmp_path)
    options = ("--tokenizer", tmp_path / "tokenizer.bin", "--template", "none", "--max-seq-len", "64")
    run(whole, tmp_path / "out.bin", "--dtype", "int8", *options)
    source = open_source(tmp_path / "out.bin")
    assert (source.chat.kind, source.config.max_seq_len) == ("none", 64)
    assert text_part(tmp_path / "out.bin")[1] != tokenizer  # the engine's own form of it
    assert source.vocabulary().indexed == open_source(whole).vocabulary().indexed


def test_a_file_without_a_tokenizer_takes_the_one_beside_it(path, tmp_path):
    source = random_source(CONFIGS["tied"])
    export_v3(path, source.config, source.tensors)
    assert open_source(path).vocabulary() is None
    run(path, tmp_path / "without.bin", "--version", "3")
    tokenizer_bin(tmp_path)
    run(path, tmp_path / "with.bin", "--version", "3")
    assert (text_part(tmp_path / "without.bin")[1], text_part(tmp_path / "with.bin")[1][:4]) == (b"", b"ltok")


# --- To every other format


@pytest.mark.parametrize("out", ["v0", "v1", "v2", "folder", "gguf"])
@pytest.mark.parametrize("dtype", TYPES)
def test_every_format_holds_the_values_of_the_file(path, tmp_path, dtype, out):
    config = replace(CONFIGS["tied"], tied=False)
    export_v3(path, config, random_source(config).tensors, dtype, dtype)
    source, target = (
        open_source(path),
        tmp_path / {"gguf": "out.gguf", "folder": "folder"}.get(out, "out.bin"),
    )
    run(path, target, *(("--version", out[1]) if out[0] == "v" else ("--dtype", "fp32")))
    found = open_source(target)
    assert found.config == config
    for name, values in checked_tensors(source).items():
        error = (found.tensors[name].float() - values.float()).norm() / values.float().norm()
        assert error <= (0.01 if out == "v2" else 0), name


# --- What is refused


def test_a_tensor_with_a_flipped_bit_is_refused_by_name(path, tmp_path, capsys):
    source = random_source(CONFIGS["tied"])
    export_v3(path, source.config, source.tensors, "int8")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # in the last tensor
    path.write_bytes(data)
    assert convert.main([str(path), str(tmp_path / "out.bin")]) == 3
    error = f"error: {path}: checksum of norm.weight is not the one stored in the file\n"
    assert capsys.readouterr().err == error
    assert not (tmp_path / "out.bin").exists()


@pytest.mark.parametrize("size", [8, 255, 256, 300, -64, -1])
def test_a_file_that_is_cut_off_is_refused(path, tmp_path, capsys, size):
    source = random_source(CONFIGS["tied"])
    export_v3(path, source.config, source.tensors, "int8")
    path.write_bytes(path.read_bytes()[:size])
    assert convert.main([str(path), str(tmp_path / "out.bin")]) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: ")
    assert error.count("\n") == 1


def test_an_engine_that_is_not_built_is_named(path, monkeypatch):
    source = random_source(CONFIGS["tied"])
    export_v3(path, source.config, source.tensors)
    monkeypatch.setitem(sys.modules, "llama.pack", None)
    with pytest.raises(BadFileError, match="need the C engine, build it with pip install -e"):
        v3.open_bin(path)


def test_a_tokenizer_whose_header_lies_is_refused(whole):
    """A header that asks for more than there is, with checksums that fit."""
    data, source = bytearray(open_source(whole).vocabulary().indexed), open_source(whole)
    data[20:24] = struct.pack("<i", 10**6)
    data[60:64] = struct.pack("<I", zlib.crc32(data[64:], zlib.crc32(data[:60])))
    export_v3(whole, source.config, checked_tensors(source), extras=Extras(bytes(data)))
    with pytest.raises(BadFileError, match=r"the tokenizer has \d+ bytes, its header asks for"):
        open_source(whole).vocabulary()
