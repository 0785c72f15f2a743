"""Hugging Face's folders are read as transformers reads them, written as it reads them, and refused by name.

The folders come from transformers itself, out of models that test_model.py holds to equal logits.
Left out on purpose: what all sources share (test_export.py), tokenizers (test_tokenizer_py.py).
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_model import FAMILIES, fresh, in_transformers, tokens
from tokenizers import Tokenizer, models
from torch_formats import checked_tensors, export_folder, open_source

from llama import convert, headers
from llama.errors import BadFileError
from llama.formats import tokenizers
from llama.formats.chat_templates import Chat
from llama.formats.source import Source
from model import Config, Llama, RopeScaling

TINY = Config(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48, vocab_size=61, tied=False)
each_family = pytest.mark.parametrize("family", FAMILIES)


def save(model: Llama, folder: Path, **options) -> Path:
    """The model as transformers writes it."""
    in_transformers(model).save_pretrained(folder, **options)
    return folder


def assert_same(source: Source, model: Llama) -> None:
    """The source holds the model's configuration and weights, to the bit."""
    assert source.config == model.config
    found, expected = checked_tensors(source), dict(model.named_parameters())
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


def model_of(source: Source) -> Llama:
    """model.py with the weights of a source, in float32."""
    model = Llama(source.config).eval()
    model.load_state_dict({n: w.float() for n, w in checked_tensors(source).items()}, strict=False)
    return model


@torch.no_grad()
def logits_in_transformers(folder: Path) -> torch.Tensor:
    model, problems = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(problems.values()), problems
    return model.eval()(tokens() % model.config.vocab_size).logits


