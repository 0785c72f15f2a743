"""Files that are read, files that appear whole or not at all, room on the disk, folders with one writer."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, BinaryIO, NoReturn

from llama.errors import BadFileError, UsageError


@contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError of the block that names no file, as those of a read and a write, gets its name."""
    try:
        yield
    except OSError as error:
        if error.errno and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """A file, open, which is named in every OSError of it."""
    with named(path), path.open("rb") as file:
        yield file


def read(path: Path) -> bytes:
    """All that is in a file, which is named in every OSError, one of a read included."""
    with reading(path) as file:
        return file.read()


def copy(source: Path, path: Path) -> None:
    """Copies a small file. An OSError names the one of the two that it is of, which shutil's does not."""
    data = read(source)
    with named(path):
        path.write_bytes(data)


def sync(path: Path) -> None:
    """Returns once what was written to a file, or the names in a folder, are on the disk. Raises OSError."""
    if sys.platform == "win32" and path.is_dir():  # which has no way to ask for it
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        with named(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(file: IO[str]) -> None:
    """Locks an open file for this process. Raises BlockingIOError or PermissionError where another has it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_left_over(target: Path) -> None:
    """Removes what killed programs wrote aside for a file. What is being written now is locked."""
    for scratch in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        if not scratch.name[len(target.name) + 2 : -4].isdecimal():  # of no process
            continue
        try:
            with scratch.open("r+") as file:
                lock_file(file)
        except OSError:  # in use, a folder, or not ours
            continue
        scratch.unlink(missing_ok=True)


ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def ended_in_order() -> Iterator[None]:
    """A signal that would end this process at once raises SystemExit in the block: it removes what it made.

    The exit code is 128 + its number, as a shell has it. A signal that is ignored, or that the program sees
    to itself, stays so; and only in the main thread does Python let one be seen to.
    """
    main = threading.current_thread() is threading.main_thread()
    taken = [number for number in ENDING if main and signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for other in taken:  # a second one would end what the first one began
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    try:
        for number in taken:
            signal.signal(number, end)
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the system's place for such, removed at the end of the block."""
    with ended_in_order(), tempfile.TemporaryDirectory(prefix="cria-") as folder:
        yield Path(folder)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A new file beside path, to write to; at the end of the block it takes the place of path.

    If the block raises, or a signal ends it, the new file is removed and the old one is as it was. Raises
    OSError, with the path, when the disk is full or the like, or the old file is write-protected, whose mode
    the new one gets; UsageError if path is a folder or a device.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is not a regular file")
    target = path.resolve()  # through a link: what it points to is replaced, not the link
    old = target.stat().st_mode if target.exists() else None
    if old and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(target)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with ended_in_order():
        try:
            with scratch.open("w") as lock:
                lock_file(lock)
                mode = old or scratch.stat().st_mode
                yield scratch
                scratch.chmod(stat.S_IMODE(mode))  # safetensors makes files that their owner alone can read
                sync(scratch)
            scratch.replace(target)
            sync(target.parent)
        except OSError as error:
            ours = (None, str(scratch), str(target.parent))  # a write does not know its file
            if error.errno and error.filename in ours:
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise
        finally:
            with contextlib.suppress(OSError):  # a name that is too long, which was said
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

    If the block raises, or a signal ends it, the new folder is removed. Raises UsageError if path is a file
    or a folder that holds something: it may be anything of the user's. OSError as in written_aside.
    """
    target = path.resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"{path}: exists already, allowed a new or an empty folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with ended_in_order():
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
    """Keeps a second run out of a folder. Raises BadFileError. The lock ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            lock_file(file)
        except (BlockingIOError, PermissionError):
            found = "another run is writing here"
            raise BadFileError(f"{folder}: {found}; wait for it or name another") from None
        yield
