"""A checkpoint is saved and loaded whole or refused, and its .bin files hold what they say.

The bytes are those of an independent writer (checkpoints.py), the logits of the engine those of model.py.
Left out on purpose: damaged .bin files (test_checkpoint.py), text (test_sample.py).
"""

from __future__ import annotations

import json
import os
import stat
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from checkpoints import Shape
from safetensors.torch import save_file
from torch import Tensor
from torch_formats import export_bin

from llama import Llama as Engine
from llama.errors import BadFileError, UsageError
from llama.formats import llama2c, source, tensor
from llama.formats.checkpoint import open_checkpoint, read_config
from llama.formats.export import export_v3
from llama.formats.llama2c import quantise
from llama.formats.models import open_source
from llama.formats.pipeline import processors
from model import Config, Llama, RopeScaling
from training.weights import load_model, save_weights

FP32_BOUND = 1e-4  # of a logit, they spread over a few units
INT8_BOUND = 0.05  # relative, against the dequantised weights with exact activations, as in test_forward.py
PARTS = {  # the names of checkpoints.py and those of model.py
    "wq": "attention.wq",
    "wk": "attention.wk",
    "wv": "attention.wv",
    "wo": "attention.wo",
    "w1": "feed_forward.w1",
    "w2": "feed_forward.w2",
    "w3": "feed_forward.w3",
    "attention_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
}
SHAPES = {
    "tied-GQA": Shape(),
    "untied-GQA": Shape(tied=False),
    "tied-MHA": Shape(n_kv_heads=8),
    "untied-MQA": Shape(n_kv_heads=1, tied=False),
    "group4": Shape(dim=60, hidden_dim=172, n_heads=6, n_kv_heads=3, group_size=4, vocab_size=33),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
each_version = pytest.mark.parametrize("version", [0, 1, 2])


def config_of(shape: Shape) -> Config:
    return Config(**{name: value for name, value in vars(shape).items() if name != "group_size"})


def named(shape: Shape, weights: checkpoints.Weights) -> dict[str, Tensor]:
    """Copies of the weights under the names of model.py."""
    tensors = {}
    for name, values in weights.items():
        if name in PARTS:
            for layer, part in enumerate(values):
                tensors[f"layers.{layer}.{PARTS[name]}.weight"] = torch.tensor(part, dtype=torch.float32)
        elif not (name == "output" and shape.tied):
            tensors[f"{name}.weight"] = torch.tensor(values, dtype=torch.float32)
    return tensors


def random_model(shape: Shape) -> tuple[Config, dict[str, Tensor]]:
    return config_of(shape), named(shape, checkpoints.random_weights(shape))


def model_logits(config: Config, weights: Mapping[str, Tensor], ids: list[int]) -> np.ndarray:
    """Logits (T, vocab_size) of model.py."""
    model = Llama(config).eval()
    names = set(model.load_state_dict(weights, strict=False).missing_keys)
    assert names == ({"output.weight"} if config.tied else set())
    with torch.no_grad():
        return model(torch.tensor([ids]))[0].numpy()


def random_ids(config: Config, n: int = 100) -> list[int]:
    return np.random.default_rng(1).integers(0, config.vocab_size, n).tolist()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.bin"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """The file of a checkpoint of the first shape."""
    path = tmp_path / "model.safetensors"
    save_weights(path, *random_model(Shape()))
    return path


# --- What the files hold


@each_version
@each_shape
def test_a_file_is_byte_for_byte_that_of_the_independent_writer(path, shape, version):
    config, weights = random_model(shape)
    report = export_bin(path, config, weights, version, shape.group_size if version == 2 else None)
    data = checkpoints.WRITERS[version](shape, checkpoints.random_weights(shape))
    assert path.read_bytes() == data
    assert report.bytes == len(data)
    assert report.dropped == ()


@pytest.mark.parametrize("version", [0, 1])
@each_shape
def test_logits_of_the_engine_equal_those_of_the_model(path, shape, version):
    config, weights = random_model(shape)
    export_bin(path, config, weights, version)
    ids = random_ids(config)
    expected = model_logits(config, weights, ids)
    assert np.ptp(expected) > 1  # or any two models would be equal
    with Engine(path) as engine:
        np.testing.assert_allclose(engine.logits(ids), expected, rtol=0, atol=FP32_BOUND)


@each_shape
def test_logits_of_an_int8_file_equal_those_of_its_dequantised_weights(path, shape):
    config, weights = random_model(shape)
    report = export_bin(path, config, weights, 2)
    assert report.group_size == {64: 64, 60: 4}[shape.dim]
    dequantised = checkpoints.dequantised(checkpoints.random_weights(shape), report.group_size)
    ids = random_ids(config)
    expected = model_logits(config, named(shape, dequantised), ids)
    with Engine(path) as engine:
        difference = np.linalg.norm(engine.logits(ids) - expected)
    assert difference < INT8_BOUND * np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_types_are_written_as_the_floats_they_are(path, dtype):
    config, weights = random_model(Shape())
    rounded = {name: weight.to(dtype) for name, weight in weights.items()}
    export_bin(path, config, {name: weight.float() for name, weight in rounded.items()}, 1)
    expected = path.read_bytes()
    export_bin(path, config, rounded, 1)
    assert path.read_bytes() == expected


def test_the_weights_of_a_state_dict_are_taken_as_they_come(path):
    """With output.weight although it is tied, and views that are not contiguous."""
    config, weights = random_model(Shape())
    export_bin(path, config, weights)
    expected = path.read_bytes()
    turned = {name: w.T.contiguous().T if w.ndim == 2 else w for name, w in weights.items()}
    export_bin(path, config, {**turned, "output.weight": turned["tok_embeddings.weight"]})
    assert path.read_bytes() == expected


@each_version
def test_the_input_is_bitwise_unchanged(path, version):
    config, weights = random_model(Shape(tied=False))
    before = {name: weight.numpy().tobytes() for name, weight in weights.items()}
    export_bin(path, config, weights, version)
    assert {name: weight.numpy().tobytes() for name, weight in weights.items()} == before


# --- int8


def test_values_and_scales_are_those_of_numpy_over_many_magnitudes():
    rng = np.random.default_rng(0)
    weight = (rng.normal(size=(1001, 96)) * 10.0 ** rng.uniform(-25, 25, (1001, 1))).astype(np.float32)
    values, scales, rounded = quantise(weight, 32)
    expected_values, expected_scales = checkpoints.quantise(weight, 32)
    assert np.array_equal(values, expected_values)
    assert np.array_equal(scales, expected_scales)
    assert np.array_equal(rounded, expected_values * expected_scales[:, None])


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-38, 9e-31])
def test_a_group_of_zeros_or_nearly_so_is_stored_as_zeros(value):
    weight = np.ones((2, 8), np.float32)
    weight[1] = value
    values, scales, _ = quantise(weight, 8)
    assert values.tolist() == [[127] * 8, [0] * 8]
    assert scales.tolist() == [np.float32(1 / 127), 0]


@pytest.mark.parametrize("group_size", [32, 64])
def test_int8_in_rows_becomes_tiles_of_the_same_whole_numbers(path, tmp_path, group_size):
    shape = Shape(group_size=group_size)
    weights = checkpoints.write(path, shape, 2)
    export_v3(tmp_path / "v3.bin", config_of(shape), open_source(path).tensors, "int8", None)
    found = open_source(tmp_path / "v3.bin").tensors
    for name, values in named(shape, weights).items():
        if values.ndim < 2:
            continue
        q, scales = checkpoints.quantise(values.numpy(), group_size)
        expected = q * scales[:, None].astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(found[name].floats(), expected.reshape(values.shape))


def test_a_model_of_zeros_has_no_error(path):
    config, weights = random_model(Shape())
    report = export_bin(path, config, {name: torch.zeros_like(w) for name, w in weights.items()}, 2)
    assert set(report.errors.values()) == {0.0}


def test_the_report_names_the_errors_of_the_quantisation_the_worst_first(path):
    shape = Shape(tied=False)
    weights = checkpoints.random_weights(shape)
    weights["w2"][1, :, ::32] *= 100  # one large value in every group costs the others their bits
    report = export_bin(path, config_of(shape), named(shape, weights), 2, shape.group_size)
    exact = named(shape, weights)
    rounded = named(shape, checkpoints.dequantised(weights, shape.group_size))
    matrices = {name for name in exact if exact[name].ndim == 2}
    assert set(report.errors) == matrices
    for name in matrices:
        expected = (rounded[name] - exact[name]).norm() / exact[name].norm()
        assert report.errors[name] == pytest.approx(expected.item(), rel=1e-4)
    assert next(iter(report.errors)) == "layers.1.feed_forward.w2.weight"
    assert list(report.errors.values()) == sorted(report.errors.values(), reverse=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@each_version
def test_what_is_not_finite_is_refused_by_name(path, value, version):
    config, weights = random_model(Shape())
    weights["layers.1.attention.wv.weight"][3, 5] = value
    with pytest.raises(
        BadFileError, match=r"^weights: layers\.1\.attention\.wv\.weight has values that are not"
    ):
        export_bin(path, config, weights, version)
    assert list(path.parent.iterdir()) == []


def test_a_value_that_float32_cannot_hold_is_refused(path):
    config, weights = random_model(Shape())
    weights["norm.weight"] = weights["norm.weight"].double() * 1e300
    with pytest.raises(BadFileError, match=r"norm\.weight has values too large for fp32"):
        export_bin(path, config, weights)


def test_large_values_whose_sum_overflows_are_finite(path):
    config, weights = random_model(Shape())
    export_bin(path, config, {**weights, "norm.weight": torch.full((64,), 3e38)})


@pytest.mark.parametrize(
    ("dim", "hidden_dim", "expected"),
    [(128, 384, 64), (96, 288, 32), (288, 768, 32), (64, 172, 4), (30, 45, 1)],
)
def test_the_default_group_size_is_the_largest_power_of_two_that_divides_all_rows(dim, hidden_dim, expected):
    config = Config(dim=dim, hidden_dim=hidden_dim, n_heads=3 if dim == 30 else 2)
    assert llama2c.fitting_group_size(config, None) == expected


@pytest.mark.parametrize("group_size", [0, -4, 5, 8, 60, 64, 86])
def test_a_group_size_that_does_not_divide_every_row_is_refused(path, group_size):
    config, weights = random_model(SHAPES["group4"])
    allowed = "allowed divisors of dim = 60 and hidden_dim = 172"
    with pytest.raises(UsageError, match=f"^group_size = {group_size}, {allowed}$"):
        export_bin(path, config, weights, 2, group_size)
    assert not path.exists()


# --- Memory


class Lazy(Mapping[str, Tensor]):
    """Weights that are made when asked for; counts what is alive, and what was asked for."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights, self.alive, self.most, self.taken = weights, 0, 0, []

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.weights[name].clone()
        self.taken.append(name)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(tensor.untyped_storage(), self.release)
        return tensor

    def release(self) -> None:
        self.alive -= 1

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


class LazyRows(Mapping[str, tensor.Tensor]):
    """Weights whose rows are made when asked for; counts which are alive."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights, self.alive, self.most, self.taken = weights, 0, 0, 0

    def __getitem__(self, name: str) -> tensor.Tensor:
        values = self.weights[name].numpy()

        def rows(begin: int, end: int) -> np.ndarray:
            part = values[begin:end].copy()
            self.alive, self.taken = self.alive + 1, self.taken + 1
            self.most = max(self.most, self.alive)
            weakref.finalize(part, self.release)
            return part

        return tensor.Tensor("fp32", values.shape, rows)

    def release(self) -> None:
        self.alive -= 1

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@pytest.mark.parametrize("dtype", ["int8", "int4", "bf16", "fp32"])
def test_a_few_strips_of_a_v3_file_are_in_memory_at_a_time(path, dtype, monkeypatch):
    config, weights = random_model(Shape(tied=False))
    lazy = LazyRows(weights)
    monkeypatch.setattr(source, "CHUNK_VALUES", 16 * 64)
    export_v3(path, config, lazy, dtype)
    assert (lazy.most <= processors() + 5, lazy.alive) == (True, 0)
    assert lazy.taken > 50


@each_version
def test_each_tensor_is_taken_once_and_let_go_before_the_next(path, version):
    config, weights = random_model(Shape(tied=False))
    lazy = Lazy(weights)
    export_bin(path, config, lazy, version)
    assert sorted(lazy.taken) == sorted(weights)
    assert (lazy.most, lazy.alive) == (1, 0)


@each_version
def test_a_file_does_not_depend_on_how_much_is_converted_at_once(path, version, monkeypatch):
    config, weights = random_model(SHAPES["group4"])
    export_bin(path, config, weights, version)
    expected = path.read_bytes()
    monkeypatch.setattr(source, "CHUNK_VALUES", 200)  # three rows of 60, the last part of each is shorter
    export_bin(path, config, weights, version)
    assert path.read_bytes() == expected


# --- What a format can't hold

LOST = {
    "rope_theta": (500000.0, "rope_theta = 500000.0 (readers take 10000.0)"),
    "norm_eps": (1e-6, "norm_eps = 1e-06 (readers take 1e-05)"),
    "rope_scaling": (RopeScaling("linear", 4.0), "rope_scaling = RopeScaling(kind='linear', factor=4.0"),
}


@each_version
@pytest.mark.parametrize("field", LOST)
def test_a_field_that_would_be_lost_is_refused_by_name_unless_forced(path, version, field):
    config, weights = random_model(Shape())
    value, message = LOST[field]
    changed = replace(config, **{field: value})
    with pytest.raises(UsageError) as error:
        export_bin(path, changed, weights, version)
    assert f"model.bin: v{version} can't hold {message}" in str(error.value)
    assert not path.exists()
    report = export_bin(path, changed, weights, version, force=True)
    assert len(report.dropped) == 1
    assert report.dropped[0].startswith(message)
    forced = path.read_bytes()
    export_bin(path, config, weights, version)
    assert path.read_bytes() == forced


@each_version
def test_a_head_dim_of_its_own_is_refused_even_if_forced(path, version):
    config = Config(dim=64, n_layers=1, n_heads=4, head_dim=32, vocab_size=32)
    with pytest.raises(UsageError, match=f"head_dim = 32, n_heads = 4, dim = 64: v{version} can't hold"):
        export_bin(path, config, Llama(config).state_dict(), version, force=True)
    assert not path.exists()


def test_dropout_is_nothing_to_lose(path):
    config, weights = random_model(Shape())
    assert export_bin(path, replace(config, dropout=0.1), weights).dropped == ()


@pytest.mark.parametrize("version", [-1, 3])
def test_an_unknown_version_is_refused(path, version):
    with pytest.raises(UsageError, match=f"version = {version}, allowed 0, 1 and 2"):
        export_bin(path, *random_model(Shape()), version)


# --- Our checkpoints


@each_shape
def test_a_checkpoint_is_loaded_as_it_was_saved(tmp_path, shape):
    config, weights = random_model(shape)
    config = replace(config, rope_scaling=RopeScaling(), rope_theta=5e5, norm_eps=1e-6, dropout=0.1)
    model = Llama(config)
    model.load_state_dict(weights, strict=False)
    save_weights(tmp_path / "model.safetensors", config, model.state_dict())
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert read_config(path) == config
        loaded = load_model(path)
        assert loaded.config == config
        assert not loaded.training
        assert (loaded.output.weight is loaded.tok_embeddings.weight) == config.tied
        assert all(parameter.requires_grad for parameter in loaded.parameters())
        expected = dict(model.named_parameters())
        found = dict(loaded.named_parameters())
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_tied_classifier_is_not_stored(checkpoint):
    assert "output.weight" not in open_checkpoint(checkpoint).tensors


def test_a_model_is_loaded_in_the_type_that_is_asked_for(tmp_path):
    config, weights = random_model(Shape())
    halves = {name: w.bfloat16() if w.ndim == 2 else w for name, w in weights.items()}
    save_weights(tmp_path / "model.safetensors", config, halves)
    assert {p.dtype for p in load_model(tmp_path).parameters()} == {torch.bfloat16}
    model = load_model(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_loaded_model_does_not_depend_on_its_file(checkpoint):
    model = load_model(checkpoint)
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    with checkpoint.open("r+b") as file:  # in place, as nothing here does
        file.seek(-100_000, os.SEEK_END)
        file.write(bytes(100_000))
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())


def test_saving_draws_nothing_from_the_generators(checkpoint):
    config, weights = random_model(Shape())
    state = torch.get_rng_state()
    save_weights(checkpoint, config, weights)
    load_model(checkpoint)
    assert torch.equal(torch.get_rng_state(), state)


def test_files_have_the_permissions_of_any_new_file(checkpoint, path):
    export_bin(path, *random_model(Shape()))
    plain = path.with_name("plain")
    plain.touch()
    assert len({stat.S_IMODE(file.stat().st_mode) for file in (plain, path, checkpoint)}) == 1


WK, FFN_NORM = "layers.1.attention.wk.weight", "layers.2.ffn_norm.weight"
ANOTHER = {"output.weight": torch.ones(96, 64)}
DAMAGE = {  # what a message says, and the tensors that are then changed, or dropped for None
    "norm.weight is missing": {"norm.weight": None},
    f"{WK} is missing": {WK: None},
    f"{FFN_NORM} is unexpected": {FFN_NORM: torch.ones(64)},
    "norm.weight has the shape (65,), allowed (64,)": {"norm.weight": torch.ones(65)},
    "norm.weight has the type int32, allowed floating point": {"norm.weight": torch.ones(64).int()},
    "tied = True, but output.weight differs from tok_embeddings.weight": {
        "output.weight": torch.ones(96, 64)
    },
}


def damaged(weights: dict[str, Tensor], *messages: str) -> dict[str, Tensor]:
    for message in messages:
        weights = {**weights, **DAMAGE[message]}
    return {name: weight for name, weight in weights.items() if weight is not None}


@pytest.mark.parametrize("message", DAMAGE)
def test_every_tensor_that_does_not_fit_is_named(tmp_path, message):
    config, weights = random_model(Shape())
    file, weights = tmp_path / "model.safetensors", damaged(weights, message)
    save_file(weights, file, {"config": json.dumps(config.to_dict())})
    for work in (
        lambda: load_model(file),
        lambda: save_weights(tmp_path / "again.safetensors", config, weights),
        lambda: export_bin(tmp_path / "model.bin", config, weights),
    ):
        with pytest.raises(BadFileError) as error:
            work()
        assert message in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


def test_all_problems_are_named_at_once(tmp_path):
    config, weights = random_model(Shape())
    file, messages = tmp_path / "model.safetensors", list(DAMAGE)[1:4]
    save_file(damaged(weights, *messages), file, {"config": json.dumps(config.to_dict())})
    with pytest.raises(BadFileError) as error:
        load_model(tmp_path)
    assert str(error.value) == f"{file}: {'; '.join(messages)}"


def store_config(path: Path, text: str) -> None:
    save_file({"a": torch.ones(1)}, path, {"config": text})


BAD_CHECKPOINTS = {
    "missing": (lambda path: path.unlink(), "No such file or directory"),
    "noise": (lambda path: path.write_bytes(b"a" * 1000), "is no whole safetensors file: "),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is no whole safetensors file: "),
    "empty": (lambda path: path.write_bytes(b""), "is no whole safetensors file: "),
    "foreign": (lambda path: save_file({"a": torch.ones(1)}, path), "metadata has no config"),
    "no-json": (lambda path: store_config(path, "{"), "config: Expecting"),
    "list": (lambda path: store_config(path, "[3]"), "config: "),
    "field": (
        lambda path: store_config(path, '{"dimm": 3}'),
        "config: Config has no field 'dimm', did you mean",
    ),
    "value": (lambda path: store_config(path, '{"n_layers": 0}'), "config: n_layers = 0, allowed 1 or more"),
    "type": (lambda path: store_config(path, '{"dim": "3"}'), "config: "),
}


@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_is_refused_with_its_name(checkpoint, kind):
    spoil, message = BAD_CHECKPOINTS[kind]
    spoil(checkpoint)
    if kind == "foreign":  # which load_model takes for a part of somebody else's model
        with pytest.raises(BadFileError, match="is one file of a model's folder"):
            load_model(checkpoint)
    for work in (read_config,) if kind == "foreign" else (read_config, load_model):
        with pytest.raises(BadFileError) as error:
            work(checkpoint)
        assert str(error.value).startswith(f"{checkpoint}: {message}")
