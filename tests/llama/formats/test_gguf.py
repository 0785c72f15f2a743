"""GGUF files hold the model that was written, llama.cpp computes what model.py does, and lies are refused.

Files are also written here by the gguf library alone and quantised by llama.cpp itself. What compares with
llama.cpp needs llama-cpp-python, and is left out where that is not installed.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from gguf_files import (
    SMALL,
    LlamaCpp,
    Type,
    distance,
    library_file,
    logits_of,
    random_source,
    refuses,
    tokenizer_bin,
)
from references import SHARED, STORIES260K, needs_llama_cpp, needs_stories260k
from test_export import Lazy, LazyRows
from torch import Tensor
from torch_formats import export_v3, open_bin, open_gguf, open_v3, write_gguf

import llama
from llama import info
from llama.errors import BadFileError, LlamaError, UsageError
from llama.formats import gguf as gguf_format
from llama.formats import source as formats_source
from llama.formats.pipeline import processors
from llama.formats.rope import rope_factors
from llama.formats.source import Source
from llama.formats.v3 import Extras
from llama.formats.vocabulary import read_llama2c
from model import Config, RopeScaling

MODELS = {
    "tied": Config(**SMALL),
    "untied GQA": Config(**SMALL, n_kv_heads=2, tied=False, rope_theta=5e5, norm_eps=1e-6),
    "wide heads": Config(**SMALL, n_kv_heads=1, head_dim=32),
    "llama3": Config(**SMALL, rope_theta=5e5, rope_scaling=RopeScaling(factor=8.0, original_max_seq_len=64)),
    "llama3, no pair stretched in full": Config(**SMALL, head_dim=8, rope_scaling=RopeScaling(factor=32.0)),
    "linear": Config(**SMALL, rope_scaling=RopeScaling("linear", 2.5)),
    "yarn": Config(**SMALL, rope_scaling=RopeScaling("yarn", 4.0, original_max_seq_len=32)),
    "yarn, attention factor": Config(
        **SMALL,
        n_kv_heads=2,
        rope_scaling=RopeScaling("yarn", 2.5, original_max_seq_len=64, attention_factor=1.3),
    ),
    "rows of no whole blocks": Config(
        dim=60, n_layers=1, n_heads=6, n_kv_heads=3, hidden_dim=172, vocab_size=45
    ),
}
each_model = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
# Of a tensor's relative error.
BOUNDS = {"fp32": 0.0, "fp16": 2**-11, "bf16": 2**-8, "int8": 0.01, "int4": 0.15}
IDS = [1, 17, 42, 29, 5, 44, 31, 8] * 8


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.gguf"


# --- There and back


@each_model
def test_fp32_comes_back_bitwise(path, config):
    source = random_source(config)
    assert write_gguf(path, source, "fp32") == {}
    back = open_gguf(path)
    assert (back.name, back.config) == (str(path), config)
    assert list(back.tensors) == list(source.tensors)
    assert all(torch.equal(back.tensors[name], source.tensors[name]) for name in source.tensors)


@each_model
@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_type_comes_back_within_its_error_which_is_reported(path, config, dtype):
    source = random_source(config)
    errors = write_gguf(path, source, dtype, dtype)
    back = open_gguf(path)
    for name, values in source.tensors.items():
        error = distance(back.tensors[name].float(), values)
        assert error <= (BOUNDS[dtype] if values.dim() == 2 else 0), name
        assert math.isclose(errors.get(name, 0.0), error, rel_tol=1e-4), name


def test_halves_are_read_as_they_lie_in_the_file(path):
    source = random_source(MODELS["tied"])
    for dtype, kind in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        write_gguf(path, source, dtype)
        found, expected = (
            model.tensors["layers.1.feed_forward.w2.weight"] for model in (open_gguf(path), source)
        )
        assert torch.equal(found, expected.to(kind))


def kinds(path: Path) -> dict[str, str]:
    """The types of a file's tensors, by the library's reader."""
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def test_types_are_those_of_llama_cpp(path):
    source = random_source(MODELS["untied GQA"])
    write_gguf(path, source, "int4")
    found = kinds(path)
    assert (found["token_embd.weight"], found["output.weight"]) == ("Q8_0", "Q8_0")
    assert (found["blk.1.attn_q.weight"], found["blk.1.attn_norm.weight"]) == ("Q4_0", "F32")
    write_gguf(path, source, "int4", "bf16")
    assert kinds(path)["output.weight"] == "BF16"
    write_gguf(path, random_source(MODELS["rows of no whole blocks"]), "int8")
    assert set(kinds(path).values()) == {"F16", "F32"}


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_quantised_file_holds_the_values_of_a_v3_file(path, dtype):
    source, ours = random_source(MODELS["untied GQA"]), path.with_suffix(".bin")
    write_gguf(path, source, dtype)
    export_v3(ours, source.config, source.tensors, dtype)
    found, expected = open_gguf(path).tensors, open_v3(ours).tensors
    assert all(torch.equal(found[name], expected[name]) for name in source.tensors)


@pytest.mark.parametrize(("dtype", "kind", "bound"), [("int8", "Q8_0", 1.001), ("int4", "Q4_0", 0.97)])
@pytest.mark.parametrize("spread", [torch.distributions.Normal(0, 1), torch.distributions.Laplace(0, 1)])
def test_the_error_is_no_larger_than_that_of_the_library(path, dtype, kind, bound, spread):
    torch.manual_seed(0)
    source = random_source(Config(**SMALL))
    weight = spread.sample((300, 64))
    write_gguf(
        path, replace(source, tensors=source.tensors | {"tok_embeddings.weight": weight}), dtype, dtype
    )
    theirs = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), Type[kind]), Type[kind])
    found = open_gguf(path).tensors["tok_embeddings.weight"]
    assert 0 < distance(found, weight) < bound * distance(theirs, weight)


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_a_few_strips_are_in_memory_at_a_time(path, dtype, monkeypatch):
    source = random_source(MODELS["untied GQA"])
    lazy = LazyRows(source.tensors)
    monkeypatch.setattr(formats_source, "CHUNK_VALUES", 16 * 64)
    gguf_format.write_gguf(path, replace(source, tensors=lazy), dtype)
    assert (lazy.most <= processors() + 5, lazy.alive) == (True, 0)
    assert lazy.taken > 50


def test_a_file_cannot_be_changed_through_its_tensors(path):
    write_gguf(path, random_source(MODELS["tied"]), "fp32")
    with pytest.raises(ValueError, match="read-only"):
        open_gguf(path).tensors.ours["norm.weight"].values()[:] = 3


# --- Files of the library's own writer


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_file_of_the_library_is_read(path, kind):
    source = random_source(MODELS["untied GQA"])
    library_file(path, source, Type[kind])
    back = open_gguf(path)
    assert back.config == source.config
    for name, values in source.tensors.items():
        assert distance(back.tensors[name].float(), values) < (0.15 if values.dim() == 2 else 1e-9), name


def test_what_a_file_leaves_out_has_llama_cpps_defaults(path):
    source = random_source(Config(**SMALL))
    left_out = dict.fromkeys(("attention.head_count_kv", "rope.dimension_count", "rope.freq_base"))
    library_file(path, source, keys={f"llama.{key}": None for key in left_out})
    assert open_gguf(path).config == source.config
    assert open_gguf(path).vocabulary() is None


@pytest.mark.parametrize(
    "keys", [{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope.scale_linear": 4.0}]
)
def test_linear_scaling_is_read_under_both_its_names(path, keys):
    library_file(path, random_source(Config(**SMALL)), keys={f"llama.{key}": keys[key] for key in keys})
    assert open_gguf(path).config.rope_scaling == RopeScaling("linear", 4.0)


YARN_KEYS = {  # besides type and factor, and what they stand for
    "the least": ({}, {"original_max_seq_len": 128}),
    "no context": ({"original_context_length": 0}, {"original_max_seq_len": 128}),
    "as converters write it": (
        {"original_context_length": 64, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "finetuned": True},
        {"original_max_seq_len": 64},
    ),
    "attention factor": (
        {"original_context_length": 64, "attn_factor": 0.9},
        {"original_max_seq_len": 64, "attention_factor": 1.024766},  # 0.9 (0.1 ln 4 + 1)
    ),
}


@pytest.mark.parametrize("case", YARN_KEYS)
def test_yarn_is_read_as_llama_cpp_has_it(path, case):
    keys, fields = YARN_KEYS[case]
    said = {
        f"llama.rope.scaling.{key}": value for key, value in ({"type": "yarn", "factor": 4.0} | keys).items()
    }
    library_file(path, random_source(Config(**SMALL)), keys=said)
    assert open_gguf(path).config.rope_scaling == RopeScaling("yarn", 4.0, **fields)


@pytest.mark.parametrize("fields", [{"beta_fast": 16.0}, {"beta_slow": 2.0}, {"truncate": False}])
def test_a_yarn_that_llama_cpp_does_not_have_is_not_written(path, fields):
    ((name, value),) = fields.items()
    source = random_source(Config(**SMALL, rope_scaling=RopeScaling("yarn", 4.0, **fields)))
    with pytest.raises(UsageError, match=f"rope_scaling {name} = {value}, allowed .* in a GGUF file"):
        write_gguf(path, source)
    assert not path.exists()


def test_a_number_may_be_listed_for_each_layer(path):
    """As files have it that llama.cpp's converter makes of models whose layers may differ."""
    config = Config(**SMALL, n_kv_heads=2)
    lists = {
        "attention.head_count": [4, 4],
        "attention.head_count_kv": [2, 2],
        "feed_forward_length": [96] * 2,
    }
    library_file(path, random_source(config), keys={f"llama.{key}": value for key, value in lists.items()})
    assert open_gguf(path).config == config


