"""How fast one sequence is written, beside llama2.c where its programs are given.

    python -m bench.decode                              # all shapes and types, 1 thread and all processors
    python -m bench.decode --shapes 260K 15M --repeats 9
    python -m bench.decode --llama2c ../llama2.c/run --llama2c-int8 ../llama2.c/runq

Models have the shapes of the tinyllamas and random weights, which cost the same as real ones. Programs take
turns, so that a bad spell of the machine meets all of them; the table shows medians of the repeats and their
range, in tokens per second. Left out on purpose: prompts, batches, memory and other peers.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import struct
import subprocess
import tempfile
from pathlib import Path

import torch

from export import export_bin
from model import Config, Llama

ROOT = Path(__file__).resolve().parents[1]

SHAPES = {
    "260K": Config(64, 5, 8, 4, hidden_dim=172, vocab_size=512, max_seq_len=512),
    "15M": Config(288, 6, 6, vocab_size=32000, max_seq_len=256),
    "42M": Config(512, 8, 8, hidden_dim=1376, vocab_size=32000, max_seq_len=1024),
    "110M": Config(768, 12, 12, vocab_size=32000, max_seq_len=1024),
}
COLUMNS = ["model", "type", "threads", "cria", "llama2.c", "ratio"]
VERSIONS = {"fp32": 0, "int8": 2}
SPEED = re.compile(r"generated: \d+ tokens, ([\d.]+) tokens/s|achieved tok/s: ([\d.]+)")


def write_tokenizer(path: Path, vocab_size: int) -> None:
    """A vocabulary of the right size: special tokens, bytes, and pieces that no text holds."""
    pieces = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += [f" w{i}" for i in range(vocab_size - len(pieces))]
    records = (struct.pack("<fi", 0.0, len(piece)) + piece.encode() for piece in pieces)
    path.write_bytes(struct.pack("<I", max(map(len, pieces))) + b"".join(records))


def write_model(folder: Path, config: Config, kind: str) -> Path:
    """A random model and its tokenizer. BOS and EOS are never likely, so that no text ends early."""
    torch.manual_seed(1)
    model = Llama(config)
    with torch.no_grad():
        model.tok_embeddings.weight[1:3] = 0
    path = folder / f"{kind}.bin"
    # No group size divides 64 and 172 but 4 and less, which no fast kernel has: there is no int8 of 260K.
    export_bin(path, config, model.state_dict(), VERSIONS[kind])
    write_tokenizer(folder / "tokenizer.bin", config.vocab_size)
    return path


def speed(program: Path, model: Path, threads: int, steps: int) -> float:
    """Tokens per second that a program says of itself."""
    command = [program, model, "-z", model.parent / "tokenizer.bin", "-t", "0", "-n", str(steps)]
    command += ["-j", str(threads)] if program == ROOT / "run" else []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    result = subprocess.run(command, capture_output=True, env=environment, check=True)
    found = SPEED.search(result.stderr.decode(errors="replace"))
    if not found:
        raise RuntimeError(f"{program}: says no speed: {result.stderr[-300:]!r}")
    return float(found[1] or found[2])


def cell(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f}-{max(values):,.0f})"


def compare(name: str, kind: str, threads: int, peer: Path | None, options: argparse.Namespace) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder), SHAPES[name], kind)
        programs = [ROOT / "run", *([peer] if peer else [])]
        found: dict[Path, list[float]] = {program: [] for program in programs}
        for _ in range(options.repeats):
            for program in programs:
                found[program].append(speed(program, model, threads, options.steps))
    cells = [name, kind, str(threads), *(cell(found[program]) for program in programs)]
    if peer:
        cells.append(f"{statistics.median(found[programs[0]]) / statistics.median(found[peer]):.2f}")
    return line(cells)


def line(cells: list[str]) -> str:
    """A row of the table; what is not there stays empty."""
    return "| " + " | ".join(cells + [""] * (len(COLUMNS) - len(cells))) + " |"


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=5, help="of each program (%(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="positions of a text (%(default)s)")
    parser.add_argument("--llama2c", type=Path, help="llama2.c's run, built")
    parser.add_argument("--llama2c-int8", type=Path, help="llama2.c's runq, built")
    options = parser.parse_args()
    peers = {"fp32": options.llama2c, "int8": options.llama2c_int8}
    print(line(COLUMNS), line(["---"] * len(COLUMNS)), sep="\n")
    for name in options.shapes:
        for kind in VERSIONS if name != "260K" else ["fp32"]:
            for threads in sorted({1, os.cpu_count() or 1}):
                peer = peers[kind].resolve() if peers[kind] else None
                print(compare(name, kind, threads, peer, options), flush=True)


if __name__ == "__main__":
    main()
