"""Tokenizers of Llama models: text to ids and back, whatever file they are in.

It reads sentencepiece models, Llama 3's tokenizer.model, a tokenizer.json of Hugging Face (characters as
Llama 2 has them, byte-level as Llama 3, GPT-2 and SmolLM, Unigram), a tokenizer.bin of llama2.c or our own,
and what is in the file of a model (v3, GGUF).

    tokenizer = load("tok4096.model")
    assert tokenizer.decode(tokenizer.encode("Once upon a time", bos=True)) == "Once upon a time"

Left out on purpose: text normalisation, which the engine does not have; chat.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llama.errors import BadFileError
from llama.files import write_aside
from llama.formats import tokenizer_json
from llama.formats import vocabulary as tokens
from llama.formats.added_tokens import adds_to, ends_of, with_added
from llama.formats.kinds import checked_start, whole
from llama.formats.sentencepiece_model import opened, read_sentencepiece
from llama.formats.tokenizer_kinds import is_json, is_model, is_tiktoken
from llama.formats.vocabulary import Vocabulary, count_bin

__all__ = ["Tokenizer", "count_bin", "export_bin", "load", "to_bin", "to_llama2c_bin", "well_formed"]

SENTENCEPIECE, OF_MODEL = "sentencepiece", "of a model"
SPACES_IN_FRONT = tokens.PREFIX | tokens.PREFIX_EACH | tokens.PREFIX_UNLESS_SPACE

# ---------------------------------------------------------------------------------------------------------
# The one interface


def well_formed(text: str) -> str:
    """Text without lone surrogates, which no UTF-8 can hold: each counts as U+FFFD, as in the engine."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. Made by load; not for making by hand."""

    path: Path
    kind: str  # llama3, tokenizer.json, tokenizer.bin, OF_MODEL, SENTENCEPIECE, or that as its folder has it
    data: bytes = field(repr=False)  # a file that says all of it: the one at path, or the indexed form
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
        """The tokens themselves. Raises BadFileError for a model that the engine can't have."""
        return self.read()

    def encode(self, text: str, bos: bool = False, eos: bool = False, special: bool = False) -> list[int]:
        """The ids of text, between BOS and EOS where asked for.

        special: names such as <|eot_id|> in the text mean the token. Off, they are plain text, so that no
        user of a chat can forge a message.
        """
        if (bos and self.bos_id < 0) or (eos and self.eos_id < 0):
            raise BadFileError(
                f"{self.path}: the vocabulary has no {'BOS' if bos and self.bos_id < 0 else 'EOS'}"
            )
        ids = [self.bos_id] if bos else []
        ids += self.encode_text(well_formed(text), special)
        return ids + [self.eos_id] if eos else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Special tokens are empty, bytes that are not UTF-8 are U+FFFD.

        Raises BadFileError.
        """
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise BadFileError(f"{self.path}: token id = {i}, allowed 0 to {self.vocab_size - 1}")
        return self.decode_ids(ids)


def preferred(found: Sequence[Tokenizer]) -> Tokenizer | None:
    """The one that counts of the tokenizers in one folder: that with the most tokens, of such the first.

    But a tokenizer.json that puts spaces elsewhere than the sentencepiece model beside it was made so on
    purpose: it counts, as it does in transformers. (Where it puts them as the model does, the model counts:
    it has scores, which say more than the list of pairs made of them.) And one beside Llama 3's model counts,
    as it names the special tokens, which the model does not.
    """
    most = max((known.vocab_size for known in found), default=0)
    largest = [known for known in found if known.vocab_size == most]
    listed = [known for known in largest if known.kind == "tokenizer.json"]
    if listed and largest[0].kind.startswith(SENTENCEPIECE):
        prefix = largest[0].vocabulary.flags & tokens.PREFIX
        of_model = prefix | tokens.PREFIX_EACH if prefix else 0
        return largest[0] if listed[0].vocabulary.flags & SPACES_IN_FRONT == of_model else listed[0]
    if listed and largest[0].kind == "llama3":
        return listed[0]
    return largest[0] if largest else None


def load(path: str | Path, most: int | None = None) -> Tokenizer:
    """The tokenizer in a file, told by content, or tokenizer.model or tokenizer.json in a folder.

    most: rows of its model's embedding; added tokens that have none are left out.
    Raises BadFileError, OSError.
    """
    path = Path(path)
    if path.is_dir():
        names = (path / "tokenizer.model", path / "tokenizer.json")
        found = [load_file(name, most) for name in names if name.exists()]
        return preferred(found) or load_file(names[0], most)
    return load_file(path, most)


def load_file(path: Path, most: int | None) -> Tokenizer:
    """What load does with a file."""
    if is_model(checked_start(path)):
        return load_of_model(path)
    data = whole(path)
    if tokens.is_indexed(data):
        return load_vocabulary(path, "tokenizer.bin", data, tokens.read_indexed(path, data))
    if is_tiktoken(data):
        return load_vocabulary(path, "llama3", data, read_llama3(path, data))
    if is_json(path, data):
        vocabulary = tokenizer_json.read(path, data, most)
        return load_vocabulary(path, "tokenizer.json", tokens.indexed_of(path, vocabulary), vocabulary)
    return load_sentencepiece(path, data, most) or load_llama2c(path, data)


def load_of_model(path: Path) -> Tokenizer:
    """The tokenizer in the file of a model. Raises BadFileError, OSError."""
    from llama.formats.models import open_source  # which imports this module

    vocabulary = open_source(path).vocabulary()
    if vocabulary is None:
        raise BadFileError(f"{path}: is a model without a tokenizer in it")
    return load_vocabulary(path, OF_MODEL, tokens.indexed_of(path, vocabulary), vocabulary)


def load_vocabulary(path: Path, kind: str, data: bytes, vocabulary: Vocabulary) -> Tokenizer:
    """A tokenizer whose work the engine does. Raises BadFileError."""
    from llama import LlamaError
    from llama import Tokenizer as Engine

    try:
        model = Engine.from_bytes(tokens.indexed_of(path, vocabulary), path)
    except LlamaError as error:
        raise BadFileError(str(error)) from None

    def encode(text: str, special: bool) -> list[int]:
        return model.encode(text, bos=False, special=special)

    v = vocabulary
    ends, work = (v.bos, v.eos), (encode, model.decode, lambda: v)
    return Tokenizer(path, kind, data, len(v), *ends, v.special, model, *work)


# ---------------------------------------------------------------------------------------------------------
# sentencepiece


def load_sentencepiece(path: Path, data: bytes, most: int | None) -> Tokenizer | None:
    """A sentencepiece model, with what its folder adds to it; None for another file. Raises BadFileError."""
    sp = opened(data) if data else None
    if sp is None or sp.vocab_size() == 0:
        return None

    def read() -> Vocabulary:
        return with_added(path.parent, read_sentencepiece(path, sp), most)

    if adds_to(path.parent, sp.vocab_size(), most):
        vocabulary = read()
        return load_vocabulary(
            path, f"{SENTENCEPIECE} of a folder", tokens.indexed_of(path, vocabulary), vocabulary
        )
    control = (i for i in range(sp.vocab_size()) if sp.is_control(i))
    special = {sp.id_to_piece(i): i for i in control}
    names = sorted(map(re.escape, special), key=len, reverse=True)

    def encode(text: str, parse_special: bool) -> list[int]:
        parts = re.split(f"({'|'.join(names)})", text) if parse_special and names else [text]
        return [i for n, part in enumerate(parts) for i in ([special[part]] if n % 2 else sp.encode(part))]

    ends, _ = ends_of(path.parent, special, (sp.bos_id(), sp.eos_id()))
    work = (encode, sp.decode, read)
    return Tokenizer(path, SENTENCEPIECE, data, sp.vocab_size(), *ends, special, sp, *work)


def load_llama2c(path: Path, data: bytes) -> Tokenizer:
    """A tokenizer.bin of llama2.c. Raises BadFileError."""
    try:
        vocabulary = tokens.read_llama2c(path, data)
    except BadFileError:
        kinds = "a sentencepiece model nor Llama 3's tokenizer.model, a tokenizer.json or a tokenizer.bin"
        raise BadFileError(f"{path}: is neither {kinds}") from None
    return load_vocabulary(path, "tokenizer.bin", data, vocabulary)


# ---------------------------------------------------------------------------------------------------------
# Files for the engine


def to_bin(tokenizer: Tokenizer) -> bytes:
    """The indexed form of any tokenizer, which the engine uses as it lies. Raises BadFileError."""
    return tokenizer.vocabulary.indexed


def to_llama2c_bin(tokenizer: Tokenizer) -> bytes:
    """The bytes of a tokenizer.bin as llama2.c has it.

    Raises BadFileError for all but sentencepiece's BPE.
    """
    return tokens.write_llama2c(tokenizer.vocabulary, tokenizer.path)


def export_bin(tokenizer: Tokenizer, path: str | Path, indexed: bool = False) -> None:
    """Writes a tokenizer.bin: llama2.c's, unless the indexed form is asked for or needed.

    Raises BadFileError.
    """
    fits = not indexed and tokens.fits_llama2c(tokenizer.vocabulary)
    data = to_llama2c_bin(tokenizer) if fits else to_bin(tokenizer)
    with write_aside(Path(path)) as file:
        file.write(data)


# ---------------------------------------------------------------------------------------------------------
# Llama 3: byte pairs by rank, split by a pattern

# The first of 256; the others are reserved. So Meta's code has them since Llama 3.2. Before, some of these
# were reserved, and the rest had other numbers; the file does not say, a tokenizer.json does.
LLAMA3_SPECIAL = [
    *["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"],
    *["<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>"],
    *["<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>"],
]


def read_ranks(path: Path, data: bytes) -> dict[bytes, int]:
    """The lines `base64 rank` of a tiktoken file. Raises BadFileError."""
    ranks: dict[bytes, int] = {}
    for n, line in enumerate(data.splitlines()):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise BadFileError(f"{path}: line {n + 1} = {line[:40]!r}, allowed base64 and a rank") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise BadFileError(f"{path}: ranks have gaps or doubles, allowed 0 to {len(ranks) - 1}, each once")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise BadFileError(f"{path}: byte {missing[0]} has no token, allowed are files with all 256")
    return ranks


def read_llama3(path: Path, data: bytes) -> Vocabulary:
    """A Llama 3 model, of any number of ranks; 256 special tokens follow. Raises BadFileError."""
    ranks = read_ranks(path, data)
    names = [*LLAMA3_SPECIAL, *(f"<|reserved_special_token_{i}|>" for i in range(2, 246))]
    pieces = [*sorted(ranks, key=ranks.__getitem__), *(name.encode() for name in names)]
    types = [tokens.TEXT] * len(ranks) + [tokens.CONTROL] * len(names)
    scores = [-float(i) for i in range(len(pieces))]
    ends = (len(ranks), len(ranks) + 1)
    pattern, flags = tokens.LLAMA3, tokens.WHOLE_WORDS
    return Vocabulary(tokens.BYTES, pieces, scores, types, *ends, pattern=pattern, flags=flags)
