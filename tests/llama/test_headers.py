"""What is read of files of other kinds: against what transformers and torch wrote, and from hostile ones."""

from __future__ import annotations

import json
import math
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import checkpoints
import pytest
import safetensors
import torch
from helpers import ROOT, finish
from test_export import config_of, named
from torch_formats import open_source
from transformers import LlamaConfig, LlamaForCausalLM

import llama
from llama import headers, info
from llama.command import run_command
from llama.errors import BadFileError
from llama.formats.safetensors import read_header
from llama.headers import Tensor
from model import Config, Llama, RopeScaling
from training.weights import save_weights

# --- Hugging Face


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (struct.pack("<Q", 1000) + b'{"a": {}', "has 16 bytes and a header of 1000"),  # cut off
        (struct.pack("<Q", 1 << 60) + b'{"a": {}', f"has 16 bytes and a header of {1 << 60}"),
        (b"<!DOCTYPE html>" * 3, "an HTML page"),
        (b"abc", "has 3 bytes and a header of 0"),
    ],
)
def test_what_is_no_whole_safetensors_file_is_called_what_it_is(tmp_path, data, found):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(BadFileError, match=f": is no whole safetensors file: {found}$"):
        read_header(tmp_path / "model.safetensors")


def save_hugging_face(folder: Path, **options) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        max_position_embeddings=128,
        eos_token_id=[2, 5],
    )
    config.tie_word_embeddings = options.pop("tied", False)
    if "rope" in options:
        config.rope_parameters = options.pop("rope")
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, **options)
    return model


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}, {"tied": True}])
def test_a_folder_of_hugging_face_says_what_transformers_wrote(tmp_path, options):
    model = save_hugging_face(tmp_path, **options)
    found = info.info(str(tmp_path), context=100)
    assert found.parameters == model.num_parameters()
    sizes = {t.name: t.shape for t in found.tensors}
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert {**expected, **sizes} == expected
    assert {
        "dim": 32,
        "hidden_dim": 48,
        "n_layers": 2,
        "n_kv_heads": 2,
        "head_dim": 8,
    }.items() <= found.config.items()
    assert found.config["tied"] == bool(options.get("tied"))
    assert (found.kind, found.type, found.stops) == ("Hugging Face, safetensors", "fp32", [2, 5])
    assert found.memory.cache == 2 * found.memory.cache_half == 2 * 4 * 2 * 2 * 8 * 112
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert "layers.0-1.self_attn.q_proj.weight" in info.text(found)


def test_scaled_rope_of_hugging_face(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    save_hugging_face(tmp_path, rope=rope)
    found = headers.configuration(headers.read(tmp_path))["rope_scaling"]
    assert RopeScaling(**found) == RopeScaling(original_max_seq_len=64)
    assert set(found) == {"kind", "factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"}
    old = json.loads((tmp_path / "config.json").read_text())
    old.pop("rope_parameters")
    old |= {"rope_theta": 5e5, "rope_scaling": rope}
    (tmp_path / "config.json").write_text(json.dumps(old))
    found = info.info(str(tmp_path)).config
    assert (found["rope_theta"], found["rope_scaling"]["factor"]) == (5e5, 8.0)
    other = rope | {"factor": 2.0}
    for fields, factor in (
        ({"rope_parameters": other}, 8.0),
        ({"rope_parameters": other, "rope_scaling": {}}, 2.0),
    ):
        (tmp_path / "config.json").write_text(json.dumps(old | fields))
        assert info.info(str(tmp_path)).config["rope_scaling"]["factor"] == factor


def test_tokenizer_and_template_of_a_folder(tmp_path):
    save_hugging_face(tmp_path)
    assert info.info(str(tmp_path)).tokenizer is None
    added = [{"id": 1, "content": "b"}, {"id": 2, "content": "<eot>"}]
    vocab = {"added_tokens": added, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocab))
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ x }}"}')
    found = info.info(str(tmp_path))
    assert found.tokenizer == {"file": "tokenizer.json", "kind": "BPE of Hugging Face", "vocab_size": 3}
    assert found.template == "of Hugging Face"
    (tmp_path / "tokenizer.model").write_bytes(b"YQ== 0\nYg== 1\n")
    found = info.info(str(tmp_path)).tokenizer
    assert (found["kind"], found["vocab_size"]) == ("Llama 3 BPE", 2 + 256)


