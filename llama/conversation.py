"""A conversation with a model: what was said, and what of it still fits the context."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama import files
from llama.engine import Llama
from llama.errors import BadFileError, UsageError
from llama.formats.files import parse_json
from llama.generation import Generation

ROLES = ("user", "assistant")
ANSWER = 256  # positions that an answer is left at least, or a quarter of a small context


@dataclass
class Conversation:
    """Questions and answers in turn, a question first.

    system: the system prompt, "" for the template's own. template: of Llama.encode_turn. options: of
    Llama.generate; the seed is that of the first answer, the next one has the next. dropped: how many of
    the oldest turns were dropped by the last ask.
    """

    llama: Llama
    system: str = ""
    template: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)
    dropped: int = 0
    _answers: int = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """All that was said, with the system prompt if there is one."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns]

    def ask(self, question: str) -> Generation:
        """The answer to a question, which is to be told to `answer`. Where the context is full, the oldest
        turns are dropped until half of it is free, so that this does not happen at each question.

        Raises UsageError for a question that does not fit by itself, and is then as before.
        """
        turns, seed = self.turns, self.options.get("seed")
        seed = None if seed is None else (seed + self._answers) % 2**64
        self.turns = [*turns, {"role": "user", "content": question}]
        try:
            text = self.llama.generate(self._fitting(), **self.options | {"seed": seed})
        except BaseException:
            self.turns = turns
            raise
        self._answers += 1
        return text

    def answer(self, text: str) -> None:
        """Takes note of what the model has said."""
        self.turns.append({"role": "assistant", "content": text})

    def undo(self) -> str | None:
        """Takes the last question back, with its answer, and returns it; None where there is none."""
        if not self.turns:
            return None
        del self.turns[-1]
        return self.turns.pop()["content"]

    def _ids(self) -> list[int]:
        return self.llama.encode_chat(self.messages, template=self.template)

    def _fitting(self) -> list[int]:
        context, ids, self.dropped = self.llama.context, self._ids(), 0
        if len(ids) + min(ANSWER, context // 4) <= context:
            return ids
        while len(ids) > context // 2 and len(self.turns) > 1:
            self.turns = self.turns[2:]
            self.dropped += 1
            ids = self._ids()
        if len(ids) > context:
            raise UsageError(f"the question takes {len(ids)} positions, the context has {context}")
        return ids

    # --- Files: a JSON list of messages

    def save(self, path: str) -> None:
        """Writes all that was said, in the place of an older conversation if there is one.

        Raises UsageError for a file that holds anything else, OSError.
        """
        if not is_replaceable(Path(path)):
            raise UsageError(f"{path}: is there already and no conversation, allowed is another name")
        with files.write_aside(Path(path)) as file:
            file.write((json.dumps(self.messages, indent=1) + "\n").encode())

    def load(self, path: str) -> None:
        """Goes on from what was saved. Raises OSError, BadFileError."""
        try:
            messages = list(checked(parse_json(files.read(Path(path)))))
        except ValueError as error:
            raise BadFileError(f"{path}: {error}") from None
        self.system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else ""
        self.turns = messages


def is_replaceable(path: Path) -> bool:
    """Whether a file is not there, is empty, or holds a conversation. Raises OSError."""
    if not path.is_file() or path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        if file.read(1) != b"[":  # of other files, which may be large, no more is read
            return False
    try:
        list(checked(parse_json(files.read(path))))
    except ValueError:
        return False
    return True


def checked(value: Any) -> Iterator[dict[str, str]]:
    """The messages of a file. Raises ValueError for what is no conversation."""
    if not isinstance(value, list):
        raise ValueError(f"found {type(value).__name__}, allowed is a list of messages")
    first = bool(value) and isinstance(value[0], dict) and value[0].get("role") == "system"
    for i, message in enumerate(value):
        role = "system" if first and i == 0 else ROLES[(i - first) % 2]
        if not isinstance(message, dict) or message.get("role") != role:
            raise ValueError(f"message {i} is not of the role {role}")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"message {i} has no text as content")
        yield {"role": role, "content": message["content"]}
    if (len(value) - first) % 2:
        raise ValueError("the last question has no answer")
