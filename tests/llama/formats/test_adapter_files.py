"""Adapters as PEFT may save them: beside a model and merged they are what PEFT says, or refused by name."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_lora import SHAPE, by_peft, write_base

import llama
from llama import convert
from llama.errors import BadFileError
from llama.formats.adapters import PICKLE, WEIGHTS
from llama.formats.export import export_folder
from llama.formats.source import Source
from model import Llama
from training.weights import TorchWeights

IDS = list(range(32))
UNTIED = replace(SHAPE, tied=False)
HEAD = "base_model.model.lm_head."
EMBEDDING = "base_model.model.model.embed_tokens.weight"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CRIA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tmp_path) -> Path:
    """A model whose classifier is its own."""
    torch.manual_seed(1)
    weights = TorchWeights(Llama(UNTIED).state_dict())
    export_folder(tmp_path / "base", Source("base", UNTIED, weights))
    return tmp_path / "base"


def beside(base: Path, folder: Path) -> np.ndarray:
    """The logits of a model with an adapter beside it."""
    with llama.Llama(base, dtype="fp32", lora=str(folder)) as model:
        return model.logits(IDS)


def merged(base: Path, folder: Path, out: Path) -> np.ndarray:
    """The logits of a model into which an adapter is merged, by cria convert."""
    line = [str(base), str(out), "--version", "3", "--dtype", "fp32"]
    assert convert.main([*line, "--lora", str(folder)]) == 0
    with llama.Llama(out) as model:
        return model.logits(IDS)


def close(found: np.ndarray, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(found), expected[0], rtol=0, atol=1e-4)


def edit_tensor(path: Path, name: str) -> None:
    """Changes the last value of a tensor in a file."""
    tensors = load_file(path)
    tensors[name][-1, -1] += 1
    save_file(tensors, path, {"format": "pt"})


# --- The classifier


@pytest.mark.parametrize("copies", [False, "auto"])
@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["lm_head"]], ids=len)
def test_an_adapter_of_the_classifier_is_merged_and_not_run_without_it(
    base, tmp_path, capsys, targets, copies
):
    folder = tmp_path / "lora"
    model, expected = by_peft(base, tmp_path, target_modules=targets)
    model.save_pretrained(folder, save_embedding_layers=copies)
    assert (f"{HEAD}base_layer.weight" in load_file(folder / WEIGHTS)) == bool(copies)
    close(merged(base, folder, tmp_path / "merged.bin"), expected)
    message = f"{folder}: adapter of output.weight can't run beside a model: merge it, cria convert MODEL OUT"
    with pytest.raises(BadFileError, match=f"^{re.escape(message)} --lora {folder}$"):
        beside(base, folder)
    capsys.readouterr()
    assert convert.main([str(base), str(tmp_path / "x.lora.bin"), "--lora", str(folder)]) == 3
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.lora.bin").exists()


def test_an_adapter_of_a_tied_classifier_is_refused(tmp_path):
    base = write_base(tmp_path)
    model, _ = by_peft(base, tmp_path, target_modules=["q_proj", "lm_head"])
    model.save_pretrained(tmp_path / "lora")
    with pytest.raises(BadFileError, match=rf"{HEAD}lora_A\.weight is unexpected"):
        beside(base, tmp_path / "lora")


# --- Copies of what the model has


@pytest.mark.parametrize("tied", [False, True])
def test_copies_of_the_model_s_tensors_change_nothing(base, tmp_path, tied):
    base = write_base(tmp_path / "tied") if tied else base
    folder = tmp_path / "lora"
    model, expected = by_peft(base, tmp_path, target_modules=["q_proj"])
    model.save_pretrained(folder, save_embedding_layers=True)
    assert EMBEDDING in load_file(folder / WEIGHTS)
    close(beside(base, folder), expected)
    close(merged(base, folder, tmp_path / "merged.bin"), expected)


@pytest.mark.parametrize(
    ("name", "target"),
    [(EMBEDDING, "q_proj"), (f"{HEAD}weight", "q_proj"), (f"{HEAD}base_layer.weight", "lm_head")],
)
def test_copies_that_differ_are_refused_by_name(base, tmp_path, name, target):
    folder = tmp_path / "lora"
    model, _ = by_peft(base, tmp_path, target_modules=[target])
    model.save_pretrained(folder, save_embedding_layers=True)
    edit_tensor(folder / WEIGHTS, name)
    message = f"{folder}: {name} differs from the model's, allowed the same to the bit"
    with pytest.raises(BadFileError, match=f"^{re.escape(message)}"):
        beside(base, folder)


def test_copies_are_compared_with_each_model(base, tmp_path):
    folder = tmp_path / "lora"
    model, _ = by_peft(base, tmp_path, target_modules=["q_proj"])
    model.save_pretrained(folder, save_embedding_layers=True)
    beside(base, folder)
    edit_tensor(base / "model.safetensors", "model.embed_tokens.weight")
    with pytest.raises(BadFileError, match=f"{EMBEDDING} differs from the model's"):
        beside(base, folder)


def test_copies_of_a_wider_type_are_the_same(base, tmp_path):
    """PEFT trains in float32 what is stored in bfloat16."""
    transformers.AutoModelForCausalLM.from_pretrained(base).bfloat16().save_pretrained(base)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs.save_pretrained(tmp_path / "wide")
    model, expected = by_peft(tmp_path / "wide", tmp_path, target_modules=["q_proj"])
    model.save_pretrained(tmp_path / "lora", save_embedding_layers=True)
    close(beside(base, tmp_path / "lora"), expected)


# --- Files and settings


def test_a_pickle_is_read_where_there_are_no_safetensors(base, tmp_path):
    folder = tmp_path / "lora"
    model, expected = by_peft(base, tmp_path, target_modules=["q_proj", "down_proj"])
    model.save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    torch.save({name: tensor + 1 for name, tensor in tensors.items()}, folder / PICKLE)
    close(beside(base, folder), expected)
    torch.save(tensors, folder / PICKLE)
    (folder / WEIGHTS).unlink()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(theirs, folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(torch.arange(32)[None]).logits, expected)
    close(beside(base, folder), expected)
    close(merged(base, folder, tmp_path / "merged.bin"), expected)
    (folder / PICKLE).unlink()
    message = f"{folder}: has none of adapter_model.safetensors, adapter_model.bin"
    with pytest.raises(BadFileError, match=f"^{re.escape(message)}$"):
        beside(base, folder)


def test_a_pickle_with_code_is_refused(base, tmp_path):
    folder = tmp_path / "lora"
    model, _ = by_peft(base, tmp_path, target_modules=["q_proj"])
    model.save_pretrained(folder)
    (folder / WEIGHTS).unlink()
    torch.save({"x": Path("x")}, folder / PICKLE)
    with pytest.raises(
        BadFileError, match=r"adapter_model\.bin: its pickle is not read: it asks for pathlib"
    ):
        beside(base, folder)


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_ranks_and_scales_of_modules_without_an_adapter_are_passed_over(base, tmp_path, setting):
    folder = tmp_path / "lora"
    unused = {"k_proj": 8, "zzz": 7, "proj": 6, "q": 5}
    model, expected = by_peft(base, tmp_path, target_modules=["q_proj", "v_proj"], **{setting: unused})
    model.save_pretrained(folder)
    close(beside(base, folder), expected)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    for name in ("q_proj", "q.proj", ".*", "model.layers.0.self_attn.q_proj", "zzz|v_proj"):
        path.write_text(json.dumps(settings | {setting: {**unused, name: 4}}))
        message = f"{path}: {setting} has {name!r}, allowed names of modules that have no adapter"
        with pytest.raises(BadFileError, match=f"^{re.escape(message)}$"):
            beside(base, folder)