def edit(folder: Path, file: str = "config.json", **fields) -> None:
    """Changes fields of a JSON file, and drops those that are `...`."""
    values = json.loads((folder / file).read_text()) | fields
    (folder / file).write_text(json.dumps({n: v for n, v in values.items() if v is not ...}))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Changes the tensors of a folder that has them in one file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def llama3_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """256 bytes and Llama 3's special tokens: 512 in all."""
    lines = (f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    path.write_text("".join(lines))
    return tokenizers.load(path)


@pytest.fixture(scope="module")
def model() -> Llama:
    return fresh(TINY).eval()


@pytest.fixture
def folder(tmp_path, model) -> Path:
    return save(model, tmp_path / "theirs")


@pytest.fixture
def sharded(tmp_path, model) -> Path:
    return save(model, tmp_path / "shards", max_shard_size="10KB")


# --- Reading


@each_family
def test_what_transformers_saves_is_read_to_the_bit(tmp_path, family):
    model = fresh(FAMILIES[family])
    assert_same(open_source(save(model, tmp_path / "theirs")), model)


def test_shards_are_read_as_one_file_is(sharded, model):
    assert len(list(sharded.glob("*.safetensors"))) > 3
    assert_same(open_source(sharded), model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_other_types_equal_transformers(tmp_path, model, dtype):
    in_transformers(model).to(dtype).save_pretrained(tmp_path)
    source = open_source(tmp_path)
    assert source.tensors["norm.weight"].dtype == dtype
    with torch.no_grad():
        found = model_of(source)(tokens() % 61)
    torch.testing.assert_close(found, logits_in_transformers(tmp_path), rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 8])
def test_a_mistral_is_a_llama_as_far_as_its_window_reaches(tmp_path, window):
    config = transformers.MistralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        vocab_size=61,
        sliding_window=window,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    torch.manual_seed(0)
    transformers.MistralForCausalLM(config).save_pretrained(tmp_path)
    source = open_source(tmp_path)
    assert (source.config.head_dim, source.config.rope_theta) == (12, 1e6)
    n = min(source.config.max_seq_len, tokens().shape[1])
    assert n == (window or tokens().shape[1])
    with torch.no_grad():
        found = model_of(source)(tokens()[:, :n] % 61)
    assert found.std() > 0.1
    expected = logits_in_transformers(tmp_path)
    torch.testing.assert_close(found, expected[:, :n], rtol=0, atol=1e-5)
    if window:  # from there on it is another model
        unlimited = replace(source, config=replace(source.config, max_seq_len=128))
        with torch.no_grad():
            beyond = model_of(unlimited)(tokens() % 61)
        torch.testing.assert_close(beyond[:, :n], expected[:, :n], rtol=0, atol=1e-5)
        assert (beyond[:, n] - expected[:, n]).abs().max() > 1e-3


def test_pickles_are_read_where_there_are_no_safetensors(folder, model):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # as old files have it
    for is_zip in (False, True):
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
        assert_same(open_source(folder), model)
        torch.save({f"module.{name}": t for name, t in tensors.items()}, folder / "pytorch_model.bin")
        assert_same(open_source(folder), model)
    files = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        torch.save({name: t for name, t in tensors.items() if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    assert_same(open_source(folder), model)


def test_one_file_counts_before_shards_as_in_transformers(sharded, model):
    """Both, of two models; and safetensors before pickles."""
    other = fresh(TINY).eval()
    tensors = in_transformers(other).state_dict()
    torch.save(tensors, sharded / "pytorch_model.bin")
    assert_same(open_source(sharded), model)
    save_file(tensors, sharded / "model.safetensors", {"format": "pt"})
    assert_same(open_source(sharded), other)
    assert [path.name for path in headers.weight_files(sharded)] == ["model.safetensors"]
    expected = logits_in_transformers(sharded)
    with torch.no_grad():
        torch.testing.assert_close(model_of(open_source(sharded))(tokens() % 61), expected, rtol=0, atol=1e-5)


def test_one_pickle_counts_before_shards_as_in_transformers(folder, model):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    torch.save({name: 2 * tensor for name, tensor in tensors.items()}, folder / "other.bin")
    index = {"weight_map": dict.fromkeys(tensors, "other.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}} | index))
    assert_same(open_source(folder), model)
    assert [path.name for path in headers.weight_files(folder)] == ["pytorch_model.bin"]
    with torch.no_grad():
        found = model_of(open_source(folder))(tokens() % 61)
    torch.testing.assert_close(found, logits_in_transformers(folder), rtol=0, atol=1e-5)


ORIGINAL = "original_max_position_embeddings"
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, ORIGINAL: 32}
FOUR = RopeScaling("yarn", 4.0, original_max_seq_len=32)
ROPE = {  # fields of config.json, and what they stand for
    "nothing": ({"rope_theta": ..., "rope_parameters": ...}, 1e4, None),
    "theta": ({"rope_theta": 1e6, "rope_parameters": ..., "rope_scaling": None}, 1e6, None),
    "linear, as it was": (
        {"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 2}},
        1e4,
        RopeScaling("linear", 2.0),
    ),
    "linear": (
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e4}},
        3e4,
        RopeScaling("linear", 4.0),
    ),
    "linear, and an empty object of old": (
        {"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        1e4,
        RopeScaling("linear", 4.0),
    ),
    "none, by the first of two names": (
        {"rope_parameters": ..., "rope_scaling": {"rope_type": "default", "type": "linear", "factor": 2}},
        1e4,
        None,
    ),
    "llama3": (
        {
            "rope_theta": 5e5,
            "rope_parameters": ...,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        5e5,
        RopeScaling("llama3", 32.0, 1.0, 4.0, 64),
    ),
    "yarn, as it was": (
        {
            "rope_parameters": ...,
            "rope_scaling": {"type": "yarn", "factor": 4, "finetuned": True, ORIGINAL: 32},
        },
        1e4,
        RopeScaling("yarn", 4.0, original_max_seq_len=32),
    ),
    "yarn, all said": (
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 2.5,
                ORIGINAL: 48,
                "beta_fast": 4,
                "beta_slow": 0.5,
                "attention_factor": 1.3,
                "mscale": 2.0,
                "mscale_all_dim": 1.0,
                "truncate": False,
            },
        },
        500.0,
        RopeScaling("yarn", 2.5, 1.0, 4.0, 48, 4.0, 0.5, 1.3, truncate=False),
    ),
    "yarn, as DeepSeek has it": (
        {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}},
        1e4,
        replace(FOUR, attention_factor=(0.1 * math.log(4) + 1) / (0.05 * math.log(4) + 1)),
    ),
    "yarn, one of its two numbers": ({"rope_parameters": YARN | {"mscale": 2.0}}, 1e4, FOUR),
    "yarn, the factor from the contexts": (
        {"rope_parameters": YARN | {"factor": None}},
        1e4,
        replace(FOUR, factor=8.0),
    ),
    "yarn, the context outside": (
        {"rope_parameters": YARN | {ORIGINAL: 99}, ORIGINAL: 32},
        1e4,
        FOUR,
    ),
    "yarn, no context": (
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
        1e4,
        replace(FOUR, original_max_seq_len=256),
    ),
    "yarn, none": ({"rope_parameters": YARN | {"factor": 1.0}}, 1e4, replace(FOUR, factor=1.0)),
    "dynamic, before the context ends": (
        {"rope_parameters": ..., "rope_scaling": {"type": "dynamic", "factor": 4.0}},
        1e4,
        None,
    ),
}


@pytest.mark.parametrize("kind", ROPE)
def test_rope_is_read_in_the_forms_of_transformers_4_and_5(folder, kind):
    fields, theta, scaling = ROPE[kind]
    edit(folder, **fields)
    source = open_source(folder)
    assert (source.config.rope_theta, source.config.rope_scaling) == (theta, scaling)
    with torch.no_grad():
        found = model_of(source)(tokens() % 61)
    torch.testing.assert_close(found, logits_in_transformers(folder), rtol=0, atol=1e-5)


def test_a_dynamic_scaling_limits_the_context(folder, tmp_path, capsys):
    edit(folder, rope_parameters=..., rope_scaling={"type": "dynamic", "factor": 2.0})
    arguments = [str(folder), str(tmp_path / "model.bin")]
    assert convert.main([*arguments, "--max-seq-len", "257"]) == 2
    bound = "context before RoPE is scaled dynamically"
    message = f"max_seq_len = 257, allowed up to 256, the model's {bound}"
    assert capsys.readouterr().err == f"error: {message}\n"
    assert convert.main(arguments) == 0
    assert f"max_seq_len = 256: its {bound}, up to which the model is a Llama" in capsys.readouterr().out
    for window, expected in ((64, "sliding window"), (512, bound)):
        edit(folder, model_type="mistral", sliding_window=window)
        source = open_source(folder)
        assert (source.longest, source.bound) == (min(window, 256), expected)


def test_a_factor_that_is_not_that_of_the_contexts_is_noted(folder):
    edit(folder, rope_parameters=YARN | {"factor": 2.0})
    source = open_source(folder)
    assert source.config.rope_scaling == replace(FOUR, factor=2.0)
    (note,) = source.notes
    assert note.startswith("rope_scaling factor = 2, max_seq_len = 256 is 8 times 32")
    edit(folder, rope_parameters=YARN | {"factor": 8.0})
    assert open_source(folder).notes == ()


def test_missing_fields_mean_what_they_mean_to_transformers(tmp_path):
    model = fresh(replace(TINY, n_kv_heads=4, norm_eps=1e-6, max_seq_len=2048))
    folder = save(model, tmp_path)
    usual = ("num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "hidden_act")
    edit(folder, **dict.fromkeys((*usual, "tie_word_embeddings", "attention_bias", "architectures"), ...))
    assert_same(open_source(folder), model)


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight", "both"])
def test_a_tied_model_may_hold_either_tensor(tmp_path, kept):
    model = fresh(replace(TINY, tied=True))
    folder = save(model, tmp_path)

    def keep(tensors: dict[str, torch.Tensor]) -> None:
        embedding = tensors.pop("model.embed_tokens.weight")
        names = ("model.embed_tokens.weight", "lm_head.weight") if kept == "both" else (kept,)
        tensors |= {name: embedding.clone() for name in names}

    edit_tensors(folder, keep)
    source = open_source(folder)
    assert_same(source, model)
    export_folder(tmp_path / "again", source)
    assert set(load_file(tmp_path / "again" / "model.safetensors")).isdisjoint({"lm_head.weight"})


IDS = {
    (2, None): (2,),
    (None, None): (),
    (-1, None): (),
    (7, 9): (9,),
    (7, (8, 9)): (8, 9),
    ((7, 8), None): (7, 8),
}


@pytest.mark.parametrize("ids", IDS, ids=str)
def test_stop_ids_are_those_of_the_generation_before_the_model(folder, ids):
    edit(folder, eos_token_id=ids[0], bos_token_id=5)
    edit(folder, "generation_config.json", eos_token_id=ids[1])
    source = open_source(folder)
    assert (source.bos, source.stops) == (5, IDS[ids])
    (folder / "generation_config.json").unlink()
    edit(folder, eos_token_id=3, bos_token_id=-1)
    source = open_source(folder)
    assert (source.bos, source.stops) == (-1, (3,))


def test_the_chat_template_is_found_wherever_a_folder_has_it(folder):
    def settings(template: object) -> None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))

    assert open_source(folder).chat == Chat()
    for none in (None, [], {}, [{"name": "tool_use", "template": "t"}], {"tool_use": "t"}):
        settings(none)
        assert open_source(folder).chat == Chat()
    settings("a")
    assert open_source(folder).chat == Chat("other", "a")
    settings([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "b"}])
    assert open_source(folder).chat == Chat("other", "b")
    settings({"tool_use": "t", "default": "d"})
    assert open_source(folder).chat == Chat("other", "d")
    (folder / "chat_template.jinja").write_text("c")  # where transformers 5 writes it
    assert open_source(folder).chat == Chat("other", "c")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text("e")
    assert open_source(folder).chat == Chat("other", "e")
    (folder / "chat_template.jinja").unlink()
    assert open_source(folder).chat == Chat("other", "e")


