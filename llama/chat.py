"""cria chat: talk to a model in the terminal.

    cria chat MODEL
    python -m llama.chat MODEL -t 0.7 --system "Answer in rhymes."

Enter sends, Alt-Enter or Ctrl-J begins a line (with prompt_toolkit, extra: chat; else a line is a message).
Ctrl-C stops an answer, Ctrl-D or /quit ends. Where the context is full the oldest turns are dropped. What is
read from a pipe ends at the first error.

    /system [TEXT]  show or set the system prompt,      /save FILE  write the conversation as JSON
                    "": the template's own              /load FILE  go on from one
    /reset          forget all that was said
    /undo           take the last question back         /stats      room, speed, what was not run again
    /retry          have the last question answered     /help       this help
                    anew                                /quit       end

The options are those of llama.run for text, sampling and machine, but that --temperature is 0.2 where nothing
else is said; --steps is as --context.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from llama import names
from llama._engine import ffi, lib
from llama.command import explained, run_command
from llama.conversation import Conversation
from llama.engine import Llama
from llama.errors import LlamaError, UsageError
from llama.formats.chat_templates import KINDS
from llama.generation import Generation
from llama.native import KV, SHIPPED, c_path
from llama.run import parse
from llama.terminal import Read, is_terminal, reader

Options = Any  # LlamaRunOptions
DEFAULTS = (b"--mode", b"chat", b"--temperature", b"0.2")  # an answer is to be right rather than surprising
COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL | re.IGNORECASE)
WITH_TEXT = ("system", "save", "load")  # the commands that something may follow


def note(text: str) -> None:
    """Says what is not part of the conversation."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def stoppable(text: Generation) -> Iterator[None]:
    """Ctrl-C ends the text, and not the program."""
    before = signal.signal(signal.SIGINT, lambda *_: text.cancel())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Program:
    """What the commands work on."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.last: Generation | None = None  # the newest answer
        self.ended = False

    def answer(self, question: str) -> None:
        """Asks, and prints the answer as it comes."""
        self.last = text = self.conversation.ask(question)
        if n := self.conversation.dropped:
            note(f"the context is full: the oldest {'turn is' if n == 1 else f'{n} turns are'} forgotten")
        print("Assistant: ", end="", flush=True)
        pieces: list[str] = []
        try:
            with stoppable(text) if is_terminal() else nullcontext():
                for piece in text:
                    pieces.append(piece)
                    print(piece, end="", flush=True)
        finally:
            self.conversation.answer("".join(pieces))
            print()
        if text.finish == "length":
            note(f"the answer fills the context of {self.conversation.llama.context} positions")

    def take(self, line: str) -> None:
        """Does what a line says: a command, or a question."""
        command = COMMAND.fullmatch(line.strip())
        try:
            if command is None:
                self.answer(line)
            else:
                self.obey(command[1].lower(), (command[2] or "").strip())
        except (LlamaError, OSError) as error:
            if not is_terminal():
                raise
            note(f"error: {explained(error)[0] if isinstance(error, OSError) else error}")

    def obey(self, name: str, text: str) -> None:
        """Does what a command says. Raises UsageError for none, and for a text behind one that takes none."""
        if name not in COMMANDS:
            raise UsageError(f"there is no command /{name}: /help lists them")
        if text and name not in WITH_TEXT:
            raise UsageError(f"/{name} {text:.80}: allowed is /{name} alone")
        COMMANDS[name](self, text)

    def run(self, read: Read, first: str | None) -> None:
        """Line after line. first: a question that is there already."""
        if first:
            self.take(first)
        while not self.ended:
            try:
                line = read("User: ")
                if line.strip():
                    self.take(line)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                if not is_terminal():
                    raise
                note("Ctrl-D or /quit ends")


# --- Commands


def system(program: Program, text: str) -> None:
    if text:
        program.conversation.system = "" if text == '""' else text
    note(f"system prompt: {program.conversation.system or 'that of the template, if it has one'}")


def reset(program: Program, _: str) -> None:
    program.conversation.turns.clear()
    program.last = None
    note("all is forgotten, but for the system prompt")


def undo(program: Program, _: str) -> None:
    question = program.conversation.undo()
    note("there is no question" if question is None else f"taken back: {question}")


def retry(program: Program, _: str) -> None:
    if (question := program.conversation.undo()) is None:
        note("there is no question")
    else:
        program.answer(question)


def save(program: Program, path: str) -> None:
    program.conversation.save(given(path))
    note(f"saved as {path}")


def load(program: Program, path: str) -> None:
    program.conversation.load(given(path))
    note(f"{len(program.conversation.turns) // 2} questions and answers from {path}")


def given(path: str) -> str:
    """The name of a file. Raises UsageError where there is none, or none that can be."""
    if not path:
        raise UsageError("the name of a file is missing")
    c_path(path)
    try:
        return os.fspath(Path(path).expanduser())
    except RuntimeError:  # of ~name
        raise UsageError(f"{path}: there is no user {Path(path).parts[0][1:]}") from None


def stats(program: Program, _: str) -> None:
    context = program.conversation.llama.context
    if program.last is None:
        note(f"0 of {context} positions")
        return
    request = program.last.request
    prompt, drawn = len(request.prompt), len(request.tokens)
    note(
        f"{min(prompt + drawn, context)} of {context} positions; "
        f"prompt of {prompt} tokens, {request.reused} of them not run again, in "
        f"{request.prompt_seconds:.2f} s; answer of {drawn} tokens, {speed(request):.1f} tokens/s"
    )


def speed(request: Any) -> float:
    """Tokens a second after the first one."""
    return (len(request.tokens) - 1) / request.generate_seconds if request.generate_seconds else 0.0


def show_help(program: Program, _: str) -> None:
    note(__doc__[__doc__.index("Enter sends") : __doc__.index("The options")].rstrip())


def end(program: Program, _: str) -> None:
    program.ended = True


COMMANDS: dict[str, Callable[[Program, str], None]] = {
    "system": system,
    "reset": reset,
    "undo": undo,
    "retry": retry,
    "save": save,
    "load": load,
    "stats": stats,
    "quit": end,
    "exit": end,
    "help": show_help,
}

# --- The command line


def text_of(value: Any) -> str | None:
    """A C string as text; None for NULL."""
    return None if value == ffi.NULL else ffi.string(value).decode(errors="surrogateescape")


def generate_options(options: Options) -> dict[str, Any]:
    """What a command line says of Llama.generate."""
    sampling = {name: getattr(options.sampling, name) for name in dir(options.sampling)}
    stops = [text_of(options.stops[i]) for i in range(options.n_stops)]
    return sampling | {"seed": sampling["seed"] or None, "stop": stops}


def llama_of(options: Options, model: str, tokenizer: str | None, lora: str | None) -> Llama:
    """The model of a command line, whose files are these, with its adapter."""
    special = {"exact": bool(options.exact), "rope_theta": options.rope_theta or None, "kv": KV[options.kv]}
    context = options.steps or options.context or None
    return Llama(model, tokenizer, options.threads or None, context, **special, lora=lora)


def converse(options: Options) -> None:
    """The conversation of a command line."""
    dtype = None if options.dtype < 0 else ffi.string(lib.llama_type_name(options.dtype)).decode()
    model, tokenizer = text_of(options.model) or os.fspath(SHIPPED), text_of(options.tokenizer)
    with (
        names.opened(model, tokenizer, dtype, bool(options.cache)) as files,
        names.opened_adapter(text_of(options.lora), files.model, bool(options.cache)) as lora,
        llama_of(options, files.model, files.tokenizer, lora) as llama,
    ):
        template = KINDS[options.template_kind] if options.template_kind else None
        llama.encode_chat([{"role": "user", "content": ""}], template=template)  # there is a template
        system = text_of(options.system) or ""
        conversation = Conversation(llama, system, template, generate_options(options))
        read = reader([f"/{name}" for name in COMMANDS])
        if is_terminal():
            size = f"{llama.parameters / 1e6:.1f} M parameters, {llama.config.weight_type}"
            note(f"{model}: {size}, {llama.context} positions\n/help lists the commands, Ctrl-D ends")
        Program(conversation).run(read, text_of(options.prompt))


def main(arguments: list[str]) -> None:
    options = parse([b"cria chat", *DEFAULTS, *map(os.fsencode, arguments)])
    if options.help:
        print(f"{__doc__.strip()}\n\n{ffi.string(lib.llama_run_help()).decode()}", end="")
    elif options.escape:
        raise UsageError("--escape is for llama.run")
    else:
        converse(options)


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
