"""Hugging Face's folders are written as transformers reads them, with the tokenizer, and come back the same.

Left out on purpose: tokenizers that are not copied (test_tokenizer_json_writer.py), or padded (test_text.py).
"""

from __future__ import annotations

import itertools
import json
import struct
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from helpers import write_ranked
from safetensors.torch import load_file
from test_export import Lazy
from test_export_program import interrupted, limited
from test_huggingface import (
    TINY,
    assert_same,
    each_family,
    edit,
    llama3_tokenizer,
    logits_in_transformers,
    save,
)
from test_model import FAMILIES, fresh, in_transformers, tokens
from test_sample import BOS, EOS, VOCABULARY, uncached
from torch_formats import export_folder, open_source

import llama
from llama import convert
from llama.errors import BadFileError, UsageError
from llama.formats.chat_templates import TEMPLATES
from llama.formats.source import Source
from model import Config, Llama
from training.tokenizers import train as train_tokenizer


@pytest.fixture(scope="module")
def model() -> Llama:
    return fresh(TINY).eval()


@pytest.fixture
def folder(tmp_path, model) -> Path:
    return save(model, tmp_path / "theirs")


# --- Writing


@each_family
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_transformers_loads_what_is_written_with_equal_logits(tmp_path, family, dtype):
    model = fresh(FAMILIES[family]).eval()
    source = Source("weights", model.config, model.state_dict(), bos=1, stops=(2, 3))
    report = export_folder(tmp_path / "ours", source, dtype)
    assert bool(report.errors) == (dtype != "fp32")
    kept = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    model = model.to(kept).float()
    with torch.no_grad():
        expected = model(tokens())
    torch.testing.assert_close(logits_in_transformers(tmp_path / "ours"), expected, rtol=0, atol=1e-5)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert (config.bos_token_id, config.eos_token_id) == (1, [2, 3])
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "ours")
    assert (generation.bos_token_id, generation.eos_token_id) == (1, [2, 3])
    assert_same(open_source(tmp_path / "ours"), model.to(kept))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_that_is_read_and_written_holds_the_same_tensors(tmp_path, model, dtype):
    in_transformers(model).to(dtype).save_pretrained(tmp_path / "theirs")
    report = export_folder(tmp_path / "ours", open_source(tmp_path / "theirs"))
    assert report.dtype == {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    expected = load_file(tmp_path / "theirs" / "model.safetensors")
    found = load_file(tmp_path / "ours" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_shards_are_as_large_as_they_may_be_and_in_the_index(tmp_path, model):
    source = Source("weights", TINY, model.state_dict())
    folder, limit = tmp_path / "ours", 20_000
    report = export_folder(folder, source, shard_bytes=limit)
    shards = sorted(folder.glob("*.safetensors"))
    assert [path.name for path in shards] == [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))
    ]
    sizes = [sum(t.nbytes for t in load_file(path).values()) for path in shards]
    assert max(sizes) <= limit
    assert all(a + b > limit for a, b in itertools.pairwise(sizes))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert index["weight_map"] == {name: path.name for path in shards for name in load_file(path)}
    assert report.bytes == sum(file.stat().st_size for file in folder.iterdir())
    with torch.no_grad():
        expected = model(tokens() % 61)
    torch.testing.assert_close(logits_in_transformers(folder), expected, rtol=0, atol=1e-5)


def test_each_tensor_is_taken_once_and_let_go_before_the_next(tmp_path, model):
    lazy = Lazy(model.state_dict())
    export_folder(tmp_path / "ours", Source("weights", TINY, lazy), "bf16", shard_bytes=5000)
    assert sorted(lazy.taken) == sorted(model.state_dict())
    assert (lazy.most, lazy.alive) == (1, 0)


