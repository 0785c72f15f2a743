"""Token shards on disk, written from text in parallel; training/ maps them and cuts them into windows.

    python dataset.py pretokenize --input books/ --tokenizer tok4096.model --output data/books
    python dataset.py chat --input chats.jsonl --model MODEL --output data/chats --show 3
    python dataset.py pretokenize --input books/ --tokenizer tok4096.model --output data/books --part 3/16
    python dataset.py merge data/books         # of the 16 parts, which many machines may write, one folder
    python dataset.py expect data/books --model MODEL    # for train.py --teachers=stored to learn from it
    python dataset.py reverse                  # a toy task in data/reverse: hello=olleh
    python dataset.py info data/books --check  # what it holds; reads every byte and compares checksums

A folder of tokens:

    meta.json            vocabulary, what was read and how, and, once all is there, the totals of each split
    tokenizer.model      the tokenizer's file; tokenizer.bin for the C engine beside it
    train/00000.tokens   shards, in the order of the text
    val/00000.tokens
    train/00000.expected what a model expects of each token, by dataset.py expect (training/expected.py)

A shard: a header of 4096 bytes (JSON, padded with spaces), the tokens as uint16 (uint32 from a vocabulary of
65537 on) padded to 8 bytes, then for each document where it ends, as uint64. Little-endian. A document is BOS
and its text, without EOS. Of chat, it is a conversation by the template of a model (training/conversations.py
says what is read), and of each token follows its weight as a target, as float16; pairs of a chosen and a
rejected answer are two documents in turn. Folders of llama2.c (headerless uint16 .bin files, the first of
them the validation split) are read too.

pretokenize may be stopped at any time and run again: it goes on where it was. The stream of tokens that it
writes does not depend on the number of workers, nor on stops or parts. train.py --mixture mixes folders. Left
out on purpose: removal of duplicates.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

from llama.cache import DTYPES
from llama.command import Parser, path_type, run_command
from llama.errors import BadFileError, UsageError
from llama.files import reading
from llama.formats import tokenizers
from llama.formats.chat_templates import BUILT_IN
from llama.formats.texts import told
from training.conversations import Encoder, coloured
from training.expected import check_beside, path_of
from training.expecting import expect
from training.named import open_text
from training.parts import WHOLE, merge, parse_part
from training.pretokenize import (
    Chats,
    Selection,
    add_writer_options,
    place_of,
    pretokenize,
    print_totals,
    totals,
)
from training.shards import SPLITS, check_shard, documents, open_split
from training.text import RECORDS, add_text_options, read_documents, text_files, text_format
from training.toy import make_reverse


def add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--val", nargs="+", type=path_type, help="folders or files for validation")
    parser.add_argument(
        "--val_every", type=int, default=100, help="without --val: each n-th document (%(default)s)"
    )
    parser.add_argument("--output", type=path_type, required=True, help="the folder to write")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="of the input; merge puts them together")
    add_writer_options(parser)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="dataset.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("pretokenize", help="text to shards of tokens")
    add_text_options(command)
    command.add_argument(
        "--tokenizer", type=path_type, required=True, help="a file, a folder with tokenizer.model, or a model"
    )
    add_output_options(command)
    command = commands.add_parser("chat", help="conversations to shards of tokens and their weights")
    command.add_argument(
        "--input", nargs="+", type=path_type, required=True, help="folders or files: .jsonl .json .parquet"
    )
    command.add_argument(
        "--model", type=path_type, required=True, help="whose template and tokenizer they get"
    )
    command.add_argument("--template", choices=BUILT_IN, help="instead of the one that it has")
    command.add_argument("--show", type=int, default=0, metavar="N", help="print N, what is learnt in colour")
    add_output_options(command)
    command = commands.add_parser("expect", help="what a model expects of each token, for train.py to learn")
    command.add_argument("folder", type=path_type, help="a folder of text that pretokenize wrote")
    command.add_argument("--model", required=True, help="of any format and vocabulary, or a hub name")
    command.add_argument("--top", type=int, default=16, help="tokens kept at each place (%(default)s)")
    command.add_argument("--dtype", choices=DTYPES, help="of a model to convert (int8; bf16 for a small one)")
    command.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="the engine's, or PyTorch's"
    )
    command = commands.add_parser("merge", help="parts to one folder")
    command.add_argument("folder", type=path_type, help="the --output of the parts")
    command = commands.add_parser("reverse", help="the toy task: hello=olleh")
    command.add_argument(
        "--output", type=path_type, default=Path("data/reverse"), help="the folder (%(default)s)"
    )
    command.add_argument("--count", type=int, default=200_000, help="lines to train on (%(default)s)")
    command.add_argument("--val_count", type=int, default=1000, help="lines for validation (%(default)s)")
    command.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    command = commands.add_parser("info", help="print what a folder holds")
    command.add_argument("folder", type=path_type)
    command.add_argument("--check", action="store_true", help="read every byte and compare checksums")
    return parser.parse_args(arguments)


def selections(options: argparse.Namespace) -> tuple[Selection, Selection]:
    """What to train on, and for validation. Raises BadFileError."""
    files, part = text_files(options.input), parse_part(options.part)
    if options.val:
        train, val = Selection(files, part=part), Selection(text_files(options.val), part=part)
        if both := {path.resolve() for path in files} & {path.resolve() for path in val.files}:
            raise BadFileError(f"{min(both)}: is in --input and in --val, allowed one of them")
        return train, val
    if options.val_every < 2:
        raise UsageError(f"val_every = {options.val_every}, allowed 2 or more")
    every = options.val_every
    return Selection(files, every, False, part), Selection(files, every, part=part)


def pretokenize_command(options: argparse.Namespace) -> dict[str, Any]:
    train, val = selections(options)
    form, model = text_format(options), tokenizers.load(options.tokenizer)
    return pretokenize(options.output, model, train, val, form, options.workers, options.shard_tokens)


def first_record(files: list[Path]) -> tuple[str, str]:
    """The first record of the files, and what names it. Raises BadFileError if there is none."""
    for path in files:
        with reading(path) as file:
            for record in read_documents(file, RECORDS):
                return record, place_of(path, 0)
    raise BadFileError(f"{files[0]}: records = 0, allowed 1 or more")


def chat_command(options: argparse.Namespace) -> dict[str, Any]:
    if not 0 <= options.show < 2**31:
        raise UsageError(f"show = {options.show}, allowed 0 to {2**31 - 1}")
    train, val = selections(options)
    source, vocabulary = open_text(str(options.model), options.template)
    tokenizer = tokenizers.load_vocabulary(options.model, tokenizers.OF_MODEL, vocabulary.indexed, vocabulary)
    encoder = Encoder(source, tokenizer.model)
    kind = "pairs" if len(encoder.encode_record(*first_record(train.files))) == 2 else "chat"
    chats = Chats(options.model, kind, options.template, told(source))
    work = (options.workers, options.shard_tokens, chats)
    meta = pretokenize(options.output, tokenizer, train, val, RECORDS, *work)
    show(options.output, encoder, options.show)
    return meta


def show(folder: Path, encoder: Encoder, n: int) -> None:
    """Prints the first n documents for training, what is learnt of them in green."""
    for document in itertools.islice(documents(open_split(folder, "train")), n):
        print(coloured(encoder.tokenizer, *document), end="\n\n")


def print_info(folder: Path, check: bool) -> None:
    for split in SPLITS:
        shards = open_split(folder, split)
        for shard in shards:
            if check:
                check_shard(shard)
                if path_of(shard).exists():
                    check_beside(shard)
        print_totals(folder, {split: totals(shards)})
    print(f"{folder}: vocabulary {shards[0].vocab_size}" + (", all bytes as written" if check else ""))


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    if (part := parse_part(getattr(options, "part", "1/1"))) != WHOLE:
        options.output /= part.folder
    if options.command == "info":
        print_info(options.folder, options.check)
    elif options.command == "chat":
        print_totals(options.output, chat_command(options)["splits"])
    elif options.command == "expect":
        mass = expect(options.folder, options.model, options.top, options.dtype, options.device)
        print(f"{options.folder}: {mass:.1%} of all probability; train.py --teachers=stored learns it")
    elif options.command == "merge":
        print_totals(options.folder, merge(options.folder)["splits"])
    elif options.command == "reverse":
        meta = make_reverse(options.output, options.count, options.val_count, options.seed)
        print_totals(options.output, meta["splits"])
    else:
        print_totals(options.output, pretokenize_command(options)["splits"])


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:]), "interrupted; run the same command again to go on"))
