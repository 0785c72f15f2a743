"""Text to shards of tokens, in parallel: what dataset.py and tinystories.py write (dataset.py says how).

It may be stopped at any time and run again: it goes on where it was. The stream of tokens that it writes does
not depend on the number of workers, nor on stops.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from tqdm import tqdm

from llama.errors import BadFileError, UsageError
from llama.files import lock_folder, reading, write_aside
from llama.formats import tokenizers
from llama.formats.tokenizers import Tokenizer, well_formed
from training.parts import WHOLE, Part
from training.shards import (
    HEADER_BYTES,
    SPLITS,
    VERSION,
    WEIGHT,
    Position,
    Shard,
    open_shard,
    padding,
    read_meta,
    shard_path,
    token_type,
    write_meta,
)
from training.text import Format, kind_of, read_documents

if TYPE_CHECKING:
    from training.conversations import Encoder

# ---------------------------------------------------------------------------------------------------------
# Writing: the main process reads text and writes shards, workers turn batches of documents into tokens.
# Results come back in order, and only so many batches are under way, so memory depends on neither the corpus
# nor its files.

BATCH_CHARACTERS = 1 << 19  # of text to a worker at once: about 0.1 s of work
SHARD_TOKENS = 1 << 25
MOST_WORKERS = 1024


@dataclass(frozen=True)
class Selection:
    """The documents of a split: all of its files, or those with (file + document) % every == 0, or != 0.

    Of a part, those whose end in the input lies in it.
    """

    files: list[Path]
    every: int = 0  # 0: all
    picks: bool = True
    part: Part = WHOLE

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)

    def takes(self, file: int, document: int) -> bool:
        return not self.every or ((file + document) % self.every == 0) == self.picks


@dataclass
class Batch:
    """Documents on their way to a worker."""

    texts: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)  # of each text, for who is told what is wrong with it
    characters: int = 0
    next: Position = (0, 0)
    bytes_read: int = 0  # of the input so far, for the progress bar


@dataclass(frozen=True)
class Encoded:
    """A batch of documents as tokens."""

    tokens: np.ndarray  # (n_tokens)
    lengths: np.ndarray  # (n_documents)
    n_bytes: int  # of text; 0 for conversations
    weights: np.ndarray | None = None  # (n_tokens), of each as a target; None: all count 1


def place_of(path: Path, document: int) -> str:
    """What an error calls a document, from 0, of a file."""
    return f"{path}: record {document + 1}"


def read_selected(selection: Selection, form: Format, start: Position) -> Iterator[tuple[Position, int, str]]:
    """The documents from start on, blank ones dropped: where the next one is, bytes read so far, the text."""
    first, last = selection.part.span(selection.size)
    before = 0
    for n, path in enumerate(selection.files):
        size = path.stat().st_size
        at_once = kind_of(path) == ".parquet"  # is read here and there: where a document ends can't be seen
        most = before if at_once else before + size
        if n >= start[0] and first <= most and before < last:
            with reading(path) as file:
                for document, text in enumerate(read_documents(file, form)):
                    read = before + file.tell()
                    if (end := min(read, most)) >= last:
                        break
                    if end < first or (n, document) < start:
                        continue
                    if selection.takes(n, document) and text.strip():
                        yield (n, document + 1), read, text
        before += size


def read_batches(selection: Selection, form: Format, start: Position) -> Iterator[Batch]:
    """The documents from start on, blank ones dropped, in batches."""
    batch = Batch()
    for place, read, text in read_selected(selection, form, start):
        batch.texts.append(text)
        batch.places.append(place_of(selection.files[place[0]], place[1] - 1))
        batch.characters += len(text)
        if batch.characters >= BATCH_CHARACTERS:
            batch.next, batch.bytes_read = place, read
            yield batch
            batch = Batch()
    if batch.texts:
        batch.next = (len(selection.files), 0)
        batch.bytes_read = int(min(selection.size, selection.part.span(selection.size)[1]))
        yield batch


def encode_batch(tokenizer: Tokenizer, batch: Batch) -> Encoded:
    """BOS and the text of each document."""
    ids = [tokenizer.encode(text, bos=True) for text in batch.texts]
    lengths = np.array([len(document) for document in ids])
    tokens = np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=lengths.sum())
    if tokens.min() < 0 or tokens.max() >= tokenizer.vocab_size:
        raise BadFileError(f"{tokenizer.path}: gave ids outside its vocabulary of {tokenizer.vocab_size}")
    n_bytes = sum(len(well_formed(text).encode()) for text in batch.texts)
    return Encoded(tokens.astype(token_type(tokenizer.vocab_size)), lengths, n_bytes)


def encode_records(encoder: Encoder, kind: str, batch: Batch) -> Encoded:
    """The conversations of records, or the chosen and the rejected one of each. Raises BadFileError."""
    wanted, samples = 2 if kind == "pairs" else 1, []
    for text, place in zip(batch.texts, batch.places, strict=True):
        found = encoder.encode_record(text, place)
        if len(found) != wanted:
            kinds = "a pair" if len(found) == 2 else "one conversation"
            raise BadFileError(f"{place}: is {kinds}, allowed in a folder of {kind}: {wanted}")
        samples += found
    ids, weights = ([*chain.from_iterable(part)] for part in zip(*samples, strict=True))
    lengths = np.array([len(sample[0]) for sample in samples])
    tokens = np.array(ids, token_type(encoder.tokenizer.vocab_size))
    return Encoded(tokens, lengths, 0, np.array(weights, WEIGHT))


@dataclass(frozen=True)
class Chats:
    """How conversations become tokens. kind: "chat" or "pairs". template: as in with_text."""

    model: Path
    kind: str = "chat"
    template: str | None = None
    told: Mapping[str, str] = field(default_factory=dict)  # of the model: llama/formats/texts.py


Encode = Callable[[Batch], Encoded]
_worker: dict[str, Encode] = {}  # of a worker process, set once as it starts


def encode_chats(chats: Chats) -> Encode:
    from training.conversations import open_encoder  # the engine, which text does without

    return partial(encode_records, open_encoder(chats.model, chats.template), chats.kind)


def start_worker(path: Path, chats: Chats | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process, which ends the others
    _worker["encode"] = encode_chats(chats) if chats else partial(encode_batch, tokenizers.load(path))


def work(batch: Batch) -> Encoded:
    return _worker["encode"](batch)


def encode_all(
    tokenizer: Tokenizer, batches: Iterable[Batch], workers: int, chats: Chats | None = None
) -> Iterator[tuple[Batch, Encoded]]:
    """Each batch with its tokens, in order. Raises what a worker raised, RuntimeError if one was killed."""
    if workers == 1:
        encode = encode_chats(chats) if chats else partial(encode_batch, tokenizer)
        yield from ((batch, encode(batch)) for batch in batches)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    pool = ProcessPoolExecutor(workers, spawn, start_worker, (tokenizer.path, chats))
    waiting: deque[tuple[Batch, Future[Encoded]]] = deque()
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(work, batch)))
            if len(waiting) > 2 * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    except BrokenProcessPool:
        raise OSError("a worker was killed, perhaps for want of memory: try fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


class Interrupt:
    """Ctrl-C seen while it was held back."""

    seen = False


@contextmanager
def hold_interrupt() -> Iterator[Interrupt]:
    """Ctrl-C and a polite kill wait until the caller asks; the second one does not."""
    interrupt, signals = Interrupt(), (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def note(number: int, frame: FrameType | None) -> None:
        interrupt.seen = True
        for number in signals:
            signal.signal(number, before[number])

    for number in signals:
        signal.signal(number, note)
    try:
        yield interrupt
    finally:
        for number in signals:
            signal.signal(number, before[number])


class ShardWriter:
    """What has been written of a shard to a file that write_aside gave."""

    def __init__(self, file: BinaryIO, tokenizer: Tokenizer, kind: str = "text") -> None:
        self.file, self.tokenizer, self.kind = file, tokenizer, kind
        self.n_tokens = self.n_bytes = self.crc32 = 0
        self.ends: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        file.write(b" " * HEADER_BYTES)

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.crc32 = zlib.crc32(data, self.crc32)

    def add(self, encoded: Encoded) -> None:
        self.write(encoded.tokens.tobytes())
        self.ends.append(self.n_tokens + np.cumsum(encoded.lengths))
        self.n_tokens += len(encoded.tokens)
        self.n_bytes += encoded.n_bytes
        if encoded.weights is not None:
            self.weights.append(encoded.weights)

    def finish(self, position: Position) -> None:
        """Writes what follows the tokens, and the header; position: of the document after the last one."""
        dtype = token_type(self.tokenizer.vocab_size)
        self.write(bytes(padding(self.n_tokens, dtype)))
        self.write(np.concatenate(self.ends).astype("<u8").tobytes())
        for weights in self.weights:
            self.write(weights.tobytes())
        head = {
            "version": VERSION,
            "kind": self.kind,
            "type": dtype.name,
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer_hash": self.tokenizer.hash,
            "bos_id": self.tokenizer.bos_id,
            "n_tokens": self.n_tokens,
            "n_documents": sum(map(len, self.ends)),
            "n_bytes": self.n_bytes,
            "crc32": self.crc32,
            "next": position,
        }
        self.file.seek(0)
        self.file.write(json.dumps(head).encode())


@dataclass
class Job:
    """One run of pretokenize."""

    folder: Path
    tokenizer: Tokenizer
    form: Format
    workers: int
    shard_tokens: int
    stop: Interrupt
    chats: Chats | None = None

    @property
    def kind(self) -> str:
        return self.chats.kind if self.chats else "text"


def existing_shards(folder: Path, split: str) -> list[Shard]:
    """The shards of a split that is being written."""
    shards: list[Shard] = []
    while (path := shard_path(folder, split, len(shards))).exists():
        shards.append(open_shard(path))
    return shards


def write_shards(job: Job, split: str, number: int, results: Iterator[tuple[Batch, Encoded]]) -> None:
    """Writes results to shards from number on. On an interrupt, what is encoded becomes a shorter shard."""
    result = next(results, None)
    while result is not None:
        with write_aside(shard_path(job.folder, split, number)) as file:
            shard = ShardWriter(file, job.tokenizer, job.kind)
            while result is not None:
                position = result[0].next
                shard.add(result[1])
                if job.stop.seen:
                    break
                result = next(results, None)
                if shard.n_tokens >= job.shard_tokens:
                    break
            shard.finish(position)
        if job.stop.seen:
            raise KeyboardInterrupt
        number += 1


def show_progress(bar: tqdm, results: Iterator[tuple[Batch, Encoded]]) -> Iterator[tuple[Batch, Encoded]]:
    """Moves the bar by the input that has been read, and shows tokens per second."""
    began, n_tokens = time.monotonic(), 0
    for batch, encoded in results:
        n_tokens += len(encoded.tokens)
        rate = n_tokens / (time.monotonic() - began)
        bar.set_postfix_str(f"{n_tokens / 1e6:.1f}M tokens, {rate:,.0f} tokens/s", refresh=False)
        bar.update(batch.bytes_read - bar.n)
        yield batch, encoded


def totals(shards: list[Shard]) -> dict[str, int]:
    return {
        "shards": len(shards),
        "tokens": sum(len(shard.tokens) for shard in shards),
        "documents": sum(len(shard.ends) for shard in shards),
        "bytes": sum(shard.n_bytes or 0 for shard in shards),
    }


def write_split(job: Job, split: str, selection: Selection) -> dict[str, int]:
    """Writes the shards of a split that are not there yet, and returns its totals. Raises BadFileError."""
    shards = existing_shards(job.folder, split)
    start = shards[-1].next if shards else (0, 0)
    first, last = selection.part.span(size := selection.size)
    batches = read_batches(selection, job.form, start)
    results = encode_all(job.tokenizer, batches, job.workers, job.chats)
    look = {"desc": f"{split:5}", "unit": "B", "unit_scale": True, "mininterval": 0.5}
    with tqdm(total=min(size, last), initial=first, **look) as bar:
        write_shards(job, split, len(shards), show_progress(bar, results))
    shards = existing_shards(job.folder, split)
    if not shards and selection.part == WHOLE:
        gone = ", all went to val" if split == "train" else ""
        options = "--val, --val_every, --separator"
        raise BadFileError(f"{job.folder}: {split} documents = 0{gone}, allowed 1 or more ({options})")
    return totals(shards)


def begin_folder(
    folder: Path, tokenizer: Tokenizer, source: dict[str, Any], told: Mapping[str, str]
) -> dict[str, Any]:
    """meta.json of a folder to write, new or to go on with.

    Raises BadFileError if it is for something else.
    """
    meta = {
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_hash": tokenizer.hash,
        "source": source,
        "splits": None,
        "texts": dict(told),
    }
    if (folder / "meta.json").exists():
        found = read_meta(folder)
        for name in ("tokenizer_hash", "source"):
            if found[name] != meta[name]:
                what = "another tokenizer" if name == "tokenizer_hash" else "other input or options"
                raise BadFileError(f"{folder}: holds tokens of {what}; name another folder or delete it")
        return found
    for split in SPLITS:
        if (folder / split).exists():
            raise BadFileError(f"{folder}: holds {split} but no meta.json, allowed an empty or a new folder")
    write_meta(folder, meta)
    return meta


def copy_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    with write_aside(folder / "tokenizer.model") as file:
        file.write(tokenizer.data)
    tokenizers.export_bin(tokenizer, folder / "tokenizer.bin")


def describe(selection: Selection) -> dict[str, Any]:
    """What a run must have in common with the one that it goes on with."""
    files = [[path.name, path.stat().st_size] for path in selection.files]
    return {"files": files, "every": selection.every, "picks": selection.picks}


def pretokenize(
    folder: str | Path,
    tokenizer: Tokenizer,
    train: Selection,
    val: Selection,
    form: Format,
    workers: int = 0,
    shard_tokens: int = SHARD_TOKENS,
    chats: Chats | None = None,
) -> dict[str, Any]:
    """Writes a folder of tokens, or what is missing of it, and returns its meta.json.

    workers: processes; 0: one a processor. shard_tokens: of a shard, about. chats: documents are records of
    conversations. Raises UsageError, BadFileError, OSError; KeyboardInterrupt once all that was encoded is on
    disk.
    """
    folder = Path(folder)
    if tokenizer.bos_id < 0 and not chats:
        raise BadFileError(f"{tokenizer.path}: has no BOS, which begins each document")
    if not 0 <= workers <= MOST_WORKERS:
        raise UsageError(f"workers = {workers}, allowed 0 to {MOST_WORKERS}")
    if shard_tokens < 1:
        raise UsageError(f"shard_tokens = {shard_tokens}, allowed 1 or more")
    selections = {"val": val, "train": train}
    source = {name: describe(selection) for name, selection in selections.items()}
    source |= {name: value for name, value in asdict(form).items() if name != "records"}
    source |= {"kind": chats.kind, "template": chats.template} if chats else {}
    source |= {"part": astuple(train.part)} if train.part != WHOLE else {}
    with lock_folder(folder), hold_interrupt() as stop:
        meta = begin_folder(folder, tokenizer, source, chats.told if chats else {})
        if meta["splits"] is not None:
            return meta
        copy_tokenizer(folder, tokenizer)
        job = Job(folder, tokenizer, form, workers or os.cpu_count() or 1, shard_tokens, stop, chats)
        splits = {name: write_split(job, name, selection) for name, selection in selections.items()}
        meta["splits"] = {name: total for name, total in splits.items() if total["shards"]}
        write_meta(folder, meta)
    return meta


# --- Command lines


def add_writer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one a processor (%(default)s)")
    parser.add_argument("--shard_tokens", type=int, default=SHARD_TOKENS, help="of a shard (%(default)s)")


def print_totals(folder: Path, splits: dict[str, dict[str, int]]) -> None:
    for name, total in splits.items():
        print(f"{folder}: {name:5}", ", ".join(f"{value:,} {unit}" for unit, value in total.items() if value))