@pytest.mark.parametrize(
    "template",
    [5, True, ["x"], [{"name": ["default"], "template": "x"}], [{"name": "default"}], {"default": 5}],
)
def test_a_chat_template_that_is_none_is_refused(folder, template):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({"chat_template": template}))
    message = re.escape(f"{path}: chat_template = {template!r:.40}, allowed text, and templates by name")
    with pytest.raises(BadFileError, match=f"^{message}$"):
        open_source(folder)


@pytest.mark.parametrize("template", [{"tool_use": "t", "default": "d {{ messages[0].content }}"}, "x"])
def test_the_template_is_that_of_transformers(folder, template):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), chat_template=template
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert open_source(folder).chat.text == tokenizer.get_chat_template()


KNOWN = {"special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
BOS, TEXT = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
ADDS = {  # the post_processor of a tokenizer.json, and what is put around a text
    "null": (None, (False, False)),
    "byte-level": ({"type": "ByteLevel"}, (False, False)),
    "BOS": ({"type": "TemplateProcessing", "single": [BOS, TEXT], **KNOWN}, (True, False)),
    "both": ({"type": "TemplateProcessing", "single": [BOS, TEXT, BOS], **KNOWN}, (True, True)),
    "neither": ({"type": "TemplateProcessing", "single": [TEXT]}, (False, False)),
    "BERT's": ({"type": "BertProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2]}, (True, True)),
    "RoBERTa's": ({"type": "RobertaProcessing", "cls": ["<s>", 1], "sep": ["</s>", 2]}, (True, True)),
}
ODD = {
    "no list": {"type": "TemplateProcessing", "single": 5},
    "no part": {"type": "TemplateProcessing", "single": [5]},
    "no text": {"type": "TemplateProcessing", "single": [BOS]},
    "two": {"type": "TemplateProcessing", "single": [BOS, BOS, TEXT], **KNOWN},
    "a token of two": {
        "type": "TemplateProcessing",
        "single": [BOS, TEXT],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1, 1], "tokens": ["<s>", "<s>"]}},
    },
    "a token that is not said": {"type": "TemplateProcessing", "single": [BOS, TEXT], "special_tokens": {}},
    "two texts": {
        "type": "TemplateProcessing",
        "single": [BOS, TEXT, {"Sequence": {"id": "B", "type_id": 0}}],
        **KNOWN,
    },
    "no token": {"type": "BertProcessing", "cls": [], "sep": ["</s>", 2]},
    "unknown": {"type": "PairProcessing"},
}
STEPS = [{"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": [BOS, TEXT], **KNOWN}]
ADDS["sequence"] = ({"type": "Sequence", "processors": STEPS}, (True, False))


