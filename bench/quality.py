"""What each type of weights costs in quality: perplexity and logits beside those of fp32.

    python -m bench.quality out/laptop/last data00.json
    python -m bench.quality stories260K.bin data00.json --tokenizer tok512.bin --types int8+exact,int4:bf16

The source is written as a v3 file of each type into a folder that is removed again, and the engine judges a
text with it, as python -m llama.perplexity does. A type is one of export.py's; one after a colon is that of
embedding and classifier, and what follows a + is for the engine: exact, or fp16 or bf16 for keys and values.
q4_0 is int4 with the values that llama.cpp's rule gives, by the gguf library: what int4+exact has to beat.
The loss is that of perplexity. Errors of logits are over the first tokens of the text, in their own unit.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import struct
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import heading, line
from llama import Llama, convert, perplexity
from llama.command import run_command
from llama.errors import BadFileError, UsageError
from llama.formats import tiles
from llama.formats.export import export_v3
from llama.formats.models import open_source
from llama.formats.source import CLASSIFIER, EMBEDDING
from llama.formats.tensor import Tensor
from llama.formats.v3 import Extras

REFERENCE = "fp32"
TYPES = "fp32+fp16,bf16,int8,int8+exact,int4,int4+exact,q4_0,int4:int4"
TOLD: dict[str, dict[str, Any]] = {"exact": {"exact": True}, "fp16": {"kv": "fp16"}, "bf16": {"kv": "bf16"}}
LOGIT_TOKENS = 512  # of which logits are compared


@dataclass(frozen=True)
class Quality:
    """A row of the table."""

    type: str
    bytes: int  # of the file
    bits_per_weight: float
    perplexity: float
    bits_per_byte: float
    loss: float  # perplexity / that of fp32 - 1
    max_logit_error: float
    rms_logit_error: float


def write(folder: Path, source: str, kind: str, tokenizer: str | None) -> Path:
    """A v3 file of a type. Raises BadFileError, after export.py has said why."""
    path, (dtype, _, ends) = folder / f"{kind.replace(':', '-')}.bin", kind.partition(":")
    arguments = [source, str(path), "--version", "3", "--dtype", dtype]
    arguments += ["--ends-dtype", ends] if ends else []
    arguments += ["--tokenizer", tokenizer] if tokenizer else []
    with contextlib.redirect_stdout(sys.stderr):
        if convert.main(arguments) != 0:
            raise BadFileError(f"{source}: can't be written as {kind}")
    return path


class AsLlamaCpp(Mapping[str, Tensor]):
    """Weights rounded to llama.cpp's Q4_0, to Q8_0 those of embedding and classifier.

    Rows are filled up with zeros to whole groups, as in our int4.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> Tensor:
        from gguf import GGMLQuantizationType, quants

        weight = self._weights[name].floats()
        if weight.ndim == 1:
            return Tensor.of(weight)
        ends = name in (EMBEDDING, CLASSIFIER)
        kind = GGMLQuantizationType.Q8_0 if ends else GGMLQuantizationType.Q4_0
        whole = np.pad(weight, ((0, 0), (0, -weight.shape[1] % tiles.GROUP)))
        rounded = quants.dequantize(quants.quantize(whole, kind), kind)
        return Tensor.of(rounded[:, : weight.shape[1]])

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def tokenizer_in(path: Path) -> tuple[int, int]:
    """Where the tokenizer of a v3 file begins, and its bytes."""
    with path.open("rb") as file:
        return struct.unpack_from("<2Q", file.read(256), 128)


def round_as_llama_cpp(path: Path, source: str) -> None:
    """Puts the weights that llama.cpp's rule makes of a source, as floats, into the place of ours of int4."""
    start, size = tokenizer_in(path)
    extras, found = Extras(path.read_bytes()[start : start + size]), open_source(Path(source))
    export_v3(path, found.config, AsLlamaCpp(found.tensors), REFERENCE, extras=extras)


def weight_bytes(path: Path) -> int:
    """Bytes of the tensors of a v3 file: all that follows its tokenizer."""
    return path.stat().st_size - sum(tokenizer_in(path))


