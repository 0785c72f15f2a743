"""-m chat by every kind of template: those that are built in, those that Python runs, those that are chosen.

Left out on purpose: what a chat asks and when it ends (test_converse.py), the ids (test_chat.py,
test_templates.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import Shape
from checkpoints import write as write_checkpoint
from helpers import PIECES, assert_refused, both, each_program, write_ranked
from helpers import run as run_program
from test_chat_templates import DEFAULT, EACH, LLAMA3, folder_with, run
from test_templates import TOOLS

from llama import Llama

GREEDY = ("-t", "0", "-m", "chat")
CHOSEN = "llama2, llama3, chatml, zephyr, mistral"
FORGETFUL = (  # what was said stays, what was answered does not
    "{% for m in messages %}{% if m.role != 'assistant' %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% else %}<|im_start|>...<|im_end|>{% endif %}"
    "{% endfor %}<|im_start|>assistant\n"
)


@pytest.fixture
def model(tmp_path_factory) -> Any:
    """Makes a model with a template, of a folder of Hugging Face, whose answers are letters."""

    def make(template: str, *options: str) -> Path:
        folder = tmp_path_factory.mktemp("model")
        run(folder_with(folder / "theirs", template), folder / "model.bin", "--version", "3", *options)
        return folder / "model.bin"

    return make


def answers(path: Path, questions: list[str], system: str | None, stop: str, most: int) -> list[str]:
    """What the model says to the ids of each conversation, up to stop or `most` tokens."""
    told = [] if system is None else [{"role": "system", "content": system}]
    with Llama(path) as engine:
        found: list[str] = []
        for question in questions:
            told.append({"role": "user", "content": question})
            ids = engine.encode_chat(told)
            found.append("".join(engine.generate(ids, max_tokens=most, temperature=0, stop=stop)))
            told.append({"role": "assistant", "content": found[-1]})
    return found


@pytest.mark.parametrize("template", [FORGETFUL, LLAMA3 + ">>>", TOOLS + "{{ '<|im_start|>' }}"])
@pytest.mark.parametrize("system", [None, "be kind <|im_end|>"])
def test_a_template_that_is_not_built_in_chats_in_python(model, template, system):
    path, questions = model(template), ["hello?", "<|im_end|> and again", "once more"]
    (whole,) = answers(path, questions[:1], system, "-", 40)
    stop = whole[5]  # ends the first answer where it first comes, and others where they have it
    expected = answers(path, questions, system, stop, 30)
    stdin = "".join(f"{question}\n" for question in questions).encode()
    arguments = (*GREEDY, "-y", system or "", "--stop", stop)
    result = run_program("python", path, *arguments, cwd=path.parent, stdin=stdin)
    assert result.returncode == 0, result.stderr
    found = result.stdout.decode().split("User: Assistant: ")[1:]
    for i, answer in enumerate(expected):  # up to one that goes on without the stop
        assert found[i].startswith(answer)
        if len(answer) == 30:
            break
        assert found[i].rstrip("User: \n") == answer
    assert len(expected[0]) <= 5


def test_the_other_program_says_who_runs_it(model):
    path = model(FORGETFUL)
    result = run_program("native", path, *GREEDY, cwd=path.parent)
    message = (
        "its chat template is none that is built in: python -m llama.run -m chat, or cria chat, runs it; "
    )
    assert_refused(result, 2, f"{path}: {message}--template chooses another")
    assert result.stdout == b""


@pytest.mark.parametrize("template", [EACH, DEFAULT])
def test_one_that_is_built_in_chats_in_both(model, template):
    path = model(template)
    result = both(path, *GREEDY, "-y", "", "-n", "120", stdin=b"hello?\n")
    assert result.returncode == 0, result.stderr
    (answer,) = answers(path, ["hello?"], None, "-", 30)
    assert result.stdout.decode().startswith(f"User: Assistant: {answer}")


@each_program
def test_a_v3_model_without_a_template_chats_by_the_one_that_is_chosen(model, program):
    path = model(EACH, "--template", "none")
    result = run_program(program, path, *GREEDY, cwd=path.parent)
    assert_refused(result, 2, f"{path}: has no chat template: choose one with --template, {CHOSEN} or plain")
    for name in (*CHOSEN.split(", "), "plain"):
        with Llama(path) as engine:
            ids = engine.encode_turn("hello?", template=name)
            answer = "".join(engine.generate(ids, max_tokens=20, temperature=0))
        options = ("-y", "", "-n", str(len(ids) + 19), "--template", name)
        result = run_program(program, path, *GREEDY, *options, cwd=path.parent, stdin=b"hello?\n")
        assert result.stdout.decode() == f"User: Assistant: {answer}\n"


@each_program
def test_a_template_that_is_chosen_takes_the_place_of_the_models(model, program):
    for path in (model(FORGETFUL), model(DEFAULT)):
        with Llama(path) as engine:
            ids = engine.encode_turn("hello?", template="plain")
            answer = "".join(engine.generate(ids, max_tokens=20, temperature=0))
        options = ("-y", "", "-n", str(len(ids) + 19), "--template=plain")
        result = run_program(program, path, *GREEDY, *options, cwd=path.parent, stdin=b"hello?\n")
        assert result.stdout.decode() == f"User: Assistant: {answer}\n"


@each_program
def test_a_file_of_llama2c_chats_as_there(tmp_path, program):
    write_checkpoint(tmp_path / "model.bin", Shape(vocab_size=len(PIECES)))
    write_ranked(tmp_path / "tokenizer.bin", PIECES)
    results = [
        run_program(program, "model.bin", *GREEDY, "-y", "", *options, cwd=tmp_path, stdin=b"abc\n")
        for options in ((), ("--template", "llama2"), ("--template", "plain"))
    ]
    assert results[0].returncode == 0
    assert results[0].stdout == results[1].stdout != results[2].stdout


@each_program
def test_a_template_that_is_none_is_refused(tmp_path, program):
    for name in ("other", "none", "", "ChatML"):
        result = run_program(program, "model.bin", "--template", name, cwd=tmp_path)
        assert_refused(result, 2, f"--template = {name}, allowed {CHOSEN} and plain")


# --- What goes wrong in Python


def test_a_template_that_refuses_the_conversation_ends_the_chat_in_one_line(model):
    path = model("{% if messages | length > 1 %}{{ raise_exception('enough') }}{% endif %}<|im_start|>")
    result = run_program("python", path, *GREEDY, "-y", "", "--stop", "a", cwd=path.parent, stdin=b"a\nb\n")
    assert result.returncode in (0, 2)  # 0 where the first answer fills the context
    if result.returncode == 2:
        assert result.stderr == b"error: the chat template refuses the conversation: enough\n"


def test_a_system_text_that_it_refuses_too(model):
    path = model("{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}x")
    result = run_program("python", path, *GREEDY, "-y", "be kind", "-i", "hi", cwd=path.parent)
    assert_refused(result, 2, "the chat template refuses the conversation: none")


def test_a_template_that_makes_nothing_is_an_error(model):
    path = model("{% if messages | length > 9 %}x{% endif %}")
    result = run_program("python", path, *GREEDY, "-y", "", "-i", "hi", cwd=path.parent)
    assert_refused(result, 2, "the chat template made nothing of the conversation")


def test_a_conversation_that_does_not_fit(model):
    path = model(FORGETFUL)
    result = run_program("python", path, *GREEDY, "-y", "", "-i", "long " * 90, "-c", "20", cwd=path.parent)
    assert result.returncode == 2
    assert b"the prompt has " in result.stderr
    full = run_program(
        "python", path, *GREEDY, "-y", "", "-i", "hi", "-c", "40", cwd=path.parent, stdin=b"x\n" * 9
    )
    assert (full.returncode, full.stderr) == (0, b"the conversation fills the context of 40 positions\n")