@pytest.mark.parametrize("window", [64, ..., None, 4096])
def test_the_context_of_a_mistral_is_its_window_as_export_py_has_it(tmp_path, window):
    save_hugging_face(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "mistral", "sliding_window": window, "max_position_embeddings": 8192}
    config = {name: value for name, value in config.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert info.info(str(tmp_path)).config["max_seq_len"] == open_source(tmp_path).config.max_seq_len


def test_a_checkpoint_of_train_py_says_its_configuration(tmp_path):
    shape = checkpoints.Shape(tied=False)
    save_weights(
        tmp_path / "model.safetensors", config_of(shape), named(shape, checkpoints.random_weights(shape))
    )
    for path in (tmp_path, tmp_path / "model.safetensors"):
        found = info.info(str(path))
        assert found.parameters == sum(w.size for w in checkpoints.random_weights(shape).values())
        assert found.config.items() >= {name: getattr(shape, name) for name in headers.OURS}.items()


def test_neither_torch_nor_safetensors_nor_numpy_is_needed(tmp_path):
    save_hugging_face(tmp_path / "hf")
    code = "import sys; from llama import info; info.main(sys.argv[1:]); print(sys.modules.keys())"
    command = [sys.executable, "-c", code, str(tmp_path / "hf")]
    result = finish(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in ("torch", "safetensors", "numpy", "huggingface_hub"):
        assert f"'{name}'" not in result.stdout


# --- Meta


def save_meta(folder: Path, shards: int, embedding_dim: int) -> dict[str, tuple[int, ...]]:
    """A folder as Meta's, and the shapes of the whole tensors."""
    config = Config(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48, vocab_size=64, tied=False)
    whole = Llama(config).state_dict()
    cuts = dict.fromkeys(headers.CUT_ROWS, 0) | dict.fromkeys(headers.CUT_COLUMNS, 1)
    for shard in range(shards):
        piece = {}
        for name, value in whole.items():
            part = next((word for word in name.split(".") if word in cuts), None)
            dim = embedding_dim if name.startswith("tok_") else cuts.get(part)
            piece[name] = value if dim is None else value.chunk(shards, dim)[shard].clone().bfloat16()
        piece["rope.freqs"] = torch.ones(4)
        torch.save(piece, folder / f"consolidated.{shard:02}.pth")
    params = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": -1, "norm_eps": 1e-5}
    (folder / "params.json").write_text(json.dumps(params | {"use_scaled_rope": True}))
    return {name: tuple(value.shape) for name, value in whole.items()} | {"rope.freqs": (4,)}


@pytest.mark.parametrize(("shards", "embedding_dim"), [(1, 0), (2, 0), (2, 1)])
def test_a_folder_of_meta_is_one_model_however_it_is_cut(tmp_path, shards, embedding_dim):
    shapes = save_meta(tmp_path, shards, embedding_dim)
    found = info.info(str(tmp_path), context=0)
    assert {t.name: t.shape for t in found.tensors} == shapes
    assert found.parameters == sum(math.prod(shape) for name, shape in shapes.items() if name != "rope.freqs")
    assert {"vocab_size": 64, "hidden_dim": 48, "head_dim": 8, "tied": False}.items() <= found.config.items()
    assert (found.kind, found.type, found.memory.cache) == ("Meta", "bf16", None)
    assert "llama3 scaling" in info.text(found)


def test_a_missing_shard_of_meta_is_seen_in_the_shapes_and_params_alone_are_shown(tmp_path):
    (tmp_path / "params.json").write_text('{"dim": 4096, "n_layers": 32, "n_heads": 32}')
    found = info.info(str(tmp_path), context=100)
    assert (found.parameters, found.config["head_dim"]) == (0, 128)
    assert found.notes == ["there is no consolidated.*.pth: only params.json is shown"]
    assert "there is no consolidated" in info.text(found)


def test_a_checkpoint_of_llama2_c_says_its_model_args(tmp_path):
    config = Config(dim=16, n_layers=1, n_heads=2, vocab_size=9)
    state = Llama(config).state_dict()
    args = {"dim": 16, "n_layers": 1, "n_heads": 2, "vocab_size": 9, "max_seq_len": 64}
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}},
        "param_groups": [{"lr": 1e-3}],
    }
    torch.save(
        {"model": state, "model_args": args, "optimizer": optimizer, "iter_num": 3}, tmp_path / "ckpt.pt"
    )
    found = info.info(str(tmp_path / "ckpt.pt"))
    assert {t.name: t.shape for t in found.tensors} == {
        name: tuple(value.shape) for name, value in state.items()
    }
    assert found.config.items() >= args.items()
    assert found.notes == ["not shown: iter_num, optimizer"]


