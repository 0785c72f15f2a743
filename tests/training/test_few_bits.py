"""QLoRA and AdamW in 8 bits: what PEFT computes beside a model of 4 bits, exact resumes, what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import transformers
from bitsandbytes.functional import dequantize_4bit
from ranks import alone
from safetensors.torch import load_file
from torch import nn

from bench.training import Same
from llama.errors import UsageError
from llama.formats.export import export_folder
from llama.formats.models import open_source
from llama.formats.source import Source
from model import Config, Llama
from training import models
from training.few_bits import Nf4Linear, n_weights, packed_matrices
from training.lora import init_lora, is_lora, save_adapter
from training.options import Options
from training.parallel import autocast
from training.shards import open_split
from training.step import Run, make_run, train_step
from training.weights import TorchWeights, load_model, save_weights

# Rows are whole blocks of 64, and all scales of a matrix share one of their own. So the order of the rows of
# wq and wk, which is another in transformers, changes nothing.
SHAPE = Config(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=128, vocab_size=64, max_seq_len=32)
TOKENS = torch.arange(64).view(2, 32)


@pytest.fixture
def base(tmp_path) -> Path:
    """A random model as a folder of transformers."""
    torch.manual_seed(1)
    export_folder(tmp_path / "base", Source("base", SHAPE, TorchWeights(Llama(SHAPE).state_dict())))
    return tmp_path / "base"


def begin(base: Path, **values) -> Run:
    """A run beside the model, with adapters that are not nothing. values: options."""
    options = Options(**{"lora_rank": 4, "batch_size": 2, "max_seq_len": 32, "warmup_steps": 0} | values)
    model = models.make_model(options, alone(), SHAPE, models.lora_of(options, str(base)))
    run = make_run(model, options, alone(), Same(TOKENS, TOKENS.roll(-1, 1)))
    models.fill_weights(model, open_source(base))
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_lora(name):
                parameter.copy_(init_lora(name.replace("lora_b", "lora_a"), parameter.shape))
    return run


def unpacked(run: Run) -> dict[str, torch.Tensor]:
    return {name: dequantize_4bit(m.codes, m.scales) for name, m in packed_matrices(run.model).items()}


def loss_and_gradients(run: Run) -> dict[str, torch.Tensor]:
    with autocast(run.ranks, run.options.dtype):
        loss, _ = run.model(*run.batches.at(0)[:2])
    loss.backward()
    return {n: p.grad for n, p in run.model.named_parameters() if p.requires_grad} | {"loss": loss.detach()}


def test_logits_are_those_of_peft_beside_a_model_in_4_bits(base, tmp_path):
    run = begin(base, qlora=True, lora_targets="wq,wk,w2")
    (tmp_path / "lora").mkdir()
    lora = models.lora_of(run.options, str(base))
    save_adapter(tmp_path / "lora", SHAPE, dict(run.model.named_parameters()), lora, {})
    rounded = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, quantization_config=rounded)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "lora").train()  # else some CPUs take bfloat16
    with torch.no_grad():
        wanted, found = theirs(TOKENS).logits, run.model.eval()(TOKENS)
        assert (found - load_model(tmp_path / "lora")(TOKENS)).norm() > 0.02 * wanted.norm()  # it is rounded
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_is_that_of_lora_beside_the_rounded_weights(base, dtype, checkpointing):
    packed = begin(base, qlora=True, lora_targets="wv,w1", dtype=dtype, checkpointing=checkpointing)
    plain = begin(base, lora_targets="wv,w1", dtype=dtype, checkpointing=checkpointing)
    assert n_weights(packed.model) == n_weights(plain.model)
    for name, weight in unpacked(packed).items():
        plain.model.get_parameter(f"{name}.weight").data.copy_(weight)
    assert len(unpacked(packed)) == 7 * SHAPE.n_layers
    found, wanted = loss_and_gradients(packed), loss_and_gradients(plain)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_weight_is_the_nearest_of_16_quantiles_times_the_largest_of_its_block():
    """The numbers by the paper's code; its scales are 8 bits, so that they are a little off."""
    last = (1 - 1 / 32 + 1 - 1 / 30) / 2  # of the quantiles: there is one number more above 0 than below
    below, above = (torch.special.ndtri(torch.linspace(last, 0.5, n)[:-1]) for n in (8, 9))
    numbers = torch.cat((-below, torch.zeros(1), above.flip(0))) / above[0]
    weight = torch.randn(64, 50)  # blocks go on where rows end
    matrix = Nf4Linear(nn.Linear(50, 64), torch.float32)
    matrix.pack(weight, torch.device("cpu"))
    scales = weight.view(-1, 64).abs().amax(1, keepdim=True)
    nearest = (weight.view(-1, 64, 1) / scales[..., None] - numbers).abs().argmin(-1)
    assert torch.equal(
        torch.stack((matrix.codes >> 4, matrix.codes & 15), 1).flatten(), nearest.flatten().byte()
    )
    found = dequantize_4bit(matrix.codes, matrix.scales).view(-1, 64)
    torch.testing.assert_close(found, numbers[nearest] * scales, rtol=0.02, atol=0)