@pytest.mark.parametrize("name", ADDS)
def test_a_tokenizer_json_says_what_is_put_around_a_text(folder, name):
    processor, expected = ADDS[name]
    (folder / "tokenizer.json").write_text(json.dumps({"post_processor": processor}))
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": true}')  # which transformers 5 ignores
    source = open_source(folder)
    assert (source.add_bos, source.add_eos) == expected


@pytest.mark.parametrize("name", ODD)
def test_what_the_engine_can_not_put_around_a_text_is_refused(folder, name):
    (folder / "tokenizer.json").write_text(json.dumps({"post_processor": ODD[name]}))
    with pytest.raises(BadFileError, match=r"tokenizer\.json: post_processor.* = .*, allowed "):
        open_source(folder)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, (None, False)),
        ({"add_bos_token": False}, (False, False)),
        ({"add_bos_token": True, "add_eos_token": True}, (True, True)),
        ({"add_bos_token": None, "add_eos_token": "yes"}, (None, False)),
    ],
)
def test_beside_another_tokenizer_the_settings_say_it(folder, said, expected):
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    source = open_source(folder)
    assert (source.add_bos, source.add_eos) == expected


# --- What is refused

Q, WQ = "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_proj.weight"
CONFIGS = {  # a field that is changed, and what the message says of it
    "model_type": ("qwen2", '= "qwen2", allowed "llama" and "mistral"'),
    "architectures": (["LlamaForX"], 'allowed [] and ["LlamaForCausalLM"] and ["MistralForCausalLM"]'),
    "hidden_act": ("gelu", '= "gelu", allowed "silu" and "swish"'),
    "attention_bias": (True, "= true, allowed false"),
    "mlp_bias": (True, "= true, allowed false"),
    "rope_scaling": ({"rope_type": "longrope"}, 'rope_type = "longrope", allowed "default"'),
    "rope_parameters": ({"rope_type": "dynamic"}, "has no factor"),
    "partial_rotary_factor": (0.5, "= 0.5, allowed 1"),
    "quantization_config": ({"quant_method": "gptq"}, "= gptq, allowed none"),
    "hidden_size": (..., "has no hidden_size"),
    "num_hidden_layers": (10**9, "n_layers = 1000000000, allowed up to 4096"),
    "num_attention_heads": (0, "n_heads = 0, allowed 1 or more"),
    "num_key_value_heads": (3, "n_kv_heads = 3 does not divide n_heads = 4"),
    "intermediate_size": ("48", "= '48', allowed whole numbers"),
    "vocab_size": (True, "= True, allowed whole numbers"),
    "rms_norm_eps": (float("nan"), "= nan, allowed finite numbers"),
    "tie_word_embeddings": ("yes", "= 'yes', allowed true and false"),
    "eos_token_id": ([2, 61], "= [2, 61], allowed 0 to 60"),
    "head_dim": (16, f"{Q.replace('1', '0')}.weight has the shape (32, 32), allowed (64, 32)"),
}


