"""python -m llama.run: the command line of ./run, with names of models.

    python -m llama.run stories15M.bin -t 1.0 -p 0.9 -i "Once upon a time"
    python -m llama.run chat.bin -m chat
    python -m llama.run --help

Options, text, messages and exit codes (0, 2 usage, 3 bad file, 4 resources, 130 interrupted) are those of
llama_run, the engine's own command line, which reads and writes the standard descriptors. Left out on
purpose: numpy, sentencepiece and torch, which would cost more than a story.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any

from llama._engine import ffi, lib
from llama.engine import SHIPPED
from llama.errors import LlamaError
from llama.native import call, check


def parse(arguments: list[bytes]) -> Any:
    """The LlamaRunOptions of a command line, program name first. Raises UsageError."""
    strings = [ffi.new("char[]", argument) for argument in arguments]
    argv = ffi.new("char *[]", [*strings, ffi.NULL])

    def release(options: Any, keep: Any = (strings, argv)) -> None:  # the options point into argv
        lib.llama_run_options_free(options)

    memory = ffi.new("LlamaRunOptions *")
    call(lib.llama_run_parse, len(arguments), argv, memory)
    return ffi.gc(memory, release)


def files(options: Any) -> tuple[bytes, bytes | None]:
    """The model, downloaded where a name stands for it, and its tokenizer, None where it is to be found."""
    model = os.fsencode(SHIPPED) if options.model == ffi.NULL else ffi.string(options.model)
    tokenizer = None if options.tokenizer == ffi.NULL else ffi.string(options.tokenizer)
    if os.access(model, os.F_OK):
        return model, tokenizer
    from llama import hub  # most runs do without

    model, tokenizer = hub.find(model, tokenizer)
    return os.fsencode(model), None if tokenizer is None else os.fsencode(tokenizer)


def keep(kind: type[BaseException], error: BaseException, traceback: TracebackType) -> None:
    """Keeps what llama_python_interrupted raised for run, which raises it again."""
    ffi.from_handle(traceback.tb_frame.f_locals["user"]).append(error)


@ffi.def_extern(error=1, onerror=keep)
def llama_python_interrupted(user: Any) -> int:
    """Whether to end a run: what a signal's handler raises is raised here, as KeyboardInterrupt by Ctrl-C."""
    return 0


def run(options: Any) -> None:
    """Does what a command line says. Raises LlamaError, and what handlers of signals raise meanwhile."""
    raised: list[BaseException] = []
    user = ffi.new_handle(raised)
    host = ffi.new("LlamaHost *", {"user": user, "interrupted": lib.llama_python_interrupted})
    error = ffi.new("LlamaError *")
    code = lib.llama_run(options, host, error)
    if raised:
        raise raised[0]
    check(code, error)


def note(text: str) -> None:
    """Writes a line to standard error. If that fails there is nobody left to tell."""
    try:
        os.write(2, os.fsencode(text) + b"\n")
    except OSError:
        pass


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line without its program name (None: sys.argv) and returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = parse([b"python -m llama.run", *map(os.fsencode, arguments)])
        if not options.help:
            texts = [path and ffi.new("char[]", path) for path in files(options)]
            options.model, options.tokenizer = (text or ffi.NULL for text in texts)
        run(options)
    except LlamaError as error:
        note(f"error: {error}")
        return error.code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