def test_a_weight_takes_little_more_than_4_bits(base):
    run = begin(base, qlora=True)
    for matrix in packed_matrices(run.model).values():
        assert 8 * matrix.nbytes / (matrix.in_features * matrix.out_features) == pytest.approx(4.14, abs=0.02)
    names = {name for name, p in run.model.named_parameters() if p.ndim == 2 and not p.requires_grad}
    assert names == {"tok_embeddings.weight"}


def test_a_run_in_few_bits_resumes_exactly_and_leaves_the_model(data, tmp_path, train_here):
    config, model = (
        replace(SHAPE, vocab_size=open_split(data, "train")[0].vocab_size),
        tmp_path / "it.safetensors",
    )
    torch.manual_seed(1)
    save_weights(model, config, Llama(config).state_dict())
    line = [f"--data={data}", "--qlora", "--lora_rank=64", "--lora_targets=wq,w2", "--optimizer=adamw_8bit"]
    line += ["--dim=64", "--max_steps=8", "--warmup_steps=0", "--learning_rate=0.01"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_here(*line, f"--out_dir={whole}", f"--init_from={model}", "--save_interval=4")
    shutil.copytree(whole, parts, ignore=shutil.ignore_patterns("step-0000008", "last", "best"))
    train_here(*line, f"--out_dir={parts}", "--init_from=resume")
    first, second = (load_file(out / "last" / "adapter_model.safetensors") for out in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    before, after = load_model(model), load_model(whole / "last")
    changed = {n for n, p in before.named_parameters() if not torch.equal(p, after.get_parameter(n))}
    assert changed == {f"layers.{i}.{n}.weight" for i in (0, 1) for n in ("attention.wq", "feed_forward.w2")}


def test_adamw_in_8_bits_learns_what_adamw_does():
    losses = {}
    for optimizer in ("adamw", "adamw_8bit"):
        sizes = {"batch_size": 2, "max_seq_len": 32, "warmup_steps": 0, "learning_rate": 3e-3}
        options = Options(**sizes, optimizer=optimizer)
        torch.manual_seed(1)
        run = make_run(Llama(SHAPE), options, alone(), Same(TOKENS, TOKENS.roll(-1, 1)))
        for step in range(30):
            run.progress.step = step
            total, weight, _ = train_step(run)
        losses[optimizer] = float(total) / weight
    assert losses["adamw"] < 1
    assert losses["adamw_8bit"] == pytest.approx(losses["adamw"], rel=0.01)
    kept = {len(p.flatten()): state["state1"].dtype for p, state in run.optimizers[1].state.items()}
    assert kept == {2048: torch.float32, 4096: torch.uint8, 8192: torch.uint8}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"qlora": True}, "qlora = True, allowed False without lora_rank"),
        ({"qlora": True, "lora_rank": 4, "parallel": "fsdp"}, "qlora = True, allowed False with parallel"),
        ({"optimizer": "adamw_8bit", "parallel": "fsdp"}, "adamw_8bit, allowed adamw or muon with parallel"),
    ],
)
def test_what_does_not_go_together_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        Options(**values)
