"""What the command lines share: options, errors of one line, exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from llama.errors import BadFileError, LlamaError, ResourceError, UsageError

INTERRUPTED = 130  # exit code, as a shell has it


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, and help whose lines stay as they are written."""

    def __init__(self, **options: Any) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"formatter_class": form, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(UsageError.code, f"error: {message}, --help lists the options\n")


def run_command(work: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Runs a program and returns its exit code. What its user can mend is one line on stderr."""
    try:
        work()
        sys.stdout.flush()
        return 0
    except LlamaError as error:
        message, code = str(error), error.code
    except BrokenPipeError:  # the reader of the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        name = f"{error.filename}: " if error.filename else ""
        message, code = f"{name}{error.strerror or error}", (BadFileError if missing else ResourceError).code
    except MemoryError:
        message, code = "not enough memory", ResourceError.code
    except KeyboardInterrupt:
        message, code = interrupted, INTERRUPTED
    print("error:", message.replace("\n", " "), file=sys.stderr)
    return code