ALLOWED_ROPE = 'allowed "default" and "linear" and "llama3" and "yarn" and "dynamic"'
NO_LENGTH = (
    "original_max_seq_len = 0, attention_factor = 0.0: allowed a length of 1 or more, no negative factor"
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eos_token_id": -2}, "eos_token_id = -2, allowed 0 to 60"),
        ({"bos_token_id": 61}, "bos_token_id = 61, allowed 0 to 60"),
        ({"rope_scaling": {"type": "yarn"}}, "has no factor"),
        ({"rope_scaling": YARN | {"factor": 0.5}}, "rope_scaling factor = 0.5, allowed 1 or more with YaRN"),
        ({"rope_scaling": YARN | {"attention_factor": 0}}, "attention_factor = 0.0, allowed more than 0"),
        ({"rope_scaling": YARN | {ORIGINAL: 0}}, f"rope_scaling {NO_LENGTH}"),
        (
            {"rope_scaling": YARN | {"beta_slow": 32}},
            "rope_scaling beta_slow = 32.0, beta_fast = 32.0: allowed 0 < slow < fast",
        ),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 1000.0}},
            "alpha = 1000.0, allowed with dynamic are rope_type, type, rope_theta, partial_rotary_factor, "
            f"factor, {ORIGINAL}",
        ),
        ({"rope_scaling": {"rope_type": "longrope"}}, f'rope_type = "longrope", {ALLOWED_ROPE}'),
        ({"rope_scaling": {"type": "linear"}}, "has no factor"),
        (
            {"rope_scaling": {"rope_type": None, "type": "linear", "factor": 2.0}},
            f"rope_type = null, {ALLOWED_ROPE}",
        ),
        ({"rope_scaling": {"type": "", "factor": 2.0}}, f'type = "", {ALLOWED_ROPE}'),
        ({"rope_parameters": {"rope_type": 0, "factor": 2.0}}, f"rope_type = 0, {ALLOWED_ROPE}"),
        (
            {"rope_parameters": YARN | {ORIGINAL: 1, "factor": None}, "max_position_embeddings": 10**400},
            f"max_position_embeddings = {10**39}, allowed finite numbers",
        ),
        (
            {"rope_parameters": YARN | {ORIGINAL: 10**400}},
            f"original_max_seq_len = {10**39}, allowed whole numbers up to {2**63 - 1}",
        ),
    ],
)
def test_a_field_that_can_not_be_is_one_line(folder, fields, message):
    (folder / "generation_config.json").unlink()
    edit(folder, **fields)
    with pytest.raises(BadFileError) as error:
        open_source(folder)
    assert str(error.value) == f"{folder / 'config.json'}: {message}"


