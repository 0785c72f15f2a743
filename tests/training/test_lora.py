"""LoRA: merged is unmerged, PEFT reads what is written and writes what is read, a resume is exact."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import transformers
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file

from llama.errors import BadFileError, UsageError
from llama.formats.adapters import left_out, open_adapter
from llama.formats.export import export_folder
from llama.formats.files import Fields
from llama.formats.huggingface import their_name
from llama.formats.models import open_source
from llama.formats.source import Source, tensor_shapes
from model import Config, Llama
from training import models, options
from training.freezing import freeze
from training.lora import Lora, add_lora, init_lora, load_adapter, save_adapter, targets_of
from training.options import Options
from training.shards import open_split
from training.weights import TorchWeights, load_model, save_weights

SHAPE = Config(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=64, max_seq_len=32)
LORA = Lora("", 4, 8.0, 0.0, "wq,wk,wo,w1,w2")


def write_base(folder: Path) -> Path:
    """A random model as a folder of transformers."""
    torch.manual_seed(1)
    export_folder(folder / "base", Source("base", SHAPE, TorchWeights(Llama(SHAPE).state_dict())))
    return folder / "base"


@pytest.fixture
def base(tmp_path) -> Path:
    return write_base(tmp_path)


def with_adapter(base: Path, lora: Lora = LORA) -> Llama:
    """The model with an adapter that is not nothing."""
    model = load_model(base)
    add_lora(model, lora)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(init_lora(name.replace("lora_b", "lora_a"), parameter.shape))
    return model


def logits(model: Llama) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(32)[None])


def saved(base: Path, folder: Path, lora: Lora = LORA) -> Llama:
    folder.mkdir()
    model = with_adapter(base, lora)
    save_adapter(folder, model.config, dict(model.named_parameters()), replace(lora, base=str(base)), {})
    return model


def test_merged_equals_unmerged_and_what_was_saved_is_loaded(base, tmp_path):
    model = saved(base, tmp_path / "lora")
    assert not torch.equal(logits(model), logits(load_model(base)))
    torch.testing.assert_close(logits(load_model(tmp_path / "lora")), logits(model), rtol=0, atol=1e-5)
    for name, weight in load_adapter(tmp_path / "lora", SHAPE).items():
        assert torch.equal(weight, model.get_parameter(name))


def test_peft_reads_the_adapter_and_merges_to_the_same(base, tmp_path):
    model = saved(base, tmp_path / "lora")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "lora").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(torch.arange(32)[None]).logits, logits(model), rtol=0, atol=1e-5)
        merged = theirs.merge_and_unload()(torch.arange(32)[None]).logits
    torch.testing.assert_close(merged, logits(load_model(tmp_path / "lora")), rtol=0, atol=1e-5)


def test_an_adapter_of_peft_is_read(base, tmp_path):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    names = ["q_proj", "k_proj", "v_proj", "down_proj"]
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=names, init_lora_weights=False, use_rslora=True
    )
    theirs = peft.get_peft_model(theirs, config).eval()
    theirs.save_pretrained(tmp_path / "lora")
    with torch.no_grad():
        expected = theirs(torch.arange(32)[None]).logits
    torch.testing.assert_close(logits(load_model(tmp_path / "lora")), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora = true, allowed false"),
        ({"bias": "all"}, 'bias = "all", allowed "none"'),
        ({"peft_type": "IA3"}, 'peft_type = "IA3", allowed "LORA"'),
        ({"r": 0}, "r = 0, allowed 1 to 4096"),
        ({"r": -4, "use_rslora": True}, "r = -4, allowed 1 to 4096"),
        ({"r": 10**400}, "allowed 1 to 4096"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "init_lora_weights = 'pissa_niter_4', allowed true and false",
        ),
        (
            {"init_lora_weights": ["eva"]},
            r"init_lora_weights = \['eva'\], allowed true and false and \"gaussian\"",
        ),
        (
            {"init_lora_weights": "corda"},
            "save_pretrained of PEFT converts others, by its path_initial_model_",
        ),
        ({"alora_invocation_tokens": []}, r"alora_invocation_tokens = \[\], allowed null"),
        ({"use_bdlora": {"nblocks": 2}}, r'use_bdlora = \{"nblocks": 2\}, allowed null'),
        ({"arrow_config": {}}, r"arrow_config = \{\}, allowed null"),
        ({"kasa_config": {"beta": 0.1}}, "kasa_config = .*, allowed null"),
        ({"monteclora_config": {}}, "monteclora_config = .*, allowed null"),
        ({"megatron_config": {"a": 1}}, "megatron_config = .*, allowed null"),
        ({"layer_replication": [[0, 1]]}, r"layer_replication = \[\[0, 1\]\], allowed null"),
        ({"target_parameters": ["w"]}, r'target_parameters = \["w"\], allowed \[\]'),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices = \[1\], allowed \[\] and \{\}"),
        ({"layers_pattern": "h"}, 'layers_pattern = "h", allowed'),
        ({"use_qalora": True}, "use_qalora = true, allowed false"),
        ({"use_rslora": "no"}, "use_rslora = 'no', allowed true and false"),
        (
            {"target_modules": None},
            r"adapter of layers\.0\.attention\.wk\.weight is left out by target_modules",
        ),
        ({"target_modules": []}, r"wq\.weight is left out by target_modules; .* and 5 more"),
        (
            {"target_modules": {"q_proj": 1}},
            "target_modules = {'q_proj': 1}, allowed lists of names, and patterns",
        ),
        ({"target_modules": ["q_proj", 1]}, "allowed lists of names, and patterns"),
        (
            {"exclude_modules": ["1.self_attn.q_proj"]},
            r"layers\.1\.attention\.wq\.weight is left out by exclude_",
        ),
        ({"layers_to_transform": 1}, r"layers\.0\.attention\.wq\.weight is left out by layers_to_transform"),
        ({"layers_to_transform": [0, "1"]}, r"layers_to_transform = \[0, '1'\], allowed numbers of layers"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path = 5, allowed text"),
        ({"base_model_name_or_path": False}, "base_model_name_or_path = False, allowed text"),
        ({"base_model_name_or_path": []}, r"base_model_name_or_path = \[\], allowed text"),
        ({"r": 3}, r"has the shapes \(\d, 32\) and \(\d+, \d\), allowed \(3, 32\)"),
    ],
)
def test_an_adapter_that_is_more_is_refused_by_name(base, tmp_path, change, message):
    saved(base, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BadFileError, match=message) as error:
        open_adapter(tmp_path / "lora", SHAPE, {})
    assert str(error.value).startswith(f"{tmp_path / 'lora'}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("base_said", [5, ["a"], {}, True])
def test_a_base_that_is_no_text_is_refused_and_null_is_none(base, tmp_path, base_said):
    saved(base, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"base_model_name_or_path": base_said}))
    message = re.escape(f"{path}: base_model_name_or_path = {base_said!r}, allowed text")
    with pytest.raises(BadFileError, match=f"^{message}$"):
        open_source(tmp_path / "lora")
    path.write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    assert open_adapter(tmp_path / "lora", SHAPE, {}).base == ""
    with pytest.raises(BadFileError, match='base_model_name_or_path = "" is not here: name the model'):
        open_source(tmp_path / "lora")


def test_an_adapter_without_a_tensor_is_refused(base, tmp_path):
    saved(base, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_model.safetensors"
    save_file({}, path, {"format": "pt"})
    with pytest.raises(
        BadFileError, match=f"^{path}: holds no tensor, allowed A and B of one matrix or more$"
    ):
        open_adapter(tmp_path / "lora", SHAPE, {})


def by_peft(base: Path, folder: Path, **fields) -> tuple[peft.PeftModel, torch.Tensor]:
    """A model with an adapter of PEFT that is not nothing, and its logits. In folder / "init" it begins."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=3, **fields)).eval()
    settings = model.peft_config["default"]
    settings.init_lora_weights = True  # as PEFT's manual says
    model.save_pretrained(folder / "init")
    settings.init_lora_weights = fields.get("init_lora_weights", True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
        return model, model(torch.arange(32)[None]).logits


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_an_adapter_that_changes_the_model_is_read_once_peft_has_converted_it(base, tmp_path, start):
    model, expected = by_peft(base, tmp_path, target_modules=["q_proj", "v_proj"], init_lora_weights=start)
    model.save_pretrained(tmp_path / "lora")
    with pytest.raises(BadFileError, match=f"init_lora_weights = '{start}', allowed true and false"):
        load_model(tmp_path / "lora")
    model.save_pretrained(tmp_path / "lora", path_initial_model_for_weight_conversion=str(tmp_path / "init"))
    torch.testing.assert_close(logits(load_model(tmp_path / "lora")), expected, rtol=0, atol=1e-5)


Q, V = ["q_proj"], ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": V, "init_lora_weights": "gaussian"},
        {"target_modules": V, "init_lora_weights": "orthogonal"},
        {"target_modules": V, "init_lora_weights": "mica"},
        {"target_modules": V, "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": Q, "layers_to_transform": 0},
        {"target_modules": ["model.layers.1.mlp.up_proj", "q_proj"], "layers_to_transform": [0]},
        {"target_modules": V, "exclude_modules": ["0.self_attn.q_proj"]},
        {"target_modules": r".*\.(q|v|down)_proj", "exclude_modules": r".*\.0\..*"},
        {"target_modules": "all-linear"},
        {},
    ],
    ids=str,
)
def test_an_adapter_is_of_the_modules_of_which_peft_has_it(base, tmp_path, fields):
    model, expected = by_peft(base, tmp_path, **fields)
    model.save_pretrained(tmp_path / "lora")
    torch.testing.assert_close(logits(load_model(tmp_path / "lora")), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "proj", "1.mlp.up_proj", "model.layers.0.mlp.down_proj"]},
        {"target_modules": V, "layers_to_transform": [0, 7]},
        {
            "target_modules": V,
            "layers_to_transform": [],
            "exclude_modules": ["model.layers.1.self_attn.q_proj"],
        },
        {"target_modules": ["lm_head", "model.layers.0.mlp.up_proj", "o_proj"], "layers_to_transform": 1},
        {"target_modules": ["embed_tokens", "head"], "layers_to_transform": [0]},
        {"target_modules": []},
    ],
    ids=str,
)
def test_what_peft_leaves_out_is_left_out(fields):
    names = [name for name, shape in tensor_shapes(replace(SHAPE, tied=False)).items() if len(shape) == 2]
    theirs = {name: their_name(name).removesuffix(".weight") for name in names}
    settings = peft.LoraConfig(**fields)
    expected = [name for name in names if not check_target_module_exists(settings, theirs[name])]
    found = left_out(Fields(Path("adapter_config.json"), fields), names)
    assert [line.split()[2] for line in found] == expected


