"""What holding texts to a schema adds to a step, at vocabularies of any size.

    python -m bench.masks SmolLM2-135M-Instruct.Q4_1.gguf
    python -m bench.masks --vocabulary Llama-3.1-8B/tokenizer.model

For each model, and for a random one of SmolLM2-135M's shape in int8 with each vocabulary: milliseconds of a
step of 1 and of 8 texts, and of the masks in it, which llguidance makes one after another.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.models import RandomWeights
from bench.report import cell, heading, line
from llama import Llama
from llama.batch import Batch, Mask
from llama.command import run_command
from llama.formats import tokenizers
from llama.formats.config import Config
from llama.formats.export import export_v3
from llama.formats.v3 import Extras
from llama.names import opened
from llama.server.constrain import Grammars

TEXTS = (1, 8)
SHAPE = {"dim": 576, "n_layers": 30, "n_heads": 9, "n_kv_heads": 3, "hidden_dim": 1536, "max_seq_len": 1024}
FIELDS = {
    "name": {"type": "string", "maxLength": 30},
    "age": {"type": "integer", "minimum": 0},
    "kind": {"enum": ["fox", "hare", "wood"]},
    "story": {"type": "string", "minLength": 300},
}
SCHEMA = {"type": "object", "properties": FIELDS, "required": list(FIELDS), "additionalProperties": False}


def timed(mask: Mask, spent: list[float]) -> Mask:
    """A mask that notes how long it takes, in milliseconds."""

    def measured(tokens: list[int]) -> object:
        start = time.process_time()
        words = mask(tokens)
        spent.append(1000 * (time.process_time() - start))
        return words

    return measured


def steps(llama: Llama, grammars: Grammars, n: int, tokens: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each step of n texts in which all draw, and of the masks in it."""
    spent: list[float] = []
    whole, parts = [], []
    with Batch(llama, sequences=n, context=1024) as batch:
        masks = grammars.masks(SCHEMA, n)
        for i in range(n):
            batch.join([300 + i, 301], mask=timed(masks[i], spent), max_tokens=tokens, seed=i + 1)
        while batch.busy:
            spent.clear()
            start = time.process_time()
            drawn = sum(event.token is not None for event in batch.step())
            if drawn == len(spent) == n:
                whole.append(1000 * (time.process_time() - start))
                parts.append(sum(spent))
    return whole, parts


def table(models: Iterable[tuple[str, Llama]], tokens: int) -> Iterator[str]:
    yield heading(["model", "tokens known", "texts", "step, CPU ms", "its masks, CPU ms", "share"])
    for name, llama in models:
        grammars = Grammars(llama)
        start = time.perf_counter()
        _ = grammars.tokenizer
        print(f"{name}: the vocabulary took {time.perf_counter() - start:.2f} s, once", file=sys.stderr)
        for n in TEXTS:
            whole, parts = steps(llama, grammars, n, tokens)
            share = statistics.median(part / step for part, step in zip(parts, whole, strict=True))
            cells = [name, f"{llama.config.vocab_size:,}", str(n), cell(whole), cell(parts), f"{share:.1%}"]
            yield line(cells)


def write_random(folder: Path, vocabulary: str) -> Path:
    """A random model with a vocabulary."""
    tokenizer = tokenizers.load(vocabulary)
    config = Config(**SHAPE, vocab_size=tokenizer.vocab_size, tied=True)
    extras = Extras(tokenizers.to_bin(tokenizer))
    export_v3(folder / "model.bin", config, RandomWeights(config), "int8", extras=extras)
    return folder / "model.bin"


def models(options: argparse.Namespace) -> Iterator[tuple[str, Llama]]:
    """What is to be measured, one at a time."""
    for model in options.models:
        with opened(model, None, "int8") as files, Llama(*files, threads=1) as llama:
            yield Path(model).name, llama
    for vocabulary in options.vocabulary:
        with tempfile.TemporaryDirectory() as folder:
            path = write_random(Path(folder), vocabulary)
            with Llama(path, threads=1) as llama:
                yield "random", llama


def main(arguments: list[str]) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("bench.masks", description=__doc__, formatter_class=form)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument(
        "--vocabulary", action="append", default=[], metavar="FILE", help="a tokenizer's file"
    )
    parser.add_argument("--tokens", type=int, default=150, help="of each text (%(default)s)")
    options = parser.parse_args(arguments)
    for row in table(models(options), options.tokens):
        print(row, flush=True)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
