"""Tokenizers: train a sentencepiece BPE on any text, read one or Llama 3's, write tokenizer.bin.

    python tokenizer.py train --input books/ --vocab_size 4096 --output tok4096.model
    python tokenizer.py export tok4096.model             # writes tok4096.bin beside it
    python tokenizer.py encode tok4096.model "Once upon a time"
    python tokenizer.py decode tok4096.model 403 407 261
    python tokenizer.py info tok4096.model

From Python:

    tokenizer = load("tok4096.model")
    assert tokenizer.decode(tokenizer.encode("Once upon a time", bos=True)) == "Once upon a time"

A vocabulary trained here has llama2.c's options, but keeps whitespace as it is, so that the engine, which
can't know better from a tokenizer.bin, gives the same ids. Text in .txt, .json, .jsonl and .parquet files is
read here too, for training and for dataset.py.

Left out on purpose: Unigram models and their text normalisation, which the engine does not have; chat.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import io
import os
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from training.command import BadInput, Parser, run_command, write_aside
from training.text import add_text_options, sample, text_files, text_format, well_formed

# ---------------------------------------------------------------------------------------------------------
# The one interface


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. Made by load; not for making by hand."""

    path: Path
    kind: str  # "sentencepiece" or "llama3"
    hash: str  # sha256 of the file
    vocab_size: int
    bos_id: int  # -1: none
    eos_id: int  # -1: none
    special: Mapping[str, int]  # tokens that text can be asked to mean (Llama 3)
    model: Any  # SentencePieceProcessor or tiktoken.Encoding
    encode_text: Callable[[str], list[int]]
    decode_ids: Callable[[list[int]], str]

    def encode(self, text: str, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
        """The ids of text, between BOS and EOS where asked for.

        special: names such as <|eot_id|> in the text mean the token. Off, they are plain text, so that no
        user of a chat can forge a message.
        """
        if (bos and self.bos_id < 0) or (eos and self.eos_id < 0):
            raise BadInput(
                f"{self.path}: the vocabulary has no {'BOS' if bos and self.bos_id < 0 else 'EOS'}"
            )
        parts = [well_formed(text)]
        if special and self.special:
            parts = re.split("(" + "|".join(map(re.escape, self.special)) + ")", parts[0])
        ids = [self.bos_id] if bos else []
        for n, part in enumerate(parts):
            ids += [self.special[part]] if n % 2 else self.encode_text(part)
        return ids + [self.eos_id] if eos else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Special tokens are empty, bytes that are not UTF-8 are U+FFFD. Raises BadInput."""
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise BadInput(f"{self.path}: token id = {i}, allowed 0 to {self.vocab_size - 1}")
        return self.decode_ids(ids)


def load(path: str | Path) -> Tokenizer:
    """The tokenizer in a file, told by content, or tokenizer.model in a folder. Raises BadInput, OSError."""
    path = Path(path)
    path = path / "tokenizer.model" if path.is_dir() else path
    data = path.read_bytes()
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", data):
        return load_llama3(path, data)
    return load_sentencepiece(path, data)


# ---------------------------------------------------------------------------------------------------------
# sentencepiece


def load_sentencepiece(path: Path, data: bytes) -> Tokenizer:
    """A sentencepiece model. Raises BadInput."""
    try:
        sp = SentencePieceProcessor(model_proto=data) if data else None
    except RuntimeError:
        sp = None
    if sp is None or sp.vocab_size() == 0:
        raise BadInput(f"{path}: is neither a sentencepiece model nor Llama 3's tokenizer.model")
    sha = hashlib.sha256(data).hexdigest()
    size, bos, eos = sp.vocab_size(), sp.bos_id(), sp.eos_id()
    return Tokenizer(path, "sentencepiece", sha, size, bos, eos, {}, sp, sp.encode, sp.decode)


LINE_MAX = 4192  # bytes; sentencepiece drops what is longer


def lines_of(texts: Iterable[str]) -> Iterator[str]:
    """The lines of texts, long ones in parts of at most LINE_MAX bytes: sentencepiece learns from lines."""
    for text in texts:
        for line in well_formed(text).splitlines():
            yield from (line[i : i + LINE_MAX // 4] for i in range(0, len(line), LINE_MAX // 4))


def train(
    texts: Iterable[str], vocab_size: int, path: str | Path, character_coverage: float = 1.0
) -> Tokenizer:
    """Trains a BPE with byte fallback on texts and writes it to path. Raises BadInput, OSError.

    vocab_size: 3 special tokens, 256 bytes, and the characters that make up character_coverage of the text
    must fit.
    """
    data, path = io.BytesIO(), Path(path)
    try:
        SentencePieceTrainer.train(
            sentence_iterator=lines_of(texts),
            model_writer=data,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,  # llama2.c has True here, and then its C program gives other ids
            allow_whitespace_only_pieces=True,
            character_coverage=character_coverage,
            unk_surface=" \u2047 ",
            max_sentence_length=LINE_MAX,
            self_test_sample_size=0,
            input_format="text",
            num_threads=os.cpu_count() or 1,
            minloglevel=2,
        )
    except (
        RuntimeError,
        OSError,
    ) as error:  # it says INTERNAL: source line [condition] and then what is wrong
        reason = str(error).rpartition("] ")[2].strip() or "there is no text to train on"
        raise BadInput(f"{path}: vocab_size = {vocab_size}: {reason}") from None
    with write_aside(path) as file:
        file.write(data.getvalue())
    return load(path)


def to_bin(tokenizer: Tokenizer) -> bytes:
    """The bytes of a tokenizer.bin: u32 longest piece, then of each token f32 score, i32 length and bytes.

    Raises BadInput for what the file can't say: Llama 3's, and models that change text before they split it.
    (One that removes extra whitespace, such as llama2.c's tok512, is written; its .bin keeps it.)
    """
    sp = tokenizer.model
    if tokenizer.kind != "sentencepiece":
        raise BadInput(
            f"{tokenizer.path}: kind = {tokenizer.kind}, allowed sentencepiece for a tokenizer.bin"
        )
    if sp.normalize("\ufb01 \u00b2A") != "\u2581\ufb01\u2581\u00b2A":
        raise BadInput(
            f"{tokenizer.path}: normalisation changes text, allowed identity with a space in front"
        )
    names = {tokenizer.bos_id: "\n<s>\n", tokenizer.eos_id: "\n</s>\n"}
    pieces = [names.get(i, sp.id_to_piece(i)).replace("\u2581", " ").encode() for i in range(sp.vocab_size())]
    records = (struct.pack("<fi", sp.get_score(i), len(piece)) + piece for i, piece in enumerate(pieces))
    return struct.pack("<I", max(map(len, pieces))) + b"".join(records)


def export_bin(tokenizer: Tokenizer, path: str | Path) -> None:
    """Writes tokenizer.bin. Raises BadInput, as to_bin does."""
    data = to_bin(tokenizer)
    with write_aside(Path(path)) as file:
        file.write(data)


def count_bin(path: Path, data: bytes) -> int:
    """The number of tokens of a tokenizer.bin. Raises BadInput where its records do not fill it."""
    at, n = 4, 0
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<i", data, at + 4)
        at, n = at + 8 + max(0, length), n + 1
    if at != len(data):
        raise BadInput(f"{path}: is not a whole tokenizer.bin")
    return n


# ---------------------------------------------------------------------------------------------------------
# Llama 3: byte pairs by rank, split by a pattern; the tiktoken library does the work

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPECIAL = [  # the first of 256; the others are reserved
    *["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"],
    *["<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>"],
    *["<|eom_id|>", "<|eot_id|>", "<|python_tag|>"],
]
BLOCK_MAX, RUN_MAX = (
    400_000,
    25_000,
)  # characters that the matcher takes, at once and of one class; Meta's figures


def matchable(text: str) -> Iterator[str]:
    """Text in parts that the matcher takes without running out of stack, cut as Meta's code does."""
    for start in range(0, len(text), BLOCK_MAX):
        block, begin = text[start : start + BLOCK_MAX], 0
        for run in re.finditer(r"\s+|\S+", block) if len(block) > RUN_MAX else ():
            for end in range(run.start() + RUN_MAX, run.end(), RUN_MAX):
                yield block[begin:end]
                begin = end
        yield block[begin:]


def read_ranks(path: Path, data: bytes) -> dict[bytes, int]:
    """The lines `base64 rank` of a tiktoken file. Raises BadInput."""
    ranks: dict[bytes, int] = {}
    for n, line in enumerate(data.splitlines()):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise BadInput(f"{path}: line {n + 1} = {line[:40]!r}, allowed base64 and a rank") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise BadInput(f"{path}: ranks have gaps or doubles, allowed 0 to {len(ranks) - 1}, each once")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise BadInput(f"{path}: byte {missing[0]} has no token, allowed are files with all 256")
    return ranks


def load_llama3(path: Path, data: bytes) -> Tokenizer:
    """A Llama 3 model, of any number of ranks; 256 special tokens follow. Raises BadInput."""
    try:
        import tiktoken
    except ImportError:
        raise BadInput(f"{path}: is a Llama 3 tokenizer; to read it: pip install tiktoken") from None
    ranks = read_ranks(path, data)
    names = [*LLAMA3_SPECIAL, *(f"<|reserved_special_token_{i}|>" for i in range(2, 247))]
    special = {name: len(ranks) + i for i, name in enumerate(names)}
    model = tiktoken.Encoding(
        path.name, pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens=special
    )

    def encode(text: str) -> list[int]:
        return [i for part in matchable(text) for i in model.encode_ordinary(part)]

    def decode(ids: list[int]) -> str:
        return model.decode([i for i in ids if i < len(ranks)])

    size, sha = len(ranks) + len(special), hashlib.sha256(data).hexdigest()
    bos, eos = special["<|begin_of_text|>"], special["<|end_of_text|>"]
    return Tokenizer(path, "llama3", sha, size, bos, eos, special, model, encode, decode)


# ---------------------------------------------------------------------------------------------------------
# The command line


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="tokenizer.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="train a vocabulary on text")
    add_text_options(command)
    command.add_argument("--vocab_size", "--vocab-size", type=int, required=True, help="number of tokens")
    command.add_argument(
        "--output", type=Path, required=True, help="the .model to write, a .bin goes beside it"
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
        command.add_argument("model", type=Path, help="a file, or a folder with tokenizer.model")
        if name == "export":
            command.add_argument("--output", type=Path, help="default: beside the model, with .bin")
        elif name == "encode":
            command.add_argument("text", nargs="?", help="default: standard input")
            for flag in ("bos", "eos", "special"):
                command.add_argument(f"--{flag}", action="store_true")
        elif name == "decode":
            command.add_argument("ids", nargs="*", type=int, help="default: from standard input")
    return parser.parse_args(arguments)


def print_info(tokenizer: Tokenizer) -> None:
    for name in ("path", "kind", "vocab_size", "bos_id", "eos_id", "hash"):
        print(f"{name:12}{getattr(tokenizer, name)}")


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    if options.command == "train":
        texts = sample(text_files(options.input), text_format(options), options.max_bytes)
        tokenizer = train(texts, options.vocab_size, options.output, options.character_coverage)
        export_bin(tokenizer, options.output.with_suffix(".bin"))
        return print_info(tokenizer)
    tokenizer = load(options.model)
    if options.command == "export":
        export_bin(tokenizer, options.output or tokenizer.path.with_suffix(".bin"))
    elif options.command == "encode":
        text = sys.stdin.read() if options.text is None else options.text
        print(*tokenizer.encode(text, options.bos, options.eos, options.special))
    elif options.command == "decode":
        print(tokenizer.decode(options.ids or map(int, sys.stdin.read().split())))
    else:
        print_info(tokenizer)
    return None


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
