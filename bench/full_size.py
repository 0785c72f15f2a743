"""How fast export.py brings in a model of full size, and in how much memory: beside cp of the same bytes.

    python -m bench.full_size make --shape 8B --layout meta --out /big/llama3      # bf16, one file of 16 GB
    python -m bench.full_size make --shape 7B --layout huggingface --out /big/llama2  # bf16, shards of 5 GB
    python -m bench.full_size measure /big/llama3 /big/int8.bin --dtype int8
    ./run /big/int8.bin -n 20                                                      # words without meaning

Weights are random (models.py). cp and the export begin with nothing of the source in memory, so that both
read it from the disk, and end when what they wrote is on it. Memory is what a process has for itself: mapped
files, which are the page cache, do not count.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import mmap
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.serialization import set_default_mmap_options, skip_data

from bench.models import RandomWeights, write_tokenizer
from bench.shapes import SHAPES
from llama.command import Parser, run_command
from llama.errors import BadFileError, UsageError
from llama.files import check_room, sync
from llama.formats.export import export_folder
from llama.formats.source import Source, tensor_shapes
from model import Config
from training.weights import to_torch

ROOT = Path(__file__).resolve().parents[1]
OWN = ("RssAnon", "RssShmem")  # of /proc/PID/status: all memory but mapped files
INTERVAL = 0.02  # seconds between two looks at it


# --- Making a model


def make_meta(folder: Path, config: Config) -> None:
    """Meta's layout, as Llama 3.1: a file without values is made, mapped, and the values written into it."""
    path, weights = folder / "consolidated.00.pth", RandomWeights(config)
    shapes = tensor_shapes(config)
    check_room(path, 2 * sum(map(math.prod, shapes.values())))  # mapped, a full disk would be a signal
    with skip_data():  # what torch.empty gives is never touched, so it takes no memory
        torch.save({name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}, path)
    with set_default_mmap_options(mmap.MAP_SHARED):
        tensors = torch.load(path, weights_only=True, mmap=True)
    for name, tensor in tensors.items():
        tensor.copy_(to_torch(weights[name]))
    fields = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "norm_eps", "rope_theta")
    params = {name: getattr(config, name) for name in fields} | {"use_scaled_rope": True}
    (folder / "params.json").write_text(json.dumps(params))


def make_huggingface(folder: Path, config: Config) -> None:
    """Hugging Face's layout, in shards."""
    export_folder(folder, Source("random weights", config, RandomWeights(config), 1, (2,)), "bf16")


def make(shape: str, layout: str, folder: Path) -> None:
    """A random model of bf16, with a tokenizer of its size."""
    config = Config(**SHAPES[shape])
    if folder.exists():
        raise UsageError(f"{folder}: exists already")
    if layout == "meta":
        folder.mkdir(parents=True)
        make_meta(folder, config)
    else:
        make_huggingface(folder, config)
    write_tokenizer(folder / "tokenizer.bin", config.vocab_size)
    for path in folder.iterdir():
        sync(path)


# --- Measuring


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a process took."""

    seconds: float
    processor_seconds: float
    own_bytes: int  # at most
    output: str


def own_bytes(pid: int) -> int:
    """What a process has for itself, 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return sum(
        int(n) << 10 for name, n in re.findall(r"^(\w+):\s+(\d+) kB", status, re.MULTILINE) if name in OWN
    )


def processor_seconds() -> float:
    """Of all processes that this one has waited for."""
    times = os.times()
    return times.children_user + times.children_system


def watched(command: list[str | Path]) -> Measured:
    """Runs a command, whose output must be short. Raises BadFileError if it fails, which says why itself."""
    start, used, most = time.perf_counter(), processor_seconds(), 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            most = max(most, own_bytes(process.pid))
            time.sleep(INTERVAL)
        seconds = time.perf_counter() - start
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise BadFileError(f"{Path(command[1]).name}: ended with {process.returncode}")
    return Measured(seconds, processor_seconds() - used, most, output)


def weights_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".pth", ".safetensors"))


def forget(paths: list[Path]) -> None:
    """Drops files from the page cache, as far as nobody has them mapped."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(paths: list[Path], folder: Path) -> float:
    """Seconds of cp and of writing to the disk what it left in memory. The copy is removed."""
    folder.mkdir(parents=True)
    try:
        start = time.perf_counter()
        subprocess.run(["cp", *paths, folder], check=True)
        for path in folder.iterdir():
            sync(path)
        return time.perf_counter() - start
    finally:
        shutil.rmtree(folder)


def measure(folder: Path, out: Path, options: list[str]) -> None:
    """Prints what cp and export.py took."""
    paths = weights_of(folder)
    size = sum(path.stat().st_size for path in paths) / 1e9
    forget(paths)
    seconds = copy(paths, out.with_name(f"{out.name}.copy"))
    forget(paths)
    found = watched([sys.executable, ROOT / "export.py", folder.resolve(), out.resolve(), *options])
    print(found.output, end="")
    print(f"cp: {size:.2f} GB in {seconds:.1f} s, {size / seconds:.2f} GB/s")
    speed = f"{size / found.seconds:.2f} GB/s, {seconds / found.seconds:.2f} of cp"
    print(f"export: {found.seconds:.1f} s, {speed}; {found.processor_seconds:.1f} s of processor time")
    print(f"memory beyond the page cache: {found.own_bytes / 2**20:,.0f} MiB")


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("make", help="write a random model")
    command.add_argument("--shape", choices=SHAPES, required=True)
    command.add_argument("--layout", choices=("meta", "huggingface"), required=True)
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    command = commands.add_parser("measure", help="export it, and copy it with cp")
    command.add_argument("folder", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("options", nargs=argparse.REMAINDER, help="of export.py")
    options = parser.parse_args(arguments)
    if options.command == "make":
        return run_command(lambda: make(options.shape, options.layout, options.out))
    return run_command(lambda: measure(options.folder, options.out, options.options))


if __name__ == "__main__":
    sys.exit(main())
