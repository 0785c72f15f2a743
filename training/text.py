"""Reading text: a reader takes an open file and gives its documents one by one, in memory that does not grow.

.txt, .json, .jsonl and .parquet, for training a vocabulary and for writing tokens.
"""

from __future__ import annotations

import argparse
import codecs
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llama.command import path_type
from llama.errors import BadFileError, UsageError
from llama.files import reading
from llama.formats.files import parse_json
from llama.formats.tokenizers import well_formed

CHUNK = 1 << 20  # bytes read at once
DOCUMENT_MAX = 1 << 15  # characters of plain text: a novel is many documents, of which some are held out
ITEM_MAX = 1 << 26  # characters of an item of JSON
FIELDS = (
    "text",
    "story",
    "content",
)  # where an object of .json, .jsonl or .parquet has its text, in this order
SEPARATOR = "<|endoftext|>"  # what is commonly put between the documents of one .txt


@dataclass(frozen=True)
class Format:
    """How text files are cut into documents."""

    field: str = ""  # "": the first of FIELDS that is there
    separator: str = SEPARATOR  # of documents in a .txt
    strip: bool = False  # drop the whitespace around each document
    records: bool = False  # documents are whole objects, as JSON, not a text of theirs


RECORDS = Format(records=True)


def read_chunks(file: BinaryIO) -> Iterator[str]:
    """The text of a UTF-8 file, in parts. Raises BadFileError."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        while data := file.read(CHUNK):
            yield decoder.decode(data)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise BadFileError(
            f"{file.name}: text is not UTF-8 near byte {file.tell()}: {error.reason}"
        ) from None


def cut(text: str) -> Iterator[str]:
    """A text, or its parts of up to DOCUMENT_MAX characters, cut at line ends."""
    begin = 0
    while len(text) - begin > DOCUMENT_MAX:
        end = text.rfind("\n", begin, begin + DOCUMENT_MAX) + 1 or begin + DOCUMENT_MAX
        yield text[begin:end]
        begin = end
    yield text[begin:]


def read_txt(file: BinaryIO, form: Format) -> Iterator[str]:
    """The stretches between separators, long ones in parts. CRLF counts as LF, as in a prompt's file."""
    left = ""
    for chunk in read_chunks(file):
        text = (left + chunk).replace("\r\n", "\n")
        *whole, left = text.split(form.separator) if form.separator else [text]
        yield from itertools.chain.from_iterable(map(cut, whole))
        *parts, left = cut(left)
        yield from parts
    yield left


def text_of(item: Any, form: Format, where: str) -> str:
    """The text of a JSON value: itself, or its field; of records, JSON. Raises BadFileError."""
    if form.records:
        return json.dumps(item, ensure_ascii=False, default=str)  # of Parquet: a date, say
    if isinstance(item, dict):
        names = [form.field] if form.field else FIELDS
        item = next((item[name] for name in names if name in item), item)
        if isinstance(item, dict):
            raise BadFileError(
                f"{where}: fields = {', '.join(item) or 'none'}, allowed {' or '.join(names)} (--field)"
            )
    if not isinstance(item, str):
        raise BadFileError(f"{where}: text = {type(item).__name__}, allowed a string")
    return item


def read_json(file: BinaryIO, form: Format) -> Iterator[str]:
    """The items of a list, parsed one at a time: a whole file of TinyStories would take a gigabyte."""
    decoder, chunks, n = json.JSONDecoder(), read_chunks(file), 0
    text = next(chunks, "").lstrip()
    if not text.startswith("["):
        raise BadFileError(f"{file.name}: begins with {text[:1]!r}, allowed a JSON list")
    text = text[1:]
    while True:
        text = text.lstrip(" \t\r\n,")
        if text.startswith("]"):
            return
        try:
            item, end = decoder.raw_decode(text)
        except RecursionError:
            raise BadFileError(f"{file.name}: item {n} is nested too deeply") from None
        except ValueError as error:  # mostly since the item goes on in the next chunk
            more = next(chunks, None) if len(text) < ITEM_MAX else None
            if more is None:  # "" is half a character
                reason = getattr(error, "msg", error)
                raise BadFileError(f"{file.name}: item {n} is cut off or no JSON: {reason}") from None
            text += more
            continue
        yield text_of(item, form, f"{file.name}: item {n}")
        text, n = text[end:], n + 1


