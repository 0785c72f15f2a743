"""Reading text: a reader takes an open file and gives its documents one by one, in memory that does not grow.

.txt, .json, .jsonl and .parquet, for training a vocabulary and for writing tokens.
"""

from __future__ import annotations

import argparse
import codecs
import itertools
import json
import re
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
BLANK = re.compile(r"[ \t\n\r]*")  # between the items
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
        at = file.tell() - len(error.object) + error.start  # the decoder has what was read last
        raise BadFileError(f"{file.name}: text is not UTF-8 at byte {at}: {error.reason}") from None


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


class JsonList:
    """The items of a JSON list, parsed one at a time: a whole file of TinyStories would take a gigabyte."""

    def __init__(self, file: BinaryIO) -> None:
        self.name, self.chunks, self.decoder = file.name, read_chunks(file), json.JSONDecoder()
        self.text, self.at, self.before = "", 0, 0  # what is read, where in it the next is, what came before
        self.n = 0  # items so far

    def failed(self, reason: str) -> BadFileError:
        return BadFileError(f"{self.name}: item {self.n} is {reason}")

    def more(self) -> bool:
        """Reads on. False at the end of the file."""
        if (chunk := next(self.chunks, None)) is None:
            return False
        self.text, self.at, self.before = self.text[self.at :] + chunk, 0, self.before + self.at
        return True

    def next(self) -> str:
        """The next character that is not white space, "" at the end of the file."""
        while True:
            self.at = BLANK.match(self.text, self.at).end()
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def item(self) -> Any:
        """The next item. Raises BadFileError."""
        self.next()
        while True:
            try:
                item, end = self.decoder.raw_decode(self.text, self.at)
            except RecursionError:
                raise self.failed("nested too deeply") from None
            except ValueError as error:  # mostly since the item goes on in the next chunk
                if len(self.text) - self.at >= ITEM_MAX or not self.more():
                    raise self.failed(f"cut off or no JSON: {self.reason(error)}") from None
                continue
            if end < len(self.text) or not self.more():  # a number may go on in the next chunk
                self.at, self.n = end, self.n + 1
                return item

    def reason(self, error: ValueError) -> str:
        if not isinstance(error, json.JSONDecodeError):
            return str(error)
        return f"{error.msg} (character {self.before + error.pos})"

    def end(self) -> bool:
        """Whether the list ends behind an item, or goes on behind a comma. Raises BadFileError."""
        if (found := self.next()) not in (",", "]"):
            reason = f"cut off or no JSON: {found!r} (character {self.before + self.at}), allowed , or ]"
            raise self.failed(reason)
        self.at += 1
        return found == "]"


def read_json(file: BinaryIO, form: Format) -> Iterator[str]:
    """The items of a list."""
    items = JsonList(file)
    if (found := items.next()) != "[":
        raise BadFileError(f"{file.name}: begins with {found!r}, allowed a JSON list")
    items.at += 1
    ended = items.next() == "]"
    items.at += ended
    while not ended:
        item = items.item()
        yield text_of(item, form, f"{file.name}: item {items.n - 1}")
        ended = items.end()
    if found := items.next():
        place = f"{found!r} (character {items.before + items.at})"
        raise BadFileError(f"{file.name}: has {place} behind the list, allowed nothing")


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


# What a folder is searched for. A file that is named may be called otherwise, and is plain text then.
READERS = {
    **dict.fromkeys((".txt", ".md"), read_txt),
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
RECORD_FILES = (".json", ".jsonl", ".parquet")
NO_TEXT = (".csv", ".tsv", ".bin")  # what may be read as plain text, and is none
HEAD = 4096  # bytes in which what is no text has a zero


def kind_of(path: Path) -> str:
    """What a file is read as: its suffix, in small letters."""
    return path.suffix.lower()


def is_text(path: Path) -> bool:
    """Whether a file that is named can be read. Raises OSError."""
    if not path.is_file() or kind_of(path) in NO_TEXT:
        return False
    with reading(path) as file:
        return kind_of(path) in READERS or b"\0" not in file.read(HEAD)


def read_documents(file: BinaryIO, form: Format) -> Iterator[str]:
    """The documents of a file opened as binary, blank ones included. Raises BadFileError."""
    suffix = kind_of(Path(file.name))
    if form.records and suffix not in RECORD_FILES:
        raise BadFileError(f"{file.name}: holds no records, allowed {' '.join(RECORD_FILES)}")
    for text in READERS.get(suffix, read_txt)(file, form):
        yield text.strip() if form.strip else text


def text_files(inputs: Iterable[str | Path]) -> list[Path]:
    """The text files named, and those in the folders named, in order. Raises BadFileError, OSError."""
    files: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if kind_of(p) in READERS and p.is_file())
        else:
            found = [path] if is_text(path) else []
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
        "--input",
        nargs="+",
        type=path_type,
        required=True,
        help=f"folders or files: {' '.join(READERS)}; others: plain text",
    )
    parser.add_argument(
        "--field", default="", help="of an object, the text (default: " + ", ".join(FIELDS) + ")"
    )
    parser.add_argument("--separator", default=SEPARATOR, help="between documents of a .txt (%(default)s)")
    parser.add_argument("--strip", action="store_true", help="drop the whitespace around each document")


def text_format(options: argparse.Namespace) -> Format:
    return Format(options.field, options.separator.replace("\\n", "\n"), options.strip)
