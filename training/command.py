"""What the scripts share: errors of one line, command lines, files that appear whole or not at all."""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

USAGE, BAD_FILE, RESOURCE, INTERRUPTED = 2, 3, 4, 130  # exit codes, the engine's


class BadInput(ValueError):
    """A file or folder that can't be used. The message is one line: what, found, allowed."""

    code = BAD_FILE


class UsageError(BadInput):
    """An option out of range, or a wish that can't be met."""

    code = USAGE


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and help whose lines stay as they are written."""

    def __init__(self, **options: Any) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"formatter_class": form, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"error: {message}, --help lists the options\n")


def run_command(work: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Runs a program and returns its exit code. What its user can mend is one line on stderr."""
    try:
        work()
        sys.stdout.flush()
        return 0
    except BadInput as error:
        message, code = str(error), error.code
    except BrokenPipeError:  # the reader of the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        name = f"{error.filename}: " if error.filename else ""
        message, code = f"{name}{error.strerror or error}", BAD_FILE if missing else RESOURCE
    except MemoryError:
        message, code = "not enough memory", RESOURCE
    except KeyboardInterrupt:
        message, code = interrupted, INTERRUPTED
    print("error:", message.replace("\n", " "), file=sys.stderr)
    return code


def sync(path: Path) -> None:
    """Returns once what was written to a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A new file beside path, to write to; at the end of the block it takes the place of path.

    If the block raises, Ctrl-C included, the new file is removed and the old one is as it was. Raises
    OSError, with the path, when the disk is full or the like; UsageError if path is a folder or a device.
    """
    target = path.resolve()  # through a link: what it points to is replaced, not the link
    if target.exists() and not target.is_file():
        raise UsageError(f"{path}: is not a regular file")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        scratch.touch()
        mode = scratch.stat().st_mode
        yield scratch
        scratch.chmod(mode)  # safetensors makes files that their owner alone can read
        sync(scratch)
        scratch.replace(target)
        sync(target.parent)
    except OSError as error:
        if error.errno and error.filename in (None, str(scratch)):  # a write does not know its file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        scratch.unlink(missing_ok=True)


def check_room(path: Path, needed: int) -> None:
    """Raises OSError if the disk of a file to be written has not so many bytes free."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        reason = f"No space left on device: {needed:,} bytes are needed, {free:,} are free"
        raise OSError(errno.ENOSPC, reason, str(path))


@contextmanager
def written_aside_folder(path: Path) -> Iterator[Path]:
    """A new folder beside path, to fill; at the end of the block it gets that name.

    If the block raises, Ctrl-C included, the new folder is removed. Raises UsageError if path is a file or
    a folder that holds something: it may be anything of the user's. OSError as in written_aside.
    """
    target = path.resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"{path}: exists already, allowed a new or an empty folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        scratch.mkdir()
        yield scratch
        for file in (*scratch.iterdir(), scratch):
            sync(file)
        scratch.replace(target)
        sync(target.parent)
    except OSError as error:
        if error.errno and str(error.filename or scratch).startswith(str(scratch)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def write_aside(path: Path) -> Iterator[BinaryIO]:
    """written_aside, opened for writing."""
    with written_aside(path) as scratch, scratch.open("wb") as file:
        yield file


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keeps a second run out of a folder. Raises BadInput. The lock ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{folder}: another run is writing here; wait for it or name another") from None
        yield