def first_logits(llama: Llama, texts: Iterable[str]) -> np.ndarray:
    """Logits (T, vocab_size) of the first documents, each read alone, T <= LOGIT_TOKENS."""
    found: list[np.ndarray] = []
    for text in texts:
        left = LOGIT_TOKENS - sum(map(len, found))
        if left == 0:
            break
        found.append(llama.logits(llama.encode(text)[: min(left, llama.context)]))
    return np.concatenate(found)


def judge(
    folder: Path, source: str, kind: str, texts: Sequence[str], tokenizer: str | None, options: dict[str, Any]
) -> tuple[Quality, np.ndarray]:
    """What a type is worth, without a comparison, and its logits. Raises BadFileError, UsageError."""
    dtype, *told = kind.split("+")
    if not set(told) <= TOLD.keys():
        raise UsageError(f"--types {kind}: allowed after + are {', '.join(TOLD)}")
    for name in told:
        options = options | TOLD[name]
    path = write(folder, source, "int4" if dtype == "q4_0" else dtype, tokenizer)
    size, weights = path.stat().st_size, weight_bytes(path)
    if dtype == "q4_0":
        round_as_llama_cpp(path, source)
    with Llama(path, **options) as llama:
        read = perplexity.measure(llama, iter(texts))
        bits, logits = 8 * weights / llama.parameters, first_logits(llama, texts)
    path.unlink()
    return Quality(kind, size, bits, read.perplexity, read.bits_per_byte, 0.0, 0.0, 0.0), logits


def beside(found: Quality, logits: np.ndarray, reference: Quality, expected: np.ndarray) -> Quality:
    """The same with the comparison."""
    errors = np.abs(logits - expected)
    loss, rms = found.perplexity / reference.perplexity - 1, math.sqrt(np.square(errors, dtype=float).mean())
    changes = {"loss": loss, "max_logit_error": float(errors.max()), "rms_logit_error": rms}
    return Quality(**asdict(found) | changes)


def measure(
    source: str, kinds: Sequence[str], texts: Sequence[str], tokenizer: str | None, options: dict[str, Any]
) -> list[Quality]:
    """A row for fp32, then one for each type. options: of Llama. Raises BadFileError, UsageError."""
    rows: list[Quality] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in dict.fromkeys([REFERENCE, *kinds]):
            found, logits = judge(Path(folder), source, kind, texts, tokenizer, options)
            if not rows:
                expected = logits
            rows.append(beside(found, logits, rows[0], expected) if rows else found)
    return rows


def table(rows: Sequence[Quality]) -> str:
    titles = ["type", "bytes", "bits per weight", "perplexity", "bits per byte", "loss"]
    titles += ["max logit error", "rms logit error"]
    lines = [heading(titles)]
    for row in rows:
        cells = [row.type, f"{row.bytes:,}", f"{row.bits_per_weight:.2f}", f"{row.perplexity:.4f}"]
        cells += [f"{row.bits_per_byte:.4f}", f"{row.loss:+.2%}", f"{row.max_logit_error:.3f}"]
        lines.append(line([*cells, f"{row.rms_logit_error:.4f}"]))
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("bench.quality", description=__doc__, formatter_class=form)
    parser.add_argument("source", help="what export.py reads")
    parser.add_argument("text", help="what llama.perplexity reads")
    parser.add_argument("--tokenizer", help="default: the one beside the source")
    parser.add_argument("--types", default=TYPES, help=f"default: {TYPES}; {REFERENCE} is always there")
    parser.add_argument("--documents", type=int, help="how many of the text (default: all)")
    parser.add_argument("-c", "--context", type=int, help="positions (default: the model's)")
    parser.add_argument("-j", "--threads", type=int, help="default: chosen by size")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    options = parser.parse_args(arguments)
    if options.documents is not None and options.documents < 1:
        parser.error(f"--documents = {options.documents}, allowed 1 or more")
    texts = list(itertools.islice(perplexity.documents(options.text), options.documents))
    if not texts:
        raise BadFileError(f"{options.text}: holds no text")
    settings = {"context": options.context, "threads": options.threads}
    rows = measure(options.source, options.types.split(","), texts, options.tokenizer, settings)
    print(json.dumps([asdict(row) for row in rows]) if options.json else table(rows))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