def test_parameters_and_types_of_a_pth(tmp_path):
    torch.save(
        {"a": torch.nn.Parameter(torch.ones(2, 3).half()), "b": torch.ones(5, dtype=torch.int64)},
        tmp_path / "a.pth",
    )
    found = headers.read(tmp_path / "a.pth").tensors
    assert found == [Tensor("a", "fp16", (2, 3), 12), Tensor("b", "int64", (5,), 40)]


# --- Hostile files


class Shell:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return __import__("os").system, (self.command,)


def zipped(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return path


def test_code_in_a_pickle_is_named_and_never_run(tmp_path):
    harmful = {"w": Shell(f"touch {tmp_path / 'done'}")}
    torch.save(harmful, tmp_path / "a.pth")
    with pytest.raises(
        llama.BadFileError, match=r"a\.pth: its pickle is not read: it asks for \w+\.system, which is not"
    ):
        info.info(str(tmp_path / "a.pth"))
    assert not (tmp_path / "done").exists()


GETATTR = b"cbuiltins\ngetattr\n."
BUILD = b"ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__X\x01\x00\x00\x00xsb."
LOOP = b"}q\x00X\x01\x00\x00\x00ah\x00s."  # a dict that holds itself
MEMO = b"}r\xff\xff\xff\xff."  # an index of four billion


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GETATTR, r"it asks for builtins\.getattr"),
        (b"cos\nsystem\n(S'echo'\ntR.", r"it asks for os\.system"),
        (BUILD, "holds function, allowed is a dict"),
        (LOOP, "it is nested too deeply"),
        (b"", "its pickle is not read: EOFError"),
        (b"\x80\x02}", "its pickle is not read"),
        (pickle.dumps([1, 2]), "holds list, allowed is a dict of tensors"),
        (b"ctorch\nFloatStorage\n)R.", "its pickle is not read"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03tR.", "its pickle is not read"),
        (b"K\x05Q.", "it has a storage of an unknown type"),
        (b"\x80\x04" + b"\x8f" * 1_000_000 + b".", "it holds a set, which is not a tensor"),  # 0.2 GB of them
    ],
)
def test_a_hostile_pickle_is_one_line(tmp_path, data, message):
    with pytest.raises(llama.BadFileError, match=message) as raised:
        info.info(str(zipped(tmp_path / "a.pth", data)))
    assert str(raised.value).startswith(f"{tmp_path / 'a.pth'}: ")
    assert "\n" not in str(raised.value)


def test_a_hostile_index_takes_no_memory(tmp_path):
    assert info.info(str(zipped(tmp_path / "a.pth", MEMO))).tensors == []


