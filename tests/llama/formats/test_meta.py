"""Meta's folders are read to the bit, whole or in shards, as the family that they are; and refused by name.

The folders are written here by hand: a dict of tensors for each shard, and params.json.
Left out on purpose: what all sources share (test_export.py), logits of the families (test_model.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import write_ranked
from test_huggingface import Program, assert_same, llama3_tokenizer, logits_in_transformers, model_of
from test_model import fresh, tokens
from torch_formats import export_folder, open_source

import llama
from llama import convert
from llama.errors import BadFileError
from llama.formats.chat_templates import Chat
from llama.formats.text import with_text
from model import Config, Llama, RopeScaling

TINY = Config(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48, vocab_size=60, tied=False)
LLAMA3 = {"rope_theta": 5e5, "max_seq_len": 8192}
FAMILIES = {  # configuration, params.json besides the sizes, axis of the embedding in shards
    "Llama 2": (replace(TINY, n_kv_heads=4, max_seq_len=4096), {"vocab_size": -1}, 1),
    "Llama 2 70B": (replace(TINY, max_seq_len=4096), {"n_kv_heads": 2, "ffn_dim_multiplier": 1.3}, 1),
    "Code Llama": (replace(TINY, n_kv_heads=4, rope_theta=1e6, max_seq_len=16384), {"rope_theta": 1e6}, 1),
    "Llama 3": (
        replace(TINY, **LLAMA3),
        {"n_kv_heads": 2, "vocab_size": 60, "rope_theta": 500000, "ffn_dim_multiplier": 1.3},
        0,
    ),
    "Llama 3.1": (
        replace(TINY, rope_theta=5e5, max_seq_len=131072, rope_scaling=RopeScaling()),
        {"n_kv_heads": 2, "vocab_size": 60, "rope_theta": 500000.0, "use_scaled_rope": True},
        0,
    ),
    "Llama 3.2": (
        replace(TINY, rope_theta=5e5, max_seq_len=131072, rope_scaling=RopeScaling(factor=32.0), tied=True),
        {"n_kv_heads": 2, "vocab_size": 60, "rope_theta": 500000.0, "use_scaled_rope": True},
        0,
    ),
    "head_dim": (replace(TINY, head_dim=12, max_seq_len=4096), {"n_kv_heads": 2, "head_dim": 12}, 1),
}
BY_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")


def cut(name: str, weight: torch.Tensor, shards: int, embedding_axis: int) -> list[torch.Tensor]:
    """The slices of a tensor, each with memory of its own."""
    if weight.ndim == 1:
        return [weight.clone() for _ in range(shards)]
    part = name.split(".")[-2]
    axis = embedding_axis if part == "tok_embeddings" else 0 if part in BY_ROWS else 1
    return [piece.clone() for piece in weight.chunk(shards, axis)]


def save(model: Llama, folder: Path, params: dict, shards: int = 1, embedding_axis: int = 1) -> Path:
    """The model as Meta writes it, in bfloat16; with a tied classifier in the memory of the embedding."""
    folder.mkdir()
    weights = {name: weight.detach().bfloat16() for name, weight in model.named_parameters()}
    cuts = {name: cut(name, weight, shards, embedding_axis) for name, weight in weights.items()}
    for n in range(shards):
        tensors = {name: pieces[n] for name, pieces in cuts.items()}
        if model.config.tied:
            tensors["output.weight"] = tensors["tok_embeddings.weight"]
        tensors["rope.freqs"] = torch.ones(model.config.head_dim // 2)
        torch.save(tensors, folder / f"consolidated.{n:02}.pth")
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "multiple_of": 16, "norm_eps": 1e-5}
    (folder / "params.json").write_text(json.dumps(sizes | params))
    return folder


def edit(folder: Path, **fields) -> None:
    """Changes fields of params.json, and drops those that are `...`."""
    values = json.loads((folder / "params.json").read_text()) | fields
    (folder / "params.json").write_text(json.dumps({n: v for n, v in values.items() if v is not ...}))


def edit_shard(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], n: int = 0) -> None:
    tensors = torch.load(folder / f"consolidated.{n:02}.pth")
    change(tensors)
    torch.save(tensors, folder / f"consolidated.{n:02}.pth")


@pytest.fixture(scope="module")
def model() -> Llama:
    return fresh(FAMILIES["Llama 3"][0]).bfloat16()


@pytest.fixture
def folder(tmp_path, model) -> Path:
    return save(model, tmp_path / "meta", FAMILIES["Llama 3"][1])


@pytest.fixture
def sharded(tmp_path, model) -> Path:
    return save(model, tmp_path / "meta", FAMILIES["Llama 3"][1], 2, 0)


# --- Reading


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_read_to_the_bit_and_transformers_gives_the_same_logits(tmp_path, family, shards):
    config, params, axis = FAMILIES[family]
    model = fresh(config).eval()
    source = open_source(save(model, tmp_path / "meta", params, shards, axis))
    assert_same(source, model.bfloat16())
    export_folder(tmp_path / "theirs", source)
    with torch.no_grad():
        found = model_of(source)(tokens() % 60)
    torch.testing.assert_close(found, logits_in_transformers(tmp_path / "theirs"), rtol=0, atol=1e-5)


LLAMA1 = {"n_kv_heads": ..., "vocab_size": -1, "norm_eps": 1e-6}


@pytest.mark.parametrize(
    ("dtype", "params", "context", "family"),
    [
        (torch.float16, LLAMA1, 2048, "LLaMA 1"),
        (torch.bfloat16, LLAMA1, 4096, "Llama 2"),  # of chat
        (torch.float16, LLAMA1 | {"norm_eps": 1e-5}, 4096, "Llama 2"),
        (torch.float16, LLAMA1 | {"rope_theta": 1e6}, 16384, "Code Llama"),
    ],
)
def test_the_context_of_llama_1_is_half_that_of_llama_2(tmp_path, capsys, dtype, params, context, family):
    config, _, axis = FAMILIES["Llama 2"]
    folder = save(fresh(config), tmp_path / "meta", {}, 2, axis)
    for n in range(2):
        edit_shard(folder, lambda tensors: tensors.update({k: t.to(dtype) for k, t in tensors.items()}), n)
    edit(folder, **params)
    assert open_source(folder).config.max_seq_len == context
    assert convert.main([str(folder), str(tmp_path / "model.bin"), "--dtype", "int8"]) == 0
    note = f"max_seq_len = {context}: taken for {family}, params.json does not say it"
    assert capsys.readouterr().err == f"note: {folder}: {note}\n"


@pytest.mark.parametrize("shards", [1, 2])
def test_an_embedding_may_be_there_twice_or_once(tmp_path, shards):
    config, params, axis = FAMILIES["Llama 3.2"]
    model = fresh(config)
    folder = save(model, tmp_path / "meta", params, shards, axis)

    def copy(tensors: dict[str, torch.Tensor]) -> None:
        tensors["output.weight"] = tensors["tok_embeddings.weight"].clone()

    for change in (copy, lambda tensors: tensors.pop("output.weight")):
        for n in range(shards):
            edit_shard(folder, change, n)
        assert_same(open_source(folder), model.bfloat16())


def test_an_embedding_that_differs_from_the_classifier_is_of_llama_3_1(tmp_path):
    config, params, _ = FAMILIES["Llama 3.2"]
    folder = save(fresh(config), tmp_path / "meta", params)
    edit_shard(folder, lambda tensors: tensors.update({"output.weight": torch.ones(60, 32).bfloat16()}))
    source = open_source(folder)
    assert (source.config.tied, source.config.rope_scaling) == (False, RopeScaling(factor=8.0))


def test_what_the_file_says_of_scaling_and_context_comes_before_what_is_usual(folder):
    edit(folder, use_scaled_rope=True, rope_scaling_factor=16.0, max_seq_len=2048, norm_eps=1e-6)
    config = open_source(folder).config
    assert (config.rope_scaling, config.max_seq_len) == (RopeScaling(factor=16.0), 2048)
    assert config.norm_eps == 1e-6


def test_a_shard_may_have_one_head_of_keys_and_values(tmp_path):
    """8 shards, each with one head of keys and values."""
    config = Config(dim=64, n_layers=1, n_heads=16, n_kv_heads=8, hidden_dim=24, vocab_size=40, tied=False)
    config = replace(config, **LLAMA3)
    model = fresh(config)
    params = {"dim": 64, "n_layers": 1, "n_heads": 16, "n_kv_heads": 8, "rope_theta": 5e5}
    assert_same(open_source(save(model, tmp_path / "meta", params, 8, 0)), model.bfloat16())


# --- The command line


def test_options_say_what_the_folder_does_not(folder, tmp_path):
    out = tmp_path / "model.bin"
    options = ["--version", "3", "--max-seq-len", "64", "--rope-theta", "1e6", "--rope-factor", "32"]
    assert convert.main([str(folder), str(out), *options]) == 0
    data = out.read_bytes()
    assert struct.unpack_from("<i", data, 32) == (64,)
    assert struct.unpack_from("<fi3fi", data, 48) == (1e6, 2, 32.0, 1.0, 4.0, 8192)
    for wrong in (["--rope-factor", "0"], ["--rope-theta", "-1"], ["--max-seq-len", "0"]):
        assert convert.main([str(folder), str(out), "--version", "3", *wrong]) == 2


def pieces(folder: Path, n: int) -> Path:
    words = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"w{i}" for i in range(n - 3))]
    return write_ranked(folder / "pieces.bin", words)


def test_a_tokenizer_of_another_size_is_refused(folder, tmp_path, capsys):
    beside = pieces(folder, 59).rename(folder / "tokenizer.bin")
    arguments = [str(folder), str(tmp_path / "model.bin"), "--version", "3"]
    assert convert.main(arguments) == 3
    message = f"error: {beside}: has 59 tokens, the model's vocab_size = 60\n"
    assert capsys.readouterr().err == message
    pieces(folder, 60).rename(folder / "tok60.bin")  # the first that fits is taken
    assert convert.main(arguments) == 0
    capsys.readouterr()
    assert convert.main([*arguments, "--tokenizer", str(beside)]) == 3
    assert capsys.readouterr().err == message


def test_stop_ids_and_template_of_a_folder_are_those_of_its_tokenizer(folder, tmp_path):
    given = llama3_tokenizer(tmp_path / "tokenizer.model").path
    source, _ = with_text(replace(open_source(folder), config=replace(TINY, vocab_size=512)), folder, given)
    assert (source.bos, source.chat) == (256, Chat("llama3"))
    assert source.stops == (257, 256 + 8, 256 + 9)  # end_of_text, eom_id, eot_id
    assert with_text(open_source(folder), folder)[0].chat == Chat()


def test_a_v3_file_of_a_llama_3_is_all_that_a_chat_needs(tmp_path):
    config, params, _ = FAMILIES["Llama 3"]
    folder = save(fresh(replace(config, vocab_size=512)), tmp_path / "meta", params | {"vocab_size": 512})
    tokenizer, out = llama3_tokenizer(folder / "tokenizer.model"), tmp_path / "model.bin"
    assert convert.main([str(folder), str(out), "--dtype", "int8"]) == 0
    data = out.read_bytes()
    assert struct.unpack_from("<6i", data, 76) == (256, 3, 257, 264, 265, -1)
    assert struct.unpack_from("<i", data, 116) == (2,)  # Llama 3's template
    with llama.Llama(out) as engine:
        assert engine.encode("hello") == tokenizer.encode("hello", bos=True)


# --- What is refused

WQ, W1 = "layers.0.attention.wq.weight", "layers.1.feed_forward.w1.weight"
PARAMS = {
    "dim": (..., "params.json: has no dim"),
    "n_layers": (10**9, "params.json: n_layers = 1000000000, allowed up to 4096"),
    "n_heads": (0, "params.json: n_heads = 0, allowed 1 or more"),
    "n_kv_heads": (3, "params.json: n_kv_heads = 3 does not divide n_heads = 4"),
    "vocab_size": (64, ": tok_embeddings.weight has the shape (60, 32), allowed (64, 32)"),
    "norm_eps": ("1e-5", "params.json: norm_eps = '1e-5', allowed numbers"),
    "rope_theta": (-1.0, "params.json: norm_eps = 1e-05, rope_theta = -1.0: allowed more than 0"),
    "use_scaled_rope": (1, "params.json: use_scaled_rope = 1, allowed true and false"),
    "quantization_args": ({"group_size": 32}, "params.json: quantization_args is unknown, allowed dim, "),
    "moe": ({"num_experts": 8}, "params.json: moe is unknown, allowed dim, "),
}


def refused(folder: Path, capsys, options: tuple[str, ...] = ("--version", "3")) -> str:
    """The one line that an export says, which leaves nothing."""
    before = sorted(folder.parent.iterdir())
    assert convert.main([str(folder), str(folder.parent / "model.bin"), *options]) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}")
    assert error.count("\n") == 1
    assert sorted(folder.parent.iterdir()) == before
    return error


@pytest.mark.parametrize("field", PARAMS)
def test_parameters_that_cannot_be_are_refused_by_name(folder, capsys, field):
    value, message = PARAMS[field]
    edit(folder, **{field: value})
    assert message in refused(folder, capsys)


TENSORS = {
    f"{W1} is missing": lambda tensors: tensors.pop(W1),
    f"{WQ} is missing, or not a matrix": lambda tensors: tensors.pop(WQ),
    "output.weight is missing": lambda tensors: tensors.pop("output.weight"),
    "layers.2.ffn_norm.weight is unexpected": lambda tensors: tensors.update(
        {"layers.2.ffn_norm.weight": torch.ones(32)}
    ),
    f"{W1} has the shape (47, 32), allowed (48, 32)": lambda tensors: tensors.update(
        {W1: torch.ones(47, 32)}
    ),
    f"{W1} has the type int8, allowed floating point": lambda tensors: tensors.update(
        {W1: torch.ones(48, 32).char()}
    ),
    f"{W1} has values that are not finite": lambda tensors: tensors[W1].__setitem__((3, 5), torch.nan),
    "'model' is of type dict, allowed dense tensors by name": lambda tensors: tensors.update(
        {"model": dict(tensors)}
    ),
}


@pytest.mark.parametrize("message", TENSORS)
def test_tensors_that_do_not_fit_are_named(folder, capsys, message):
    edit_shard(folder, TENSORS[message])
    assert message in refused(folder, capsys)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_in_every_format(folder, tmp_path, capsys, value):
    edit_shard(folder, lambda tensors: tensors[W1].__setitem__((47, 31), value))
    message = f"error: {folder}: {W1} has values that are not finite\n"
    for options in (["--dtype", "int8"], ["--dtype", "int4"], ["--version", "1", "--force"]):
        assert refused(folder, capsys, tuple(options)) == message
    assert convert.main([str(folder), str(tmp_path / "theirs")]) == 3
    assert capsys.readouterr().err == message


def shuffle(folder: Path) -> None:
    (folder / "consolidated.01.pth").rename(folder / "consolidated.02.pth")


def lone(folder: Path) -> None:
    (folder / "consolidated.01.pth").unlink()


def unequal(folder: Path) -> None:
    edit_shard(folder, lambda tensors: tensors.pop(W1), 1)


def crooked(folder: Path) -> None:
    edit_shard(folder, lambda tensors: tensors.update({W1: torch.ones(24, 31)}), 1)


def flipped(folder: Path) -> None:
    """A shard whose pickle says more values than its storage has."""
    path = folder / "consolidated.01.pth"
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    pickle = next(name for name in files if name.endswith("data.pkl"))
    files[pickle] = files[pickle].replace(b"K\x18K ", b"K\x7fK ", 1)  # a size of 24 becomes 127
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


DAMAGE = {
    "consolidated.01.pth: is missing": shuffle,
    "has 1 shards, its tensors are cut for 2": lone,
    f"consolidated.01.pth: {W1} is in one of this and consolidated.00.pth, allowed both": unequal,
    f"{W1} has slices of (24, 32), (24, 31), which do not fit": crooked,
    "consolidated.01.pth: is not whole, allowed are zip archives of torch.save": lambda folder: os.truncate(
        folder / "consolidated.01.pth", 10_000
    ),
    "consolidated.00.pth: is not whole, allowed": lambda folder: (folder / "consolidated.00.pth").write_bytes(
        b""
    ),
    "consolidated.01.pth: holds a list, allowed tensors by name": lambda folder: torch.save(
        [torch.ones(3)], folder / "consolidated.01.pth"
    ),
    "consolidated.01.pth: a tensor of shape (127, 32) is not in its storage ": flipped,
    "params.json: is not JSON": lambda folder: (folder / "params.json").write_text("dim = 3"),
    "consolidated.00.pth: is missing": lambda folder: [path.unlink() for path in folder.glob("*.pth")],
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(sharded, capsys, message):
    DAMAGE[message](sharded)
    assert message in refused(sharded, capsys)


def test_a_pickle_with_code_is_refused_and_not_run(folder, tmp_path, capsys):
    edit_shard(folder, lambda tensors: tensors.update({"rope.freqs": Program(tmp_path / "made")}))
    name = f"{os.system.__module__}.system"
    assert f"consolidated.00.pth: its pickle is not read: it asks for {name}, which" in refused(
        folder, capsys
    )
    assert not (tmp_path / "made").exists()


def test_a_damaged_shard_is_never_read_as_another_model(sharded, model):
    """Whichever byte of a shard's structure is flipped: refused, or tensors that fit."""
    path = sharded / "consolidated.01.pth"
    data, expected = path.read_bytes(), dict(model.named_parameters()).keys()
    for at in range(0, 1500, 37):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x14]) + data[at + 1 :])
        with contextlib.suppress(BadFileError):  # anything else would be a traceback
            assert open_source(sharded).tensors.keys() == expected
