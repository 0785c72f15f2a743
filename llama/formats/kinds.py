"""What a file is by its first bytes, for messages, and where it may not be what its name says.

llama/csrc/base/util.h has the same for the engine.
"""

from __future__ import annotations

from pathlib import Path

from llama.errors import BadFileError

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


def start_of(path: Path) -> bytes:
    """The first bytes of a file, none of what can't be read: whoever opens it says why."""
    try:
        with path.open("rb") as file:
            return file.read(LONGEST)
    except OSError:
        return b""


def kind_of(start: bytes) -> str | None:
    """What a file is that begins so, None if it is none of KINDS."""
    return next((kind for at, magic, kind in KINDS if start[at:].startswith(magic)), None)


def refuse_pointer(path: Path, start: bytes | None = None) -> None:
    """Raises BadFileError for a file that Git LFS has put in the place of a large one."""
    if (start_of(path) if start is None else start).startswith(LFS):
        raise BadFileError(f"{path}: is {kind_of(LFS)}")