@pytest.mark.parametrize("field", CONFIGS)
def test_a_configuration_that_is_not_a_llama_is_refused_by_its_field(folder, tmp_path, capsys, field):
    value, message = CONFIGS[field]
    (folder / "generation_config.json").unlink()
    edit(folder, **{field: value})
    assert convert.main([str(folder), str(tmp_path / "model.bin"), "--version", "3"]) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("window", [64, ...])
def test_a_window_limits_the_context(folder, tmp_path, capsys, window):
    """Left out, it is 4096 to transformers."""
    edit(folder, model_type="mistral", sliding_window=window, max_position_embeddings=8192)
    longest = 4096 if window is ... else window
    assert open_source(folder).config.max_seq_len == longest
    arguments = [str(folder), str(tmp_path / "model.bin"), "--version", "3"]
    assert convert.main([*arguments, "--max-seq-len", str(longest + 1)]) == 2
    message = f"max_seq_len = {longest + 1}, allowed up to {longest}, the model's sliding window"
    assert capsys.readouterr().err == f"error: {message}\n"
    assert convert.main(arguments) == 0
    assert f"max_seq_len = {longest}: its sliding window" in capsys.readouterr().out
    assert convert.main([*arguments, "--max-seq-len", "8"]) == 0
    assert "sliding window" not in capsys.readouterr().out
    edit(folder, max_position_embeddings=32)
    assert open_source(folder).config.max_seq_len == 32
    edit(folder, sliding_window=None, max_position_embeddings=8192)
    assert open_source(folder).config.max_seq_len == 8192


def spoil(name: str, **changes: torch.Tensor | None) -> Callable[[Path], None]:
    """Changes a tensor, or drops it."""

    def work(folder: Path) -> None:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            tensors.pop(name, None)
            tensors |= {key: value for key, value in {name: changes.get("to")}.items() if value is not None}

        edit_tensors(folder, change)

    return work


TENSORS = {
    f"{WQ} is missing": spoil(WQ),
    "lm_head.weight is missing": spoil("lm_head.weight"),
    f"{Q}.bias is a bias, which a Llama has not": spoil(f"{Q}.bias", to=torch.ones(32)),
    "model.layers.2.mlp.up_proj.weight is unexpected": spoil(
        "model.layers.2.mlp.up_proj.weight", to=torch.ones(48, 32)
    ),
    f"{WQ} has the shape (32, 33), allowed (32, 32)": spoil(WQ, to=torch.ones(32, 33)),
    f"{WQ} has the type int8, allowed floating point": spoil(WQ, to=torch.ones(32, 32).char()),
    f"{WQ} has the type F8_E4M3, allowed": spoil(WQ, to=torch.ones(32, 32).to(torch.float8_e4m3fn)),
}


