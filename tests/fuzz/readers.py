"""Damages right files of the formats that Python reads: each is refused in a line, or is read.

    make fuzz, or with the folders of tests in PYTHONPATH:
    python tests/fuzz/readers.py --seconds 60 [--only gguf] [--seed 1]

Any other error, more than TIMEOUT seconds or MEMORY bytes is a finding. Its file goes to build/fuzz/readers/,
with kind, seed and number in its name; the exit code is 1.

Left out on purpose: coverage as a guide, which fuzz.c has; what runs out of its bounds here is an exception.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import torch
from gguf_files import PIECES, random_source, tokenizer_bin
from safetensors.numpy import save_file
from seeds import SMALL, TEXTS
from test_export import config_of, named
from test_tokenizer_json import gpt2, llama2, unigram
from torch_formats import export_folder, export_gguf

import llama.info
from llama.errors import LlamaError
from llama.formats import tokenizers
from llama.formats.adapters import SETTINGS, WEIGHTS, open_adapter
from llama.formats.models import open_source
from llama.formats.source import checked_tensors
from model import Config

OUT = Path("build/fuzz/readers")
TIMEOUT, MEMORY = 10, 8 << 30
NUMBERS = (
    b"0",
    b"1",
    b"-1",
    b"255",
    b"2147483648",
    b"-9223372036854775809",
    b"1e999",
    b"null",
    b'"x"',
    b"[]",
    b"{}",
)
TINY = {"n_layers": 1, "n_heads": 2, "max_seq_len": 128, "tied": True}  # most of a file is its header then
INTEGERS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 20)


@dataclass(frozen=True)
class Kind:
    """A kind of model: where a right one is, the files of it that are damaged, and who reads it."""

    path: Path
    files: tuple[Path, ...]
    read: Callable[[Path], object]


# --- What reads


def read_model(path: Path) -> None:
    """All that export.py and llama.info look at."""
    try:
        llama.info.text(llama.info.info(str(path)))
    except LlamaError:
        pass  # one may refuse what the other reads
    for tensor in checked_tensors(open_source(path)).values():
        tensor.floats()


def read_tokenizer(path: Path) -> None:
    tokenizer = tokenizers.load(path)
    for text in TEXTS:
        tokenizer.decode(tokenizer.encode(text))


def read_adapter(folder: Path) -> None:
    for pair in open_adapter(folder, config_of(SMALL), {}).pairs.values():
        for half in pair:
            half.floats()


# --- Right files


def gguf(folder: Path) -> Kind:
    path = folder / "model.gguf"
    tokenizer_bin(folder)
    export_gguf(
        path,
        random_source(Config(**TINY, dim=32, hidden_dim=32, vocab_size=len(PIECES))),
        "int8",
        vocabulary=tokenizers.load(folder / "tokenizer.bin").vocabulary,
    )
    return Kind(path, (path,), read_model)


def huggingface(folder: Path) -> Kind:
    export_folder(folder / "hf", random_source(Config(**TINY, dim=8, hidden_dim=8, vocab_size=16)))
    files = sorted(path for path in (folder / "hf").iterdir() if path.suffix in (".json", ".safetensors"))
    return Kind(folder / "hf", tuple(files), read_model)


def pytorch(folder: Path) -> Kind:
    weights = named(SMALL, checkpoints.random_weights(SMALL))
    shape = {
        "dim": SMALL.dim,
        "n_layers": SMALL.n_layers,
        "n_heads": SMALL.n_heads,
        "n_kv_heads": SMALL.n_kv_heads,
    }
    shape |= {"vocab_size": SMALL.vocab_size, "max_seq_len": SMALL.max_seq_len, "multiple_of": 2}
    torch.save({"model": weights, "model_args": shape}, folder / "model.pt")
    return Kind(folder / "model.pt", (folder / "model.pt",), read_model)


def tokenizer_json(folder: Path, made: Callable[[], dict[str, Any]] = gpt2) -> Kind:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(made()), encoding="utf-8")
    return Kind(path, (path,), read_tokenizer)


def adapter(folder: Path) -> Kind:
    values, tensors = np.random.default_rng(1), {}
    for layer in range(SMALL.n_layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_"
        tensors |= {
            f"{name}{half}.weight": values.normal(size=size).astype(np.float32)
            for half, size in (("A", (2, 4)), ("B", (4, 2)))
        }
    save_file(tensors, folder / WEIGHTS)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["o_proj"]}
    (folder / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    return Kind(folder, (folder / WEIGHTS, folder / SETTINGS), read_adapter)


KINDS: dict[str, Callable[[Path], Kind]] = {
    "gguf": gguf,
    "huggingface": huggingface,
    "pytorch": pytorch,
    "tokenizer_gpt2": tokenizer_json,
    "tokenizer_llama2": lambda folder: tokenizer_json(folder, llama2),
    "tokenizer_unigram": lambda folder: tokenizer_json(folder, unigram),
    "adapter": adapter,
}


# --- Damage


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file with one to four changes, most of them in its first kilobytes, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(changed), rng.choice((64, 1024, 8192, 1 << 30))) or 1)
        match rng.randrange(7):
            case 0:
                changed[at : at + 1] = rng.randbytes(1)
            case 1:
                changed[at : at + 4] = rng.choice(INTEGERS).to_bytes(4, "little")
            case 2:
                changed[at : at + 8] = rng.choice(INTEGERS).to_bytes(8, "little")
            case 3:
                del changed[at : at + rng.randint(1, 40)]
            case 4:
                changed[at:at] = changed[rng.randrange(len(changed)) :][: rng.randint(1, 40)]
            case 5:
                del changed[rng.randrange(len(changed)) + 1 :]
            case _:
                found = list(re.finditer(rb'-?\d+(?:\.\d+)?|true|false|null|"[^"]*"', changed[: 1 << 16]))
                if found:
                    begin, end = rng.choice(found).span()
                    changed[begin:end] = rng.choice(NUMBERS)
        if not changed:
            break
    return bytes(changed)


def alarm(_number: int, _frame: object) -> None:
    raise TimeoutError(f"more than {TIMEOUT} s")


def finding(kind: Kind, rng: random.Random) -> str | None:
    """Reads one damaged file: what went wrong with it, None where nothing did. The file is put back."""
    path = rng.choice(kind.files)
    right = path.read_bytes()
    path.unlink()  # a new file, as the old one may still be mapped
    path.write_bytes(damaged(right, rng))
    signal.alarm(TIMEOUT)
    try:
        kind.read(kind.path)
    except LlamaError as error:
        return f"more than a line: {error}" if "\n" in str(error) else None
    except Exception:  # whatever it is: that is what is looked for
        return traceback.format_exc()
    finally:
        signal.alarm(0)
        OUT.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, OUT / f"last-{path.name}")
        path.unlink()
        path.write_bytes(right)
    return None


def run(name: str, seconds: float, seed: int) -> int:
    """Reads damaged files of a kind for a while. Returns the number of different findings."""
    found: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        kind, end, n = KINDS[name](Path(folder)), time.monotonic() + seconds, 0
        while time.monotonic() < end:
            n += 1
            text = finding(kind, random.Random(f"{seed} {n}"))
            if text is None:
                continue
            place = "\n".join(text.splitlines()[-3:])
            if place not in found:
                for path in OUT.glob("last-*"):
                    path.rename(OUT / f"{name}-{seed}-{n}-{path.name.removeprefix('last-')}")
                print(f"{name}, seed {seed}, file {n}: {text}", file=sys.stderr)
            found.add(place)
    print(f"{name}: {n} damaged files, {len(found)} findings", flush=True)
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="in all (60)")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, alarm)
    names = [options.only] if options.only else list(KINDS)
    sys.exit(sum(run(name, options.seconds / len(names), options.seed) for name in names) > 0)


if __name__ == "__main__":
    main()
