"""Shards of tokens: the files that dataset.py writes, mapped into memory, and the folders that hold them.

dataset.py says what is in them. Folders of llama2.c (headerless uint16 .bin files) are read too.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llama.errors import BadFileError
from llama.files import named, reading, write_aside
from llama.formats import tokenizers
from llama.formats.files import parse_json
from llama.formats.kinds import whole
from llama.formats.vocabulary import Vocabulary

SPLITS = ("train", "val")

# ---------------------------------------------------------------------------------------------------------
# A shard

VERSION = 1
KINDS = ("text", "chat", "pairs")  # what documents are: texts; conversations; chosen and rejected in turn
WEIGHT = np.dtype("<f2")  # of a target, in all but texts
HEADER_BYTES = 4096  # a page, so that the tokens are aligned in memory
Position = tuple[int, int]  # in the input: number of the file, number of the document in it


@dataclass(frozen=True)
class Shard:
    """One file of tokens, mapped into memory. `open_shard` and `open_headerless` make it."""

    path: Path
    tokens: np.ndarray  # (n_tokens) uint16 or uint32
    ends: np.ndarray  # (n_documents) uint64: where each document ends
    vocab_size: int
    tokenizer_hash: str  # sha256 of the tokenizer's file; "": unknown
    bos_id: int
    n_bytes: int | None  # UTF-8 bytes of the text, for bits per byte; None: unknown
    crc32: int | None = None  # of all after the header
    next: Position = (0, 0)  # the document after the last one
    kind: str = "text"  # one of KINDS
    weights: np.ndarray | None = None  # (n_tokens) float16, of each as a target; None: all count 1
    expected: np.ndarray | None = None  # (n_tokens) rows of training/expected.py, where they are learnt

    def read(self, start: int, end: int) -> np.ndarray:
        """Tokens start to end as int64. Raises BadFileError for one outside the vocabulary."""
        block = self.tokens[start:end].astype(np.int64)
        if len(block) and block.max() >= self.vocab_size:
            raise BadFileError(f"{self.path}: token id = {block.max()}, allowed 0 to {self.vocab_size - 1}")
        return block

    def read_expected(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """What is expected after tokens start to end: ids (n, top), int64, and probabilities, float32.

        Raises BadFileError for an id outside the vocabulary, or what is no probability.
        """
        rows = self.expected[start:end]
        ids, probabilities = rows["ids"].astype(np.int64), rows["probabilities"].astype(np.float32)
        where = self.path.with_suffix(".expected")
        if ids.max(initial=0) >= self.vocab_size:
            raise BadFileError(f"{where}: token id = {ids.max()}, allowed 0 to {self.vocab_size - 1}")
        if not (probabilities.min(initial=0) >= 0 and probabilities.sum(axis=1).max(initial=0) < 1.01):
            raise BadFileError(f"{where}: has a row that is no probabilities, allowed 0 to 1 in all")
        return ids, probabilities


def token_type(vocab_size: int) -> np.dtype:
    """The smallest type that holds the ids. uint16 alone would cut off those of Llama 3 without a word."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def padding(n_tokens: int, dtype: np.dtype) -> int:
    """Bytes from the last token to the document ends, which are aligned to 8."""
    return -n_tokens * dtype.itemsize % 8


NUMBERS = ("version", "vocab_size", "bos_id", "n_tokens", "n_documents", "n_bytes", "crc32")  # of a header


def read_head(header: bytes) -> dict[str, Any]:
    """The fields of a header. Raises ValueError for one of another type, KeyError for one that is missing."""
    head = parse_json(header.decode(errors="replace"))
    if not isinstance(head, dict):
        raise ValueError("it is no JSON object")
    for name in NUMBERS:
        least = 1 if name in ("n_tokens", "n_documents") else -1
        if type(head[name]) is not int or head[name] < least:
            raise ValueError(f"{name} = {head[name]!r:.40}, allowed whole numbers from {least} on")
    if not isinstance(head["tokenizer_hash"], str):
        raise ValueError(f"tokenizer_hash = {head['tokenizer_hash']!r:.40}, allowed text")
    position = head["next"]
    if not (isinstance(position, list) and len(position) == 2 and all(type(n) is int for n in position)):
        raise ValueError(f"next = {position!r:.40}, allowed a file and a document of it")
    return head


