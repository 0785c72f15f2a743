"""The commands of the charter and of llama2.c's readme, word for word, in a copy of the checkout.

Nothing is added to a command. What it works on is small: a server on this machine has few stories, folders of
models are tiny, and training is ended by Ctrl-C, which finishes the step, saves and ends.
"""

from __future__ import annotations

import io
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from llama import Llama as Engine
from llama.formats.checkpoint import open_checkpoint
from llama.formats.export import export_folder
from model import Config, Llama
from training.shards import open_split
from training.weights import load_model, save_weights

ARCHIVE = Path("datasets/roneneldan/TinyStories/resolve/main/TinyStories_all_data.tar.gz")
PROGRAMS = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
TRAINS = "machine: "  # the line that train.py begins with once Ctrl-C saves

pytestmark = pytest.mark.slow


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def write_archive(path: Path) -> None:
    """Three files of stories with enough different words for a vocabulary of 4096."""
    rng = random.Random(1)
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as tar:
        for n in range(3):
            words = ["".join(rng.choices("abcdefghijklmnoprstu", k=rng.randint(3, 8))) for _ in range(8000)]
            stories = [{"story": " ".join(words[i : i + 200])} for i in range(0, len(words), 200)]
            data = json.dumps(stories).encode()
            member = tarfile.TarInfo(f"data{n:02}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[str]:
    """The address of a server that has the archive where the hub has it."""
    folder = tmp_path_factory.mktemp("hub")
    write_archive(folder / ARCHIVE)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """The files of the checkout, with the extension that pip install builds, and without a ./run."""
    folder = tmp_path_factory.mktemp("clone")
    for path in (*ROOT.glob("*.py"), ROOT / "run.c", ROOT / "Makefile"):
        shutil.copy(path, folder)
    for name in ("configs", "training", "llama"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def environment(hub) -> dict[str, str]:
    """Of the commands: not of this checkout, a hub on this machine, and a build that takes seconds."""
    known = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MAKEFLAGS")}
    return known | {"HF_ENDPOINT": hub, "no_proxy": "127.0.0.1", "CFLAGS": "-O0"}


@pytest.fixture(scope="module")
def do(clone, environment):
    """Runs a command in the clone and returns what it prints to standard output."""

    def run(command: str, **changes: str) -> str:
        program, *arguments = shlex.split(command)
        result = subprocess.run(
            [*PROGRAMS.get(program, [program]), *arguments],
            cwd=clone,
            env=environment | changes,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, (command, result.stderr[-2000:])
        return result.stdout

    return run


@pytest.fixture(scope="module")
def train(clone, environment):
    """Runs a command that trains, presses Ctrl-C when it begins to, and returns what it prints."""

    def run(command: str) -> str:
        program, *arguments = shlex.split(command)
        process = subprocess.Popen(
            [*PROGRAMS[program], *arguments],
            cwd=clone,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(TRAINS):
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
        errors = process.stderr.read()
        process.wait()
        assert any("the step is finished and saved" in line for line in lines), (command, errors[-2000:])
        return "".join(lines)

    return run


# --- From stories to a story


@pytest.fixture(scope="module")
def run_binary(clone, do) -> Path:
    do("make runfast")
    return clone / "run"


@pytest.fixture(scope="module")
def stories(clone, do) -> Path:
    do("python tinystories.py download")
    return clone / "data" / "TinyStories_all_data"


@pytest.fixture(scope="module")
def first_run(clone, stories, do, train) -> str:
    """What the first training of the clone prints."""
    said = do("python tinystories.py pretokenize")
    assert said.startswith("data/tok4096.model: is not there yet, a vocabulary is trained first\n")
    return train("python train.py")


def test_download_pretokenize_train_and_run_need_no_option(clone, first_run, run_binary, do):
    assert first_run.startswith("recipe: configs/")
    assert "\ndata: data/tok4096, " in first_run
    assert open_split(clone / "data" / "tok4096", "train")[0].vocab_size == 4096
    assert len(do("./run out/model.bin")) > 10


def test_a_vocabulary_of_ones_own_and_a_second_run_in_out(clone, first_run, run_binary, do, train):
    do("python tinystories.py train_vocab --vocab_size=2048")
    do("python tinystories.py pretokenize --vocab_size=2048")
    said = train("python train.py --vocab_source=custom --vocab_size=2048")
    assert said.startswith("out: the run that was there is in out/earlier-1 now\n")
    assert "\ndata: data/tok2048, " in said
    assert open_checkpoint(clone / "out" / "last").config.vocab_size == 2048
    assert open_checkpoint(clone / "out" / "earlier-1" / "last").config.vocab_size == 4096
    assert len(do("./run out/model.bin")) > 10


def test_torchrun_needs_no_option(clone, first_run, train):
    said = train("torchrun --standalone --nproc_per_node=2 train.py")
    assert "\nmachine: 2 x " in said
    assert " ddp, " in said
    assert open_checkpoint(clone / "out" / "last").config.vocab_size == 4096


def test_sample_takes_the_checkpoint_of_a_run(first_run, do):
    text = do('python sample.py --checkpoint=out/last --start="the fox" --num_samples=2 --max_new_tokens=20')
    assert text.startswith("the fox")
    assert "\n---\nthe fox" in text


# --- Building


def test_runomp_builds_what_runfast_does(clone, first_run, run_binary, do):
    text = do("./run out/model.bin -t 0")
    run_binary.unlink()
    do("make runomp")
    assert do("./run out/model.bin -t 0") == text


@pytest.mark.parametrize("target", ["run", "rundebug", "rungnu", "runompgnu"])
def test_every_other_target_of_llama2c_compiles(do, target):
    do(f"make {target}", CFLAGS="-fsyntax-only")


def test_python_runs_what_the_binary_runs(clone, first_run, do):
    shutil.copy(clone / "out" / "model.bin", clone / "stories15M.bin")
    shutil.copy(clone / "out" / "tokenizer.bin", clone / "tokenizer.bin")
    assert do("python -m llama.run stories15M.bin -t 1.0 -p 0.9").strip()


# --- Models from elsewhere


@pytest.fixture(scope="module")
def models(clone) -> Llama:
    """A random model that lies in the clone as Meta's folder, Hugging Face's, and two checkpoints."""
    torch.manual_seed(1)
    config = Config(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=96, vocab_size=300, tied=False)
    model = Llama(config).eval()
    folder = clone / "path" / "to" / "llama" / "7B"
    folder.mkdir(parents=True)
    (clone / "models").mkdir()
    torch.save(model.state_dict(), folder / "consolidated.00.pth")
    params = {"dim": 64, "multiple_of": 32, "n_heads": 4, "n_layers": 2, "n_kv_heads": 2, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(params | {"norm_eps": 1e-5}))
    save_weights(clone / "models" / "model.safetensors", config, model.state_dict())
    sizes = {name: params[name] for name in ("dim", "n_layers", "n_heads", "n_kv_heads")}
    args = sizes | {"multiple_of": 32, "vocab_size": 300, "max_seq_len": config.max_seq_len, "norm_eps": 1e-5}
    torch.save({"model": model.state_dict(), "model_args": args}, clone / "models" / "ckpt.pt")
    export_folder(clone / "hf_model", open_checkpoint(clone / "models" / "model.safetensors"))
    return model


@pytest.mark.parametrize(
    "command",
    [
        "python export.py llama2_7b.bin --meta-llama path/to/llama/7B",
        "python export.py llama2_7b.bin --hf hf_model",
        "python export.py llama2_7b.bin --checkpoint models/model.safetensors --version 0 --dtype fp32",
        "python export.py llama2_7b.bin --checkpoint models/ckpt.pt",
    ],
)
def test_export_writes_the_model_as_version_0(clone, models, do, command):
    assert do(command).startswith("llama2_7b.bin: v0, fp32, ")
    ids = torch.randint(300, (1, 20))
    with Engine(clone / "llama2_7b.bin") as engine, torch.no_grad():
        logits = torch.from_numpy(engine.logits(ids[0].tolist()))
    torch.testing.assert_close(logits, models(ids)[0], rtol=1e-4, atol=1e-5)
    (clone / "llama2_7b.bin").unlink()


def test_version_minus_1_is_a_folder_of_fp16_for_transformers(clone, models, do):
    said = do("python export.py tinyllama --checkpoint models/ckpt.pt --version -1 --dtype fp16")
    assert said.startswith("tinyllama: Hugging Face, fp16, ")
    found = load_model(clone / "tinyllama").state_dict()
    for name, weight in models.state_dict().items():
        assert torch.equal(found[name], weight.half()), name


def test_export_quantises_as_version_2(clone, models, do):
    said = do("python export.py llama2_7b_q80.bin --version 2 --meta-llama path/to/llama/7B --group-size 32")
    assert said.startswith("llama2_7b_q80.bin: v2, int8 in groups of 32, ")