def test_the_factors_of_llama_3_are_recognised_without_a_key(path):
    """They are computed here as Meta's code says, in a loop over wavelengths."""
    source = random_source(Config(**SMALL | {"n_heads": 1}, rope_theta=5e5))
    factors = []
    for j in range(32):
        wavelength = 2 * math.pi * 5e5 ** (2 * j / 64)
        smooth = (8192 / wavelength - 1) / 3
        inverse = (1 - smooth) / 32 + smooth
        factors.append(1 if wavelength < 2048 else 32 if wavelength > 8192 else 1 / inverse)
    library_file(
        path, replace(source, tensors={**source.tensors, "rope_freqs.weight": torch.tensor(factors)})
    )
    assert open_gguf(path).config.rope_scaling == RopeScaling(factor=32.0)


# --- llama.cpp


# A relative distance of logits. Where weights are not fp32, llama.cpp rounds what they are multiplied with.
LLAMA_CPP_BOUNDS = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 0.02, "int8": 0.05, "int4": 0.05}
CASES = [(name, "fp32") for name in MODELS] + [("untied GQA", dtype) for dtype in LLAMA_CPP_BOUNDS]
CASES += [("rows of no whole blocks", "int8"), ("wide heads", "int4")]


@needs_llama_cpp
@pytest.mark.parametrize(("name", "dtype"), sorted(set(CASES)))
def test_llama_cpp_computes_the_logits_of_model_py(path, name, dtype):
    write_gguf(path, random_source(MODELS[name]), dtype)
    expected = logits_of(open_gguf(path), IDS)
    assert distance(LlamaCpp(path).logits(IDS), expected) < LLAMA_CPP_BOUNDS[dtype]


