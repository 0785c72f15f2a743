"""Tokenizers: train a sentencepiece BPE on any text, read and convert those of Llama models.

    python tokenizer.py train --input books/ --vocab_size 4096 --output tok4096.model
    python tokenizer.py export tok4096.model             # writes tok4096.bin beside it, as llama2.c has it
    python tokenizer.py export tok4096.model --indexed   # the engine's own form, which opens at once
    python tokenizer.py export Meta-Llama-3-8B/original/tokenizer.model --output llama3.bin
    python tokenizer.py export SmolLM-135M/tokenizer.json --output tokenizer.bin
    python tokenizer.py --tokenizer-model=DIR/tokenizer.model   # as in llama2.c: writes DIR/tokenizer.bin
    python tokenizer.py encode tok4096.model "Once upon a time"
    python tokenizer.py decode tok4096.model 403 407 261
    python tokenizer.py info tok4096.model

It reads sentencepiece models (BPE and UNIGRAM), Llama 3's tokenizer.model, a tokenizer.json of Hugging Face
(characters as Llama 2 has them, byte-level as Llama 3, GPT-2 and SmolLM, Unigram), what export writes, and
what is in a model's file (v3, GGUF).
From Python:

    tokenizer = load("tok4096.model")
    assert tokenizer.decode(tokenizer.encode("Once upon a time", bos=True)) == "Once upon a time"

A vocabulary trained here has llama2.c's options, but keeps whitespace as it is, so that the engine, which
can't know better from a tokenizer.bin, gives the same ids. Text in .txt, .json, .jsonl and .parquet files is
read here too, for training and for dataset.py.

Left out on purpose: text normalisation, which the engine does not have; chat.
"""

from __future__ import annotations

import argparse
import re
import sys

from llama.command import Parser, path_type, run_command
from llama.errors import UsageError, one_line
from llama.formats.tokenizers import OF_MODEL, Tokenizer, export_bin, load
from llama.formats.vocabulary import UNIGRAM
from training.text import add_text_options, sample, text_files, text_format
from training.tokenizers import train


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="tokenizer.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    llama2c = "the same as export PATH, as llama2.c has it"
    parser.add_argument("-t", "--tokenizer-model", type=path_type, metavar="PATH", help=llama2c)
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("train", help="train a vocabulary on text")
    add_text_options(command)
    command.add_argument("--vocab_size", "--vocab-size", type=int, required=True, help="number of tokens")
    command.add_argument(
        "--output", type=path_type, required=True, help="the .model to write, a .bin goes beside it"
    )
    command.add_argument("--character_coverage", type=float, default=1.0, help="of the text (%(default)s)")
    command.add_argument("--max_bytes", type=int, default=500_000_000, help="of text to read (%(default)s)")
    for name, about in (
        ("export", "write tokenizer.bin"),
        ("encode", "print ids"),
        ("decode", "print text"),
        ("info", "print what it is"),
    ):
        command = commands.add_parser(name, help=about)
        command.add_argument(
            "model", type=path_type, help="a file, or a folder with tokenizer.model or .json"
        )
        if name == "export":
            command.add_argument("--output", type=path_type, help="default: beside it")
            command.add_argument(
                "--indexed", action="store_true", help="not llama2.c's form, but the engine's"
            )
        elif name == "encode":
            command.add_argument("text", nargs="?", help="default: standard input")
            for flag in ("bos", "eos", "special"):
                command.add_argument(f"--{flag}", action="store_true")
        elif name == "decode":
            command.add_argument("ids", nargs="*", type=int, help="default: from standard input")
    options = parser.parse_args(arguments)
    if options.tokenizer_model and not options.command:
        given = {"command": "export", "model": options.tokenizer_model, "output": None, "indexed": False}
        return argparse.Namespace(**given)
    if options.tokenizer_model or not options.command:
        parser.error("allowed are a command, or --tokenizer-model alone")
    return options


def print_info(tokenizer: Tokenizer) -> None:
    for name in ("path", "kind", "vocab_size", "bos_id", "eos_id", "hash"):
        print(f"{name:12}{one_line(getattr(tokenizer, name))}")
    v, special = tokenizer.vocabulary, [*tokenizer.special]
    by = "none: Unigram" if v.kind == UNIGRAM else f"{('characters', 'bytes')[v.kind]} by scores"
    print(f"{'merges':12}{by if v.merges is None else by.replace('scores', 'pairs')}")
    print(f"{'special':12}{len(special)}: {one_line(' '.join(special[:4]))}{' ...' if special[4:] else ''}")


def ids_of(text: str) -> list[int]:
    """The ids that a text names. Raises UsageError."""
    for word in (words := text.split()):
        if not re.fullmatch("-?[0-9]{1,19}", word):
            raise UsageError(f"token id = {word!r:.40}, allowed whole numbers")
    return [*map(int, words)]


def train_command(options: argparse.Namespace) -> Tokenizer:
    """Trains a vocabulary and writes it, with a .bin beside it. Raises UsageError, BadFileError, OSError."""
    if options.output.suffix != ".model":  # what is written beside a .bin would be written over it
        raise UsageError(f"--output = {options.output}, allowed a name that ends in .model")
    texts = sample(text_files(options.input), text_format(options), options.max_bytes)
    tokenizer = train(texts, options.vocab_size, options.output, options.character_coverage)
    export_bin(tokenizer, options.output.with_suffix(".bin"))
    return tokenizer


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    if options.command == "train":
        return print_info(train_command(options))
    tokenizer = load(options.model)
    if options.command == "export":
        path = tokenizer.path  # which for a model may end in .bin
        beside = path.with_name("tokenizer.bin") if tokenizer.kind == OF_MODEL else path.with_suffix(".bin")
        output = options.output or beside
        if tokenizer.kind == OF_MODEL and output.exists() and output.samefile(path):
            raise UsageError(f"--output = {output}, which is the model")
        export_bin(tokenizer, output, options.indexed)
    elif options.command == "encode":
        text = sys.stdin.read() if options.text is None else options.text
        print(*tokenizer.encode(text, options.bos, options.eos, options.special))
    elif options.command == "decode":
        print(tokenizer.decode(options.ids or ids_of(sys.stdin.read())))
    else:
        print_info(tokenizer)
    return None


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
