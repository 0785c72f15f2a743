"""open_source tells models by what is in a file or folder, and names what is none; it needs no torch."""

from __future__ import annotations

import itertools
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from gguf_files import SMALL, random_source
from helpers import ROOT
from safetensors.torch import save_file
from test_huggingface import save as save_huggingface
from test_llama2c_checkpoint import SHAPE
from test_llama2c_checkpoint import save as save_llama2c
from test_meta import FAMILIES
from test_meta import save as save_meta
from test_model import fresh
from torch_formats import export_folder, export_v3, write_gguf

from llama.errors import BadFileError
from llama.formats.chat_templates import Chat
from llama.formats.models import open_source
from llama.formats.source import tensor_shapes
from llama.formats.tokenizers import load
from llama.native import model_open
from model import Config, Llama
from training.weights import save_weights

TINY = Config(dim=32, n_layers=1, n_heads=4, n_kv_heads=2, hidden_dim=48, vocab_size=60, tied=False)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head_dim", [8, 12])
def test_shapes_are_those_of_the_model_in_its_order(tied, head_dim):
    config = Config(dim=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=head_dim, vocab_size=60, tied=tied)
    expected = {name: tuple(weight.shape) for name, weight in Llama(config).named_parameters()}
    assert list(tensor_shapes(config).items()) == list(expected.items())


SAID = {"bos": 1, "stops": [2], "add_bos": True, "add_eos": False, "chat": {"kind": "chatml"}}
NEST = "[" * 3000 + "]" * 3000
TEXTS = {
    "of any depth": (NEST, "it is nested too deeply"),
    "no list": (SAID | {"stops": "12"}, "stops that are no list"),
    "a stop without end": (SAID | {"stops": [math.inf]}, "token inf, allowed 0 to 59"),
    "half a stop": (SAID | {"stops": [2.5]}, "token 2.5, allowed 0 to 59"),
    "a stop behind the last": (SAID | {"stops": [60]}, "token 60, allowed 0 to 59"),
    "BOS of text": (SAID | {"bos": "1"}, "token '1', allowed 0 to 59"),
    "BOS behind the last": (SAID | {"bos": 2**40}, f"token {2**40}, allowed 0 to 59"),
    "no truth value": (SAID | {"add_eos": "false"}, "add_eos = 'false', allowed true and false"),
    "no template": (SAID | {"chat": {"kind": "bogus"}}, "chat template 'bogus', allowed none, llama2"),
    "a template of numbers": (SAID | {"chat": {"kind": "other", "text": 5}}, "a chat template of other than"),
    "half a character": (SAID | {"chat": {"kind": "other", "text": "\ud800"}}, "'utf-8' codec can't encode"),
    "another field": (SAID | {"chat": {"x": 1}}, ".* got an unexpected keyword argument 'x'"),
    "no field": ({}, "bos"),
}


def save_told(path: Path, said: Any) -> Path:
    """Weights of train.py that say this of texts."""
    told = said if isinstance(said, str) else json.dumps(said)
    weights = {name: torch.ones(shape) for name, shape in tensor_shapes(TINY).items()}
    save_file(weights, path, {"config": json.dumps(TINY.to_dict()), "texts": told})
    return path


def test_what_a_file_says_of_texts_is_read(tmp_path):
    source = open_source(save_told(tmp_path / "model.safetensors", SAID))
    assert (source.bos, source.stops, source.add_bos, source.add_eos) == (1, (2,), True, False)
    assert source.chat == Chat("chatml")


@pytest.mark.parametrize("name", TEXTS)
def test_what_can_not_be_said_of_texts_is_refused(tmp_path, name):
    said, message = TEXTS[name]
    with pytest.raises(BadFileError, match=rf"metadata: texts are not as they were written: '?{message}"):
        open_source(save_told(tmp_path / "model.safetensors", said))


# --- What is not a model


