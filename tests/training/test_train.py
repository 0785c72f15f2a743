"""Training: a resume is exact, cutting a batch differently changes nothing, and what is saved stays whole."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from helpers import ROOT
from runs import QUIET, assert_same_weights, command, losses, run, train, validations, weights

from llama.errors import BadFileError, UsageError
from model import Config, Llama, RopeScaling
from training import checkpoints, defaults, evaluation, parallel, report
from training import options as options_module
from training.llama2c_options import CHANGED
from training.options import Options, from_arguments, parse, read_recipe
from training.shards import open_split
from training.weights import load_model
from training.windows import val_windows

# --- Resume


@pytest.mark.parametrize("options", [[], ["--optimizer=muon", "--dropout=0.2"]], ids=["adamw", "muon"])
def test_resume_is_bitwise_equal(data, tmp_path, options):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(data, whole, "--max_steps=20", *options)
    train(data, parts, "--max_steps=20", "--save_interval=10", *options)
    shutil.rmtree(parts / "step-0000020")
    (parts / "last").unlink()
    train(data, parts, "--max_steps=20", "--init_from=resume", *options)
    assert losses(parts) == losses(whole)
    assert_same_weights(whole, parts)
    assert (whole / "model.bin").read_bytes() == (parts / "model.bin").read_bytes()


def kill_at(number: signal.Signals, event: str, end: str) -> None:
    """Sends this process a signal when Python tells that it's about to do something to a path with that end.

    So no clock decides where a run is when the signal comes.
    """

    def notice(name: str, arguments: tuple[Any, ...]) -> None:
        if name == event and str(arguments[0]).endswith(end):
            os.kill(os.getpid(), number)

    sys.addaudithook(notice)


def killed_at(event: str, end: str, line: list[str]) -> None:
    """Runs a command until it's about to do something to a path with that end."""
    result = forked.finish(line, before=partial(kill_at, signal.SIGKILL, event, end))
    assert result.returncode == -signal.SIGKILL, result.stderr


