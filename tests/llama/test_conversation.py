"""Conversations: what is asked, forgotten, taken back and kept in files; and cria chat, the program."""

from __future__ import annotations

import errno
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest
from helpers import environment, finish
from tiny_models import write_chain

import llama
from llama import terminal
from llama.conversation import Conversation

CHAT = [sys.executable, "-m", "llama.cli", "chat"]
CHAIN = {"r": "b", "b": "</s>"}  # "r" is answered by "b", "o" without end


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_chain(tmp_path_factory.mktemp("model"), ["r", "b", "o", "\n"], CHAIN, context=64)


@pytest.fixture
def conversation(model):
    with llama.Llama(model) as engine:
        yield Conversation(engine, template="plain", options={"temperature": 0, "seed": 1})


def say(conversation: Conversation, question: str) -> str:
    answer = "".join(conversation.ask(question))
    conversation.answer(answer)
    return answer


# --- What is said


def test_a_conversation_is_questions_and_answers_in_turn(conversation):
    conversation.system = "r"
    assert [say(conversation, "r") for _ in range(2)] == ["b", "b"]
    assert [m["role"] for m in conversation.messages] == ["system", *["user", "assistant"] * 2]
    assert conversation.undo() == "r"
    assert len(conversation.turns) == 2
    assert (conversation.undo(), conversation.undo()) == ("r", None)


def test_what_stands_before_the_question_is_not_run_again(conversation):
    say(conversation, "r")
    text = conversation.ask("r")
    assert "".join(text) == "b"
    assert text.request.reused > 1


def test_the_oldest_turns_are_forgotten_where_the_context_is_full(conversation):
    dropped = []
    for _ in range(30):
        assert say(conversation, "r" * 3) == "b"
        dropped.append(conversation.dropped)
    assert sum(dropped) + len(conversation.turns) // 2 == 30
    assert max(dropped) > 1  # many at once, as what is left has to be run again


def test_a_question_that_does_not_fit_is_refused_and_changes_nothing(conversation):
    say(conversation, "r")
    before = list(conversation.turns)
    with pytest.raises(llama.UsageError, match=r"the question takes 7\d positions, the context has 64"):
        conversation.ask("r" * 70)
    assert conversation.turns == before


def test_what_is_saved_is_loaded(conversation, tmp_path):
    say(conversation, "r")
    conversation.system = "b"
    conversation.save(tmp_path / "said.json")
    other = Conversation(conversation.llama)
    other.load(tmp_path / "said.json")
    assert (other.messages, other.system) == (conversation.messages, "b")


def test_what_was_saved_is_kept_where_the_disk_takes_no_more(conversation, tmp_path, monkeypatch):
    conversation.save(tmp_path / "said.json")
    before = (tmp_path / "said.json").read_bytes()
    say(conversation, "r")

    def refuse(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        conversation.save(tmp_path / "said.json")
    assert caught.value.filename == str(tmp_path / "said.json")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"said.json": before}


@pytest.mark.parametrize("said", ["a diary", "[1, 2]\n", '[{"role": "user", "content": "hi"}]', "{}"])
def test_a_file_that_is_no_conversation_is_not_replaced(conversation, tmp_path, said):
    (tmp_path / "a.txt").write_text(said)
    with pytest.raises(llama.UsageError, match=r"a\.txt: is there already and no conversation"):
        conversation.save(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == said


def test_a_conversation_or_an_empty_file_is_replaced(conversation, tmp_path):
    (tmp_path / "said.json").touch()
    for turns in (0, 2, 0):
        conversation.turns = [{"role": role, "content": "r"} for role in ("user", "assistant")][:turns]
        conversation.save(tmp_path / "said.json")
        assert len(json.loads((tmp_path / "said.json").read_text())) == turns


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{", "Expecting property name"),
        ("[" * 100_000, "it is nested too deeply"),
        ("{}", "found dict, allowed is a list of messages"),
        ('["hi"]', "message 0 is not of the role user"),
        ('[{"role": "assistant", "content": "hi"}]', "message 0 is not of the role user"),
        ('[{"role": "user", "content": ["hi"]}]', "message 0 has no text as content"),
        ('[{"role": "user", "content": "hi"}]', "the last question has no answer"),
    ],
)
def test_a_file_that_is_no_conversation_is_refused(conversation, tmp_path, said, message):
    (tmp_path / "said.json").write_text(said)
    say(conversation, "r")
    with pytest.raises(llama.BadFileError, match=message):
        conversation.load(tmp_path / "said.json")
    assert len(conversation.turns) == 2