@pytest.mark.parametrize("message", TENSORS)
def test_tensors_that_do_not_fit_are_named_as_the_folder_names_them(folder, message):
    TENSORS[message](folder)
    with pytest.raises(BadFileError) as error:
        open_source(folder)
    assert str(error.value).startswith(f"{folder}: {message}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("out", ["model.bin", "ours"])
def test_weights_that_are_not_finite_are_refused_by_name(folder, tmp_path, capsys, value, out):
    edit_tensors(folder, lambda tensors: tensors["model.norm.weight"].__setitem__(3, value))
    options = ["--version", "3"] if out == "model.bin" else []
    assert convert.main([str(folder), str(tmp_path / out), *options]) == 3
    assert capsys.readouterr().err == f"error: {folder}: norm.weight has values that are not finite\n"
    assert list(tmp_path.iterdir()) == [folder]


def first(folder: Path, pattern: str = "*-00002-*.safetensors") -> Path:
    return next(folder.glob(pattern))


def move(folder: Path, file: str) -> None:
    """Lets the index say that the first tensor is in another file."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


HALF = "\ud800.safetensors"  # of a pair of UTF-16


def repeat(folder: Path) -> None:
    shard = load_file(first(folder, "*-00001-*.safetensors"))
    save_file({**load_file(first(folder)), **shard}, first(folder))


DAMAGE = {
    "No such file or directory": lambda folder: first(folder).unlink(),
    "is no whole safetensors file": lambda folder: os.truncate(first(folder), 5000),
    "is missing, model.safetensors.index.json says it is there": lambda folder: move(
        folder, first(folder).name
    ),
    "allowed files of the folder": lambda folder: move(folder, "../model.safetensors"),
    "is in model-00001-of-": repeat,
    r"is in 'a\x00b', allowed files of the folder": lambda folder: move(folder, "a\0b"),
    r"is in '\ud800.safetensors', allowed files of the folder": lambda folder: move(folder, HALF),
    "weight_map names no tensor, allowed is the file of each": lambda folder: (
        folder / "model.safetensors.index.json"
    ).write_text('{"weight_map": {}}'),
    r"a?b is in '/', allowed files of the folder": lambda folder: (
        folder / "model.safetensors.index.json"
    ).write_text('{"weight_map": {"a\\nb": "/"}}'),
    "is not JSON": lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
    "holds a list, allowed an object": lambda folder: (folder / "config.json").write_text("[]"),
    "chat_template.jinja: is a pipe": lambda folder: os.mkfifo(folder / "chat_template.jinja"),
    "it is nested too deeply": lambda folder: (folder / "config.json").write_text("[" * 10**5),
    "has none of model.safetensors, model.safetensors.index.json, pytorch_model.bin, ": lambda folder: [
        path.unlink() for path in folder.glob("model*")
    ],
}


@pytest.mark.parametrize("message", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(sharded, tmp_path, capsys, message):
    DAMAGE[message](sharded)
    assert convert.main([str(sharded), str(tmp_path / "model.bin")]) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sharded}")
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [sharded]


class Program:
    """A pickle of it is a program that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_a_pickle_with_code_is_refused_and_not_run(folder, tmp_path, capsys):
    (folder / "model.safetensors").unlink()
    torch.save({"a": Program(tmp_path / "made")}, folder / "pytorch_model.bin")
    assert convert.main([str(folder), str(tmp_path / "model.bin")]) == 3
    file, name = folder / "pytorch_model.bin", f"{os.system.__module__}.system"
    reason = f"its pickle is not read: it asks for {name}, which is not a tensor"
    assert capsys.readouterr().err == f"error: {file}: {reason}\n"
    assert list(tmp_path.iterdir()) == [folder]