def test_a_run_that_is_killed_goes_on_exactly(data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(data, whole, "--max_steps=60")
    options = ["--max_steps=60", "--save_interval=2", "--keep=3"]
    for event, path in (
        ("os.mkdir", "step-0000006.aside"),  # before it saves
        ("open", "step-0000012.aside/checksums.txt"),  # while it does
        ("os.rename", "step-0000018.aside"),  # before what is saved counts
    ):
        resume = ["--init_from=resume"] if killed.exists() else []
        killed_at(event, path, command(data, killed, *options, *resume))
    train(data, killed, *options, "--init_from=resume")
    assert losses(killed) == losses(whole)
    assert_same_weights(whole, killed)
    assert not list(killed.glob("*.aside"))


def test_a_signal_finishes_the_step_and_saves(data, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(data, whole, "--max_steps=40")
    line = command(data, stopped, "--max_steps=40", "--save_interval=5")
    result = forked.finish(line, before=partial(kill_at, signal.SIGTERM, "os.mkdir", "step-0000005.aside"))
    assert result.returncode == 0, result.stderr
    assert "stopping: the step is finished and saved" in result.stdout
    assert losses(stopped) == {
        step: loss for step, loss in losses(whole).items() if step <= max(losses(stopped))
    }
    train(data, stopped, "--max_steps=40", "--init_from=resume")
    assert_same_weights(whole, stopped)


def test_checkpoints_that_were_damaged_are_passed_over(data, tmp_path):
    train(data, tmp_path / "whole", "--max_steps=12")
    out = tmp_path / "out"
    train(data, out, "--max_steps=12", "--save_interval=4", "--keep=3")
    with (out / "step-0000012" / "state.pt").open("r+b") as file:
        file.seek(100)
        file.write(b"damage")
    tensors = out / "step-0000008" / "state" / "__0_0.distcp"
    os.truncate(tensors, tensors.stat().st_size - 1)
    output = train(data, out, "--max_steps=12", "--init_from=resume")
    assert f"passed over: {out}/step-0000012/state.pt" in output
    assert f"passed over: {tensors}" in output
    assert_same_weights(tmp_path / "whole", out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dim=64"], "dim = 32, this run has 64: go on with the recipe and the options that it began with"),
        (["--optimizer=muon"], "optimizer = adamw, this run has muon: go on with"),
        (["--batch_size=16"], "batch_size = 8, this run has 16: go on with"),
        (["--seed=1"], "seed = 1337, this run has 1: go on with"),
    ],
    ids=["dim", "optimizer", "batch_size", "seed"],
)
def test_a_resume_with_another_model_optimizer_or_data_is_one_line(data, alone, options, message):
    """Such as one that began with a recipe, and is to go on without."""
    result = run(data, alone, "--max_steps=30", "--init_from=resume", *options)
    assert message in refused(result)
    assert (alone / "last").resolve().name == "step-0000020"


# --- Parallel and accumulation


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_equal_one(data, alone, tmp_path, parallel):
    out = tmp_path / "out"
    train(data, out, "--max_steps=20", f"--parallel={parallel}", ranks=2)
    assert losses(out) == pytest.approx(losses(alone), abs=1e-5)
    assert_same_weights(alone, out, atol=1e-5)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_resume_what_one_began_and_the_other_way_round(data, alone, tmp_path, parallel):
    out = tmp_path / "out"
    options = [f"--parallel={parallel}", "--save_interval=10", "--init_from=resume"]
    shutil.copytree(alone, out, symlinks=True)
    shutil.rmtree(out / "step-0000020")
    train(data, out, "--max_steps=20", *options, ranks=2)
    assert_same_weights(alone, out, atol=1e-6)
    shutil.rmtree(out / "step-0000010")
    train(data, out, "--max_steps=25", *options)
    assert max(losses(out)) == 25


@pytest.mark.parametrize("size", [1, 4, 1000])  # the last is more than the batch: no more than all of it
def test_accumulation_equals_one_large_batch(data, alone, tmp_path, size):
    out = tmp_path / "out"
    train(data, out, "--max_steps=20", f"--micro_batch_size={size}")
    assert losses(out) == pytest.approx(losses(alone), abs=1e-5)
    assert_same_weights(alone, out, atol=1e-5)


# --- Other ways to train


@pytest.mark.parametrize(
    "options",
    [
        ["--dtype=bfloat16"],
        ["--optimizer=muon", "--schedule=wsd"],
        ["--checkpointing=true", "--documents=true"],
        ["--tied=false", "--schedule=constant", "--grad_clip=0"],
    ],
    ids=" ".join,
)
def test_every_way_to_train_learns(data, tmp_path, options):
    train(data, tmp_path / "out", "--max_steps=60", "--learning_rate=3e-3", "--warmup_steps=5", *options)
    loss = losses(tmp_path / "out")
    assert loss[60] < loss[1] - 0.5


@pytest.mark.parametrize("fast", [False, True])
def test_a_type_without_units_is_said_to_be_slow(data, tmp_path, train_here, monkeypatch, capsys, fast):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
    train_here(f"--data={data}", f"--out_dir={tmp_path / 'out'}", "--max_steps=1", "--dtype=bfloat16")
    said = "note: PyTorch has no fast bfloat16 on this CPU; --dtype=float32" in capsys.readouterr().out
    assert said == (not fast)


def test_the_validation_loss_masks_documents_when_training_does(data):
    torch.manual_seed(1)
    shards = open_split(data, "val")
    model = Llama(Config(dim=32, n_layers=2, n_heads=4, vocab_size=shards[0].vocab_size, max_seq_len=32))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # so that what is attended to matters
    alone = parallel.Ranks(0, 1, torch.device("cpu"), "none")
    total = count = 0.0
    for tokens, targets in val_windows(shards, 32):
        doc_ids = (tokens == shards[0].bos_id).cumsum(0)[None]
        loss, n = model(tokens[None], targets[None], doc_ids)
        total, count = total + loss.item(), count + n.item()
    masked, plain = (
        evaluation.evaluate(model, shards, Options(max_seq_len=32, documents=documents), alone)
        for documents in (True, False)
    )
    assert masked.loss == pytest.approx(total / count, rel=1e-5)
    assert plain.loss != pytest.approx(masked.loss, rel=1e-4)


def test_fine_tuning_starts_from_the_weights_of_a_checkpoint(data, alone, tmp_path):
    out = tmp_path / "out"
    train(data, out, "--max_steps=1", f"--init_from={alone / 'last'}", "--learning_rate=0")
    assert_same_weights(alone, out)


def test_a_tuned_run_goes_on_by_the_same_command(data, alone, tmp_path):
    """Which says no shape: it was the model's."""
    line = [ROOT / "train.py", os.devnull, f"--data={data}", f"--out_dir={tmp_path}"]
    line += [*QUIET, "--max_seq_len=32", "--batch_size=8", f"--init_from={alone / 'last'}", "--auto_resume"]
    for steps in (2, 3):
        result = forked.finish([*line, f"--max_steps={steps}"])
        assert result.returncode == 0, result.stderr[-2000:]
    assert list(losses(tmp_path)) == [1, 2, 3]


def test_what_contradicts_the_model_to_start_from_is_refused_by_name(data, alone, tmp_path):
    line = ["--max_steps=1", f"--init_from={alone / 'last'}", "--norm_eps=1e-3"]
    message = refused(run(data, tmp_path / "out", *line))
    assert message.startswith(f"error: norm_eps = 0.001, {alone / 'last'} has 1e-05: leave it out")


def test_a_longer_context_of_a_model_is_resumed_and_exported(data, alone, tmp_path):
    out, line = tmp_path / "out", ["--max_seq_len=64", "--rope_scaling=yarn", "--rope_theta=5e4"]
    scaling = RopeScaling("yarn", 2.0, original_max_seq_len=32)
    train(data, out, "--max_steps=1", f"--init_from={alone / 'last'}", "--learning_rate=0", *line)
    assert_same_weights(alone, out)
    train(data, out, "--max_steps=2", "--init_from=resume", *line)
    for path in (out / "last", out / "model.bin"):
        config = load_model(path).config
        assert (config.rope_theta, config.rope_scaling, config.max_seq_len) == (5e4, scaling, 64)


def test_what_a_run_leaves_behind(data, alone):
    names = {path.name for path in alone.iterdir()}
    assert {"last", "best", "log.csv", "loss.png", "model.bin", "tokenizer.bin"} <= names
    assert (alone / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (alone / "last").resolve().name == "step-0000020"


def test_model_bin_is_the_whole_model_where_llama2c_has_no_field_for_it(data, tmp_path):
    out = tmp_path / "out"
    train(data, out, "--max_steps=1", "--rope_theta=5e5", "--norm_eps=1e-3")
    exported, saved = load_model(out / "model.bin"), load_model(out / "last")
    assert (exported.config.rope_theta, exported.config.norm_eps) == (5e5, pytest.approx(1e-3))
    tokens = torch.arange(3, 32)[None]
    with torch.no_grad():
        torch.testing.assert_close(exported(tokens), saved(tokens), rtol=0, atol=1e-6)


def test_an_earlier_run_takes_no_number_that_is_in_use(tmp_path):
    for name in ("earlier-2", "earlier-mine", "step-0000001"):
        (tmp_path / name).mkdir()
    assert checkpoints.move_earlier(tmp_path) == tmp_path / "earlier-3"
    assert (tmp_path / "earlier-3" / "step-0000001").is_dir()


def test_a_run_in_the_folder_of_an_earlier_one_leaves_that_whole(data, tmp_path):
    out = tmp_path / "out"
    train(data, out, "--max_steps=8", "--seed=1")
    earlier = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    first = weights(out)
    assert "the run that was there is in" in train(data, out, "--max_steps=4", "--seed=2")
    assert (out / "last").resolve().name == "step-0000004"
    assert max(losses(out)) == 4
    assert [path.name for path in checkpoints.step_folders(out)] == ["step-0000004"]
    for name, value in weights(out / "earlier-1").items():
        assert torch.equal(value, first[name])
    for name in ("log.csv", "model.bin", "tokenizer.bin"):
        assert (out / "earlier-1" / name).read_bytes() == earlier[name]
    train(data, out, "--max_steps=2")
    assert (out / "earlier-2" / "last").resolve().name == "step-0000004"


def test_a_run_that_dies_in_an_evaluation_has_saved_the_step_and_goes_on_exactly(data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ["--max_steps=8", "--eval_interval=4"]
    train(data, whole, *options)
    killed_at("os.rename", ".best.new", command(data, killed, *options))
    assert (killed / "last").resolve().name == "step-0000004"
    train(data, killed, *options, "--init_from=resume")
    assert validations(killed) == validations(whole)
    assert (killed / "best").resolve().name == (whole / "best").resolve().name
    assert_same_weights(whole, killed)


def test_a_run_that_is_killed_behind_its_last_save_has_all_of_it_after_a_resume(data, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ["--max_steps=4", "--save_interval=2"]
    train(data, whole, *options)
    killed_at("os.rename", "step-0000004.aside", command(data, killed, *options))
    (killed / "step-0000004.aside").rename(killed / "step-0000004")
    assert (killed / "last").resolve().name == "step-0000002"
    train(data, killed, *options, "--init_from=resume")
    assert (killed / "last").resolve().name == "step-0000004"
    assert (whole / "model.bin").read_bytes() == (killed / "model.bin").read_bytes()


@pytest.mark.parametrize(("start", "ranks"), [("resume", 2), ("{out}/last", 1)])
def test_eval_only_says_what_the_log_says_and_leaves_the_folder_as_it_is(data, alone, start, ranks):
    before = {path: path.stat().st_mtime_ns for path in alone.rglob("*")}
    *_, expected = validations(alone).values()
    said = train(data, alone, f"--init_from={start.format(out=alone)}", "--eval_only", ranks=ranks)
    assert re.fullmatch(rf"step \d+: val_loss {expected:.4f}(, val_bits_per_byte [\d.]+)?\n", said)
    assert {path: path.stat().st_mtime_ns for path in alone.rglob("*")} == before


def test_a_library_that_is_missing_is_asked_for_by_name(monkeypatch):
    missing = ("wandb", "bitsandbytes")
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None if name in missing else True)
    report.check_installed(Options())
    with pytest.raises(UsageError, match="--wandb needs wandb, which is not installed: pip install wandb"):
        report.check_installed(Options(wandb="mine"))
    with pytest.raises(UsageError, match="--qlora needs bitsandbytes, which is not installed"):
        report.check_installed(Options(lora_rank=4, qlora=True))
    with pytest.raises(UsageError, match="--optimizer=adamw_8bit needs bitsandbytes"):
        report.check_installed(Options(optimizer="adamw_8bit"))


def test_only_the_newest_and_the_best_are_kept(data, tmp_path):
    out = tmp_path / "out"
    train(data, out, "--max_steps=30", "--save_interval=5", "--keep=2")
    assert sorted(path.name for path in out.glob("step-*")) == ["step-0000025", "step-0000030"]


# --- What goes wrong


def refused(result: subprocess.CompletedProcess) -> str:
    assert result.returncode in (2, 3, 4), result.stderr[-2000:]
    assert result.stderr.startswith("error: "), result.stderr[-2000:]
    assert result.stderr.count("\n") == 1, result.stderr[-2000:]
    return result.stderr


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_checkpoint(data, tmp_path):
    out = tmp_path / "out"
    train(data, out, "--max_steps=5")
    before = weights(out)
    result = run(
        data, out, "--max_steps=10", "--init_from=resume", "--learning_rate=1e18", "--warmup_steps=0"
    )
    assert "the last checkpoint is kept" in refused(result)
    assert (out / "last").resolve().name == "step-0000005"
    for name, value in weights(out).items():
        assert torch.equal(value, before[name])


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(data, tmp_path):
    """A limit on the size of files, above that of the weights alone, stands for the disk."""
    out = tmp_path / "out"
    train(data, out, "--max_steps=2")
    weights, state = (out / "last" / name for name in ("model.safetensors", "state/__0_0.distcp"))
    assert weights.stat().st_size < state.stat().st_size
    limit = state.stat().st_size - 10_000
    line = command(data, out, "--max_steps=4", "--init_from=resume")
    result = forked.finish(line, before=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)))
    assert result.returncode == 4, result.stderr
    assert result.stderr.startswith(f"error: {out}")
    assert result.stderr.count("\n") == 1
    assert not list(out.glob("*.aside"))
    assert (out / "last").resolve().name == "step-0000002"
    train(data, out, "--max_steps=4", "--init_from=resume")


def test_two_runs_into_one_folder_are_refused(data, tmp_path):
    out = tmp_path / "out"
    line = [sys.executable, *command(data, out, "--max_steps=100000000")]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
    try:
        while not (out / "log.csv").exists():
            assert process.poll() is None, "the run ended too early"
            time.sleep(0.01)
        assert "another run is writing" in refused(run(data, out, "--max_steps=5"))
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_step=5"], "unknown option max_step: did you mean max_steps?"),
        (["--dim=x"], "dim = 'x', allowed int"),
        (["--dtype=float8"], "dtype = 'float8', allowed 'float32' or 'bfloat16' or 'float16'"),
        (["--compile=maybe"], "compile = 'maybe', allowed bool"),
        (["--dim=30"], "head_dim"),
        (["--batch_size=6", "--micro_batch_size=4"], "batch_size = 6, micro_batch_size = 4"),
        (["--data=/nowhere"], "/nowhere"),
        (["--init_from=resume"], "has no checkpoint to resume from"),
        (["--init_from=/nowhere"], "/nowhere"),
        (["--device=cuda:9"], "device = 'cuda:9'"),
        (["no.toml"], "no.toml: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_is_refused_in_one_line(data, tmp_path, options, message):
    assert message in refused(run(data, tmp_path / "out", *options))


def test_a_recipe_is_read_and_the_command_line_wins(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('dim = 64\nlearning_rate = 1\ndata = "here"\n')
    options, recipes = from_arguments([str(recipe), "--dim=128", "--n_layers", "3", "--compile"])
    assert recipes == [recipe]
    assert (options.dim, options.n_layers, options.data, options.compile) == (128, 3, "here", True)
    assert options.learning_rate == 1.0
    recipe.write_text("dim = 64.0\n")
    with pytest.raises(UsageError, match=r"recipe.toml: dim = 64.0, allowed int"):
        read_recipe(recipe)
    recipe.write_text("dims = 64\n")
    with pytest.raises(UsageError, match="unknown option dims: did you mean dim"):
        read_recipe(recipe)
    assert parse("seed", "7") == 7


OUT_OF_BOUNDS = {
    "--threads=99999999": "threads = 99999999, allowed 0 to 1024",
    "--threads=-1": "threads = -1, allowed 0 to 1024",
    "--seed=-1": "seed = -1, allowed 0 to 18446744073709551615",
    "--seed=18446744073709551616": "seed = 18446744073709551616, allowed 0 to 18446744073709551615",
    "--batch_size=100000000000000000000": "batch_size = 100000000000000000000, allowed 1 to 2147483647",
    "--lora_rank=100000000000000000000": "lora_rank = 100000000000000000000, allowed 0 to 2147483647",
    "--estimate_batches=-1": "estimate_batches = -1, allowed 0 to 2147483647",
    "--learning_rate=1e300": "learning_rate = 1e+300, allowed 0 to 1e+18",
    "--weight_decay=1e300": "weight_decay = 1e+300, allowed 0 to 1e+18",
    "--norm_eps=1e-31": "norm_eps = 1e-31, allowed 0, or 1e-30 and more",
    "--grad_clip=nan": "grad_clip = nan, allowed 0 to 1e+18",
    "--teacher_share=1.1": "teacher_share = 1.1, allowed 0 to 1",
    "--beta1=1": "beta1 = 1.0, allowed 0 to below 1",
    "--beta2=1": "beta2 = 1.0, allowed 0 to below 1",
    "--out_dir=": "out_dir is empty, allowed is a path",
    "--init_from=": "init_from is empty, allowed is a path",
    "": "a recipe is empty, allowed is a path",
}


@pytest.mark.parametrize("option", OUT_OF_BOUNDS)
def test_what_is_out_of_bounds_is_refused_by_name(option):
    with pytest.raises(UsageError) as error:
        from_arguments([os.devnull, option])
    assert str(error.value) == OUT_OF_BOUNDS[option]


def test_every_number_of_the_options_has_bounds():
    for name, kind in options_module.TYPES.items():
        for value in (-1, 10**400) if kind in (int, float) else ():
            with pytest.raises(UsageError, match=f"^{name} = {value}, allowed"):
                options_module.check(name, value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = -1", "seed = -1, allowed 0 to"),
        ("learning_rate = 1" + "0" * 400, "learning_rate = 1000"),
        ("dim = " + "9" * 5000, "Exceeds the limit"),
        ("dim = 0x" + "f" * 5000, "Exceeds the limit"),
        ("dim = " + "[" * 100_000, "is nested too deeply"),
    ],
    ids=["seed", "digits of a float", "digits", "hexadecimal digits", "brackets"],
)
def test_a_number_that_can_not_be_is_refused_with_its_recipe(tmp_path, text, message):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(UsageError, match=rf"r\.toml: {message}"):
        from_arguments([str(tmp_path / "r.toml")])


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_the_first_and_the_last_seed_train(data, tmp_path, train_here, seed):
    line = [f"--data={data}", f"--out_dir={tmp_path}", f"--seed={seed}", "--sample_tokens=2"]
    train_here(*line, "--max_steps=1")
    train_here(*line, "--max_steps=2", "--init_from=resume")
    assert list(losses(tmp_path)) == [1, 2]


def test_memory_that_is_not_there_is_one_line(data, tmp_path):
    result = run(data, tmp_path, f"--hidden_dim={2**31 - 1}", f"--dim={2**20}")  # 8 PiB
    assert refused(result).startswith("error: not enough memory: ")


@pytest.mark.parametrize("name", ["foo", "meta", "cpu:x", "privateuseone"])
def test_a_device_that_is_none_is_refused_by_name(name):
    with pytest.raises(UsageError, match=f"^device = {name}"):
        parallel.start(name, "ddp")


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("*.toml")), ids=lambda path: path.name)
def test_every_recipe_is_valid(recipe):
    assert from_arguments([str(recipe)])[1] == [recipe]