def test_a_shape_that_transformers_cannot_hold_is_refused(tmp_path):
    config = Config(dim=30, n_layers=1, n_heads=4, head_dim=8, vocab_size=20, hidden_dim=16)
    with pytest.raises(UsageError, match="weights: dim = 30, n_heads = 4: transformers can't hold"):
        export_folder(tmp_path / "ours", Source("weights", config, Llama(config).state_dict()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dtype", "value"), [("bf16", 3.4e38), ("fp16", 65520.0)])
def test_a_weight_that_a_short_type_cannot_hold_is_refused_and_nothing_is_left(tmp_path, model, dtype, value):
    weights = {**model.state_dict(), "norm.weight": torch.full((32,), value)}
    with pytest.raises(BadFileError, match=rf"weights: norm\.weight has values too large for {dtype}"):
        export_folder(tmp_path / "ours", Source("weights", TINY, weights), dtype)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(tmp_path, model):
    with pytest.raises(KeyboardInterrupt):
        export_folder(tmp_path / "ours", Source("weights", TINY, interrupted(model.state_dict())))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_replaced(tmp_path, model):
    source = Source("weights", TINY, model.state_dict())
    (tmp_path / "ours").mkdir()
    export_folder(tmp_path / "ours", source)
    with pytest.raises(UsageError, match="ours: exists already, allowed a new or an empty folder"):
        export_folder(tmp_path / "ours", source)
    with pytest.raises(UsageError, match=r"config\.json: exists already"):
        export_folder(tmp_path / "ours" / "config.json", source)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_full_disk_is_found_before_anything_is_written(folder, tmp_path, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**6, 10**6 - 1000, 1000))
    assert convert.main([str(folder), str(tmp_path / "ours")]) == 4
    needed = sum(t.nbytes for t in load_file(folder / "model.safetensors").values())
    reason = f"No space left on device: {needed:,} bytes are needed, 1,000 are free"
    assert capsys.readouterr().err == f"error: {tmp_path / 'ours'}: {reason}\n"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_disk_that_fills_leaves_nothing(tmp_path):
    folder = save(fresh(FAMILIES["Llama 2"]), tmp_path / "theirs")
    result = limited("sys.exit(convert.main(sys.argv[1:]))", folder, tmp_path / "ours")
    assert (result.returncode, result.stderr) == (
        4,
        f"error: {tmp_path / 'ours'}: File too large\n".encode(),
    )
    assert list(tmp_path.iterdir()) == [folder]


# --- The tokenizer, and text


@pytest.fixture
def story(tmp_path) -> tuple[Path, Llama]:
    """A folder of transformers whose fields fit every version of a .bin, with a tokenizer beside."""
    config = replace(TINY, vocab_size=len(VOCABULARY), max_seq_len=128, norm_eps=1e-5)
    model = fresh(config).eval()
    with torch.no_grad():
        model.output.weight[[BOS, EOS]] = 0
    folder = save(model, tmp_path / "theirs")
    write_ranked(folder / "tokenizer.bin", VOCABULARY)
    return folder, model


def test_greedy_text_of_pytorch_and_of_every_version_is_the_same(story, tmp_path):
    folder, model = story
    texts = set()
    for version in ("0", "1", "3"):
        out = tmp_path / "out" / f"v{version}.bin"
        assert convert.main([str(folder), str(out), "--version", version]) == 0
        with llama.Llama(out, tokenizer=folder / "tokenizer.bin") as engine:
            texts.add("".join(engine.generate("the", max_tokens=40, temperature=0)))
            prompt = engine.encode("the")
            ids = uncached(model, prompt, 40)
            texts.add(engine.decode([*prompt, *ids])[len(engine.decode(prompt)) :])
    assert len(texts) == 1
    assert len(texts.pop()) > 20


def test_a_v3_file_has_the_stop_ids_bos_and_template_of_the_folder(story, tmp_path, capsys):
    folder, _ = story
    edit(folder, bos_token_id=1)
    edit(folder, "generation_config.json", eos_token_id=[2, 9])
    (folder / "chat_template.jinja").write_text(TEMPLATES["mistral"])
    for options, template in (([], 6), (["--template", "llama2"], 1), (["--template", "none"], 0)):
        assert convert.main([str(folder), str(tmp_path / "v3.bin"), "--dtype", "bf16", *options]) == 0
        data = (tmp_path / "v3.bin").read_bytes()
        assert struct.unpack_from("<5i", data, 76) == (1, 2, 2, 9, -1)
        assert struct.unpack_from("<i", data, 116) == (template,)
    edit(folder, "generation_config.json", eos_token_id=list(range(9)))
    assert convert.main([str(folder), str(tmp_path / "no.bin"), "--version", "3"]) == 3
    assert f"{folder}: has 9 stop ids, allowed 8" in capsys.readouterr().err


def test_transformers_tokenizes_as_the_model_that_goes_along(tmp_path):
    texts = ["the cat sat on the mat and the dog ran", "a dog, a cat, a mat"] * 50
    size = 3 + 256 + 50
    folder = save(fresh(replace(TINY, vocab_size=size)), tmp_path / "theirs")
    tokenizer = train_tokenizer(texts, size, folder / "tokenizer.model")
    (folder / "chat_template.jinja").write_text(TEMPLATES["llama2"])
    (folder / "notes.txt").write_text("of no use")
    assert convert.main([str(folder), str(tmp_path / "ours")]) == 0
    for name in ("tokenizer.model", "chat_template.jinja"):
        assert (tmp_path / "ours" / name).read_bytes() == (folder / name).read_bytes()
    assert not (tmp_path / "ours" / "notes.txt").exists()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    for text in ("the cat sat", "a dog, and the mat", ""):
        assert theirs.encode(text) == tokenizer.encode(text, bos=True)
    assert len(theirs) == size


def test_transformers_tokenizes_as_llama_3_with_its_special_tokens(tmp_path):
    tokenizer = llama3_tokenizer(tmp_path / "tokenizer.model")
    folder = save(fresh(replace(TINY, vocab_size=512)), tmp_path / "theirs")
    edit(folder, bos_token_id=None, eos_token_id=None)
    (folder / "generation_config.json").unlink()
    options = ["--tokenizer", str(tokenizer.path)]
    assert convert.main([str(folder), str(tmp_path / "ours"), *options]) == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    for text in ("hello", "1234 é\n", "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"):
        assert theirs.encode(text) == tokenizer.encode(text, bos=True, special=True)
    assert len(theirs) == 512
    generation = json.loads((tmp_path / "ours" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 256, "eos_token_id": [257, 264, 265]}


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(folder, tmp_path, capsys):
    tokenizer = llama3_tokenizer(tmp_path / "tokenizer.model")
    assert convert.main([str(folder), str(tmp_path / "ours"), "--tokenizer", str(tokenizer.path)]) == 3
    assert capsys.readouterr().err == (
        f"error: {tokenizer.path}: has 512 tokens, the model's vocab_size = 61\n"
    )
    assert not (tmp_path / "ours").exists()
