"""Write text with a checkpoint in PyTorch.

    python sample.py                              # with out/last, the newest checkpoint of train.py
    python sample.py out/last --prompt "Once upon a time"
    python sample.py out/last --num_samples 3 --max_new_tokens 200 --temperature 0.8 --top_k 50 --top_p 0.9
    python sample.py --checkpoint=out/best --start="Once upon a time"      # llama2.c's words for it

The text goes to standard output as it comes, as ./run writes it: the prompt, what follows it, a newline, and
--- between texts. Greedy text (--temperature 0) is that of ./run on the exported model. A seed gives the same
text again, but not the one that it gives ./run, which draws with another generator. Of several texts each has
the seed after that of the one before; up to 16 are rows of one batch.

Left out on purpose: penalties, chat and speed, which run.c has.
"""

from __future__ import annotations

import argparse
import codecs
import os
import sys
from pathlib import Path

import torch

from llama import Tokenizer
from llama.command import Parser, path_type, run_command
from llama.errors import BadFileError, UsageError
from llama.formats.source import Source
from training.generation import check_sampling, generate_together, stream
from training.named import open_named
from training.parallel import memory_told, usable_device
from training.weights import model_of


def read_prompt(options: argparse.Namespace) -> str:
    """The prompt; of a file, UTF-8, without the newline that ends it. Raises BadFileError."""
    if options.prompt_file is None:
        return os.fsencode(options.prompt).decode(errors="replace")
    try:
        if options.prompt_file == "-":
            data = sys.stdin.buffer.read()
        else:
            data = Path(options.prompt_file).read_bytes()
    except OSError as error:
        raise BadFileError(f"{options.prompt_file}: {error.strerror}") from None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadFileError(f"{options.prompt_file}: is UTF-16, allowed UTF-8")
    return data.decode(errors="replace").removesuffix("\n")


def open_model(name: str, tokenizer: Path | None) -> tuple[Source, Tokenizer]:
    """A model by its path or its name on the hub, with its tokenizer, or the one given.

    Raises BadFileError, also where there is none.
    """
    source, vocabulary = open_named(name, tokenizer)
    if vocabulary is None:
        raise BadFileError(f"{name}: has no tokenizer, nor is one beside it: name one with --tokenizer")
    return source, Tokenizer.from_bytes(vocabulary.indexed, tokenizer or source.name)


# --- The program

HELP = """Write text with a checkpoint of train.py.

  python sample.py                                                       with out/last
  python sample.py out/last --prompt "Once upon a time"
  python sample.py out/last --num_samples 3 --temperature 0.8 --top_k 50 --top_p 0.9 --seed 1337
  echo "Once upon a time" | python sample.py out/last --prompt_file - --temperature 0
  python sample.py --checkpoint=out/best --start="Once upon a time"      llama2.c's words for it"""

NEWEST = Path("out/last")
TOGETHER = 16  # texts that are rows of one batch
START_FILE = "FILE:"  # before the name of a file that --start is in


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of a command line."""
    parser = Parser(description=HELP)
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    about = f"a folder of train.py, or a model of another format ({NEWEST})"
    which.add_argument("place", type=path_type, nargs="?", metavar="CHECKPOINT", help=about)
    which.add_argument("--checkpoint", type=path_type, metavar="CHECKPOINT", help="the same")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", default="", metavar="TEXT", help="go on from TEXT (a new text)")
    source.add_argument("--prompt_file", metavar="FILE", help="read it from FILE, - for standard input")
    source.add_argument("--start", metavar="TEXT", help="as --prompt, or FILE:NAME as --prompt_file")
    add("--num_samples", type=int, default=1, metavar="N", help="texts to write (1)")
    add("--max_new_tokens", type=int, default=256, metavar="N", help="length of each at most (256)")
    add("--temperature", type=float, default=1.0, metavar="T", help="0: always the most likely token (1.0)")
    add("--top_k", type=int, default=0, metavar="K", help="draw from the K most likely tokens (0: off)")
    add("--top_p", type=float, default=0.9, metavar="P", help="from those that reach P (0.9; 0 or 1: off)")
    add("--seed", type=int, default=1337, metavar="S", help="of the first text; then the next ones (1337)")
    add("--device", metavar="D", help="cpu, cuda, cuda:1, mps (cuda where there is one)")
    add("--tokenizer", type=path_type, metavar="FILE", help="default: in the model or beside it")
    options = parser.parse_args(arguments)
    options.checkpoint = options.place or options.checkpoint or NEWEST
    if options.start is not None and options.start.startswith(START_FILE):
        options.prompt_file = options.start.removeprefix(START_FILE)
    elif options.start is not None:
        options.prompt = options.start
    return options


def check(options: argparse.Namespace) -> None:
    """Raises UsageError for an option out of range, before anything is read."""
    check_sampling(options.temperature, options.top_k, options.top_p)
    if options.prompt_file == "":
        raise UsageError("prompt_file is empty, allowed is a path")
    if options.num_samples < 1:
        raise UsageError(f"num_samples = {options.num_samples}, allowed 1 or more")
    if options.max_new_tokens < 0:
        raise UsageError(f"max_new_tokens = {options.max_new_tokens}, allowed 0 or more")
    if not 0 <= options.seed < 2**64:
        raise UsageError(f"seed = {options.seed}, allowed 0 to 2**64 - 1")


def write(text: str) -> None:
    """Writes to standard output at once. Raises OSError."""
    sys.stdout.buffer.write(text.encode(errors="replace"))
    sys.stdout.buffer.flush()


@memory_told()
def sample(options: argparse.Namespace) -> None:
    """Does what a command line says."""
    check(options)
    device = usable_device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    prompt = read_prompt(options)
    source, tokenizer = open_model(str(options.checkpoint), options.tokenizer)
    model = model_of(source, device)
    ids = tokenizer.encode(prompt, bos=source.add_bos or not prompt)  # a text goes on from a token
    sampling = (options.temperature, options.top_k, options.top_p)
    stop_ids = {tokenizer.bos_id, tokenizer.eos_id, *source.stops}
    for first in range(0, options.num_samples, TOGETHER):
        seeds = range(options.seed + first, options.seed + min(first + TOGETHER, options.num_samples))
        generators = [torch.Generator().manual_seed(seed % 2**64) for seed in seeds]  # on the CPU
        texts = generate_together(model, ids, options.max_new_tokens, *sampling, generators, stop_ids)
        for index, tokens in enumerate(texts, first):
            write(("---\n" if index else "") + prompt)
            for piece in stream(tokenizer, ids, tokens):
                write(piece)
            write("\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line without its program name (None: sys.argv) and returns the exit status."""
    options = parse(arguments)
    return run_command(lambda: sample(options))


if __name__ == "__main__":
    sys.exit(main())
