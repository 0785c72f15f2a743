"""Tokenizers: train a sentencepiece BPE on any text, read and convert those of Llama models.

    python tokenizer.py train --input books/ --vocab_size 4096 --output tok4096.model
    python tokenizer.py export tok4096.model             # writes tok4096.bin beside it, as llama2.c has it
    python tokenizer.py export tok4096.model --indexed   # the engine's own form, which opens at once
    python tokenizer.py export Meta-Llama-3-8B/original/tokenizer.model --output llama3.bin
    python tokenizer.py export SmolLM-135M/tokenizer.json --output tokenizer.bin
    python tokenizer.py encode tok4096.model "Once upon a time"
    python tokenizer.py decode tok4096.model 403 407 261
    python tokenizer.py info tok4096.model

It reads sentencepiece models, Llama 3's tokenizer.model, a tokenizer.json of Hugging Face (byte fallback as
Llama 2 has it, byte-level as Llama 3, GPT-2 and SmolLM have it), and what export writes. From Python:

    tokenizer = load("tok4096.model")
    assert tokenizer.decode(tokenizer.encode("Once upon a time", bos=True)) == "Once upon a time"

A vocabulary trained here has llama2.c's options, but keeps whitespace as it is, so that the engine, which
can't know better from a tokenizer.bin, gives the same ids. Text in .txt, .json, .jsonl and .parquet files is
read here too, for training and for dataset.py.

Left out on purpose: Unigram models and text normalisation, which the engine does not have; chat.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from formats import sentencepiece_model, tokenizer_json
from formats import vocabulary as tokens
from formats.vocabulary import Vocabulary, count_bin
from training.command import BadInput, Parser, run_command, write_aside
from training.text import add_text_options, sample, text_files, text_format, well_formed

__all__ = ["Tokenizer", "count_bin", "export_bin", "load", "to_bin", "to_llama2c_bin", "train"]

# ---------------------------------------------------------------------------------------------------------
# The one interface


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. Made by load; not for making by hand."""

    path: Path
    kind: str  # "sentencepiece", "llama3", "tokenizer.json" or "tokenizer.bin"
    data: bytes = field(
        repr=False
    )  # a file that says all of it: the one at path, or for a tokenizer.json the indexed form
    vocab_size: int
    bos_id: int  # -1: none
    eos_id: int  # -1: none
    special: Mapping[str, int]  # tokens that text can be asked to mean
    model: Any  # SentencePieceProcessor, or the engine's Tokenizer
    encode_text: Callable[[str, bool], list[int]]  # of text, special
    decode_ids: Callable[[list[int]], str]
    read: Callable[[], Vocabulary]

    @cached_property
    def hash(self) -> str:
        """The sha256 of data."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens themselves. Raises BadInput for a model that the engine can't have."""
        return self.read()

    def encode(self, text: str, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
        """The ids of text, between BOS and EOS where asked for.

        special: names such as <|eot_id|> in the text mean the token. Off, they are plain text, so that no
        user of a chat can forge a message.
        """
        if (bos and self.bos_id < 0) or (eos and self.eos_id < 0):
            raise BadInput(
                f"{self.path}: the vocabulary has no {'BOS' if bos and self.bos_id < 0 else 'EOS'}"
            )
        ids = [self.bos_id] if bos else []
        ids += self.encode_text(well_formed(text), special)
        return ids + [self.eos_id] if eos else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Special tokens are empty, bytes that are not UTF-8 are U+FFFD. Raises BadInput."""
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise BadInput(f"{self.path}: token id = {i}, allowed 0 to {self.vocab_size - 1}")
        return self.decode_ids(ids)


def load(path: str | Path) -> Tokenizer:
    """The tokenizer in a file, told by content, or tokenizer.model or tokenizer.json in a folder.

    Raises BadInput, OSError.
    """
    path = Path(path)
    if path.is_dir():
        names = (path / "tokenizer.model", path / "tokenizer.json")
        path = next((name for name in names if name.exists()), names[0])
    data = path.read_bytes()
    if tokens.is_indexed(data):
        return load_vocabulary(path, "tokenizer.bin", data, tokens.read_indexed(path, data))
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", data):
        return load_vocabulary(path, "llama3", data, read_llama3(path, data))
    if data.lstrip()[:1] == b"{" and path.suffix == ".json":
        vocabulary = tokenizer_json.read(path, data)
        return load_vocabulary(path, "tokenizer.json", vocabulary.indexed, vocabulary)
    return load_sentencepiece(path, data) or load_llama2c(path, data)


def load_vocabulary(path: Path, kind: str, data: bytes, vocabulary: Vocabulary) -> Tokenizer:
    """A tokenizer whose work the engine does. Raises BadInput."""
    from llama import LlamaError
    from llama import Tokenizer as Engine

    try:
        model = Engine.from_bytes(vocabulary.indexed, path)
    except LlamaError as error:
        raise BadInput(str(error)) from None

    def encode(text: str, special: bool) -> list[int]:
        return model.encode(text, bos=False, special=special)

    v = vocabulary
    ends, work = (v.bos, v.eos), (encode, model.decode, lambda: v)
    return Tokenizer(path, kind, data, len(v), *ends, v.special, model, *work)


# ---------------------------------------------------------------------------------------------------------
# sentencepiece


def load_sentencepiece(path: Path, data: bytes) -> Tokenizer | None:
    """A sentencepiece model, None for another file."""
    try:
        sp = SentencePieceProcessor(model_proto=data) if data else None
    except RuntimeError:
        sp = None
    if sp is None or sp.vocab_size() == 0:
        return None
    control = (i for i in range(sp.vocab_size()) if sp.is_control(i))
    special = {sp.id_to_piece(i): i for i in control}
    names = sorted(map(re.escape, special), key=len, reverse=True)

    def encode(text: str, parse_special: bool) -> list[int]:
        parts = re.split(f"({'|'.join(names)})", text) if parse_special and names else [text]
        return [i for n, part in enumerate(parts) for i in ([special[part]] if n % 2 else sp.encode(part))]

    ends, work = (sp.bos_id(), sp.eos_id()), (encode, sp.decode, lambda: read_sentencepiece(path, sp))
    return Tokenizer(path, "sentencepiece", data, sp.vocab_size(), *ends, special, sp, *work)


TYPES = {  # of sentencepiece's pieces
    sentencepiece_model.NORMAL: tokens.TEXT,
    sentencepiece_model.UNKNOWN: tokens.UNKNOWN,
    sentencepiece_model.CONTROL: tokens.CONTROL,
    sentencepiece_model.USER_DEFINED: tokens.USER,
    sentencepiece_model.BYTE: tokens.BYTE,
}


def read_sentencepiece(path: Path, sp: Any) -> Vocabulary:
    """The tokens of a sentencepiece model. Raises BadInput for one that changes text before it splits it.

    (One that removes extra whitespace, such as llama2.c's tok512, is read; the engine keeps it.)
    """
    changed = sp.normalize("\ufb01 \u00b2A")
    if changed.removeprefix("\u2581") != "\ufb01\u2581\u00b2A":
        raise BadInput(f"{path}: normalisation changes text, allowed identity with a space in front")
    flags = tokens.SENTENCEPIECE if changed.startswith("\u2581") else 0
    n = sp.vocab_size()
    types = [TYPES.get(kind) for kind in sentencepiece_model.piece_types(sp.serialized_model_proto())]
    if None in types:
        raise BadInput(f"{path}: piece {types.index(None)} is unused, allowed are pieces in use")
    names = [sp.id_to_piece(i) for i in range(n)]
    if spaced := [name for name in names if " " in name]:
        raise BadInput(f"{path}: piece = {spaced[0]!r}, allowed are pieces that write a space as \u2581")
    pieces = [name.replace("\u2581", " ").encode() for name in names]
    pieces = [
        bytes([int(piece[3:5], 16)]) if kind == tokens.BYTE else piece
        for piece, kind in zip(pieces, types, strict=True)
    ]
    scores, ends = [sp.get_score(i) for i in range(n)], (sp.bos_id(), sp.eos_id(), sp.unk_id())
    return Vocabulary(tokens.CHARACTERS, pieces, scores, types, *ends, flags=flags)


def load_llama2c(path: Path, data: bytes) -> Tokenizer:
    """A tokenizer.bin of llama2.c. Raises BadInput."""
    try:
        vocabulary = tokens.read_llama2c(path, data)
    except BadInput:
        kinds = "a sentencepiece model nor Llama 3's tokenizer.model, a tokenizer.json or a tokenizer.bin"
        raise BadInput(f"{path}: is neither {kinds}") from None
    return load_vocabulary(path, "tokenizer.bin", data, vocabulary)


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


# ---------------------------------------------------------------------------------------------------------
# Files for the engine


def to_bin(tokenizer: Tokenizer) -> bytes:
    """The indexed form of any tokenizer, which the engine uses as it lies. Raises BadInput."""
    return tokenizer.vocabulary.indexed


def to_llama2c_bin(tokenizer: Tokenizer) -> bytes:
    """The bytes of a tokenizer.bin as llama2.c has it. Raises BadInput for all but sentencepiece's BPE."""
    return tokens.write_llama2c(tokenizer.vocabulary, tokenizer.path)


def export_bin(tokenizer: Tokenizer, path: str | Path, indexed: bool = False) -> None:
    """Writes a tokenizer.bin: llama2.c's, unless the indexed form is asked for or needed. Raises BadInput."""
    fits = not indexed and tokens.fits_llama2c(tokenizer.vocabulary)
    data = to_llama2c_bin(tokenizer) if fits else to_bin(tokenizer)
    with write_aside(Path(path)) as file:
        file.write(data)


# ---------------------------------------------------------------------------------------------------------
# Llama 3: byte pairs by rank, split by a pattern

LLAMA3_SPECIAL = [  # the first of 256; the others are reserved
    *["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"],
    *["<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>"],
    *["<|eom_id|>", "<|eot_id|>", "<|python_tag|>"],
]


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


def read_llama3(path: Path, data: bytes) -> Vocabulary:
    """A Llama 3 model, of any number of ranks; 256 special tokens follow. Raises BadInput."""
    ranks = read_ranks(path, data)
    names = [*LLAMA3_SPECIAL, *(f"<|reserved_special_token_{i}|>" for i in range(2, 247))]
    pieces = [*sorted(ranks, key=ranks.__getitem__), *(name.encode() for name in names)]
    types = [tokens.TEXT] * len(ranks) + [tokens.CONTROL] * len(names)
    scores = [-float(i) for i in range(len(pieces))]
    ends = (len(ranks), len(ranks) + 1)
    pattern, flags = tokens.LLAMA3, tokens.WHOLE_WORDS
    return Vocabulary(tokens.BYTES, pieces, scores, types, *ends, pattern=pattern, flags=flags)


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
        command.add_argument("model", type=Path, help="a file, or a folder with tokenizer.model or .json")
        if name == "export":
            command.add_argument("--output", type=Path, help="default: beside the model, with .bin")
            command.add_argument(
                "--indexed", action="store_true", help="not llama2.c's form, but the engine's"
            )
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
    v, special = tokenizer.vocabulary, [*tokenizer.special]
    print(
        f"{'merges':12}{('characters', 'bytes')[v.kind]} by {'pairs' if v.merges is not None else 'scores'}"
    )
    print(f"{'special':12}{len(special)}: {' '.join(special[:4])}{' ...' if special[4:] else ''}")


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    if options.command == "train":
        texts = sample(text_files(options.input), text_format(options), options.max_bytes)
        tokenizer = train(texts, options.vocab_size, options.output, options.character_coverage)
        export_bin(tokenizer, options.output.with_suffix(".bin"))
        return print_info(tokenizer)
    tokenizer = load(options.model)
    if options.command == "export":
        export_bin(tokenizer, options.output or tokenizer.path.with_suffix(".bin"), options.indexed)
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
