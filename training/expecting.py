"""Writes what a model expects of each token of a folder, once for all (dataset.py expect).

The model may have any vocabulary. It reads the text of a document in its own tokens, and what it expects is
told where one of its tokens ends and one of the folder's ends too: the probability of each of its tokens goes
to the folder's token that the text of it begins with, its ends to BOS, with which the next document begins.
Elsewhere, beyond its context and in documents that its tokens can't spell, rows are 0, and so is the
probability of what has no text. training/distillation.py leaves to the text itself what a row lacks of 1.

Left out on purpose: conversations and pairs, whose templates differ from model to model.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import llama
from llama.cache import files_of
from llama.errors import BadFileError, UsageError
from llama.files import lock_folder, named, sync
from llama.formats import tokenizers
from llama.formats.files import parse_json
from llama.formats.surgery import speller
from llama.formats.tokenizers import Tokenizer
from llama.formats.vocabulary import BYTE, TEXT, USER, Vocabulary
from llama.hub import find
from llama.names import opened
from training.expected import TOP_MOST, head_of, open_beside, path_of, read_head, row_type
from training.named import open_text
from training.shards import HEADER_BYTES, Shard, checksum, open_split
from training.weights import model_of

# ---------------------------------------------------------------------------------------------------------
# From one vocabulary to another


def printed(vocabulary: Vocabulary) -> list[bytes]:
    """What each token adds to a text."""
    kinds = (TEXT, USER, BYTE)
    return [p if of in kinds else b"" for p, of in zip(vocabulary.pieces, vocabulary.types, strict=True)]


def places(ids: Sequence[int], pieces: Sequence[bytes], text: bytes) -> np.ndarray | None:
    """Where in a text each of its tokens ends, in bytes: (T). None where they do not spell it.

    A space that a vocabulary puts in front of a text is no part of it.
    """
    spelt = b"".join(pieces[i] for i in ids)
    extra = len(spelt) - len(text)
    if extra not in (0, 1) or spelt[extra:] != text or spelt[:extra].strip():
        return None
    return np.maximum(np.cumsum([len(pieces[i]) for i in ids]) - extra, 0)


def text_of(piece: bytes) -> str:
    """The text of a token; none of a part of a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return ""


class Bridge:
    """From the tokens of a model to those of a folder.

    first, later (V of the model): the token of the folder that each begins with, where a document begins and
    behind that; the folder's vocab_size for one without a text. With the same tokens each is itself.
    """

    def __init__(self, model: Tokenizer, folder: Tokenizer) -> None:
        self.model, self.folder = model, folder
        self.same = model.vocabulary.unpadded.pieces == folder.vocabulary.unpadded.pieces
        self.pieces, self.ours = printed(model.vocabulary), printed(folder.vocabulary)
        if self.same:
            self.first = self.later = np.arange(len(folder.vocabulary.unpadded.pieces))
            return
        nothing = folder.vocab_size
        spaced = b"".join(self.pieces[i] for i in model.encode("a")) == b" a"  # a space stands in front
        texts = [text_of(piece) for piece in self.pieces]
        begins = [text[1:] if spaced and text[:1] == " " else text for text in texts]
        self.first = np.array([(folder.encode(text) or [nothing])[0] for text in begins])
        with speller(folder.vocabulary) as spell:
            self.later = np.array([[*spell(text.encode()), nothing][0] for text in texts])
        ends = [i for i in (model.bos_id, model.eos_id) if i >= 0]
        self.first[self.first == folder.vocabulary.unknown] = nothing
        self.first[ends] = self.later[ends] = folder.bos_id

    def rows(self, ids: Sequence[int]) -> tuple[list[int], np.ndarray, np.ndarray]:
        """A document of the folder (T, BOS first) in the model's tokens (S), and the rows of the two that are
        at one place of the text: (n) of each. Nothing where they do not spell the same.
        """
        if self.same:
            return [*ids], np.arange(len(ids)), np.arange(len(ids))
        nothing = [], np.empty(0, np.int64), np.empty(0, np.int64)
        text = self.folder.decode(ids)
        theirs = self.model.encode(text, bos=self.model.bos_id >= 0)
        spelt = text.encode()
        at, their_at = places(ids, self.ours, spelt), places(theirs, self.pieces, spelt)
        if at is None or their_at is None:
            return nothing
        # Of several tokens that end at one place the last one is meant: the first of the reversed.
        _, before, their_before = np.intersect1d(at[::-1], their_at[::-1], return_indices=True)
        return theirs, len(at) - 1 - before, len(their_at) - 1 - their_before


