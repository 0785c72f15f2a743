"""Training a vocabulary: sentencepiece's BPE with llama2.c's options, on any text.

Whitespace stays as it is, unlike in llama2.c, so that the engine, which can't know better from a
tokenizer.bin, gives the same ids.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from llama.errors import BadFileError, UsageError
from llama.files import write_aside
from llama.formats.tokenizers import Tokenizer, load, well_formed
from llama.formats.vocabulary import VOCABULARY_MAX

LINE_MAX = 4192  # bytes; sentencepiece drops what is longer


def check_numbers(vocab_size: int, character_coverage: float) -> None:
    """Raises UsageError for what no vocabulary can be trained with."""
    if not 1 <= vocab_size <= VOCABULARY_MAX:
        raise UsageError(f"vocab_size = {vocab_size}, allowed 1 to {VOCABULARY_MAX}")
    if not 0 < character_coverage <= 1:
        raise UsageError(f"character_coverage = {character_coverage}, allowed above 0, up to 1")


def lines_of(texts: Iterable[str]) -> Iterator[str]:
    """The lines of texts, long ones in parts of at most LINE_MAX bytes: sentencepiece learns from lines."""
    for text in texts:
        for line in well_formed(text).splitlines():
            yield from (line[i : i + LINE_MAX // 4] for i in range(0, len(line), LINE_MAX // 4))


def kept_errors(lines: Iterator[str], failed: list[BaseException]) -> Iterator[str]:
    """Lines; what they raise is put into failed, since sentencepiece makes a RuntimeError of it."""
    try:
        yield from lines
    except BaseException as error:
        failed.append(error)
        raise


def train(
    texts: Iterable[str], vocab_size: int, path: str | Path, character_coverage: float = 1.0
) -> Tokenizer:
    """Trains a BPE with byte fallback on texts and writes it to path.

    vocab_size: 3 special tokens, 256 bytes, and the characters that make up character_coverage of the text
    must fit. Raises UsageError, BadFileError, OSError.
    """
    check_numbers(vocab_size, character_coverage)
    data, path, failed = io.BytesIO(), Path(path), list[BaseException]()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=kept_errors(lines_of(texts), failed),
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
        if failed:
            raise failed[0] from None
        none = f"there is no text to train on with character_coverage = {character_coverage}"
        reason = str(error).rpartition("] ")[2].strip() or none
        raise BadFileError(f"{path}: vocab_size = {vocab_size}: {reason}") from None
    with write_aside(path) as file:
        file.write(data.getvalue())
    return load(path)