def test_a_product_that_is_too_large_is_refused_without_a_warning(base, tmp_path, recwarn):
    saved(base, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_model.safetensors"
    save_file({name: 1e30 * tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(
        BadFileError, match=r"layers\.0\.attention\.wq\.weight has values that are not finite"
    ):
        export_folder(tmp_path / "out", open_source(tmp_path / "lora"))
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]


def test_an_adapter_of_another_shape_or_without_its_model_is_refused(base, tmp_path):
    saved(base, tmp_path / "lora")
    with pytest.raises(BadFileError, match=r"allowed \(4, 32\) and \(16, 4\)"):
        open_adapter(tmp_path / "lora", replace(SHAPE, n_kv_heads=4, n_heads=4, head_dim=4), {})
    with pytest.raises(BadFileError, match=r"layers\.1\.mlp\.down_proj\.lora_A\.weight is unexpected"):
        open_adapter(tmp_path / "lora", replace(SHAPE, n_layers=1), {})
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(BadFileError, match="is not here: name the model"):
        open_source(tmp_path / "lora")


def test_targets_have_both_names():
    assert targets_of("q_proj, w2") == ["attention.wq", "feed_forward.w2"]
    assert len(targets_of("all")) == 7
    with pytest.raises(UsageError, match="lora_targets = 'wx', allowed all, wq"):
        targets_of("wx")


@pytest.mark.parametrize(
    ("train", "frozen", "left"),
    [
        (
            "norm",
            "",
            {
                "layers.0.attention_norm",
                "layers.0.ffn_norm",
                "layers.1.attention_norm",
                "layers.1.ffn_norm",
                "norm",
            },
        ),
        ("", "tok_embeddings,layers.0-0,norm,attention", {f"layers.1.feed_forward.w{i}" for i in (1, 2, 3)}),
        ("layers.1", "w1,w2,attention,norm", {"layers.1.feed_forward.w3"}),
    ],
)
def test_words_choose_what_is_trained(train, frozen, left):
    model = Llama(replace(SHAPE, n_layers=2))
    freeze(model, train, frozen)
    assert {n.removesuffix(".weight") for n, p in model.named_parameters() if p.requires_grad} == left


def test_layer_1_is_not_layer_10_and_a_wrong_word_is_refused():
    model = Llama(replace(SHAPE, n_layers=11))
    freeze(model, "layers.1-2", "")
    assert {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad} == {"1", "2"}
    with pytest.raises(UsageError, match="freeze = 'wx' is in the name of no parameter"):
        freeze(model, "", "wx")
    with pytest.raises(UsageError, match="no parameter is left to train"):
        freeze(model, "norm", "norm,layers")


def test_adapters_are_trained_saved_and_resumed_exactly(data, tmp_path, train_here):
    config = replace(SHAPE, vocab_size=open_split(data, "train")[0].vocab_size)
    torch.manual_seed(1)
    save_weights(tmp_path / "model.safetensors", config, Llama(config).state_dict())
    line = [f"--data={data}", "--lora_rank=4", "--lora_targets=wq,w2", "--max_steps=8"]
    line += ["--warmup_steps=0", "--learning_rate=0.01"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    start = f"--init_from={tmp_path / 'model.safetensors'}"
    train_here(*line, f"--out_dir={whole}", start, "--save_interval=4")
    assert not (whole / "last" / "model.safetensors").exists()
    shutil.copytree(whole, parts, ignore=shutil.ignore_patterns("step-0000008", "last", "best"))
    train_here(*line, f"--out_dir={parts}", "--init_from=resume")
    first, second = (load_file(out / "last" / "adapter_model.safetensors") for out in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    base, tuned = load_model(tmp_path / "model.safetensors"), load_model(whole / "last")
    changed = {n for n, p in base.named_parameters() if not torch.equal(p, tuned.get_parameter(n))}
    assert changed == {f"layers.{i}.{n}.weight" for i in (0, 1) for n in ("attention.wq", "feed_forward.w2")}


def test_a_shape_that_gives_way_is_refused_where_it_is_said(base, tmp_path):
    recipe, empty = tmp_path / "recipe.toml", tmp_path / "empty.toml"
    recipe.write_text("dim = 64\nhidden_dim = 0\n")
    empty.touch()
    for said, message in (
        ([str(recipe)], rf"{recipe}: dim = 64, {base} has 32: leave it out, the shape is that of the model"),
        ([str(empty), "--tied=false"], "tied = False, .* has True: leave it out"),
    ):
        line = [*said, f"--init_from={base}"]
        with pytest.raises(UsageError, match=message):
            models.check_said(options.from_arguments(line)[0], options.said(line))
    line = [str(recipe), "--dim=32", f"--init_from={base}"]
    models.check_said(options.from_arguments(line)[0], options.said(line))


def test_adapters_need_a_model():
    with pytest.raises(UsageError, match="lora_rank = 4, allowed 0 without --init_from a model"):
        models.lora_of(Options(lora_rank=4), None)
