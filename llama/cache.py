"""python -m llama.cache: models of other formats, converted once and kept.

    python -m llama.cache                     what is kept: size, type, source
    python -m llama.cache clear               delete all of it
    python -m llama.cache clear SmolLM2       delete what was made of sources with SmolLM2 in their path
    python -m llama.cache clear owner/name    what was made of a repository of the hub

A model that is no .bin (a .gguf, a folder of Hugging Face or Meta, a checkpoint) is converted the first time
it is opened, and kept under the source's name, its files' sizes and times, and the options: a source that
changes is converted anew. It becomes int8, or below half a billion parameters bf16: small models lose most
by rounding, and are fast in any type. A .bin is converted where another type is asked for, or where rows of
int8 (v2) are to be served. The folder is $CRIA_CACHE, else cria in the platform's one of caches.

Left out on purpose: downloads, which the cache of the Hugging Face hub keeps (HF_HOME).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from llama.command import Parser, counted, name_type, note, run_command, started_as
from llama.config import Config, model_config
from llama.errors import BadFileError, LlamaError, ResourceError, UsageError, one_line
from llama.files import ended_in_order, lock_file, remove_left_over, temporary_folder, write_aside
from llama.formats.kinds import LONGEST, TORCH, is_of_folder
from llama.hub import STORIES, has_quant, is_name, parse
from llama.native import model_open
from llama.tokenizer import Tokenizer

VERSION = 4  # of what a conversion gives: a cached file of another one is made again
DTYPES = ("int8", "int4", "bf16", "fp32")
SMALL = 500_000_000  # parameters below which a model is kept in bf16
LONGEST_NAME = 160  # bytes of a source's name in that of the converted file, which systems cut at 255
LARGE_ROWS = 64 << 20  # bytes of a v2 file from which on it is converted to be served
LOGGER = logging.getLogger("llama")
Say = Callable[[str], object]


def is_foreign(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a model that has to be converted: a folder, GGUF, safetensors, a file of PyTorch.

    One file of a folder is taken for such too: who reads it says that the folder is wanted.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return True
        if not path.is_file():  # to open a pipe is to wait for who writes to it
            return False
        with path.open("rb") as file:
            head = file.read(LONGEST)
    except (OSError, ValueError):
        return False  # whoever opens it says what is wrong
    return (
        head.startswith((b"GGUF", *TORCH))
        or head[8:10] in (b"{}", b'{"')
        or path.suffix in (".gguf", ".safetensors")
        or is_of_folder(path, head)
    )


def config_of(path: str | os.PathLike[str]) -> Config | None:
    """The shape of a .bin; None for what the engine does not open: whoever opens it says what is wrong."""
    try:
        return model_config(model_open(path))
    except LlamaError:
        return None


def is_old_bin(path: str | os.PathLike[str]) -> bool:
    """Whether a model is a .bin of v0 to v2, llama2.c's."""
    return not is_foreign(path) and (config := config_of(path)) is not None and config.version < 3


def tokenizer_beside(model: str | os.PathLike[str]) -> str | None:
    """The tokenizer.bin or tok<vocabulary>.bin that the engine would find beside a .bin of llama2.c.

    None for another model, and where there is none.
    """
    if not is_old_bin(model) or (config := config_of(model)) is None:
        return None
    for name in ("tokenizer.bin", f"tok{config.vocab_size}.bin"):
        path = Path(model).with_name(name)
        with suppress(LlamaError):
            if Tokenizer(path).vocab_size == config.vocab_size:
                return os.fspath(path)
    return None


def is_to_convert(path: str | os.PathLike[str], dtype: str | None) -> bool:
    """Whether a model can't run as it is: one of another format, or a .bin that is no v3 of a type."""
    if dtype is None or is_foreign(path):
        return is_foreign(path)
    config = config_of(path)
    return config is not None and (config.version, config.weight_type) != (3, dtype)


def is_slow_to_serve(path: str | os.PathLike[str]) -> bool:
    """Whether a .bin is a large one of int8 in rows (v2).

    Where many tokens go through a model at once, as those of prompts or of many texts do, tiles (v3) are 2 to
    2.4 times as fast.
    """
    if is_foreign(path) or (config := config_of(path)) is None:
        return False
    return config.version == 2 and Path(path).stat().st_size >= LARGE_ROWS


def usual_folder() -> Path:
    """Where converted models are kept, unless something else is there. Raises ResourceError."""
    if said := os.environ.get("CRIA_CACHE"):
        return Path(said)
    own, ours = "", ("cria",)  # a variable that may name the system's one of caches, and ours in it
    if sys.platform == "win32":
        own, usual, ours = "LOCALAPPDATA", ("AppData", "Local"), ("cria", "cache")
    elif sys.platform == "darwin":
        usual = ("Library", "Caches")
    else:
        own, usual = "XDG_CACHE_HOME", (".cache",)
    try:
        return Path(os.environ.get(own) or Path.home().joinpath(*usual), *ours)
    except RuntimeError:  # a user without a home
        raise ResourceError(
            "no folder for converted models: $CRIA_CACHE names none, nor is there a home"
        ) from None