def refusal(path: Path) -> str:
    with pytest.raises(BadFileError) as error:
        open_source(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{path}: ")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 13476925163\n"


@pytest.mark.parametrize(
    "name", ["model.bin", "model.gguf", "model.safetensors", "ckpt.pt", "consolidated.00.pth", "any"]
)
def test_a_git_lfs_pointer_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(POINTER)
    assert refusal(tmp_path / name) == "is a Git LFS pointer: run git lfs pull"


def test_a_git_lfs_pointer_in_a_folder_is_named(tmp_path):
    theirs, meta = save_huggingface(fresh(TINY), tmp_path / "hf"), tmp_path / "meta"
    config, params, _ = FAMILIES["Llama 2"]
    save_meta(fresh(config), meta, params)
    (theirs / "pytorch_model.bin").write_bytes(POINTER)
    for file in (theirs / "model.safetensors", theirs / "pytorch_model.bin", meta / "consolidated.00.pth"):
        file.write_bytes(POINTER)
        with pytest.raises(BadFileError, match=f"^{file}: is a Git LFS pointer: run git lfs pull$"):
            open_source(file.parent)
        file.unlink()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_file_of_a_folder_asks_for_the_folder(tmp_path, file):
    folder = save_huggingface(fresh(TINY), tmp_path / "theirs")
    assert refusal(folder / file) == f"is one file of a model's folder: give the folder, {folder}"


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "consolidated.00.pth", "pytorch_model-00001-of-00002.bin"]
)
def test_a_pickle_of_a_folder_asks_for_the_folder(tmp_path, name):
    torch.save({"a": torch.ones(2)}, tmp_path / name)
    assert "neither config.json nor params.json is beside it" in refusal(tmp_path / name)
    (tmp_path / "params.json").write_text("{}")
    assert refusal(tmp_path / name).endswith(f"give the folder, {tmp_path}")


OLD_PICKLE = "a Python pickle, such as a PyTorch checkpoint from before version 1.6"
KINDS = {
    b"\x80\x02}q\x00.": f"is {OLD_PICKLE}, which is no model",
    b"<!DOCTYPE html>" + bytes(40): "is an HTML page, which is no model",
    b'{"a": 1}' + bytes(40): "is a JSON file, which is no model",
    b"": "has 0 bytes, the header alone has 28",
}


@pytest.mark.parametrize("data", KINDS)
def test_a_file_of_another_kind_is_named(tmp_path, data):
    (tmp_path / "model.bin").write_bytes(data)
    assert refusal(tmp_path / "model.bin") == KINDS[data]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with a name")
@pytest.mark.parametrize(
    "name", ["model.bin", "model.gguf", "a/config.json", "b/model.safetensors", "ckpt.pt"]
)
def test_a_pipe_is_refused_at_once(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(BadFileError, match=f"^{path}: is a pipe or a device, not a file$"):
        open_source(path if path.parent == tmp_path else path.parent)


def test_a_flipped_bit_in_the_number_of_layers_is_one_line(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(np.array([64, 172, 1 << 24 | 2, 8, 4, 512, 512], "<i4").tobytes() + bytes(1000))
    assert refusal(path) == f"n_layers = {1 << 24 | 2}, allowed up to 4096"
    config = json.dumps(Config(**SHAPE).to_dict() | {"n_layers": 100_000})
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors", {"config": config})
    found = refusal(tmp_path / "model.safetensors")
    assert found == "config: n_layers = 100000, allowed up to 4096"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("n_layers", 2.0, "2.0, allowed whole numbers"),
        ("max_seq_len", True, "True, allowed whole numbers"),
        ("dim", "64", "'64', allowed whole numbers"),
        ("tied", 1, "1, allowed true and false"),
        ("norm_eps", float("inf"), "inf, allowed finite numbers"),
        ("rope_theta", 1e300, "1e+300, allowed 1e-30 to 1e+30"),
        ("head_dim", 0, "0, allowed 1 or more"),
        ("dim", 10**400, f"1{'0' * 39}, allowed whole numbers up to {2**63 - 1}"),
        ("rope_scaling", {"kind": "yarn", "original_max_seq_len": 10**400}, f"up to {2**63 - 1}"),
        ("rope_scaling", {"factor": 10**400}, "allowed finite numbers up to 1.7976931348623157e+308"),
        ("rope_scaling", 5, "5, allowed an object, or none"),
        ("rope_scaling", {"kind": "linear", "factor": "x"}, "factor = 'x', allowed finite numbers"),
        ("rope_scaling", {"original_max_seq_len": 2**40}, f"= {2**40}, allowed 1 to {1 << 24}"),
    ],
)
def test_a_configuration_of_other_values_is_one_line(tmp_path, field, value, says):
    config = json.dumps(Config(**SHAPE).to_dict() | {field: value})
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors", {"config": config})
    found = refusal(tmp_path / "model.safetensors")
    assert found.startswith(f"config: {'' if isinstance(value, dict) else f'{field} = '}")
    assert found.endswith(says)


