"""Lines that people type: in a terminal edited and remembered by prompt_toolkit (extra: chat), else plain."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Read = Callable[[str], str]  # a question to what is typed; raises EOFError, KeyboardInterrupt


def is_terminal() -> bool:
    """Whether somebody sits there: standard input and output are a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def history_file() -> Path:
    """Where what was typed is kept, in the platform's folder for it, which is made."""
    if sys.platform == "win32":
        folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local", "cria")
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support" / "cria"
    else:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state", "cria")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "chat_history"


def read_plain(question: str) -> str:
    """A line, without what ends it; the first one also without a byte order mark."""
    print(question, end="", flush=True)
    if sys.stdin is None or not (line := sys.stdin.readline()):  # None: it is closed
        raise EOFError
    return line.removesuffix("\n").removesuffix("\r").removeprefix("\ufeff")


def history() -> Any:
    """What was typed before. It is only remembered for now where there is no such folder."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        path = history_file()
        with path.open("ab"):
            return FileHistory(str(path))
    except OSError:
        return InMemoryHistory()


def editor(commands: Sequence[str]) -> Read:
    """A reader with editing, history and completion of commands. Raises ImportError without prompt_toolkit.

    Enter sends, Alt-Enter or Ctrl-J begins a line, and what is pasted may have lines.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    completer = WordCompleter(list(commands), sentence=True)
    return PromptSession(
        history=history(),
        multiline=True,
        key_bindings=keys,
        completer=completer,
        complete_while_typing=False,
        prompt_continuation="",
    ).prompt


def reader(commands: Sequence[str]) -> Read:
    """The best reader that there is."""
    if is_terminal() and os.environ.get("TERM") != "dumb":
        try:
            return editor(commands)
        except ImportError:
            pass
    return read_plain
