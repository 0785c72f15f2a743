"""What a folder calls a Llama, and its tensors: what AutoModelForCausalLM loads is the same model here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from test_huggingface import TINY, assert_same, edit, edit_tensors, logits_in_transformers, model_of, save
from test_model import fresh, in_transformers, tokens
from torch_formats import open_source

from llama.errors import BadFileError
from model import Llama


def assert_loaded_alike(folder: Path, model: Llama) -> None:
    """The folder is the model, here and in transformers, which misses nothing in it."""
    source = open_source(folder)
    assert_same(source, model)
    with torch.no_grad():
        found = model_of(source)(tokens() % TINY.vocab_size)
    torch.testing.assert_close(found, logits_in_transformers(folder), rtol=0, atol=1e-4)


def without_prefix(tensors: dict[str, torch.Tensor]) -> None:
    """The names of what AutoModel saves."""
    for name in list(tensors):
        tensors[name.removeprefix("model.")] = tensors.pop(name)


@pytest.mark.parametrize("said", [[], ["LLaMAForCausalLM"], ["LlamaModel"], ["MistralModel"], None], ids=str)
def test_what_transformers_loads_by_its_model_type_is_read(tmp_path, said):
    model = fresh(TINY)
    folder = save(model, tmp_path)
    edit(folder, architectures=said)
    assert_loaded_alike(folder, model)


@pytest.mark.parametrize("tied", [True, False])
def test_names_without_model_in_front_are_read(tmp_path, tied):
    model = fresh(replace(TINY, tied=tied))
    folder = save(model, tmp_path)
    edit_tensors(folder, without_prefix)
    assert_loaded_alike(folder, model)


def test_what_auto_model_saves_is_read_where_it_is_tied(tmp_path):
    model = fresh(replace(TINY, tied=True))
    save(model, tmp_path / "whole")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "part")
    assert_loaded_alike(tmp_path / "part", model)


def test_a_classifier_that_transformers_would_draw_by_chance_is_missed(tmp_path):
    in_transformers(fresh(TINY)).model.save_pretrained(tmp_path)
    with pytest.raises(BadFileError, match=r"^[^;]*: lm_head\.weight is missing$"):
        open_source(tmp_path)


def test_a_part_of_the_names_without_it_is_refused(tmp_path):
    folder = save(fresh(TINY), tmp_path)
    name = "layers.0.mlp.up_proj.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors.pop(f"model.{name}")}))
    with pytest.raises(BadFileError, match=rf": model\.{name} is missing; {name} is unexpected$"):
        open_source(folder)