# ---------------------------------------------------------------------------------------------------------
# The model


class Reader(Protocol):
    """Reads texts in the tokens of a model."""

    tokenizer: Tokenizer
    longest: int  # tokens of a text, at most

    def logits(self, ids: Sequence[int]) -> Iterator[Tensor]:
        """Those after each token of a text (n, V), float32, a part after another."""


def tokenizer_of(name: str, vocabulary: Vocabulary) -> Tokenizer:
    return tokenizers.load_vocabulary(Path(name), tokenizers.OF_MODEL, vocabulary.indexed, vocabulary)


class EngineReader:
    """By the C engine. Raises what llama.Llama does, BadFileError for a model without a tokenizer."""

    def __init__(self, name: str, dtype: str | None = None) -> None:
        self.tokenizer = tokenizer_of(name, open_text(name)[1])
        with opened(name, dtype=dtype) as files:
            self.model = llama.Llama(files.model)
        self.longest = self.model.context

    def logits(self, ids: Sequence[int]) -> Iterator[Tensor]:
        return map(torch.from_numpy, self.model.logits_in_parts(ids))


class TorchReader:
    """By PyTorch, on a GPU in bfloat16."""

    PART = 256  # logits of so many tokens at once

    def __init__(self, name: str, device: torch.device) -> None:
        source, vocabulary = open_text(name)
        self.tokenizer = tokenizer_of(name, vocabulary)
        self.model, self.device = model_of(source, device), device
        self.longest = min(source.config.max_seq_len, source.longest or source.config.max_seq_len)

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Iterator[Tensor]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            hidden = self.model.hidden(torch.tensor([ids], device=self.device))[0]
            for part in hidden.split(self.PART):
                yield self.model.logits(part).float()


def open_reader(name: str, dtype: str | None, device: str) -> Reader:
    """The engine on the CPU, PyTorch on a GPU. Raises BadFileError, UsageError."""
    if device == "cpu":
        return EngineReader(name, dtype)
    if not torch.cuda.is_available():
        raise UsageError(f"device = {device!r}, but PyTorch finds no CUDA device")
    return TorchReader(name, torch.device(device))


# ---------------------------------------------------------------------------------------------------------
# Writing


def mark_of(name: str) -> str:
    """The name of a model, and what changes as soon as its files do. Raises BadFileError, OSError."""
    files = json.dumps([*files_of(Path(find(name).model))])
    return f"{name} {hashlib.sha256(files.encode(errors='surrogateescape')).hexdigest()[:12]}"


def most_likely(logits: Tensor, where: Tensor, n: int, top: int) -> tuple[Tensor, Tensor]:
    """Of logits (m, V of the model) the ids (m, top) of n, and their probabilities, the greatest first.

    where: the id that each token of the model counts for, n for none; there may be more logits than tokens.
    """
    probabilities = logits.T.softmax(dim=0)  # tokens first: rows are added as they lie
    of_ours = torch.zeros(n + 1, logits.shape[0], device=logits.device)
    of_ours.index_add_(0, where.to(logits.device), probabilities[: len(where)])
    found = of_ours[:n].T.topk(top, dim=1)
    return found.indices, found.values


class Writer:
    """Writes the rows of documents."""

    def __init__(self, reader: Reader, folder: Tokenizer, top: int) -> None:
        self.reader, self.bridge, self.top = reader, Bridge(reader.tokenizer, folder), top
        self.first, self.later = map(torch.from_numpy, (self.bridge.first, self.bridge.later))
        self.n = folder.vocab_size
        self.kind = row_type(self.n, top)

    def rows(self, ids: Sequence[int]) -> np.ndarray:
        """What is expected after each token of a document (T)."""
        found = np.zeros(len(ids), self.kind)
        theirs, of_ours, of_theirs = self.bridge.rows(ids)
        within = of_theirs < self.reader.longest
        of_ours, of_theirs, begin = of_ours[within], of_theirs[within], 0
        for logits in self.reader.logits(theirs[: self.reader.longest]) if len(of_theirs) else ():
            for where, begins in ((self.first, True), (self.later, False)):
                here = (of_theirs >= begin) & (of_theirs < begin + len(logits))
                here &= (of_ours == 0) == begins
                if not here.any():
                    continue
                part = logits[torch.from_numpy(of_theirs[here] - begin).to(logits.device)]
                likely, values = most_likely(part, where, self.n, self.top)
                found["ids"][of_ours[here]] = likely.cpu()
                found["probabilities"][of_ours[here]] = values.cpu()
            begin += len(logits)
        return found


