"""Longer contexts: what options say of RoPE, and what they leave to the model that a run starts from."""

from __future__ import annotations

import pytest

from llama.errors import UsageError
from model import Config, RopeScaling
from training.context import stretched
from training.options import Options

PLAIN = Config(dim=64, n_heads=2, max_seq_len=128)
LLAMA3 = RopeScaling("llama3", 8.0, 2.0, 6.0, 64)
YARN = RopeScaling("yarn", 4.0, original_max_seq_len=32, beta_fast=16.0)
MODELS = {
    None: None,
    "plain": PLAIN,
    "base": Config(dim=64, n_heads=2, rope_theta=5e5),
    "linear": Config(dim=64, n_heads=2, rope_scaling=RopeScaling("linear", 2.0)),
    "llama3": Config(dim=64, n_heads=2, rope_scaling=LLAMA3),
    "yarn": Config(dim=64, n_heads=2, rope_scaling=YARN),
}
SAID = {  # by what a run starts from, and what is said of 256 positions: base and scaling
    (None, ()): (1e4, None),
    (None, (("rope_theta", 5e5),)): (5e5, None),
    (None, (("rope_scaling", "linear"), ("rope_factor", 3.0))): (1e4, RopeScaling("linear", 3.0)),
    (None, (("rope_scaling", "yarn"), ("rope_original_len", 64))): (
        1e4,
        RopeScaling("yarn", 4.0, original_max_seq_len=64),
    ),
    ("base", ()): (5e5, None),
    ("base", (("rope_theta", 1e6),)): (1e6, None),
    ("yarn", ()): (1e4, YARN),
    ("plain", (("rope_scaling", "yarn"),)): (1e4, RopeScaling("yarn", 2.0, original_max_seq_len=128)),
    ("plain", (("rope_scaling", "linear"),)): (1e4, RopeScaling("linear", 2.0, original_max_seq_len=128)),
    ("plain", (("rope_scaling", "llama3"), ("rope_factor", 32.0))): (
        1e4,
        RopeScaling("llama3", 32.0, original_max_seq_len=128),
    ),
    ("llama3", (("rope_scaling", "llama3"),)): (1e4, RopeScaling("llama3", 4.0, 2.0, 6.0, 64)),
    ("llama3", (("rope_scaling", "yarn"),)): (1e4, RopeScaling("yarn", 4.0, original_max_seq_len=64)),
    ("yarn", (("rope_scaling", "yarn"), ("rope_factor", 8.0), ("rope_original_len", 64))): (
        1e4,
        RopeScaling("yarn", 8.0, original_max_seq_len=64, beta_fast=16.0),
    ),
    ("linear", (("rope_scaling", "linear"),)): (1e4, RopeScaling("linear", 2.0)),
    ("linear", (("rope_scaling", "linear"), ("rope_factor", 4.0))): (1e4, RopeScaling("linear", 4.0)),
}


@pytest.mark.parametrize(("start", "said"), SAID)
def test_what_is_not_said_is_as_in_the_model(start, said):
    options, config = Options(max_seq_len=256, **dict(said)), Config(dim=64, n_heads=2, max_seq_len=256)
    found = stretched(options, config, MODELS[start])
    assert (found.rope_theta, found.rope_scaling) == SAID[start, said]
    assert found.max_seq_len == 256


def test_the_same_options_go_on_with_what_they_began():
    for said in ({"rope_scaling": "yarn"}, {"rope_scaling": "linear"}, {"rope_theta": 1e6}, {}):
        options, config = Options(max_seq_len=256, **said), Config(dim=64, n_heads=2, max_seq_len=256)
        begun = stretched(options, config, PLAIN)
        assert stretched(options, config, begun) == begun
        assert stretched(Options(max_seq_len=256), config, begun) == begun


@pytest.mark.parametrize(
    ("start", "said", "message"),
    [
        (
            None,
            {"rope_scaling": "linear"},
            "rope_factor = 0, allowed above 0 where nothing says the original",
        ),
        (None, {"rope_scaling": "yarn", "rope_factor": 2.0}, "rope_original_len = 0, allowed 1 or more with"),
        ("linear", {"rope_scaling": "yarn", "rope_factor": 2.0}, "rope_original_len = 0, allowed 1 or more"),
        (
            "plain",
            {"rope_scaling": "yarn", "max_seq_len": 128},
            "max_seq_len = 128, rope_factor = 0: allowed a context of more than 128, or a factor",
        ),
        (
            "plain",
            {"rope_scaling": "yarn", "rope_factor": 0.5},
            "rope_scaling factor = 0.5, allowed 1 or more",
        ),
        (
            "plain",
            {"rope_scaling": "yarn", "rope_theta": 0.5},
            "rope_theta = 0.5, allowed more than 1 with YaRN",
        ),
        (None, {"rope_factor": 2.0}, "rope_factor = 2.0, allowed 0 without rope_scaling"),
        (None, {"rope_original_len": 64}, "rope_original_len = 64, allowed 0 without rope_scaling"),
        (None, {"rope_theta": -1.0}, "rope_theta = -1.0, allowed 0 to "),
        (
            "plain",
            {"lora_rank": 4, "rope_scaling": "yarn"},
            "rope_theta = 0.0, rope_scaling = 'yarn': adapters",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(start, said, message):
    with pytest.raises(UsageError, match=message):
        stretched(Options(**{"max_seq_len": 256} | said), PLAIN, MODELS[start])
