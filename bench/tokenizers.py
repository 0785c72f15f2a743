"""How fast the engine's tokenizer is beside the library that a vocabulary comes from, on one thread.

    python -m bench.tokenizers stories.txt Llama-2-7b/tokenizer.model Meta-Llama-3-8B/original/tokenizer.model

Each line is a vocabulary: MB/s of encoding a text of 1 MB by the library (sentencepiece or tiktoken) and by
the engine, lists of ids in Python included; then how long opening takes from the indexed form and from
llama2.c's tokenizer.bin. Medians of turns in alternation.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from llama import Tokenizer
from llama.formats import tokenizers
from llama.formats import vocabulary as tokens
from llama.formats.split_patterns import LLAMA3_PATTERN

TURNS = 9


def seconds(*works: Callable[[], object]) -> list[float]:
    """The median time of each piece of work."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(TURNS):
        for work, taken in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def library_of(tokenizer: tokenizers.Tokenizer) -> tuple[str, Callable[[str], object]]:
    """The library that reads the file of a tokenizer itself, and its function that encodes."""
    if tokenizer.kind == "sentencepiece":
        return "sentencepiece", tokenizer.model.encode
    import tiktoken

    v = tokenizer.vocabulary
    ranks = {piece: i for i, piece in enumerate(v.pieces) if v.types[i] == tokens.TEXT}
    made = tiktoken.Encoding("peer", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=v.special)
    return "tiktoken", made.encode_ordinary


def line(tokenizer: tokenizers.Tokenizer, text: str, folder: Path) -> str:
    """The figures of one vocabulary."""
    forms = {"indexed": folder / "indexed.bin", "llama2.c": folder / "llama2c.bin"}
    tokenizers.export_bin(tokenizer, forms["indexed"], indexed=True)
    if tokens.fits_llama2c(tokenizer.vocabulary):
        tokenizers.export_bin(tokenizer, forms["llama2.c"])
    else:
        del forms["llama2.c"]
    engine, (name, encode) = Tokenizer(forms["indexed"]), library_of(tokenizer)
    megabytes = len(text.encode()) / 1e6
    peer, ours = seconds(lambda: encode(text), lambda: engine.encode(text, bos=False))
    opened = seconds(*(lambda path=path: Tokenizer(path) for path in forms.values()))
    opening = ", ".join(f"{form} {1e3 * t:.3f} ms" for form, t in zip(forms, opened, strict=True))
    speeds = (
        f"{name} {megabytes / peer:.1f} MB/s, engine {megabytes / ours:.1f} MB/s, ratio {peer / ours:.1f}"
    )
    return f"{tokenizer.path.name} ({tokenizer.vocab_size} tokens): {speeds}; opening: {opening}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path, help="its first megabyte is encoded")
    parser.add_argument(
        "models", type=Path, nargs="+", help="sentencepiece models, or Llama 3's tokenizer.model"
    )
    options = parser.parse_args()
    text = options.text.read_bytes()[:1_000_000].decode(errors="ignore")
    for path in options.models:
        with tempfile.TemporaryDirectory() as folder:
            print(line(tokenizers.load(path), text, Path(folder)))


if __name__ == "__main__":
    main()