# --- The program, its input a pipe


def chat(model: Path, *lines: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    line = [*CHAT, model, "--template", "plain", "-t", "0", *options]
    text = "".join(line + "\n" for line in lines)
    return finish(line, input=text, text=True, capture_output=True, env=environment())


def test_lines_on_standard_input_are_questions(model):
    """As llama.run -m chat prints them."""
    result = chat(model, "\ufeffr\r", "", "r")
    assert result.stdout == "User: Assistant: b\nUser: User: Assistant: b\nUser: \n"
    assert (result.returncode, result.stderr) == (0, "")
    first = chat(model, options=("-i", "r"))
    assert first.stdout == "Assistant: b\nUser: \n"


def test_a_closed_standard_input_is_at_its_end(model):
    line = ["sh", "-c", '"$@" <&-', "sh", *CHAT, model, "--template", "plain"]
    result = finish(line, text=True, capture_output=True, env=environment())
    assert (result.returncode, result.stdout, result.stderr) == (0, "User: \n", "")


def test_commands(model, tmp_path):
    file = tmp_path / "said.json"
    lines = ["/undo", "/retry", "/stats", "/system r", "r", "/retry", "/stats", f"/save {file}"]
    after = ["/undo", f"/load {file}", "/reset", "/stats", '/system ""', "/help", "/quit", "r"]
    result = chat(model, *lines, *after)
    assert result.returncode == 0
    notes = [
        "there is no question",
        "there is no question",
        "0 of 64 positions",
        "system prompt: r",
        r"\d+ of 64 positions; prompt of \d tokens, \d of them not run again, .*; answer of 2 tokens, .*",
        f"saved as {file}",
        "taken back: r",
        f"1 questions and answers from {file}",
        "all is forgotten, but for the system prompt",
        "0 of 64 positions",
        "system prompt: that of the template, if it has one",
    ]
    assert re.match("\n".join(notes) + "\nEnter sends, Alt-Enter", result.stderr), result.stderr
    assert result.stdout.count("Assistant: b\n") == 2
    assert [m["content"] for m in json.loads(file.read_text())] == ["r", "r", "b"]


def test_commands_may_be_in_any_case(model, tmp_path):
    file = tmp_path / "said.json"
    result = chat(model, "r", f"/SAVE {file}", "/Reset", "/qUIT", "r")
    said = "all is forgotten, but for the system prompt"
    assert result.stderr == f"saved as {file}\n{said}\n"
    assert result.stdout.count("Assistant") == 1
    assert len(json.loads(file.read_text())) == 2


def test_a_command_that_there_is_not_ends_what_comes_from_a_pipe(model):
    result = chat(model, "/Foo", "r")
    assert (result.returncode, result.stdout.count("Assistant")) == (2, 0)
    assert "there is no command /foo: /help lists them\n" in result.stderr


def test_what_was_forgotten_is_said(model):
    result = chat(model, *["r" * 3] * 30)
    assert result.stdout.count("Assistant: b\n") == 30
    assert re.search(r"the context is full: the oldest \d+ turns are forgotten\n", result.stderr)


@pytest.mark.parametrize(
    ("lines", "options", "code", "message"),
    [
        (["/load nowhere.json"], (), 3, "nowhere.json: No such file"),
        (["/save"], (), 2, "the name of a file is missing"),
        (["/save ~nobody-is-called-so/x"], (), 2, "there is no user nobody-is-called-so"),
        (["/load ~nobody-is-called-so/x"], (), 2, "there is no user nobody-is-called-so"),
        (["/load a\0b"], (), 2, "a path can't hold a NUL character"),
        (["/reset foo"], (), 2, "/reset foo: allowed is /reset alone"),
        (["/QUIT now"], (), 2, "/quit now: allowed is /quit alone"),
        (["r" * 70], (), 2, "the question takes"),
        (["r"], ("--escape",), 2, "--escape is for llama.run"),
        (["r"], ("--top-p", "7"), 2, "--top-p = 7"),
        (["r"], ("--nonsense",), 2, "--nonsense"),
    ],
)
def test_what_cannot_be_done_is_an_error_of_one_line(model, lines, options, code, message):
    result = chat(model, *lines, options=options)
    assert result.returncode == code
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_help_says_it_all():
    result = finish([*CHAT, "--help"], capture_output=True, text=True, env=environment())
    assert all(word in result.stdout for word in ("/system", "--temperature", "Ctrl-C"))


# --- The program in a terminal


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, line: list[str], **changes: str) -> None:
        import pty  # POSIX

        self._ours, theirs = pty.openpty()
        self.seen = ""
        env = environment(PROMPT_TOOLKIT_NO_CPR="1", TERM="xterm", **changes)
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        self.program = subprocess.Popen(line, env=env, start_new_session=True, **streams)
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait(self, pattern: str) -> str:
        """Reads until the pattern is there, and returns what came before, without escapes."""
        end = time.monotonic() + 30
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self._ours], [], [], end - time.monotonic())
            assert ready, self.seen
            try:
                new = os.read(self._ours, 4096).decode(errors="replace")
            except OSError:  # Linux at the end
                new = ""
            self.seen += re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|.)", "", new)
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before


