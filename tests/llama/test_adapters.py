"""Adapters by name, in every program: what runs beside a model is what PEFT and the merged model say."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from checkpoints import Shape
from helpers import PROGRAMS, assert_refused, both, environment, finish, run
from test_adapter import config_of, random_adapter, write_adapter, write_merged
from test_lora import SHAPE, logits, saved, write_base
from tiny_models import VOCABULARY, write_noise

import llama
from llama import adapters, cache, convert, perplexity
from llama.batch import Batch
from llama.errors import BadFileError, UsageError
from llama.formats.adapters import split
from llama.formats.export import export_folder
from llama.formats.source import Source
from model import Llama
from training.weights import TorchWeights

CHAT = [sys.executable, "-m", "llama.chat"]
IDS = list(range(32))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CRIA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tmp_path) -> Path:
    return write_base(tmp_path)


@pytest.fixture
def tuned(base, tmp_path) -> torch.Tensor:
    """The logits of a model with the adapter in tmp_path / "lora"; base.bin is the model."""
    model = saved(base, tmp_path / "lora")
    convert.main([str(base), str(tmp_path / "base.bin"), "--version", "3"])
    return logits(model)[0]


def close(found: np.ndarray, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-4)


def test_beside_a_model_it_is_what_pytorch_peft_and_the_merged_file_say(tuned, base, tmp_path):
    peft = pytest.importorskip("peft")
    with llama.Llama(tmp_path / "base.bin", lora=str(tmp_path / "lora")) as model:
        found = model.logits(IDS)
    close(found, tuned)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "lora").eval()
    with torch.no_grad():
        close(found, theirs(torch.arange(32)[None]).logits[0])
    lora = ["--lora", str(tmp_path / "lora")]
    convert.main([str(tmp_path / "base.bin"), str(tmp_path / "merged.bin"), "--version", "3", *lora])
    with llama.Llama(tmp_path / "merged.bin") as merged:
        close(merged.logits(IDS), torch.from_numpy(found))


def test_a_folder_becomes_a_file_once_and_for_each_shape(tuned, base, tmp_path):
    file, scale = adapters.engine_file(f"{tmp_path / 'lora'}:0.5", str(tmp_path / "base.bin"))
    assert scale == 0.5
    assert adapters.engine_file(str(tmp_path / "lora"), str(tmp_path / "base.bin")) == (file, 1.0)
    assert [entry.dtype for entry in cache.entries()] == ["lora"]
    assert "changed" not in cache.describe(cache.entries()[0])
    convert.main([str(tmp_path / "lora"), str(tmp_path / "x.lora.bin")])
    convert.main([str(base), str(tmp_path / "y.lora.bin"), "--lora", f"{tmp_path / 'lora'}:2"])
    x, y = (tmp_path / f"{name}.lora.bin" for name in "xy")
    assert x.read_bytes() == Path(file).read_bytes() != y.read_bytes()
    with (
        llama.Llama(tmp_path / "base.bin", lora=str(x)) as one,
        llama.Llama(tmp_path / "base.bin", lora=f"{y}:0.5") as half,
    ):
        assert np.array_equal(one.logits(IDS), half.logits(IDS))
        assert adapters.engine_file(str(x), str(tmp_path / "base.bin")) == (str(x), 1.0)


def test_another_shape_is_refused_by_name(tuned, tmp_path):
    other, folder = replace(SHAPE, hidden_dim=48, n_layers=1), tmp_path / "other"
    model = folder / "base"
    weights = TorchWeights(Llama(other).state_dict())
    export_folder(model, Source("other", other, weights))
    convert.main([str(model), str(folder / "base.bin"), "--version", "3"])
    with pytest.raises(
        BadFileError, match=r"lora: adapter of layers\.0\.feed_forward\.w1\.weight has the shapes"
    ):
        llama.Llama(folder / "base.bin", lora=str(tmp_path / "lora"))
    convert.main([str(tmp_path / "lora"), str(tmp_path / "x.lora.bin")])
    with pytest.raises(BadFileError, match=r"x\.lora\.bin: is for hidden_dim = 96, the model has 48"):
        llama.Llama(folder / "base.bin", lora=str(tmp_path / "x.lora.bin"))


def test_a_name_of_the_hub_is_fetched(tmp_path, monkeypatch):
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adapters.hub, "fetched_folder", lambda *what: asked.append(what) or "folder")
    for files in (["adapter_model.safetensors", "adapter_model.bin"], ["adapter_model.bin"], []):
        monkeypatch.setattr(adapters.hub, "listed", lambda place, files=files: files)
        assert adapters.find("owner/name@v2") == Path("folder")
        assert asked[-1][0][1:3] == ("owner/name", "v2")
        assert asked[-1][1] == ["adapter_config.json", (*files, "adapter_model.safetensors")[0]]


def test_names_and_scales():
    assert split("a/b") == ("a/b", 1.0)
    assert split("a/b:-0.5") == ("a/b", -0.5)
    assert split("hf:owner/name") == ("hf:owner/name", 1.0)
    assert split("hf:owner/name:2") == ("hf:owner/name", 2.0)
    with pytest.raises(UsageError, match="lora = a:b, allowed FOLDER or FOLDER:SCALE"):
        split("a:b")
    with pytest.raises(UsageError, match="the name of the adapter is empty"):
        adapters.find("")


# --- Programs


@pytest.fixture(scope="module")
def noise(tmp_path_factory) -> Path:
    """A model, its adapter x.lora.bin, and merged.bin of half of it."""
    folder = write_noise(tmp_path_factory.mktemp("noise"))
    shape = Shape(vocab_size=len(VOCABULARY), max_seq_len=256, tied=False)
    write_adapter(folder / "x.lora.bin", random_adapter(shape), config_of(shape))
    write_merged(folder / "merged.bin", folder / "v0.bin", random_adapter(shape), 0.5)
    return folder


def test_every_program_writes_what_the_merged_model_writes(noise):
    line = ["-t", "0", "-i", "the", "-n", "40"]
    text = both(noise / "v0.bin", *line, "--lora", "x.lora.bin:0.5").stdout
    assert text == both(noise / "merged.bin", *line).stdout != both(noise / "v0.bin", *line).stdout
    with llama.Llama(noise / "v0.bin", lora=str(noise / "x.lora.bin") + ":0.5") as model:
        written = "".join(model.generate("the", max_tokens=30, temperature=0))
        with Batch(model, sequences=2) as batch:
            request = batch.join(model.encode("the"), max_tokens=30, temperature=0.0)
            pieces = []
            while batch.busy:
                pieces += [event.text for event in batch.step() if event.request is request]
    assert "".join(pieces) == written
    assert text.decode(errors="replace").startswith("the" + written[:20])


def test_perplexity_and_chat_take_one(noise, capsys):
    file = noise / "opening.txt"
    half = ["--lora", f"{noise / 'x.lora.bin'}:0.5"]
    native = run("native", "v0.bin", "--perplexity", file, *half, cwd=noise).stdout.partition(b";")[0]
    perplexity.main([str(noise / "v0.bin"), str(file), *half])
    assert capsys.readouterr().out.partition(";")[0].encode() == native
    perplexity.main([str(noise / "merged.bin"), str(file), "--json"])
    expected = json.loads(capsys.readouterr().out)["perplexity"]
    assert float(native.rpartition(b"perplexity ")[2].partition(b",")[0]) == pytest.approx(expected, rel=1e-4)
    line = ["--template", "plain", "-t", "0", "-c", "60"]
    answers = [
        finish(
            [*CHAT, model, *line, *more], cwd=noise, input=b"the\n", env=environment(), capture_output=True
        )
        for model, more in (("v0.bin", ["--lora", "x.lora.bin:0.5"]), ("merged.bin", []), ("v0.bin", []))
    ]
    first, second, plain = (answer.stdout for answer in answers)
    assert first == second != plain, answers


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_no_adapter_is_refused_in_a_line(noise, program):
    for lora, code, message in (
        ("none.lora.bin", 3, "none.lora.bin: No such file or directory"),
        ("v0.bin", 3, "v0.bin: is no adapter, allowed is an adapter that cria convert has made"),
        ("x.lora.bin:inf", 2, "x.lora.bin: scale = inf, allowed finite numbers"),
    ):
        assert_refused(run(program, "v0.bin", "--lora", lora, cwd=noise), code, message)
    assert run(program, "v0.bin", "--lora", "x.lora.bin:half", cwd=noise).returncode == 2
    assert run(program, "v0.bin", "--lora", ".", cwd=noise).returncode == 3
