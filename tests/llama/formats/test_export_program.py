"""export.py as a program: its command line, what it says, and that an old file stays where it fails.

Left out on purpose: what the files hold (test_export.py).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import Shape
from helpers import ROOT, assert_refused, finish
from test_export import Lazy, each_version, random_model
from torch import Tensor
from torch_formats import export_bin, export_folder, open_source

from llama import Llama as Engine
from llama import convert
from llama.errors import UsageError
from llama.formats.huggingface import CONFIG
from llama.formats.meta import PARAMS
from llama.hub import Files
from training.weights import save_weights


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.bin"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """The file of a checkpoint of the first shape."""
    path = tmp_path / "model.safetensors"
    save_weights(path, *random_model(Shape()))
    return path


# --- An old file stays as it was


def interrupted(weights: dict[str, Tensor]) -> Lazy:
    """Weights during whose reading Ctrl-C is pressed."""

    class Interrupted(Lazy):
        def __getitem__(self, name: str) -> Tensor:
            if len(self.taken) == 5:
                raise KeyboardInterrupt
            return super().__getitem__(name)

    return Interrupted(weights)


@each_version
def test_an_interrupted_export_leaves_the_old_file(path, version):
    config, weights = random_model(Shape())
    path.write_bytes(b"the old file")
    with pytest.raises(KeyboardInterrupt):
        export_bin(path, config, interrupted(weights), version)
    assert path.read_bytes() == b"the old file"
    assert list(path.parent.iterdir()) == [path]


LIMITED = """
import resource, sys
from training.weights import load_model, save_weights
from llama import command, convert
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # a file that grows further gets an error
"""


def limited(code: str, *arguments: str | Path) -> subprocess.CompletedProcess:
    """Runs Python code with files that can't grow past 100,000 bytes."""
    command = [sys.executable, "-c", LIMITED + code, *map(str, arguments)]
    return finish(command, cwd=ROOT, capture_output=True)


@pytest.mark.parametrize("version", [0, 1, 2, 3])
def test_a_full_disk_is_found_before_anything_is_written(checkpoint, path, capsys, monkeypatch, version):
    options = [str(checkpoint), str(path), "--version", str(version)]
    assert convert.main(options) == 0
    size = path.stat().st_size
    path.write_bytes(b"the old file")
    usage = namedtuple("usage", "total used free")
    for free, code in ((size, 0), (size - 1, 4)):
        capsys.readouterr()
        monkeypatch.setattr("shutil.disk_usage", lambda folder, free=free: usage(0, 0, free))
        path.write_bytes(b"the old file")
        assert convert.main(options) == code
    reason = f"No space left on device: {size:,} bytes are needed, {size - 1:,} are free"
    assert capsys.readouterr().err == f"error: {path}: {reason}\n"
    assert path.read_bytes() == b"the old file"
    assert sorted(path.parent.iterdir()) == [path, checkpoint]


@each_version
def test_a_full_disk_leaves_the_old_file(checkpoint, path, version):
    path.write_bytes(b"the old file")
    result = limited(
        "sys.exit(convert.main(sys.argv[1:]))", checkpoint, path, "--version", str(version), "--force"
    )
    assert_refused(result, 4, f"{path}: File too large")
    assert path.read_bytes() == b"the old file"
    assert sorted(path.parent.iterdir()) == [path, checkpoint]


def test_a_full_disk_leaves_the_old_checkpoint(checkpoint):
    expected = checkpoint.read_bytes()
    work = "m = load_model(path); save_weights(path, m.config, m.state_dict())"
    code = f"from pathlib import Path; path = Path(sys.argv[1])\ndef work():\n    {work}\n"
    result = limited(code + "sys.exit(command.run_command(work))", checkpoint)
    assert_refused(result, 4)
    assert str(checkpoint) in result.stderr.decode()
    assert checkpoint.read_bytes() == expected
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_who_reads_the_old_file_goes_on_reading_it(path, checkpoint):
    old = checkpoint.read_bytes()
    path.write_bytes(old)
    with path.open("rb") as reader, checkpoint.open("rb") as other:
        config, weights = random_model(replace(Shape(), n_layers=3))
        export_bin(path, config, weights)
        save_weights(checkpoint, config, weights)
        assert reader.read() == other.read() == old
    assert path.read_bytes() != old
    assert checkpoint.read_bytes() != old


def test_through_a_link_its_target_is_replaced(path):
    target = path.with_name("target.bin")
    target.write_bytes(b"old")
    path.symlink_to(target)
    export_bin(path, *random_model(Shape()))
    assert path.is_symlink()
    assert target.stat().st_size > 3


def test_what_is_not_a_regular_file_is_not_replaced(path):
    path.mkdir()
    with pytest.raises(UsageError, match="is not a regular file"):
        export_bin(path, *random_model(Shape()))
    pipe = path.with_name("pipe")
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="is not a regular file"):
        export_bin(pipe, *random_model(Shape()))