def folder() -> Path:
    """Where converted models are kept. Raises BadFileError for what is no folder."""
    path = usual_folder()
    if path.exists() and not path.is_dir():
        raise BadFileError(f"{path}: is a file, allowed is a folder for converted models ($CRIA_CACHE)")
    return path


@dataclass(frozen=True)
class Entry:
    """A converted model. path: the .bin. source: what it was made of. made: seconds since 1970."""

    path: Path
    source: str
    dtype: str
    made: float
    asked: str | None  # the type that was asked for, or for which shape an adapter is

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def notes(self) -> Path:
        """The file beside it that says all this."""
        return self.path.with_suffix(".json")


def entries() -> list[Entry]:
    """What is kept, the newest first."""
    found = []
    for notes in folder().glob("*.json"):
        try:
            values = json.loads(notes.read_text(encoding="utf-8"))
            entry = Entry(**{**values, "path": notes.with_suffix(".bin")})
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if entry.path.exists():
            found.append(entry)
    return sorted(found, key=lambda entry: -entry.made)


def is_current(entry: Entry) -> bool:
    """Whether the source is as it was when the model was made of it."""
    return entry.path in {place(Path(entry.source), entry.asked, jinja) for jinja in (False, True)}


def delete(entry: Entry) -> None:
    entry.path.unlink(missing_ok=True)
    entry.notes.unlink(missing_ok=True)


# --- Converting