def refuses(read: Callable[[Path], object], path: Path) -> bool:
    try:
        read(path)
    except BadFileError:
        return True
    return False


@pytest.mark.parametrize("version", [0, 1, 2])
def test_headers_are_refused_that_the_engine_refuses(tmp_path, version):
    shape = checkpoints.Shape()
    checkpoints.write(tmp_path / "model.bin", shape, version)
    data, at = (tmp_path / "model.bin").read_bytes(), 8 if version else 0
    for place, value in itertools.product(range(8 if version else 7), (0, 3, -512, 2**31 - 1, -(2**31))):
        changed = data[: at + 4 * place] + struct.pack("<i", value) + data[at + 4 * place + 4 :]
        (tmp_path / "changed.bin").write_bytes(changed)
        assert refuses(model_open, tmp_path / "changed.bin") == refuses(open_source, tmp_path / "changed.bin")


# --- Without torch


@pytest.fixture(scope="module")
def every_format(tmp_path_factory) -> dict[str, Path]:
    """A model in each format that is read."""
    folder, model, config = tmp_path_factory.mktemp("formats"), fresh(TINY), Config(**SMALL)
    source = random_source(config)
    export_v3(folder / "v3.bin", config, source.tensors, "int4")
    write_gguf(folder / "model.gguf", source, "int8")
    export_folder(folder / "ours", source)
    save_huggingface(model, folder / "theirs")
    meta, params, axis = FAMILIES["Llama 3"]
    save_meta(fresh(meta), folder / "meta", params, 2, axis)
    (folder / "train").mkdir()
    save_weights(folder / "train" / "model.safetensors", TINY, model.state_dict())
    save_llama2c(folder / "ckpt.pt", fresh(Config(**SHAPE)))
    names = ("v3.bin", "model.gguf", "ours", "theirs", "meta", "train", "ckpt.pt")
    return {name: folder / name for name in names}


WITHOUT = """
import importlib, pkgutil, sys
for name in {names}:
    sys.modules[name] = None
import llama
"""
CONVERT = """
from llama import convert
for out in sys.argv[2:]:
    name = out.rpartition("/")[2]
    options = {"v1.bin": ["--version", "1", "--force"], "v3.bin": ["--version", "3"]}.get(name, [])
    assert convert.main([sys.argv[1], out, *options]) == 0, out
"""
IMPORT = """
for module in pkgutil.walk_packages(llama.__path__, "llama."):
    if not module.name.endswith(("__main__", "build_engine", "harness")):
        importlib.import_module(module.name)
"""


def run(code: str, names: tuple[str, ...], *arguments: str | Path) -> None:
    command = [sys.executable, "-c", WITHOUT.format(names=names) + code, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr


TORCH = ("torch", "safetensors", "transformers", "tqdm", "model")


@pytest.mark.parametrize("name", ["v3.bin", "model.gguf", "ours", "theirs", "meta", "train", "ckpt.pt"])
def test_every_format_is_read_and_written_without_torch(tmp_path, every_format, name):
    run(
        CONVERT,
        TORCH,
        every_format[name],
        *(tmp_path / out for out in ("v1.bin", "v3.bin", "folder", "a.gguf")),
    )
    for out in ("v1.bin", "v3.bin", "folder", "a.gguf"):
        found, expected = open_source(tmp_path / out), open_source(every_format[name])
        weights = (source.tensors["layers.0.attention.wk.weight"].floats() for source in (found, expected))
        assert np.array_equal(*weights), out


@pytest.mark.parametrize("names", [TORCH, ("fcntl", "resource", "termios", "pwd", "grp")])
def test_every_module_is_imported_without(names):
    """All but llama.harness, which is imported by need: its library imports tqdm, and fcntl."""
    run(IMPORT, names)


def test_a_pointer_in_the_place_of_a_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(POINTER)
    with pytest.raises(BadFileError, match="is a Git LFS pointer: run git lfs pull"):
        load(tmp_path / "tokenizer.model")


def test_a_folder_of_json_alone_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(BadFileError, match=r"config\.json: has no "):
        open_source(tmp_path)