def read_jsonl(file: BinaryIO, form: Format) -> Iterator[str]:
    """One JSON value a line."""
    for n, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            item = parse_json(line)
        except ValueError as error:
            raise BadFileError(f"{file.name}: line {n} is no JSON: {error}") from None
        yield text_of(item, form, f"{file.name}: line {n}")


def read_parquet(file: BinaryIO, form: Format) -> Iterator[str]:
    """The rows of the text column."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise BadFileError(f"{file.name}: to read it: pip install pyarrow") from None
    try:
        table = pq.ParquetFile(file)
        columns = table.schema_arrow.names
        wanted = columns if form.records else [form.field] if form.field else FIELDS
        names = [name for name in wanted if name in columns]
        if not names:
            found = f"columns = {', '.join(columns)}"
            raise BadFileError(f"{file.name}: {found}, allowed {' or '.join(wanted)} (--field)")
        for rows in table.iter_batches(batch_size=1024, columns=names if form.records else names[:1]):
            for n, item in enumerate((rows if form.records else rows.column(0)).to_pylist()):
                yield text_of(item, form, f"{file.name}: row {n} of 1024")
    except pa.ArrowException as error:
        raise BadFileError(f"{file.name}: is no Parquet file: {error}") from None


# What a folder is searched for. A file that is named is text, whatever else it is called.
READERS = {
    **dict.fromkeys((".txt", ".md"), read_txt),
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
RECORD_FILES = (".json", ".jsonl", ".parquet")


def read_documents(file: BinaryIO, form: Format) -> Iterator[str]:
    """The documents of a file opened as binary, blank ones included. Raises BadFileError."""
    suffix = Path(file.name).suffix
    if form.records and suffix not in RECORD_FILES:
        raise BadFileError(f"{file.name}: holds no records, allowed {' '.join(RECORD_FILES)}")
    for text in READERS.get(suffix, read_txt)(file, form):
        yield text.strip() if form.strip else text


def text_files(inputs: Iterable[str | Path]) -> list[Path]:
    """The text files named, and those in the folders named, in order. Raises BadFileError."""
    files: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix in READERS and p.is_file())
        else:
            found = [path] if path.is_file() else []
        if not found:
            state = "holds no" if path.is_dir() else "is no" if path.exists() else "is missing, wanted a"
            raise BadFileError(f"{path}: {state} text file, allowed {' '.join(READERS)}")
        files += found
    return files


def sample(files: Iterable[Path], form: Format, max_bytes: int) -> Iterator[str]:
    """Documents from the start of files, up to about max_bytes: sentencepiece keeps them all in memory.

    Raises UsageError at once, BadFileError as they are read.
    """
    if max_bytes < 1:
        raise UsageError(f"max_bytes = {max_bytes}, allowed 1 or more")

    def texts(left: int) -> Iterator[str]:
        for path in files:
            with reading(path) as file:
                for text in read_documents(file, form):
                    if left <= 0:
                        return
                    left -= len(well_formed(text).encode())
                    yield text

    return texts(max_bytes)


# --- Command lines


def add_text_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", nargs="+", type=path_type, required=True, help="folders or files: " + " ".join(READERS)
    )
    parser.add_argument(
        "--field", default="", help="of an object, the text (default: " + ", ".join(FIELDS) + ")"
    )
    parser.add_argument("--separator", default=SEPARATOR, help="between documents of a .txt (%(default)s)")
    parser.add_argument("--strip", action="store_true", help="drop the whitespace around each document")


def text_format(options: argparse.Namespace) -> Format:
    return Format(options.field, options.separator.replace("\\n", "\n"), options.strip)