def part_to_go_on(path: Path, head: dict[str, Any], shard: Shard, size: int) -> int:
    """How many documents an earlier run has written to a file, which is cut behind the last whole one."""
    with named(path), path.open("r+b" if path.exists() else "w+b") as file:
        start = file.read(HEADER_BYTES).decode(errors="replace")
        with contextlib.suppress(ValueError):
            if parse_json(start) == head:
                n_rows = (os.fstat(file.fileno()).st_size - HEADER_BYTES) // size
                done = int(np.searchsorted(shard.ends, n_rows, "right"))
                file.truncate(HEADER_BYTES + size * int(shard.ends[done - 1] if done else 0))
                return done
        file.seek(0)
        file.truncate()
        file.write(json.dumps(head).encode().ljust(HEADER_BYTES))
    return 0


def write_beside(shard: Shard, writer: Writer, mark: str, bar: tqdm) -> None:
    """Writes what is expected of a shard, or what is missing of it."""
    path, head = path_of(shard), head_of(shard, mark, writer.top)
    part = path.with_suffix(".expected.part")
    done = part_to_go_on(part, head, shard, writer.kind.itemsize)
    begins = [0, *shard.ends.tolist()]
    bar.update(begins[done])
    with named(part), part.open("ab") as file:
        for begin, end in itertools.pairwise(begins[done:]):
            file.write(writer.rows(shard.read(begin, end).tolist()).tobytes())
            bar.update(end - begin)
    head["crc32"] = checksum(part)
    with named(part), part.open("r+b") as file:
        file.write(json.dumps(head).encode().ljust(HEADER_BYTES))
    sync(part)
    part.replace(path)
    sync(path.parent)


def expect(folder: Path, name: str, top: int, dtype: str | None = None, device: str = "cpu") -> float:
    """Writes what a model expects of the text that there is to train on in a folder of tokens, or what is
    missing of it. Returns the mean of the probabilities of rows, which says how much they hold.

    Raises BadFileError, UsageError, OSError; KeyboardInterrupt, after which the same call goes on.
    """
    shards = open_split(folder, "train")
    if shards[0].kind != "text":
        raise BadFileError(f"{folder}: holds {shards[0].kind}, allowed text")
    if not 1 <= top <= min(TOP_MOST, shards[0].vocab_size):
        most = min(TOP_MOST, shards[0].vocab_size)
        raise UsageError(f"top = {top}, allowed 1 to {most}")
    with lock_folder(folder):
        writer, mark = Writer(open_reader(name, dtype, device), tokenizers.load(folder), top), mark_of(name)
        total = sum(len(shard.tokens) for shard in shards)
        with tqdm(total=total, unit=" tokens", unit_scale=True, mininterval=0.5) as bar:
            for shard in shards:
                if path_of(shard).exists() and is_of(shard, mark, top):
                    bar.update(len(shard.tokens))
                else:
                    write_beside(shard, writer, mark, bar)
    if not (mass := mean_mass(shards)):
        raise BadFileError(
            f"{folder}: its texts are none that the tokens of {name} spell: nothing is expected"
        )
    return mass


def is_of(shard: Shard, mark: str, top: int) -> bool:
    """Whether what lies beside a shard is of that model."""
    return read_head(path_of(shard)).items() >= head_of(shard, mark, top).items()


def mean_mass(shards: Sequence[Shard]) -> float:
    total = n = 0.0
    for shard in map(open_beside, shards):
        n += len(shard.tokens)
        for start in range(0, len(shard.tokens), 1 << 16):
            total += float(shard.read_expected(start, start + (1 << 16))[1].sum())
    return total / n