@pytest.fixture
def start(model, tmp_path):
    terminals = []

    def begin(*options: str) -> Terminal:
        home = {"XDG_STATE_HOME": str(tmp_path), "HOME": str(tmp_path)}
        line = [*CHAT, str(model), "--template", "plain", "-t", "0", *options]
        terminals.append(Terminal(line, **home))
        return terminals[-1]

    yield begin
    for begun in terminals:
        begun.program.kill()
        begun.program.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_in_a_terminal_lines_are_edited_and_kept(start, tmp_path):
    pytest.importorskip("prompt_toolkit")
    one = start()
    one.wait("User:")
    one.type("X\x7fr\r")  # backspace
    one.wait("Assistant: b\r\n")
    one.wait("User:")
    one.type("r\x1b\rr\r")  # Alt-Enter
    one.wait("Assistant: b\r\n")
    one.wait("User:")
    one.type("\x03")
    one.wait("Ctrl-D or /quit ends")
    one.wait("User:")
    one.type("\x04")
    assert one.program.wait(60) == 0
    assert terminal.history_file().name == "chat_history"
    (kept,) = tmp_path.rglob("chat_history")
    assert "+r\n+r\n" in kept.read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_in_a_terminal_a_chat_goes_on_after_a_bad_command(start):
    one = start()
    one.wait("User:")
    for wrong in ("/save ~nobody-is-called-so/x", "/reset foo"):
        one.type(f"{wrong}\r")
        one.wait("error: .*(no user|alone)")
        one.wait("User:")
    one.type("/quit\r")
    assert one.program.wait(60) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_ctrl_c_stops_the_answer_and_not_the_program(tmp_path):
    path = write_chain(tmp_path, ["o"], {}, context=30_000)
    line = [*CHAT, str(path), "--template", "plain", "-t", "0", "-j", "1"]
    one = Terminal(line)
    try:
        one.wait("User:")
        one.type("o\r")
        one.wait("Assistant: ooo")
        one.program.send_signal(signal.SIGINT)
        one.wait("User:")
        one.type("/quit\r")
        assert one.program.wait(60) == 0
    finally:
        one.program.kill()