# --- What is not said


@pytest.mark.parametrize(("device", "name"), [("cpu", "laptop"), ("mps", "laptop"), ("cuda", "gpu")])
def test_without_a_recipe_the_machine_chooses_one(monkeypatch, device, name):
    recipe = ROOT / "configs" / f"{name}.toml"
    monkeypatch.setattr(defaults, "best_device", lambda: device)
    bare, recipes = from_arguments([])
    assert recipes == [recipe]
    assert bare == Options(**read_recipe(recipe))
    assert (bare.data, bare.out_dir) == ("", "out")
    monkeypatch.setattr(defaults, "best_device", lambda: "none")
    assert from_arguments([f"--device={device}", "--dim=64"])[1] == [recipe]


def make_tokens(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "meta.json").touch()


def test_without_data_it_is_tok4096_or_the_only_one(tmp_path):
    with pytest.raises(BadFileError, match="data: holds no tokens to train on; to make them: python tiny"):
        defaults.find_data(tmp_path / "data")
    data = tmp_path / "data"
    (data / "TinyStories_all_data").mkdir(parents=True)
    make_tokens(data / "tok2048")
    assert defaults.find_data(data) == str(data / "tok2048")
    make_tokens(data / "mine")
    with pytest.raises(UsageError, match="data: holds mine, tok2048: name one, as --data="):
        defaults.find_data(data)
    make_tokens(data / "tok4096")
    assert defaults.find_data(data) == str(data / "tok4096")


