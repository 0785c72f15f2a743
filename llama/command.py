"""What the command lines share: options, errors of one line, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

from llama.errors import (
    BadFileError,
    ClosedOutputError,
    LlamaError,
    ResourceError,
    UsageError,
    one_line,
)

INTERRUPTED = 130  # exit code, as a shell has it
OUTPUT_ERRORS = (errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG)  # of a closed or full output


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and help whose lines stay as they are written."""

    def __init__(self, **options: Any) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"formatter_class": form, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(UsageError.code, f"error: {message}, --help lists the options\n")


def started_as(command: str) -> str:
    """What a command of cria was started as: that, a module of the package, or a script at the root."""
    path = Path(sys.argv[0])
    if path.suffix != ".py" or path.stem == "cli":
        return f"cria {command}"
    module = {"llama": path.stem, "server": "server"}.get(path.parent.name)
    return f"python -m llama.{module}" if module else f"python {path.name}"


def path_type(text: str) -> Path:
    """A type of argparse: a path, which is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("is empty, allowed is a path")
    return Path(text)


def name_type(text: str) -> str:
    """A type of argparse: a name, which is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("is empty, allowed is a name")
    return text


def counted(n: int, noun: str) -> str:
    """1 model, 2 models."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def explained(error: OSError) -> tuple[str, int]:
    """The message and exit code of what the system refused. One that names no file is of standard output."""
    missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    name = error.filename or ("standard output" if error.errno in OUTPUT_ERRORS else "")
    message = f"{name}: {error.strerror or error}" if name else str(error)
    return message, (BadFileError if missing else ResourceError).code


def drop_output() -> None:
    """Lets what is left in the buffer of a standard output that takes no more go nowhere."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note(text: str) -> None:
    """Writes a line to standard error, for the person before it. If that fails there is nobody to tell."""
    with contextlib.suppress(OSError):
        print(one_line(text), file=sys.stderr, flush=True)


def print_notes(name: object, notes: Iterable[str]) -> None:
    """Says on standard error what the user should know of a file, a line each."""
    for said in notes:
        note(f"note: {name}: {said}")


def replace_closed_errors() -> None:
    """Gives a program whose standard error is closed one that leads nowhere, so that print does not fail."""
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.FileIO(os.devnull, "w"))


def use_utf8() -> None:
    """Makes standard input and output UTF-8, whatever the console's code page: text of models is."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")


def run_command(work: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Runs a program and returns its exit code, 0 unless work returns one.

    What its user can mend is one line on standard error. interrupted: that line after Ctrl-C. Where the
    reader of a pipe has gone there is nothing to say.
    """
    replace_closed_errors()
    try:
        if sys.stdout is None:
            raise ResourceError("standard output: is closed")
        use_utf8()
        try:
            code = work()
        finally:  # also behind --help, which ends the program
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        drop_output()
        return ClosedOutputError.code
    except LlamaError as error:
        message, code = str(error), error.code
    except OSError as error:
        message, code = explained(error)
        drop_output()
    except MemoryError:
        message, code = "not enough memory", ResourceError.code
    except KeyboardInterrupt:
        message, code = interrupted, INTERRUPTED
    print("error:", one_line(message), file=sys.stderr)
    return code