def open_shard(path: Path) -> Shard:
    """Maps a shard. Raises BadFileError if its header or its size is wrong; `check_shard` reads the rest."""
    if not path.is_file():
        raise BadFileError(f"{path}: is missing")
    with reading(path) as file:
        header, size = file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size
    try:
        head = read_head(header)
        n_tokens, n_documents = head["n_tokens"], head["n_documents"]
        dtype = token_type(head["vocab_size"])
        ends_at = HEADER_BYTES + n_tokens * dtype.itemsize + padding(n_tokens, dtype)
        facts = {name: head[name] for name in ("vocab_size", "tokenizer_hash", "bos_id", "n_bytes", "crc32")}
        version, position, kind = head["version"], tuple(head["next"]), head.get("kind", "text")
    except (ValueError, KeyError, TypeError) as error:
        raise BadFileError(f"{path}: is no shard of tokens: its header is damaged ({error})") from None
    if version != VERSION:
        raise BadFileError(f"{path}: version = {version}, allowed {VERSION}")
    if kind not in KINDS:
        raise BadFileError(f"{path}: kind = {kind!r}, allowed {', '.join(KINDS)}")
    weights_at = ends_at + 8 * n_documents
    allowed = weights_at + (WEIGHT.itemsize * n_tokens if kind != "text" else 0)
    if size != allowed:
        raise BadFileError(f"{path}: size = {size} bytes, allowed {allowed} by its header")
    with named(path):
        weights = np.memmap(path, WEIGHT, "r", weights_at, (n_tokens,)) if kind != "text" else None
        tokens = np.memmap(path, dtype, "r", HEADER_BYTES, (n_tokens,))
        ends = np.memmap(path, "<u8", "r", ends_at, (n_documents,))
    if ends[-1] != n_tokens:
        raise BadFileError(f"{path}: last document end = {ends[-1]}, allowed {n_tokens}")
    return Shard(path, tokens, ends, **facts, next=position, kind=kind, weights=weights)


