"""Quantisation-aware training: its forward pass is the exported file in the engine; runs go on and export."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import assert_same_weights, train
from test_forward import Engine, relative
from torch_formats import export_v3, open_source

from llama.errors import UsageError
from llama.formats import tiles
from llama.formats.tiles import Errors
from model import Config, Llama
from training.checkpoints import FIXED
from training.options import Options
from training.qat import activations_in, add_qat, weights_in
from training.weights import load_model

SHAPE = Config(dim=60, n_layers=2, n_heads=6, n_kv_heads=3, hidden_dim=172, vocab_size=45, max_seq_len=64)
DTYPES = ("int8", "int4")
SAME, FLIPS = 1e-5, 0.02  # relative errors: of one token's logits, and where values round to the other side


def random_model(shape: Config = SHAPE) -> Llama:
    torch.manual_seed(1)
    model = Llama(shape).eval()
    with torch.no_grad():  # logits of a few units
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.ndim == 2 else parameter.uniform_(0.5, 1.5)
    return model


def rounded(model: Llama, dtype: str) -> Llama:
    model = copy.deepcopy(model)
    add_qat(model, dtype)
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e4])
def test_weights_are_those_of_a_file(dtype, scale):
    values = np.random.default_rng(1).normal(0, scale, (640, 172)).astype(np.float32)
    values[3, :40] = 0
    packed = tiles.pack(values, dtype, Errors())
    expected = tiles.unpack(packed, dtype, *values.shape)
    found = weights_in(torch.from_numpy(values), dtype).numpy()
    assert (found != expected).mean() <= (0 if dtype == "int8" else 2e-3)  # sums in another order
    errors = [relative(rounded - values, values) for rounded in (found, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_forward_pass_is_the_exported_file_in_the_engine(tmp_path, dtype, tied):
    model = random_model(replace(SHAPE, tied=tied))
    export_v3(tmp_path / "model.bin", model.config, model.state_dict(), dtype, "int8")
    engine, theirs = Engine(tmp_path / "model.bin"), rounded(model, dtype)
    with torch.no_grad():
        errors = []
        for token in range(6):
            expected = theirs(torch.tensor([[token]]))[0].numpy()
            errors.append(relative(engine.logits([token]) - expected, expected))
        assert np.median(errors) < SAME
        ids = torch.arange(40)[None] % 45
        expected, plain = theirs(ids)[0].numpy(), model(ids)[0].numpy()
    error = relative(engine.logits(ids[0].tolist()) - expected, expected)
    assert error < FLIPS
    assert error < relative(plain - expected, expected) / (10 if dtype == "int4" else 1)


def test_the_loss_is_that_of_the_logits_and_gradients_pass_straight_through():
    model = rounded(random_model(), "int4").train()
    ids = torch.arange(40)[None]
    loss, n = model(ids, ids + 1)
    expected = torch.nn.functional.cross_entropy(model(ids)[0], ids[0] + 1, reduction="sum")
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert int(n) == 40
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    for function in (lambda x: weights_in(x, "int4"), activations_in):
        x = torch.randn(3, 70, requires_grad=True)
        (function(x) * 2).sum().backward()
        assert torch.equal(x.grad, torch.full((3, 70), 2.0))


def test_compiled_it_is_the_same():
    model, ids = rounded(random_model(replace(SHAPE, n_layers=1)), "int4"), torch.arange(40)[None]
    expected = model(ids, ids + 1)[0]
    model.compile(backend="aot_eager")
    found = model(ids, ids + 1)[0]
    found.backward()
    torch.testing.assert_close(found, expected)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_activations_of_nothing_and_of_no_number():
    assert torch.equal(activations_in(torch.zeros(2, 33)), torch.zeros(2, 33))
    assert activations_in(torch.full((1, 32), torch.nan)).isnan().all()


def test_names_of_parameters_and_ties_stay():
    model = random_model()
    found = rounded(model, "int8")
    assert set(found.state_dict()) == set(model.state_dict())
    assert found.output.weight is found.tok_embeddings.weight


def test_a_run_is_resumed_exactly_and_exported_in_its_type(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    line = ["--qat=int4", "--max_steps=4", "--save_interval=2", "--warmup_steps=0"]
    train(data, whole, *line)
    shutil.copytree(whole, parts, ignore=shutil.ignore_patterns("step-0000004", "last", "best"))
    train(data, parts, *line, "--init_from=resume")
    assert_same_weights(whole, parts)
    written = open_source(whole / "model.bin").tensors
    for name, weight in rounded_weights(load_model(whole / "last")).items():
        assert (written[name].numpy() != weight).mean() < 5e-3, name


def rounded_weights(model: Llama) -> dict[str, np.ndarray]:
    """The matrices as a file of int4 has them."""
    matrices = {name: weight for name, weight in model.named_parameters() if weight.ndim == 2}  # ties once
    types = {name: "int4" if name.startswith("layers") else "int8" for name in matrices}
    return {name: weights_in(weight, types[name]).detach().numpy() for name, weight in matrices.items()}


def test_what_does_not_go_together_is_refused():
    assert "qat" in FIXED  # a run does not go on with another
    with pytest.raises(UsageError, match="qat = 'int4', allowed '' with lora_rank = 4"):
        Options(qat="int4", lora_rank=4)
    with pytest.raises(UsageError, match="qat = 'int8', allowed '' with parallel = fsdp and dtype = bfloat"):
        Options(qat="int8", parallel="fsdp", dtype="bfloat16")