def files_of(source: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of what a model may be made of: its folder's files, or it and those beside it."""
    within = [*source.glob("*"), *source.glob("additional_chat_templates/*")]
    for path in sorted(within if source.is_dir() else [source, *source.parent.glob("tok*")]):
        if path.is_file():
            status = path.stat()
            yield path.name, status.st_size, status.st_mtime_ns


def absolute(source: Path) -> Path:
    """The path from the root. Links stay: in the hub's cache what they point to has no name."""
    return Path.cwd() / source


def has_jinja() -> bool:
    """Whether jinja2 is there, which tells what a chat template is."""
    return bool(find_spec("jinja2"))


def place(source: Path, asked: str | None, has_jinja: bool) -> Path:
    """Where the converted file of a source belongs. asked: the type, None for the one that suits it."""
    source = absolute(source)
    facts = [VERSION, str(source), asked, has_jinja, *files_of(source)]
    key = hashlib.sha256(json.dumps(facts).encode(errors="surrogateescape")).hexdigest()[:12]
    name = source.name.removesuffix(".gguf").encode(errors="surrogateescape")[:LONGEST_NAME]
    return folder() / f"{name.decode(errors='ignore')}-{asked or 'usual'}-{key}.bin"


def convert(source: Path, out: Path, dtype: str | None, say: Say, fate: str) -> str:
    """Writes a v3 file of a model in any format, with its tokenizer and template, and returns its type.

    That of a .bin of llama2.c gets no tokenizer, as it has none: who opens it does (tokenizer_beside).

    dtype: None for the one that suits it. say: is told so once the source turned out to be a model. fate:
    what becomes of the file, in words.
    Raises BadFileError, UsageError, OSError; nothing is left then.
    """
    from llama.formats.chat_templates import Chat
    from llama.formats.export import export_v3  # numpy and what reads files: not for a model that is there
    from llama.formats.models import open_source
    from llama.formats.source import tensor_shapes
    from llama.formats.text import with_text
    from llama.formats.v3 import extras_of

    found, is_rows = open_source(source), is_old_bin(source)
    if is_rows:  # the engine looks for their tokenizer, and takes their template to be Llama 2's
        found, vocabulary = replace(found, chat=Chat("llama2")), None
    else:
        found, vocabulary = with_text(found, source if source.is_dir() else source.parent)
    extras = extras_of(found, vocabulary)
    for assumed in found.notes:
        LOGGER.warning("%s: %s", one_line(found.name), assumed)
    if vocabulary is None and not is_rows:
        LOGGER.warning("%s: has no tokenizer: texts take one of yours (-z)", one_line(found.name))
    if dtype is None:
        small = sum(math.prod(shape) for shape in tensor_shapes(found.config).values()) < SMALL
        dtype = "bf16" if small else "int8"
    say(f"converting {source} to {dtype}, {fate}")
    progress = say is note and sys.stderr.isatty()
    export_v3(out, found.config, found.tensors, dtype, None, extras, name=found.name, progress=progress)
    return dtype


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Waits until no other process makes the file at path."""
    lock = path.with_suffix(".lock")
    with ended_in_order(), lock.open("w") as file:
        while True:
            try:
                lock_file(file)
                break
            except (BlockingIOError, PermissionError):
                time.sleep(0.1)
        try:
            yield
        finally:
            with suppress(OSError):  # it is open, on systems that mind
                lock.unlink()


def kept(source: Path, asked: str | None, make: Callable[[Path], str]) -> Path:
    """The file that was made of a source: the one that is kept, or a new one.

    asked: what of it. make: writes it and returns its type.
    """
    path = place(source, asked, has_jinja())
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone(path):
        if path.exists():  # somebody else was faster
            return path
        entry = Entry(path, str(absolute(source)), make(path), time.time(), asked)
        with write_aside(entry.notes) as file:
            file.write(json.dumps({**asdict(entry), "path": path.name}, indent=1).encode())
    for old in entries():
        if old.source == entry.source and not is_current(old):
            delete(old)
    return path


def converted(source: str | os.PathLike[str], dtype: str | None = None, say: Say = LOGGER.info) -> Path:
    """The .bin of a model in another format: the one that is kept, or a new one.

    dtype: None for the type that suits it: bf16 below SMALL parameters, else int8. say: is told in one
    line what is converted, and where to. For note a bar shows how far it is.
    Raises BadFileError (no model, or one that can't be read), UsageError, OSError.
    """
    source = Path(source)
    if dtype not in (None, *DTYPES):
        raise UsageError(f"dtype = {dtype}, allowed {', '.join(DTYPES)}")
    return kept(source, dtype, lambda path: convert(source, path, dtype, say, f"kept as {path}"))


@contextmanager
def converted_for_now(
    source: str | os.PathLike[str], dtype: str | None = None, say: Say = LOGGER.info
) -> Iterator[Path]:
    """The .bin of a model in another format, deleted at the end of the block. Raises as converted."""
    with temporary_folder() as aside:
        path = aside / "model.bin"
        convert(Path(source), path, dtype, say, "for this run")
        yield path


# --- The program


def is_meant(source: str, pattern: str) -> bool:
    """Whether a pattern is in the path of a source, or the name by which it came from the hub."""
    if pattern in source or not is_name(pattern) or pattern in STORIES:
        return pattern in source
    place = parse(pattern)
    home = f"models--{place.repository.replace('/', '--')}"  # as the hub's cache calls it
    is_quant = not place.quant or has_quant(source, place.quant)
    return home in Path(source).parts and place.file in source and is_quant


def clear(pattern: str | None = None) -> list[Entry]:
    """Deletes the models whose source is_meant; without a pattern all, and what was left half.

    Raises UsageError for an empty pattern, which would be in every path.
    """
    if pattern == "":
        raise UsageError("pattern: is empty, allowed is a part of a path, or a name")
    gone = [entry for entry in entries() if pattern is None or is_meant(entry.source, pattern)]
    for entry in gone:
        delete(entry)
    if pattern is None:
        sweep()
    return gone


def sweep() -> None:
    """Deletes what killed programs left, but not what is being written now."""
    for path in folder().glob("*.bin"):
        if not path.with_suffix(".json").exists() and not path.with_suffix(".lock").exists():
            path.unlink(missing_ok=True)
    for scratch in folder().glob(".*.tmp"):  # .NAME.PID.tmp
        remove_left_over(scratch.with_name(scratch.name[1:].rsplit(".", 2)[0]))


def describe(entry: Entry) -> str:
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.made))
    state = "" if is_current(entry) else " (changed since, or gone)"
    return f"{entry.bytes / 1e6:10,.1f} MB  {entry.dtype:5} {made}  {one_line(entry.source)}{state}"


def main(arguments: list[str]) -> None:
    parser = Parser(prog=started_as("cache"), description=__doc__)
    parser.add_argument("command", nargs="?", choices=("list", "clear"), default="list")
    said = "part of a source's path, or its name (all)"
    parser.add_argument("pattern", nargs="?", type=name_type, help=said)
    options = parser.parse_args(arguments)
    if options.command == "clear":
        gone = clear(options.pattern)
        if options.pattern and not gone:
            raise BadFileError(f"{options.pattern}: no converted model is of such a source")
        print(f"{counted(len(gone), 'file')} deleted")
        return
    kept = [entry for entry in entries() if is_meant(entry.source, options.pattern or "")]
    size = sum(entry.bytes for entry in kept) / 1e6
    print(f"{folder()}: {counted(len(kept), 'model')}, {size:,.1f} MB")
    for entry in kept:
        print(describe(entry))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