def documents(shards: Iterable[Shard]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids, int64, and weights, float32, of each document: (T) each."""
    for shard in shards:
        for begin, end in itertools.pairwise([0, *shard.ends.tolist()]):
            ids, weights = shard.read(begin, end), shard.weights
            yield ids, np.ones(len(ids), np.float32) if weights is None else weights[begin:end].astype("f4")


def checksum(path: Path) -> int:
    """The crc32 of all after the header."""
    crc = 0
    with reading(path) as file:
        file.seek(HEADER_BYTES)
        while data := file.read(1 << 22):
            crc = zlib.crc32(data, crc)
    return crc


def check_shard(shard: Shard) -> None:
    """Reads a whole shard. Raises BadFileError where it is not what was written."""
    for start in range(0, len(shard.tokens), 1 << 22):
        shard.read(start, start + (1 << 22))
    if shard.crc32 is not None and (crc := checksum(shard.path)) != shard.crc32:
        raise BadFileError(f"{shard.path}: crc32 = {crc}, allowed {shard.crc32} by its header")


def open_headerless(path: Path) -> Shard:
    """Maps a shard of llama2.c: uint16 and nothing else, of a folder tok<vocabulary> or Llama 2's 32,000."""
    size = path.stat().st_size
    if size == 0 or size % 2:
        raise BadFileError(f"{path}: size = {size} bytes, allowed are even numbers from 2 for uint16 tokens")
    named = re.fullmatch(r"tok(\d+)", path.parent.name)
    tokens = np.memmap(path, "<u2", "r")
    begins = np.flatnonzero(tokens == 1)  # llama2.c puts BOS before each story
    ends = np.append(begins[begins > 0], len(tokens)).astype(np.uint64)
    return Shard(path, tokens, ends, int(named[1]) if named else 32000, "", 1, None)


# ---------------------------------------------------------------------------------------------------------
# A folder


def shard_path(folder: Path, split: str, number: int) -> Path:
    return folder / split / f"{number:05}.tokens"


def has_shards(split: Any) -> bool:
    return isinstance(split, dict) and type(split.get("shards")) is int and split["shards"] > 0


def check_meta(meta: Any) -> None:
    """Raises ValueError for what is no object, or whose splits or texts are none."""
    if not isinstance(meta, dict):
        raise ValueError("it is no JSON object")
    splits = meta.get("splits")
    if splits is not None and not (isinstance(splits, dict) and all(map(has_shards, splits.values()))):
        raise ValueError(f"splits = {splits!r:.80}, allowed each with the number of its shards")
    texts = meta.get("texts", {})
    if not (isinstance(texts, dict) and all(isinstance(text, str) for text in texts.values())):
        raise ValueError(f"texts = {texts!r:.80}, allowed a text by each name")


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.json of a folder. Raises BadFileError."""
    data = whole(folder / "meta.json")
    try:
        meta = parse_json(data)
        check_meta(meta)
        names = ("vocab_size", "tokenizer_hash", "source", "splits")
        return {name: meta[name] for name in names} | {"texts": meta.get("texts", {})}
    except (ValueError, KeyError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise BadFileError(f"{folder / 'meta.json'}: is no description of tokens: {reason}") from None


def write_meta(folder: Path, meta: dict[str, Any]) -> None:
    """Writes meta.json of a folder. Raises OSError."""
    with write_aside(folder / "meta.json") as file:
        file.write(json.dumps(meta, indent=1).encode() + b"\n")


def open_split(folder: str | Path, split: str) -> list[Shard]:
    """The shards of 'train' or 'val'. Raises BadFileError if any is missing, cut off or of another kind."""
    folder = Path(folder)
    if split not in SPLITS:
        raise BadFileError(f"{folder}: split = {split!r}, allowed {' or '.join(SPLITS)}")
    if not (folder / "meta.json").is_file():
        return open_headerless_split(folder, split)
    meta = read_meta(folder)
    if split not in (meta["splits"] or {}):
        raise BadFileError(f"{folder}: was not finished; run the same pretokenize again")
    shards = [open_shard(shard_path(folder, split, i)) for i in range(meta["splits"][split]["shards"])]
    for shard in shards:
        for name in ("vocab_size", "tokenizer_hash"):
            found, wanted = getattr(shard, name), meta[name]
            if found != wanted:
                raise BadFileError(f"{shard.path}: {name} = {found}, allowed {wanted} by meta.json")
    if (found := tokenizers.load(folder).hash) != meta["tokenizer_hash"]:
        raise BadFileError(f"{folder / 'tokenizer.model'}: hash = {found}, allowed {meta['tokenizer_hash']}")
    return shards


def command_for(folder: Path) -> str:
    """The command that writes a folder of tokens: of TinyStories where it is named as theirs."""
    named = re.fullmatch(r"tok(\d+)", folder.name)
    if named:
        size = 0 if named[1] == "32000" else named[1]  # Llama 2's vocabulary
        return f"python tinystories.py pretokenize --vocab_size={size}"
    return f"python dataset.py pretokenize --input TEXTS --tokenizer FILE.model --output {folder}"


def open_headerless_split(folder: Path, split: str) -> list[Shard]:
    """llama2.c's layout: data00.bin is the validation split, the others are for training."""
    files = sorted(folder.glob("*.bin"))
    if not files:
        state = "holds neither meta.json nor .bin files" if folder.is_dir() else "is no folder"
        raise BadFileError(f"{folder}: {state}; make it with: {command_for(folder)}")
    files = files[:1] if split == "val" else files[1:]
    if not files:
        raise BadFileError(f"{folder}: .bin files = 1, allowed 2 or more: the first is the validation split")
    return [open_headerless(path) for path in files]


def check_tokens(name: str, vocabulary: Vocabulary, folder: Path) -> None:
    """Raises BadFileError where a model has other tokens than a folder of data was made with."""
    theirs, ours = vocabulary.unpadded.pieces, tokenizers.load(folder).vocabulary.unpadded.pieces
    for i, (found, wanted) in enumerate(zip(theirs, ours, strict=False)):
        if found != wanted:
            raise BadFileError(f"{name}: token {i} is {found!r}, in {folder} it is {wanted!r}")
    if len(theirs) != len(ours):
        raise BadFileError(f"{name}: has {len(theirs)} tokens, {folder} has {len(ours)}")
