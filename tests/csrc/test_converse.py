"""-m chat of both programs: what it asks and prints, and when it ends. The ids of a turn: test_chat.py."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from helpers import assert_refused, both, command, each_program, environment, run, write_pieces
from tiny_models import write_chain


@pytest.fixture
def answers(tmp_path) -> Path:
    """Answers ab to whatever it is told, and ends. What it is told is one unknown token."""
    return write_chain(tmp_path, ["a", "b"], {"<unk>": "a", "a": "b", "b": "</s>"})


def test_a_chat_asks_answers_and_ends_with_its_input(answers):
    result = both(answers, "-m", "chat", stdin=b"be kind\nhello\nand again\n")
    assert result.stdout.decode() == (
        "Enter system prompt (optional): User: Assistant: ab\nUser: Assistant: ab\nUser: \n"
    )
    assert (result.returncode, result.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("options", "stdin", "text"),
    [
        ([], b"", "Enter system prompt (optional): \n"),
        ([], b"\n", "Enter system prompt (optional): User: \n"),
        (
            [],
            b"\n\n\nhi\n\n",
            "Enter system prompt (optional): User: User: User: Assistant: ab\nUser: User: \n",
        ),
        ([], b"kind\nhi", "Enter system prompt (optional): User: Assistant: ab\nUser: \n"),
        (["-y", "kind"], b"hi\n", "User: Assistant: ab\nUser: \n"),
        (["-y", ""], b"hi\n", "User: Assistant: ab\nUser: \n"),
        (["-y", "kind", "-i", "hi"], b"", "Assistant: ab\nUser: \n"),
        (
            ["-i", "hi"],
            b"kind\nho\n",
            "Enter system prompt (optional): Assistant: ab\nUser: Assistant: ab\nUser: \n",
        ),
        (["-y", "", "--stop", "b"], b"hi\nho\n", "User: Assistant: a\nUser: Assistant: a\nUser: \n"),
        (["-i", "hi"], b"", "Enter system prompt (optional): Assistant: ab\nUser: \n"),
        (["-i", ""], b"", "Enter system prompt (optional): Assistant: ab\nUser: \n"),
        (["-i", "hi"], b"kind", "Enter system prompt (optional): Assistant: ab\nUser: \n"),
        ([], b"kind\r\n\r\nhi\r\n", "Enter system prompt (optional): User: User: Assistant: ab\nUser: \n"),
        (["-y", ""], b"\xef\xbb\xbf\r\nhi\r\n", "User: User: Assistant: ab\nUser: \n"),
        (["-y", ""], b"a\0b\xff\r\n \n", "User: Assistant: ab\nUser: Assistant: ab\nUser: \n"),
    ],
)
def test_a_chat_takes_its_turns_from_options_and_lines(answers, options, stdin, text):
    result = both(answers, "-m", "chat", *options, stdin=stdin)
    assert (result.returncode, result.stdout.decode(), result.stderr) == (0, text, b"")


# A turn takes BOS and one token, an answer two; EOS comes before each turn but the first.
@pytest.mark.parametrize(
    ("context", "text"),
    [
        (2, "User: Assistant: a\n"),
        (3, "User: Assistant: ab\n"),
        (4, "User: Assistant: ab\nUser: "),
        (6, "User: Assistant: ab\nUser: "),
        (7, "User: Assistant: ab\nUser: Assistant: a\n"),
        (9, "User: Assistant: ab\nUser: Assistant: ab\nUser: "),
    ],
)
@pytest.mark.parametrize("option", ["-c", "-n"])
def test_a_chat_that_fills_the_context_says_so(answers, context, text, option):
    result = both(answers, "-m", "chat", "-y", "", option, str(context), stdin=b"hi\n" * 9)
    message = f"the conversation fills the context of {context} positions\n"
    assert (result.returncode, result.stdout.decode(), result.stderr.decode()) == (0, text, message)


def test_a_chat_whose_answer_ended_at_a_stop_string_counts_all_of_its_tokens(answers):
    """The last token of such an answer waits to be run before the next turn, and needs its position too."""
    options = ("-m", "chat", "-y", "", "--stop", "b", "-c")
    for context, text in ((6, "User: Assistant: a\nUser: "), (7, "User: Assistant: a\nUser: Assistant: a\n")):
        result = both(answers, *options, str(context), stdin=b"hi\n" * 3)
        message = f"the conversation fills the context of {context} positions\n"
        assert (result.returncode, result.stdout.decode(), result.stderr.decode()) == (0, text, message)


@each_program
def test_a_chat_without_standard_input_answers_its_prompt(answers, program):
    line = ["sh", "-c", 'exec "$@" <&-', "sh", *command(program, answers, "-m", "chat", "-i", "hi")]
    result = subprocess.run(line, env=environment(), capture_output=True, timeout=60, check=False)
    text = b"Enter system prompt (optional): Assistant: ab\nUser: \n"
    assert (result.returncode, result.stdout, result.stderr) == (0, text, b"")


def test_a_very_long_line_is_refused_or_fits(tmp_path):
    model = write_chain(tmp_path, [" x", "a"], {"<unk>": "a", "a": "</s>"})
    long = b"x " * 50_000 + b"\n"
    result = both(model, "-m", "chat", "-y", "", stdin=long)
    assert_refused(result, 2)
    assert re.search(rb"the prompt has 5\d{4} tokens, the context has room for 64\n", result.stderr)
    result = both(model, "-m", "chat", "-y", "", stdin=b"hi\n" + long)
    assert result.returncode == 0
    assert result.stderr == b"the conversation fills the context of 64 positions\n"
    result = both(model, "-m", "chat", stdin=b"y" * 100_000 + b"\n" + b"z" * 100_000 + b"\n")
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == b"Enter system prompt (optional): User: Assistant: a\nUser: \n"


def test_a_chat_of_noise_is_the_same_from_both_programs(noise):
    stdin = "be kind\nhow are you?\nžluťoučký 🦙\n".encode()
    for flags in (["-s", "1"], ["-t", "0"], ["-s", "2", "--top-k", "5", "--stop", "t"]):
        result = both(noise / "v0.bin", "-m", "chat", *flags, stdin=stdin)
        assert result.returncode == 0
        assert result.stdout.startswith(b"Enter system prompt (optional): User: Assistant: ")


@each_program
def test_a_chat_needs_bos_and_eos(tmp_path, program):
    model = write_chain(tmp_path, ["a"], {})
    write_pieces(tmp_path / "none.bin", [("<unk>", 0), ("<s>", 0), ("b", 0), ("a", 0)])
    result = run(program, model, "-m", "chat", "-y", "", "-i", "hi", "-z", "none.bin", cwd=tmp_path)
    assert_refused(result, 3, "the tokenizer has no </s>, which the chat template needs")
