"""Seeds for tests/fuzz/fuzz.c: tiny right files of every kind, in a folder for each entry.

    make fuzz, or with the folders of tests in PYTHONPATH: python tests/fuzz/seeds.py build/fuzz/seeds

They are made, not stored: a corpus is what the fuzzer finds from them.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from pathlib import Path

import checkpoints
import numpy as np
from checkpoints import Shape
from helpers import DATA, write_ranked
from test_export import config_of, named
from tiny_models import VOCABULARY
from torch_formats import export_v3

from llama.formats.adapter_file import MATRICES, write_adapter
from llama.formats.adapters import Adapter
from llama.formats.source import tensor_shapes
from llama.formats.tensor import Tensor

SMALL = Shape(
    dim=4, hidden_dim=6, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=5, max_seq_len=8, group_size=2
)
SEALED, OPEN = b"\1", b"\0"  # the first byte of a file's entry: its checksum is made right, or left
TEXTS = (
    "a b",
    "Once upon a time",
    "é日 \r\n\t 12345's",
    "<s>a</s><sep>",
    "  a   b  ",
    "a" * 40,
    "\0\ufeff\U0001f600",
)
COMMANDS = (
    "m.bin -i a -n 5 -t 0.5 -p 0.9 -s 1",
    "m.bin --stop=a --stop b --top-k=5 --min-p=0.1 -m chat -y b --template llama3",
    "--info m.bin --kv fp16 -c 10 -j 2 --exact",
    "m.bin --perplexity a.txt --rope-theta 1e6 --lora a:0.5 --dtype int4 --no-cache --stats",
    r"m.bin -e -i a\n\x41\q --repeat-penalty 1.1 --presence-penalty -1 --frequency-penalty=2 --samples 3",
)


def models(folder: Path) -> dict[str, bytes]:
    """A model of each version and type, those of v3 with a tokenizer."""
    weights = named(SMALL, checkpoints.random_weights(SMALL))
    for version in (0, 1, 2):
        checkpoints.write(folder / f"v{version}", SMALL, version)
    for dtype in ("fp32", "bf16", "int8", "int4"):
        export_v3(folder / dtype, config_of(SMALL), weights, dtype)
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return files | {name: (DATA / f"{name}.bin").read_bytes() for name in ("sample_v3", "sample_v3_chat")}


def adapter(path: Path) -> bytes:
    """One of rank 2 for the model of fuzz.c."""
    pairs, values = {}, np.random.default_rng(1)
    for name, (rows, *cols) in tensor_shapes(config_of(SMALL)).items():
        if any(name.endswith(f"{matrix}.weight") for matrix in MATRICES):
            halves = (values.normal(size=size).astype(np.float32) for size in ((2, cols[0]), (rows, 2)))
            pairs[name] = tuple(map(Tensor.of, halves))
    write_adapter(path, Adapter("adapter", "", 1, pairs), config_of(SMALL))
    return path.read_bytes()


def tokenizers(path: Path) -> dict[str, bytes]:
    samples = {
        kind: (DATA / f"sample_{kind}.bin").read_bytes()
        for kind in ("bytes", "characters", "edges", "unigram")
    }
    return samples | {"llama2c": write_ranked(path, VOCABULARY).read_bytes()}


def entries(folder: Path) -> dict[str, list[bytes]]:
    """The seeds of each entry. folder: an empty one for files on the way."""
    texts = [text.encode() for text in TEXTS]
    (folder / "models").mkdir()
    return {
        "model": [first + data for data in models(folder / "models").values() for first in (SEALED, OPEN)],
        "adapter": [SEALED + adapter(folder / "adapter"), OPEN + adapter(folder / "adapter")],
        "restore": [bytes([1 | 32]), bytes([1]) + bytes(60) + b"\1", bytes([16 | 1]) + bytes(80)],
        "tokenizer": list(tokenizers(folder / "tokenizer").values()),
        "encode": [bytes([choice]) + text for choice in range(10) for text in texts],
        "stream": [struct.pack("3B", n, 1, 2) + b"ab\3" + text for n in range(4) for text in texts],
        "sampler": [
            bytes([choice, 9]) + np.arange(60, dtype="<f4").tobytes() for choice in (2, 6, 14, 30, 0)
        ],
        "options": [command.replace(" ", "\0").encode() for command in COMMANDS],
    }


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for entry, seeds in entries(Path(folder)).items():
            (out / entry).mkdir(parents=True, exist_ok=True)
            for i, seed in enumerate(seeds):
                (out / entry / str(i)).write_bytes(seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