def test_the_folders_of_llama2c_are_data_too(tmp_path):
    (tmp_path / "TinyStories_all_data").mkdir()
    (tmp_path / "TinyStories_all_data" / "data00.bin").touch()
    assert defaults.find_data(tmp_path) == str(tmp_path / "TinyStories_all_data")


# --- Names of llama2.c


def test_its_names_mean_what_they_mean_there(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('max_iters = 7\ndata = "mine"\n')
    options, _ = from_arguments([str(recipe), "--warmup_iters=3", "--max_seq_len=64"])
    assert (options.max_steps, options.warmup_steps, options.data) == (7, 3, "mine")
    for line, folder in (
        (["--vocab_source=custom", "--vocab_size=2048"], "data/tok2048"),
        (["--vocab_size=2048"], "data/tok2048"),
        (["--vocab_source=llama2", "--vocab_size=32000"], "data/tok32000"),
        (["--vocab_source=llama2"], "data/tok32000"),
    ):
        assert from_arguments([str(recipe), *line])[0].data == folder
    assert from_arguments([str(recipe), "--data=other"])[0].data == "other"


def test_all_options_of_llama2c_are_taken_or_refused_by_name():
    """Those of its train.py at 350e04f, with its defaults; batch_size means something else in both."""
    known = """out_dir=out eval_interval=2000 log_interval=1 eval_iters=100 eval_only=False
        always_save_checkpoint=False init_from=scratch wandb_log=False wandb_project=llamac
        wandb_run_name=run batch_size=128 max_seq_len=256 vocab_source=llama2 vocab_size=32000 dim=288
        n_layers=6 n_heads=6 n_kv_heads=6 multiple_of=32 dropout=0.0 gradient_accumulation_steps=4
        learning_rate=5e-4 max_iters=100000 weight_decay=1e-1 beta1=0.9 beta2=0.95 grad_clip=1.0
        decay_lr=True warmup_iters=1000 device=cuda dtype=bfloat16 compile=True"""
    lines = {option.partition("=")[0]: f"--{option}" for option in known.split()}
    taken = lines.keys() - CHANGED.keys()
    options, _ = from_arguments([os.devnull, *(lines[name] for name in sorted(taken))])
    assert (options.max_steps, options.warmup_steps, options.compile) == (100_000, 1000, True)
    assert CHANGED.keys() <= lines.keys()
    for name in CHANGED:
        with pytest.raises(UsageError, match=f"^{name}: "):
            from_arguments([lines[name]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--vocab_source=custom", "vocab_size = 0, allowed that of a vocabulary that tinystories.py trained"),
        ("--vocab_source=llama2 --vocab_size=2048", "vocab_size = 2048, allowed 32000 with vocab_source"),
        ("--vocab_size=-1", "vocab_size = -1, allowed"),
        ("--vocab_source=mine", "vocab_source = 'mine', allowed '' or 'llama2' or 'custom'"),
        ("--data=data/mine --vocab_size=2048", "data = data/mine, allowed data/tok2048, or neither"),
    ],
)
def test_a_vocabulary_that_can_not_be_is_refused(line, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        from_arguments(line.split())
