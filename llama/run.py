"""python -m llama.run: the command line of ./run, with names of models.

    python -m llama.run stories15M.bin -t 1.0 -p 0.9 -i "Once upon a time"
    python -m llama.run chat.bin -m chat
    python -m llama.run --help

Options, text, messages and exit codes (0, 2 usage, 3 bad file, 4 resources, 130 interrupted, 141 no longer
read) are those of llama_run, the engine's own command line, which reads and writes the standard descriptors.
Left out on purpose: numpy, sentencepiece and torch, which would cost more than a story.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from llama._engine import ffi, lib
from llama.errors import ClosedOutputError, LlamaError, UsageError, one_line
from llama.native import SHIPPED, c_text, call, check


def parse(arguments: list[bytes]) -> Any:
    """The LlamaRunOptions of a command line, program name first. Raises UsageError."""
    strings = [ffi.new("char[]", argument) for argument in arguments]
    argv = ffi.new("char *[]", [*strings, ffi.NULL])

    def release(options: Any, keep: Any = (strings, argv)) -> None:  # the options point into argv
        lib.llama_run_options_free(options)

    memory = ffi.new("LlamaRunOptions *")
    call(lib.llama_run_parse, len(arguments), argv, memory)
    options = ffi.gc(memory, release)
    for name in ("tokenizer", "lora"):
        if (text := getattr(options, name)) != ffi.NULL and not ffi.string(text):
            raise UsageError(f"--{name}: is empty, allowed is a name")
    return options


def keep(kind: type[BaseException], error: BaseException, traceback: TracebackType) -> None:
    """Keeps what a callback raised for run, which raises it again."""
    ffi.from_handle(traceback.tb_frame.f_locals["user"]).append(error)


@ffi.def_extern(error=1, onerror=keep)
def llama_python_interrupted(user: Any) -> int:
    """Whether to end a run: what a signal's handler raises is raised here, as KeyboardInterrupt by Ctrl-C."""
    return 0


@ffi.def_extern(error=-1, onerror=keep)
def llama_python_converse(
    user: Any, model: Any, tokenizer: Any, messages: Any, n: int, ids: Any, room: int
) -> int:
    """A conversation by the model's own template, which jinja2 runs."""
    from llama.templates import encode_chat  # most runs do without

    said = [(ffi.string(messages[i].role), c_text(messages[i].text, messages[i].length)) for i in range(n)]
    texts = [{"role": role.decode(), "content": text.decode(errors="replace")} for role, text in said]
    found = encode_chat(model, tokenizer, texts)
    ids[0 : min(len(found), room)] = found[:room]
    return len(found)


def run(options: Any, model: bytes, tokenizer: bytes | None, lora: bytes | None) -> None:
    """Does what a command line says. Raises LlamaError, and what handlers of signals raise meanwhile.

    model: a checkpoint. tokenizer: None for the one that belongs to it. lora: an adapter, FILE or FILE:SCALE.
    """
    texts = [ffi.new("char[]", text) if text else ffi.NULL for text in (model, tokenizer, lora)]
    options.model, options.tokenizer, options.lora = texts
    raised: list[BaseException] = []
    user = ffi.new_handle(raised)
    calls = {"interrupted": lib.llama_python_interrupted, "converse": lib.llama_python_converse}
    host = ffi.new("LlamaHost *", {"user": user} | calls)
    error = ffi.new("LlamaError *")
    code = lib.llama_run(options, host, error)
    if raised:
        raise raised[0]
    check(code, error)


def holds_model(path: bytes) -> bool:
    """Whether a .bin is a model of v1 to v3, which may hold a tokenizer, by its magic number."""
    file = Path(os.fsdecode(path))
    try:
        if not file.is_file():  # to open a pipe is to wait for who writes to it
            return False
        with file.open("rb") as data:
            return data.read(4) == b"24ka"
    except OSError:
        return False  # whoever opens it says what is wrong


def start(options: Any) -> None:
    """Runs a checkpoint as it is, any other model as the checkpoint that its name comes to. Raises as run."""
    model = os.fsencode(SHIPPED) if options.model == ffi.NULL else ffi.string(options.model)
    given = (options.tokenizer, options.lora)
    tokenizer, lora = (None if text == ffi.NULL else ffi.string(text) for text in given)
    is_ours = options.dtype < 0 and model.endswith(b".bin")
    is_ours &= tokenizer is None or (tokenizer.endswith(b".bin") and not holds_model(tokenizer))
    is_ours &= b"pytorch_model" not in model  # which other programs call their files
    is_ours &= lora is None or lora.endswith(b".bin")
    if options.help or (is_ours and os.access(model, os.F_OK)):
        run(options, model, tokenizer, lora)
        return
    from llama import command, names  # most runs do without

    command.replace_closed_errors()

    dtype = None if options.dtype < 0 else ffi.string(lib.llama_type_name(options.dtype)).decode()
    cache = bool(options.cache)
    with (
        names.opened(model, tokenizer and os.fsdecode(tokenizer), dtype, cache) as files,
        names.opened_adapter(lora and os.fsdecode(lora), files.model, cache) as adapter,
    ):
        run(options, *(text and os.fsencode(text) for text in (*files, adapter)))


def note(text: str) -> None:
    """Writes a line to standard error. If that fails there is nobody left to tell."""
    try:
        os.write(2, os.fsencode(one_line(text)) + b"\n")
    except OSError:
        pass


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line without its program name (None: sys.argv) and returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        start(parse([b"python -m llama.run", *map(os.fsencode, arguments)]))
    except ClosedOutputError as error:
        return error.code
    except LlamaError as error:
        note(f"error: {error}")
        return error.code
    except OSError as error:  # of a conversion
        from llama.command import explained

        message, code = explained(error)
        note(f"error: {message}")
        return code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
