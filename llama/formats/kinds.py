"""What a file is by its first bytes, for messages, and where it may not be what its name says.

llama/csrc/base/util.h has the same for the engine.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any, NoReturn

from llama.errors import BadFileError
from llama.files import reading

LFS = b"version https://git-lfs"
KINDS = (  # offset, what stands there, what that is
    (0, b"GGUF", "a GGUF file"),
    (0, b"PK\3\4", "a zip archive, such as a PyTorch checkpoint (.pt, .pth)"),
    (0, b"\x80\2", "a Python pickle, such as a PyTorch checkpoint from before version 1.6"),
    (0, b"\x80\3", "a Python pickle"),
    (0, b"\x80\4", "a Python pickle"),
    (0, b"\x80\5", "a Python pickle"),
    (8, b'{"', "a safetensors file"),
    (0, LFS, "a Git LFS pointer: run git lfs pull"),
    (0, b"<!DOCTYPE", "an HTML page"),
    (0, b"<!doctype", "an HTML page"),
    (0, b"<html", "an HTML page"),
    (0, b"{", "a JSON file"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\x7fELF", "a program"),
)
LONGEST = 32  # bytes that have to be looked at
OLD_TORCH = b"\x80\2\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # a number that torch.save before 1.6 puts first
TORCH = (b"PK\3\4", OLD_TORCH)  # what its files begin with
CONFIG, PARAMS = "config.json", "params.json"  # which a folder of Hugging Face has, and one of Meta
WEIGHTS = (  # of a folder of Hugging Face; the first that is there counts, as transformers has it
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
OF_FOLDERS = re.compile(
    r"config\.json|generation_config\.json|params\.json|tokenizer\w*\.json|.*\.index\.json"
    r"|consolidated\.\d+\.pth|pytorch_model.*\.bin|model-\d+-of-\d+\.safetensors"
)


def is_text(value: Any) -> bool:
    """Whether a value of JSON is text that a file can hold: JSON may have half a pair of UTF-16."""
    return isinstance(value, str) and value == value.encode(errors="replace").decode()


def kind_of(start: bytes) -> str | None:
    """What a file is that begins so, None if it is none of KINDS."""
    return next((kind for at, magic, kind in KINDS if start[at:].startswith(magic)), None)


def is_of_folder(path: Path, start: bytes) -> bool:
    """Whether a file that begins so has the name of one that is in a model's folder, and no model itself."""
    return bool(OF_FOLDERS.fullmatch(path.name)) and kind_of(start) is not None


def refuse_alone(path: Path) -> NoReturn:
    """Raises BadFileError for one file of a folder of another program: the folder is the model."""
    folder = path.parent if path.parent != Path() else Path.cwd()
    beside = (folder / CONFIG).exists() or (folder / PARAMS).exists()
    wanted = f"give the folder, {folder}" if beside else f"neither {CONFIG} nor {PARAMS} is beside it"
    raise BadFileError(f"{path}: is one file of a model's folder: {wanted}")


def refuse_pointer(path: Path, start: bytes) -> None:
    """Raises BadFileError for a file that Git LFS has put in the place of a large one."""
    if start.startswith(LFS):
        raise BadFileError(f"{path}: is {kind_of(start)}")


def checked_start(path: Path) -> bytes:
    """The first bytes of a file, which any reader of it takes first.

    Raises BadFileError for a file that can't be read, a pipe or a device (which may never end), and what
    Git LFS has put in the place of a large file.
    """
    try:
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
            raise BadFileError(f"{path}: is a pipe or a device, not a file")
        with reading(path) as file:
            start = file.read(LONGEST)
    except BadFileError:
        raise
    except OSError as error:
        raise BadFileError(f"{path}: {error.strerror}") from None
    refuse_pointer(path, start)
    return start


def whole(path: Path) -> bytes:
    """The bytes of a small file. Raises BadFileError as checked_start does, OSError."""
    checked_start(path)
    with reading(path) as file:
        return file.read()


def start_of(path: Path) -> bytes:
    """The first bytes of a file, none of what can't be read: whoever opens it says why."""
    try:
        return checked_start(path)
    except BadFileError:
        return b""
