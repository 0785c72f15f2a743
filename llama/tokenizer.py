"""Tokenizer: text to ids and back, of any file that holds a vocabulary."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llama._engine import ffi, lib
from llama.errors import BadFileError
from llama.native import (
    StrPath,
    alive,
    c_bytes,
    c_path,
    check_tokens,
    create,
    encode,
    token_bytes,
    token_ids,
    token_name,
    whole,
    whole_text,
)


def converted(path: StrPath, most: int | None = None) -> Any:
    """The C tokenizer of a file of another kind than C opens, in the indexed form; None for other files.

    most: tokens of its model. Raises BadFileError.
    """
    from llama.formats.tokenizer_kinds import is_foreign

    path = Path(os.fsdecode(path))
    if not is_foreign(path):
        return None
    from llama.formats import tokenizers  # the libraries that read such files

    vocabulary = tokenizers.load(path, most).vocabulary
    n = max(most or 0, len(vocabulary)) if (path.parent / "config.json").exists() else len(vocabulary)
    data = vocabulary.padded(n).indexed
    copy = ffi.new("char[]", data)
    return create("LlamaTokenizer", lib.llama_tokenizer_open_bytes, copy, len(data), c_path(path))


def opened(path: StrPath) -> Any:
    """The C tokenizer of a file of any kind. Raises BadFileError."""
    try:
        return create("LlamaTokenizer", lib.llama_tokenizer_open, c_path(path))
    except BadFileError:
        if handle := converted(path):
            return handle
        raise


def found(path: StrPath | None, model: Any) -> Any:
    """The C tokenizer of a C model (Tokenizer.find). Raises BadFileError."""
    try:
        return create(
            "LlamaTokenizer", lib.llama_tokenizer_find, ffi.NULL if path is None else c_path(path), model
        )
    except BadFileError:
        size = lib.llama_config(model).vocab_size
        handle = None if path is None else converted(path, size)
        if handle is None:
            raise
    if (n := lib.llama_vocab_size(handle)) != size:
        raise BadFileError(f"{os.fsdecode(path)}: has {n} tokens, the model has {size}")
    return handle


class Tokenizer:
    """The tokens of a model. May be shared between models and threads.

    path: a tokenizer.bin, as llama2.c or tokenizer.py writes it, a sentencepiece model, Llama 3's
    tokenizer.model, or a tokenizer.json. Raises BadFileError for another file.
    """

    def __init__(self, path: StrPath) -> None:
        self._handle = opened(path)

    @classmethod
    def from_bytes(cls, data: bytes, name: StrPath = "tokenizer") -> Tokenizer:
        """The tokenizer in the bytes of a file. name: for messages. Raises BadFileError."""
        self, copy = cls.__new__(cls), ffi.new("char[]", data)
        self._handle = create("LlamaTokenizer", lib.llama_tokenizer_open_bytes, copy, len(data), c_path(name))
        return self

    @classmethod
    def find(cls, path: StrPath | None, model: Any) -> Tokenizer:
        """The tokenizer at path, or for None the one in the file of a C model, beside it or in the working
        directory. Raises BadFileError if there is none, or none with as many tokens as the model.
        """
        self = cls.__new__(cls)
        self._handle = found(path, model)
        return self

    def copied(self) -> Tokenizer:
        """The same without its file: to read what one that is mapped has lost ends the process."""
        size = ffi.new("uint64_t *")
        return self.from_bytes(ffi.buffer(lib.llama_tokenizer_data(self.handle, size), size[0])[:])

    @property
    def handle(self) -> Any:
        """The C tokenizer. Raises ClosedError."""
        return alive(self._handle, "tokenizer")

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return lib.llama_vocab_size(self.handle)

    @property
    def bos_id(self) -> int:
        """The token that begins a text, -1 where there is none."""
        return lib.llama_bos(self.handle)

    @property
    def eos_id(self) -> int:
        """The token that ends a text, -1 where there is none."""
        return lib.llama_eos(self.handle)

    def encode(self, text: str, bos: bool = True, eos: bool = False, special: bool = False) -> list[int]:
        """The ids of text, between BOS and EOS where asked for. A lone surrogate counts as U+FFFD.

        special: names such as <|eot_id|> in the text mean the token. Off, they are plain text, so that no
        user of a chat can forge a message.
        """
        return encode(self.handle, c_bytes(text), bos, eos, special)

    def name(self, token: int) -> str:
        """What spells a token: its text with every space, or the name of a special one.

        Raises UsageError for an id outside the vocabulary.
        """
        return token_name(self.handle, token)

    def is_special(self, token: int) -> bool:
        """Whether a token has a name but no text, such as BOS and EOS.

        Raises UsageError for an id outside the vocabulary.
        """
        check_tokens([whole(token, "token")], self.vocab_size)
        return bool(lib.llama_token_is_special(self.handle, token))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, as sentencepiece has it: special tokens are empty, what is not UTF-8 is U+FFFD.

        Raises UsageError for an id outside the vocabulary.
        """
        handle, previous, runs = self.handle, -1, [bytearray()]
        for token in token_ids(ids):
            piece = token_bytes(handle, previous, token)
            if lib.llama_token_is_special(handle, token):
                runs.append(bytearray())  # no character reaches across
            else:
                runs[-1] += piece
                previous = token
        return "".join(whole_text(bytes(run)) for run in runs)

    def close(self) -> None:
        """Lets go of the tokenizer; a Llama that uses it can't make text any more. May be called twice."""
        self._handle = None

    def __enter__(self) -> Tokenizer:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return "Tokenizer(closed)" if self._handle is None else f"Tokenizer({self.vocab_size} tokens)"