def header(text: str, length: int | None = None, rest: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text.encode() + rest


GOOD = '{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has 0 bytes and a header of 0"),
        (header(GOOD, 1 << 60), "has 65 bytes and a header of 1152921504606846976"),
        (header(GOOD, rest=bytes(15)), "does not fit the 15 bytes of tensors"),
        (header(GOOD, rest=bytes(17)), "do not fill the 17 bytes"),
        (header('{"w": '), "its header is not JSON"),
        (header("[1, 2]"), "its header is no JSON object"),
        (header('{"w": 5}'), "w: has no dtype, shape and data_offsets"),
        (header(GOOD.replace("[0,16]", "[-1,16]")), "w: has no dtype"),
        (header(GOOD.replace("[0,16]", "[0,1e99]")), "w: has no dtype"),
        (header(GOOD.replace("[2,2]", "[99999999999,99999999999]"), rest=bytes(16)), "does not fit"),
        (header(GOOD.replace("[0,16]", "[16,0]"), rest=bytes(16)), "does not fit"),
        (header(GOOD.replace("[2,2]", "[1,1,1,1,1,1,1,1,4]"), rest=bytes(16)), "w: has no dtype"),
        (header(GOOD.replace("w", "a\\nb\\u001b[2J"), rest=bytes(1)), r"a\?b\?\[2J: F32 of shape"),
        (header(GOOD.replace("F32", "\\n")), r"w: \? of shape"),
        (header("{" * 60_000), "its header is not JSON"),
        (header('{"a":' * 60_000), "its header is not JSON"),
        (
            header('{"__metadata__":{"config":"' + "[" * 60_000 + '"},' + GOOD[1:], rest=bytes(16)),
            "the config of its metadata is not JSON",
        ),
    ],
)
def test_a_hostile_safetensors_is_one_line(tmp_path, data, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(llama.BadFileError, match=message) as raised:
        info.info(str(path))
    assert str(raised.value).startswith(f"{path}: ")


def entry(begin: int, end: int) -> str:
    return f'{{"dtype":"U8","shape":[{end - begin}],"data_offsets":[{begin},{end}]}}'


def after(start: str) -> bytes:
    """A right tensor of 16 bytes after what stands first in a header."""
    return header(f"{start},{GOOD[1:]}", rest=bytes(16))


BAD_HEADERS = {  # by what the message says: what the library of safetensors refuses too
    "b begins at 0, the tensors before it end at 8": header(
        f'{{"a":{entry(0, 8)},"b":{entry(0, 8)}}}', rest=bytes(16)
    ),
    "b begins at 8, the tensors before it end at 4": header(
        f'{{"a":{entry(0, 4)},"b":{entry(8, 12)}}}', rest=bytes(12)
    ),
    "z begins at 4, the tensors before it end at 16": header(
        f'{{"z":{entry(4, 4)},{GOOD[1:]}', rest=bytes(16)
    ),
    "'dtype' is in an object twice": header(GOOD.replace("{", '{"dtype":"F32",'), rest=bytes(16)),
    "'__metadata__' is in an object twice": after('{"__metadata__":{},"__metadata__":{}'),
    "can't decode byte 0xff": struct.pack("<Q", 118) + GOOD.encode("utf-16") + bytes(18),
    "Unexpected UTF-8 BOM": struct.pack("<Q", 60) + GOOD.encode("utf-8-sig") + bytes(16),
    r"its header has the name '\ud800', allowed text": header(GOOD.replace("w", "\\ud800"), rest=bytes(16)),
    "__metadata__ = 5, allowed text by name": after('{"__metadata__":5'),
    "__metadata__ 'x' = None, allowed text": after('{"__metadata__":{"x":null}'),
    r"__metadata__ 'x' = '\udc00', allowed text": after('{"__metadata__":{"x":"\\udc00"}'),
    "w: dtype = 5, allowed text": header(GOOD.replace('"F32"', "5"), rest=bytes(16)),
    "w: has no dtype, shape and data_offsets": header(
        GOOD.replace("[2,2]", "{}").replace("16", "4"), rest=bytes(4)
    ),
}


@pytest.mark.parametrize("message", BAD_HEADERS)
def test_what_safetensors_refuses_is_refused(tmp_path, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(BAD_HEADERS[message])
    with pytest.raises(safetensors.SafetensorError):
        safetensors.safe_open(path, "np")
    with pytest.raises(BadFileError) as error:
        read_header(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_a_name_that_is_there_twice_is_refused(tmp_path):
    """The library takes the last."""
    (tmp_path / "a.safetensors").write_bytes(header(f"{GOOD[:-1]},{GOOD[1:]}", rest=bytes(16)))
    with pytest.raises(
        BadFileError, match=r"a\.safetensors: its header is not JSON: 'w' is in an object twice$"
    ):
        read_header(tmp_path / "a.safetensors")


def test_no_metadata_and_tensors_of_no_bytes_are_read_as_safetensors_reads_them(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(after(f'{{"__metadata__":null,"y":{entry(16, 16)},"x":{entry(0, 0)}'))
    assert set(safetensors.safe_open(path, "np").keys()) == {"w", "x", "y"} == set(read_header(path).tensors)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no safetensors, no consolidated"),
        ({"config.json": b"{}"}, "holds no safetensors"),
        ({"params.json": b"[]"}, "params.json: found list, allowed is an object"),
        ({"params.json": b"\xff"}, "params.json: is not JSON"),
        ({"model.safetensors.index.json": b'{"weight_map": [1]}'}, "weight_map is no object of names"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"w": "a.safetensors"}}'},
            "a.safetensors: No such file",
        ),
        ({"model.safetensors.index.json": b'{"weight_map": {"w": "a\\u0000b"}}'}, "is no object of names"),
        ({"model.safetensors.index.json": b'{"weight_map": {"w": "../b"}}'}, "is no object of names"),
        ({"model.safetensors.index.json": b'{"weight_map": {"w": "\\ud800"}}'}, "is no object of names"),
        ({"model.safetensors.index.json": b'{"weight_map": {}}'}, "is no object of names"),
        (
            {"model.safetensors": header(GOOD, rest=bytes(16)), "config.json": b"{"},
            "config.json: is not JSON",
        ),
        (
            {"consolidated.00.pth": b"PK\3\4 no zip", "params.json": b"{}"},
            "consolidated.00.pth: is not whole",
        ),
    ],
)
def test_a_bad_folder_is_one_line(tmp_path, monkeypatch, capsys, files, message):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr("sys.argv", ["info", str(tmp_path)])
    assert run_command(lambda: info.main(sys.argv[1:])) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_a_tokenizer_that_is_no_file_is_named(tmp_path, make):
    (tmp_path / "model.safetensors").write_bytes(header(GOOD, rest=bytes(16)))
    make(tmp_path / "tokenizer.model")
    with pytest.raises(llama.BadFileError, match=r"^/.*tokenizer\.model: [iI]s a "):
        info.info(str(tmp_path))


def test_odd_configurations_are_shown_as_far_as_they_go(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(header(GOOD, rest=bytes(16)))
    for config in (
        {"rope_theta": "x\ny", "dim": "a", "n_heads": 2},
        {"rope_theta": 10**400, "max_seq_len": 10**400, "n_layers": 10**400, "dim": 8, "n_heads": 2},
        {"hidden_size": 8, "num_attention_heads": 2, "rope_theta": None, "eos_token_id": "\x1b"},
        {"hidden_size": "big", "num_attention_heads": 0, "rope_scaling": 5},
        {"dim": None},
        {"n_heads": -1},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert "w " in info.text(info.info(str(tmp_path)))