@needs_llama_cpp
def test_llama_cpp_and_the_engine_write_the_same_text(path):
    source = random_source(replace(MODELS["llama3"], tied=False))
    data, ours = tokenizer_bin(path.parent), path.with_suffix(".bin")
    export_v3(ours, source.config, source.tensors, "fp32", extras=Extras(data))
    write_gguf(path, source, "fp32", vocabulary=read_llama2c(ours, data))
    with llama.Llama(ours) as engine:
        expected = "".join(engine.generate("a big cat", max_tokens=60, temperature=0))
    assert LlamaCpp(path).text("a big cat", 60) == expected
    assert len(set(expected)) > 10


QUANTISED = {"Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17}
QUANTISED |= {
    "Q6_K": 18,
    "IQ4_NL": 25,
    "IQ4_XS": 30,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "IQ3_S": 26,
}  # what llama.cpp calls them, and their numbers


@needs_llama_cpp
def test_what_llama_cpp_quantised_is_read(path):
    import llama_cpp

    shape = {"dim": 256, "n_layers": 1, "n_heads": 4, "hidden_dim": 256, "vocab_size": 50, "tied": False}
    write_gguf(path, random_source(Config(**shape)), "fp32")
    out, seen = path.with_name("quantised.gguf"), set()
    for name, number in QUANTISED.items():
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype, options.nthread = number, 1
        assert llama_cpp.llama_model_quantize(os.fsencode(path), os.fsencode(out), options) == 0
        seen |= set(kinds(out).values())
        assert distance(LlamaCpp(out).logits(IDS), logits_of(open_gguf(out), IDS)) < 0.05, name
    assert {"F32", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS"} <= seen
    assert seen >= {f"Q{n}_K" for n in range(2, 7)}


@needs_llama_cpp
@needs_stories260k
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_stories260k_tells_its_story(path, dtype):
    tokenizer = SHARED / "tokenizers" / "tok512.bin"
    vocabulary = read_llama2c(tokenizer, tokenizer.read_bytes())
    write_gguf(path, open_bin(SHARED / "weights" / "stories260K.bin"), dtype, vocabulary=vocabulary)
    golden = json.loads(STORIES260K.read_text())["text"]
    text = LlamaCpp(path).text("", 100).strip()
    assert golden.startswith(text)
    assert len(text) > 200


# --- What is refused

SCALING = "llama.rope.scaling"
YARN = {f"{SCALING}.type": "yarn", f"{SCALING}.factor": 4.0}
KEYS = {
    "another architecture": (
        {"general.architecture": "qwen2"},
        r"general\.architecture = 'qwen2', allowed 'llama'",
    ),
    "a part of several": (
        {"split.count": 3},
        r"split\.count = 3, allowed with a name that ends in -00001-of-00003\.gguf",
    ),
    "experts": ({"llama.expert_count": 8}, r"llama\.expert_count = 8, allowed 0"),
    "longrope": (
        {"llama.rope.scaling.type": "longrope"},
        "llama.rope.scaling.type = 'longrope', allowed 'none' and 'linear' and 'yarn'",
    ),
    "YaRN that shortens": (YARN | {f"{SCALING}.factor": 0.5}, "rope_scaling factor = 0.5, allowed 1 or more"),
    "YaRN from another pair on": (
        YARN | {f"{SCALING}.yarn_beta_fast": 16.0},
        r".*yarn_beta_fast = 16\.0, allowed 32\.0, as llama\.cpp has it for a llama",
    ),
    "YaRN in part": (YARN | {f"{SCALING}.yarn_ext_factor": 0.5}, r".*ext_factor = 0\.5, allowed 1\.0"),
    "DeepSeek's YaRN": (
        YARN | {f"{SCALING}.yarn_log_multiplier": 0.1},
        r".*log_multiplier = 0\.1, allowed 0\.0",
    ),
    "YaRN without magnitude": (YARN | {f"{SCALING}.attn_factor": 0.0}, r".*attn_factor = 0\.0, allowed more"),
    "YaRN of no context": (
        YARN | {f"{SCALING}.original_context_length": 1},
        "rope_scaling original_max_seq_len = 1, rope_theta = 10000.0: no pair of 8 turns as YaRN needs it",
    ),
    "heads of each layer": (
        {"llama.attention.head_count_kv": [2, 4]},
        r".*head_count_kv = \[2, 4\], allowed one whole number for all layers",
    ),
    "heads of some layers": (
        {"llama.attention.head_count_kv": [4, 4, 4]},
        r".*head_count_kv has 3 values, allowed 2",
    ),
    "an adapter": ({"general.type": "adapter"}, r"general\.type = 'adapter', allowed 'model'"),
    "an encoder": ({"llama.attention.causal": False}, r"llama\.attention\.causal = False, allowed True"),
    "YaRN's factor": (
        {"llama.rope.scaling.attn_factor": 1.2},
        r"llama\.rope\.scaling\.attn_factor = 1\.2, allowed 1\.0 without YaRN",
    ),
    "no heads": (
        {"llama.attention.head_count": 0, "llama.rope.dimension_count": 64},
        "n_heads = 0, allowed 1 or more",
    ),
    "a count that is none": (
        {"llama.block_count": "two"},
        "llama.block_count = 'two', allowed one whole number",
    ),
    "too many layers": ({"llama.block_count": 2**30}, "llama.block_count = 1073741824, allowed 20"),
    "no epsilon": (
        {"llama.attention.layer_norm_rms_epsilon": None},
        "llama.attention.layer_norm_rms_epsilon is missing",
    ),
    "a base that is none": (
        {"llama.rope.freq_base": math.nan},
        "llama.rope.freq_base = nan, allowed one finite number",
    ),
    "half of a head": (
        {"llama.rope.dimension_count": 8},
        "llama.rope.dimension_count = 8, allowed head_dim = 16",
    ),
    "more than there is": (
        {"llama.feed_forward_length": 2**30},
        "hidden_dim = 1073741824, allowed up to 1048576",
    ),
    "more than can be": (
        dict.fromkeys(("llama.feed_forward_length", "llama.embedding_length"), 2**31 - 8)
        | {"llama.rope.dimension_count": 2**29 - 2},
        "dim = 2147483640, allowed up to 131072",
    ),
    "a strange alignment": (
        {"general.alignment": 48},
        "general.alignment = 48, allowed powers of two from 8",
    ),
}


@pytest.mark.parametrize("case", KEYS)
def test_a_model_that_is_another_is_refused(path, case):
    keys, message = KEYS[case]
    library_file(path, random_source(Config(**SMALL)), keys=keys)
    refuses(path, message)


def with_tensors(source: Source, **tensors: Tensor | None) -> Source:
    """The same model with other tensors. None: without; names with __ for dots."""
    changed = source.tensors | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return replace(source, tensors={name: tensor for name, tensor in changed.items() if tensor is not None})


TENSORS = {
    "one is missing": ({"layers__1__attention__wo__weight": None}, r"blk\.1\.attn_output\.weight is missing"),
    "no embedding": ({"tok_embeddings__weight": None}, r"token_embd\.weight is missing"),
    "another shape": (
        {"layers__0__attention__wq__weight": torch.zeros(64, 32)},
        r"blk\.0\.attn_q\.weight has the shape \(64, 32\), allowed \(64, 64\)$",
    ),
    "a bias": ({"attn_bias__weight": torch.zeros(64)}, r"attn_bias\.weight is unexpected$"),
    "another stretch": (
        {"rope_freqs__weight": torch.tensor([1.0, 1, 1, 2, 3, 4, 5, 6])},
        r"rope_freqs\.weight stretches RoPE, allowed as Llama 3 does it",
    ),
    "factors for long texts": (
        {"rope_factors_long__weight": torch.ones(8), "rope_factors_short__weight": torch.ones(8)},
        r"rope_factors_long\.weight is unexpected; rope_factors_short\.weight is unexpected$",
    ),
    "a stretch of other heads": ({"rope_freqs__weight": torch.ones(7)}, r"rope_freqs\.weight stretches RoPE"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused(path, case):
    tensors, message = TENSORS[case]
    library_file(path, with_tensors(random_source(Config(**SMALL)), **tensors))
    refuses(path, message)


def as_v3(path: Path, source: Source) -> None:
    export_v3(path, source.config, source.tensors, name=source.name)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(path, value):
    source = random_source(Config(**SMALL))
    source.tensors["layers.1.attention.wo.weight"][3, 5] = value
    library_file(path, source, Type.F16)
    message = r"layers\.1\.attention\.wo\.weight has values that are not finite"
    for out in ("gguf", "bin"):
        with pytest.raises(BadFileError, match=f"{re.escape(str(path))}: {message}"):
            (write_gguf if out == "gguf" else as_v3)(path.with_name(f"out.{out}"), open_gguf(path))
    assert list(path.parent.iterdir()) == [path]


def test_a_type_that_nothing_reads_is_refused(path):
    source = random_source(Config(**SMALL | {"dim": 256}))
    library_file(path, source)
    data = bytearray(path.read_bytes())
    at = data.index(b"blk.0.attn_k.weight") + len("blk.0.attn_k.weight") + 4 + 16
    for kind, message in (
        (Type.Q8_1, "has the type #9, allowed fp32, fp16, Q4_0"),
        (99, "has the type #99, allowed fp32"),
    ):
        struct.pack_into("<I", data, at, kind)
        path.write_bytes(data)
        refuses(path, rf"blk\.0\.attn_k\.weight {message}")


# --- What is not written


def test_what_cannot_be_written_leaves_the_old_file(path):
    path.write_bytes(b"old")
    good, name = random_source(Config(**SMALL)), "layers.0.feed_forward.w1.weight"
    tokens = read_llama2c(path, tokenizer_bin(path.parent))
    (path.parent / "tokenizer.bin").unlink()
    vocabulary = replace(tokens, pieces=tokens.pieces[:299], types=tokens.types[:299])
    missing = with_tensors(good, norm__weight=None)
    shape = with_tensors(good, norm__weight=torch.zeros(65))
    for call, message in (
        (lambda: write_gguf(path, good, "int5"), "dtype = int5, allowed fp32, fp16, bf16, int8, int4"),
        (lambda: write_gguf(path, missing, "fp32"), r"random: norm\.weight is missing"),
        (
            lambda: write_gguf(path, shape, "fp32"),
            r"random: norm\.weight has the shape \(65,\), allowed \(64,\)",
        ),
        (
            lambda: write_gguf(path, good, "fp32", vocabulary=vocabulary),
            "random: the tokenizer has 299 tokens, .*300",
        ),
    ):
        with pytest.raises(LlamaError, match=message):
            call()
    for dtype, value in [
        ("fp16", 1e6),
        ("int8", 1e9),
        ("int4", 1e9),
        *((dtype, math.nan) for dtype in BOUNDS),
    ]:
        values = good.tensors[name].clone()
        values[3, 5] = value
        with pytest.raises(
            BadFileError, match=f"random: {re.escape(name)} has values that are not finite, or too large"
        ):
            write_gguf(path, replace(good, tensors={**good.tensors, name: values}), dtype)
    assert (path.read_bytes(), list(path.parent.iterdir())) == (b"old", [path])


def test_a_full_disk_is_found_before_anything_is_written(path, monkeypatch):
    source = random_source(Config(**SMALL))
    write_gguf(path, source, "int8")
    size, lazy = path.stat().st_size, Lazy(source.tensors)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=size // 2))
    with pytest.raises(OSError, match=r"[\d,]+ bytes are needed, [\d,]+ are free") as caught:
        write_gguf(path, replace(source, tensors=lazy), "int8")
    assert lazy.most == 0
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.stat().st_size == size


# --- In parts


def split(path: Path, source: Source, n: int = 3, **changes: object) -> list[Path]:
    """A file in parts, as gguf-split makes them: all values are in the first. changes: of the last."""
    names, parts = list(source.tensors), []
    for i in range(n):
        part = path.with_name(f"model-{i + 1:05}-of-{n:05}.gguf")
        mine = {name: source.tensors[name] for name in names[i::n]}
        keys = {"split.no": i, "split.count": n, "split.tensors.count": len(names)}
        library_file(part, replace(source, tensors=mine), keys=keys | (changes if i == n - 1 else {}))
        parts.append(part)
    return parts


def test_parts_are_read_as_one_file_whichever_is_named(path):
    source = random_source(MODELS["untied GQA"])
    for part in split(path, source):
        back = open_gguf(part)
        assert back.config == source.config
        assert all(torch.equal(back.tensors[name], source.tensors[name]) for name in source.tensors)
        assert info.info(str(part)).parameters == sum(values.numel() for values in source.tensors.values())


def test_parts_that_do_not_belong_together_are_refused(path):
    source = random_source(Config(**SMALL))
    parts = split(path, source)
    parts[1].unlink()
    with pytest.raises(BadFileError, match=f"^{parts[1]}: No such file or directory$"):
        open_gguf(parts[0])
    for changes, message in (
        ({"split.no": 1}, r"split\.no = 1, allowed 2"),
        ({"split.count": 4}, r"split\.count = 4, allowed 3"),
    ):
        last = split(path, source, **changes)[-1]
        refuses(last, message, lambda _: open_gguf(parts[0]))
    first = split(path, replace(source, tensors={**source.tensors, "more.weight": torch.ones(3)}))[0]
    split(path, source)[0].replace(path)
    path.replace(first)
    split(path, with_tensors(source, norm__weight=None))[0].replace(path)
    split(path, source)
    path.replace(first)
    refuses(first, r"split\.tensors\.count = 19, its parts have 20")


# --- RoPE's factors


SCALINGS = {
    "another factor": RopeScaling("llama3", 16.0, 1.0, 4.0, 8192),
    "another context": RopeScaling("llama3", 8.0, 1.0, 4.0, 4096),
    "other bounds": RopeScaling("llama3", 4.0, 2.0, 6.0, 2048),
    "none in between": RopeScaling("llama3", 8.0, 1.0, 1.0001, 8192),
    "odd numbers": RopeScaling("llama3", 5.3, 1.7, 3.9, 3000),
}


@pytest.mark.parametrize("says_context", [True, False])
@pytest.mark.parametrize("case", SCALINGS)
def test_the_scaling_of_any_factors_is_found(path, case, says_context):
    config = Config(**SMALL | {"n_heads": 1}, rope_theta=5e5, rope_scaling=SCALINGS[case])
    factors = torch.from_numpy(rope_factors(config))
    source = random_source(replace(config, rope_scaling=None))
    original = config.rope_scaling.original_max_seq_len
    keys = {"llama.rope.scaling.original_context_length": original} if says_context else {}
    tensors = {**source.tensors, "rope_freqs.weight": factors}
    library_file(path, replace(source, tensors=tensors), keys=keys)
    found = open_gguf(path).config
    np.testing.assert_allclose(rope_factors(found), factors, rtol=1e-4)
    if says_context and case != "none in between":
        assert found.rope_scaling == config.rope_scaling
    write_gguf(path, replace(source, config=found), "fp32")  # what was found goes on to other files
    np.testing.assert_allclose(rope_factors(open_gguf(path).config), factors, rtol=2e-4)


def test_factors_of_one_are_no_scaling(path):
    source = random_source(Config(**SMALL))
    library_file(path, with_tensors(source, rope_freqs__weight=torch.ones(8)))
    assert open_gguf(path).config == source.config


@pytest.mark.parametrize(
    "factors", [[1, 2, 1, 2, 1, 2, 1, 2], [0] * 8, [1, 1, 1, 1, 1, 1, 0.5, 0.5], [math.nan] * 8]
)
def test_factors_of_no_scaling_are_refused(path, factors):
    source = with_tensors(random_source(Config(**SMALL)), rope_freqs__weight=torch.tensor(factors).float())
    library_file(path, source)
    refuses(path, r"rope_freqs\.weight stretches RoPE, allowed as Llama 3 does it")
