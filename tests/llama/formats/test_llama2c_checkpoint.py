"""Checkpoints of llama2.c's train.py, are models as any other; what else torch.save wrote is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_huggingface import assert_same
from test_model import fresh
from torch_formats import open_source

from llama import convert
from llama.errors import BadFileError
from model import Config, Llama

SHAPE = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 60, "max_seq_len": 64}
ARGS = {**SHAPE, "multiple_of": 32, "dropout": 0.0}
W1 = "layers.0.feed_forward.w1.weight"


def save(path: Path, model: Llama, prefix: str = "", args: dict | None = None, **more: object) -> Path:
    """As llama2.c's train.py writes it: the state_dict has a tied classifier twice, in one storage."""
    optimizer = torch.optim.AdamW(model.parameters())
    state = {f"{prefix}{name}": weight for name, weight in model.state_dict().items()}
    rest = {"optimizer": optimizer.state_dict(), "iter_num": 7, "best_val_loss": torch.tensor(1.5)}
    config = {"out_dir": "out", "compile": True, "learning_rate": 5e-4}
    args = ARGS if args is None else args
    torch.save({"model": {**state, **more}, "model_args": args, "config": config, **rest}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("tied", [True, False])
def test_the_model_is_read_to_the_bit(tmp_path, prefix, tied):
    model = fresh(Config(**SHAPE, tied=tied))
    assert_same(open_source(save(tmp_path / "ckpt.pt", model, prefix)), model)


def test_tables_are_left_out_and_defaults_are_llama2_c_s(tmp_path):
    """freqs of old versions, the mask of attention without flash; n_kv_heads None as for the tinyllamas."""
    model = fresh(Config(**SHAPE | {"n_kv_heads": 4, "max_seq_len": 2048}))
    tables = {"freqs_cos": torch.ones(64, 4), "layers.0.attention.mask": torch.ones(1, 1, 64, 64)}
    args = {name: value for name, value in ARGS.items() if name != "max_seq_len"} | {"n_kv_heads": None}
    assert_same(open_source(save(tmp_path / "ckpt.pt", model, "", args, **tables)), model)


def test_the_width_of_the_feed_forward_layers_is_that_of_the_weights(tmp_path):
    model = fresh(Config(**SHAPE, hidden_dim=40))
    assert_same(open_source(save(tmp_path / "ckpt.pt", model)), model)


def test_it_becomes_a_file_of_the_engine(tmp_path):
    model = fresh(Config(**SHAPE))
    path = save(tmp_path / "ckpt.pt", model)
    assert convert.main([str(path), str(tmp_path / "model.bin"), "--version", "0"]) == 0
    assert_same(open_source(tmp_path / "model.bin"), model)


REFUSED = {
    "a field": ({"n_experts": 8}, {}, r"model_args\.n_experts is unknown, allowed dim, "),
    "a size": ({"dim": 48}, {}, r"tok_embeddings\.weight has the shape \(60, 32\), allowed \(60, 48\)"),
    "no number": ({"n_layers": "2"}, {}, "n_layers = '2', allowed whole numbers"),
    "too many layers": ({"n_layers": 10**9}, {}, "n_layers = 1000000000, allowed up to 4096"),
    "a name": (
        {},
        {"layers.2.ffn_norm.weight": torch.ones(32)},
        r"layers\.2\.ffn_norm\.weight is unexpected",
    ),
    "no tensor": ({}, {W1: 3}, f"'{W1}' is of type int, allowed dense tensors by name"),
    "no matrix": ({}, {W1: torch.ones(3)}, f"{W1} is missing, or not a matrix"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_named(tmp_path, case):
    args, more, message = REFUSED[case]
    path = save(tmp_path / "ckpt.pt", fresh(Config(**SHAPE)), "", ARGS | args, **more)
    with pytest.raises(BadFileError, match=rf"^{path}: (\S+: )?{message}"):
        open_source(path)


FOREIGN = {
    "2 tensors without a configuration": {"a": torch.ones(2), "b": torch.ones(3)},
    "a tensor": torch.ones(3),
    "a list": [torch.ones(3)],
    "a dict of epoch, state_dict,": {"epoch": 3, "state_dict": {"a": torch.ones(2)}},
    "a dict of model,": {"model": {"a": torch.ones(2)}},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_of_another_program_is_named_as_what_it_is(tmp_path, what):
    path = tmp_path / "other.pt"
    torch.save(FOREIGN[what], path)
    with pytest.raises(
        BadFileError, match=rf"^{path}: is a PyTorch file of {what}.* allowed a checkpoint of llama2"
    ):
        open_source(path)