# --- The command line


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    return finish([sys.executable, ROOT / "export.py", *arguments], cwd=cwd, capture_output=True)


def test_the_command_line_writes_the_file_and_says_what_it_came_to(checkpoint, path):
    result = run(checkpoint.parent, path.name, "--version", "2", cwd=path.parent)
    assert (result.returncode, result.stderr) == (0, b"")
    lines = result.stdout.decode().splitlines()
    assert lines[0].startswith(f"model.bin: v2, int8 in groups of 64, {path.stat().st_size:,} bytes, ")
    assert all(line.startswith("error of the rounding, relative rms: 0.") for line in lines[1:])
    assert len(lines) == 4
    export_bin(path.with_name("expected.bin"), *random_model(Shape()), 2)
    assert path.read_bytes() == path.with_name("expected.bin").read_bytes()


def test_the_help_has_examples(tmp_path):
    result = run("--help", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"python export.py out/last model.bin --dtype int8" in result.stdout


def test_the_commands_of_the_readme_and_the_help_are_command_lines():
    text = (ROOT / "README.md").read_text(encoding="utf-8") + convert.HELP.format(name="python export.py")
    commands = re.findall(r"^ *python export\.py (.*)$", text, re.MULTILINE)
    assert len(commands) > 10
    for command in commands:
        convert.parse(command.split("  ")[0].split())


OPTIONS = {
    (): (0, "fp32"),
    ("--version", "1"): (1, "fp32"),
    ("--version", "2"): (2, "int8 in groups of 64"),
    ("--dtype", "fp32"): (0, "fp32"),
    ("--version", "2", "--group-size", "16"): (2, "int8 in groups of 16"),
    ("--version", "3"): (3, "fp32"),
    ("--dtype", "bf16"): (3, "bf16"),
    ("--dtype", "int8"): (3, "int8 in groups of 32"),
    ("--dtype", "int4"): (3, "int4 in groups of 32"),
    ("--dtype", "bf16", "--ends-dtype", "int8"): (3, "bf16 in groups of 32"),
}


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_the_options_choose_the_format(checkpoint, path, capsys, options):
    assert convert.main([str(checkpoint), str(path), *options]) == 0
    version, kind = OPTIONS[options]
    told = capsys.readouterr().out
    assert told.startswith(f"{path}: v{version}, {kind}, ")
    assert ("v0 holds no tokenizer" in told) == (version == 0)
    with Engine(path) as engine:
        assert engine.config.version == version


def test_what_v0_can_not_hold_becomes_v3_unless_v0_is_asked_for(checkpoint, path):
    options = [str(checkpoint), str(path), "--rope-theta", "500000"]
    assert convert.main(options) == 0
    with Engine(path) as engine:
        assert (engine.config.version, engine.config.weight_type) == (3, "fp32")
        assert engine.config.rope_theta == 500000
    assert convert.main([*options, "--version", "0"]) == 2
    assert convert.main([*options, "--force"]) == 0
    with Engine(path) as engine:
        assert engine.config.version == 0


USAGE = {
    ("--version", "4"): "argument --version: invalid choice: 4",
    ("--version", "-2"): "argument --version: invalid choice: -2",
    ("--version", "-1", "--dtype", "int8"): "--version, int8 and int4 are for files, OUT = ",
    ("--version", "2", "--dtype", "fp32"): "--dtype = fp32, allowed int8 with --version 2",
    ("--version", "0", "--dtype", "int8"): "--dtype = int8, allowed fp32 with --version 0",
    ("--dtype", "fp16"): "--dtype = fp16, allowed fp32, bf16, int8 and int4 for OUT.bin",
    ("--version", "2", "--dtype", "int4"): "--dtype = int4, allowed int8 with --version 2",
    ("--version", "1", "--ends-dtype", "int8"): "--ends-dtype is for --version 3",
    ("--version", "2", "--tokenizer", "a.bin"): "--tokenizer is for --version 3",
    ("--group-size", "32"): "--group-size is for --version 2",
    ("--groups", "3"): "unrecognized arguments: --groups 3",
    ("--template", "llama3"): "--template is for --version 3",
    ("--version", "3", "--template", "gemma"): "argument --template: invalid choice: 'gemma'",
}


@pytest.mark.parametrize("options", USAGE, ids=" ".join)
def test_a_wrong_command_line_is_one_line(checkpoint, path, capsys, options):
    with pytest.raises(SystemExit) as end:
        convert.main([str(checkpoint), str(path), *options])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith(f"error: {USAGE[options]}")
    assert error.count("\n") == 1
    assert not path.exists()


# --- llama2.c's command lines: what is written comes first


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """One model as train.py, Hugging Face and Meta have it, by llama2.c's option for each."""
    root = tmp_path_factory.mktemp("folders")
    config, weights = random_model(Shape(tied=False))
    save_weights(root / "model.safetensors", config, weights)
    export_folder(root / "hf", open_source(root / "model.safetensors"))
    (root / "meta").mkdir()
    torch.save({name: tensor.clone() for name, tensor in weights.items()}, root / "meta/consolidated.00.pth")
    sizes = {"dim": config.dim, "n_layers": config.n_layers, "n_heads": config.n_heads}
    params = sizes | {"n_kv_heads": config.n_kv_heads, "norm_eps": config.norm_eps, "vocab_size": -1}
    (root / "meta" / "params.json").write_text(json.dumps(params))
    return {"--checkpoint": root / "model.safetensors", "--hf": root / "hf", "--meta-llama": root / "meta"}


CONTEXT = ("--max-seq-len", "32")  # which Meta's folder does not say


@pytest.mark.parametrize("version", ["0", "1", "2"])
@pytest.mark.parametrize("option", ["--checkpoint", "--hf", "--meta-llama"])
def test_the_file_of_llama2c_is_that_of_ours(folders, path, option, version):
    options = ("--version", version, *CONTEXT)
    expected = path.with_name("expected.bin")
    assert convert.main([str(folders["--checkpoint"]), str(expected), *options]) == 0
    for line in (
        [str(path), option, str(folders[option]), *options],
        [*options, f"{option}={folders[option]}", str(path)],
        [str(folders[option]), *options, str(path)],
    ):
        assert convert.main(line) == 0
        assert path.read_bytes() == expected.read_bytes()
        path.unlink()


def test_version_minus_1_is_a_folder_for_transformers(folders, tmp_path):
    out = tmp_path / "llama2.7b"
    line = [str(out), "--checkpoint", str(folders["--checkpoint"]), "--version", "-1", "--dtype", "fp32"]
    assert convert.main(line) == 0
    assert (out / "config.json").read_bytes() == (folders["--hf"] / "config.json").read_bytes()
    name = "model.safetensors"
    assert (out / name).read_bytes() == (folders["--hf"] / name).read_bytes()


def test_a_folder_of_the_other_kind_is_refused(folders, path, capsys):
    for option, other, missing in (("--hf", "--meta-llama", CONFIG), ("--meta-llama", "--hf", PARAMS)):
        assert convert.main([str(path), option, str(folders[other])]) == 3
        error = capsys.readouterr().err
        assert error == f"error: {folders[other] / missing}: No such file or directory\n"


@pytest.mark.parametrize(
    "line", [[], ["out.bin"], ["a", "b", "c.bin"], ["a", "b.bin", "--hf", "c"], ["--hf", "c"]], ids=" ".join
)
def test_too_few_and_too_many_models_are_one_line(line, capsys):
    with pytest.raises(SystemExit) as end:
        convert.main(line)
    assert end.value.code == 2
    allowed = "allowed MODEL OUT, or OUT and one of --checkpoint, --meta-llama and --hf"
    assert capsys.readouterr().err == f"error: {allowed}, --help lists the options\n"


def test_a_name_of_the_hub_is_a_model_too(folders, path, monkeypatch):
    def find(name: str) -> Files:
        return Files(os.fspath(folders["--hf"]) if name == "owner/name" else name, None)

    monkeypatch.setattr(convert, "find", find)
    assert convert.main(["owner/name", str(path)]) == 0
    by_name = path.read_bytes()
    assert convert.main([str(path), "--hf", "owner/name"]) == 0
    assert path.read_bytes() == by_name
    assert convert.main([str(folders["--hf"]), str(path)]) == 0
    assert path.read_bytes() == by_name


def test_errors_are_one_line_and_have_the_exit_status_of_their_kind(checkpoint, path, capsys):
    folder = path.parent / "empty"
    folder.mkdir()
    cases = {
        (str(checkpoint), str(path), "--version", "2", "--group-size", "7"): (
            2,
            "group_size = 7, allowed divisors of dim = 64 and hidden_dim = 192",
        ),
        (str(checkpoint), str(checkpoint)): (2, f"{checkpoint}: is the model itself"),
        (str(folder), str(path)): (
            3,
            f"{folder}: is no folder of a model, allowed is one with config.json (Hugging Face), "
            "params.json (Meta), model.safetensors (train.py)",
        ),
        (str(path.parent / "no"), str(path)): (3, f"{path.parent / 'no'}: No such file or directory"),
        (str(checkpoint), str(path.parent)): (
            2,
            f"{path.parent}: exists already, allowed a new or an empty folder",
        ),
        (str(checkpoint), str(path), "--version", "3", "--max-seq-len", "-1"): (
            2,
            "max_seq_len = -1, allowed 1 or more",
        ),
    }
    expected = checkpoint.read_bytes()
    for arguments, (code, message) in cases.items():
        assert convert.main(list(arguments)) == code
        assert capsys.readouterr().err == f"error: {message}\n"
    assert checkpoint.read_bytes() == expected
    assert not path.exists()
