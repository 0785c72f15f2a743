"""Models made of others, without training: more or fewer layers, weighted sums, other tokens.

  python surgery.py Llama-3.2-1B deeper --layers 0-11,4-15    24 layers of 16, for training on
  python surgery.py Llama-3.2-1B deeper --layers 0-7,0-15 --silent    those that come again add nothing yet
  python surgery.py Llama-3.2-1B small.bin --drop 10-13 --dtype int8
  python surgery.py a mean --merge b                          their mean
  python surgery.py a:0.7 sum.bin --merge b:0.2 --merge c:0.1
  python surgery.py tuned:1 both --merge other:1 --merge base:-1    what both learnt beside base
  python surgery.py Llama-3.2-1B other --vocabulary data/mine.model

MODEL and OUT are those of export.py. Several changes are made in this order: merging, layers, vocabulary.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

from llama.command import Parser, path_type, run_command, started_as
from llama.convert import add_written_options, beside, settle, write
from llama.errors import BadFileError
from llama.formats import tokenizers
from llama.formats.models import open_source
from llama.formats.source import Source
from llama.formats.surgery import check_tokens, numbers, weighted, with_layers, with_vocabulary
from llama.formats.text import with_text
from llama.formats.vocabulary import Vocabulary
from llama.hub import find


def weighed(text: str) -> tuple[str, float]:
    """NAME or NAME:WEIGHT as a name and a weight, which is 1 unless it is said.

    >>> weighed("out/last:0.5"), weighed("owner/name:Q4_K_M")
    (('out/last', 0.5), ('owner/name:Q4_K_M', 1.0))
    """
    name, _, said = text.rpartition(":")
    try:
        weight = float(said)
    except ValueError:
        weight = math.nan
    known = name and math.isfinite(weight) and not Path(text).exists()
    return (name, weight) if known else (text, 1.0)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line, with format, version and type settled."""
    parser = Parser(prog=started_as("surgery"), description=__doc__)
    parser.add_argument("source", metavar="MODEL[:WEIGHT]", help="what export.py reads")
    parser.add_argument("out", type=path_type, metavar="OUT", help="OUT.bin, OUT.gguf, or else a new folder")
    group = parser.add_argument_group("what is changed")
    merge = "add another model of the same shape; weights (1) are divided by their sum"
    group.add_argument("--merge", action="append", default=[], metavar="MODEL[:WEIGHT]", help=merge)
    layers = group.add_mutually_exclusive_group()
    layers.add_argument("--layers", metavar="LIST", help="the layers to have, such as 0-11,4-15")
    layers.add_argument("--drop", metavar="LIST", help="the layers to leave out")
    group.add_argument("--silent", action="store_true", help="layers that come again add nothing at first")
    vocabulary = "a tokenizer (.model, .json, .bin) whose tokens to have instead, made of those of the model"
    group.add_argument("--vocabulary", type=path_type, metavar="FILE", help=vocabulary)
    add_written_options(parser)
    options = parser.parse_args(arguments)
    if not (options.merge or options.layers or options.drop or options.vocabulary):
        parser.error("allowed one of --merge, --layers, --drop and --vocabulary at least")
    if options.silent and not options.layers:
        parser.error("--silent is for --layers")
    if options.vocabulary and options.tokenizer:
        parser.error("--tokenizer is for the model's own tokens, with --vocabulary there are others")
    if options.vocabulary and options.out.suffix == ".bin" and options.version is None:
        options.version = 3  # the tokens are in the file
    settle(options, parser)
    if options.format == "adapter":
        parser.error(f"OUT = {options.out}, allowed a model")
    return options


def opened(name: str, tokenizer: Path | None = None) -> tuple[Source, Path, Path | None]:
    """A model by its name, where it lies, and the tokenizer that was found for it. Raises as find does."""
    model, found = find(name, None if tokenizer is None else str(tokenizer))
    return open_source(Path(model)), Path(model), Path(found) if found else None


def tokens_of(source: Source, path: Path, tokenizer: Path | None) -> Vocabulary | None:
    """Its tokens, None if nothing says them. Raises BadFileError."""
    return with_text(source, beside(path), tokenizer)[1]


def merged(options: argparse.Namespace, first: tuple[Source, Path, Path | None], weight: float) -> Source:
    """A model with those of --merge added. Raises UsageError, BadFileError, OSError."""
    names, weights = zip(*map(weighed, options.merge), strict=True)
    others = [opened(name) for name in names]
    source = weighted([first[0], *(other[0] for other in others)], [weight, *weights])
    for other in others:
        check_tokens(tokens_of(*first), tokens_of(*other), other[0].name)
    return source


def operated(options: argparse.Namespace) -> Source:
    """The model that the options make. Raises UsageError, BadFileError, OSError.

    The options then have the paths of the model and of the tokenizer to write.
    """
    name, weight = weighed(options.source)
    first = source, options.source, options.tokenizer = opened(name, options.tokenizer)
    n_layers = source.config.n_layers
    if options.merge:
        source = merged(options, first, weight)
    if options.drop:
        dropped = numbers(options.drop, n_layers, "drop")
        source = with_layers(source, [i for i in range(n_layers) if i not in dropped])
    elif options.layers:
        source = with_layers(source, numbers(options.layers, n_layers, "layers"), options.silent)
    if options.vocabulary:
        if (tokens := tokens_of(*first)) is None:
            raise BadFileError(
                f"{source.name}: has no tokenizer, nor is one beside it: its tokens are unknown"
            )
        options.tokenizer = options.vocabulary
        source = with_vocabulary(source, tokens, tokenizers.load(options.vocabulary).vocabulary)
    return source


def main(arguments: list[str]) -> None:
    options, start = parse(arguments), time.perf_counter()
    write(options, operated(options), start)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
