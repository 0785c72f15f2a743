"""cria: the programs of the package under one name."""

from __future__ import annotations

import importlib
import os
import sys
from subprocess import PIPE, CompletedProcess

import pytest
from helpers import ROOT, assert_refused, environment, finish

from llama import chat, cli
from llama.command import run_command
from llama.errors import UsageError


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_command_is_the_program_of_that_name(monkeypatch, command):
    seen = []
    monkeypatch.setattr(
        importlib.import_module(f"llama.{cli.MODULES.get(command, command)}"),
        "main",
        lambda rest: seen.append(rest) or 7,
    )
    assert cli.start([command, "model.bin", "--flag"]) == 7
    assert seen == [["model.bin", "--flag"]]


@pytest.mark.parametrize(("said", "temperature"), [([], 0.2), (["-t", "0.7"], 0.7)])
def test_a_chat_has_a_temperature_of_its_own(monkeypatch, said, temperature):
    seen = []
    monkeypatch.setattr(chat, "converse", seen.append)
    cli.start(["chat", "model.bin", *said])
    assert seen[0].sampling.temperature == pytest.approx(temperature)


@pytest.mark.parametrize("command", ["bench", "cache", "convert", "info", "perplexity", "serve", "surgery"])
def test_a_wrong_option_is_one_line(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.start([command, "--foo"])
    assert ended.value.code == UsageError.code
    assert capsys.readouterr().err.startswith("error: ")


def test_what_is_no_command_is_refused():
    with pytest.raises(UsageError, match="command = walk, allowed run, chat"):
        cli.start(["walk"])


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_help_names_every_command(capsys, arguments):
    assert cli.start(arguments) is None
    text = capsys.readouterr().out
    assert all(f"cria {command} " in text or f"cria {command}\n" in text for command in cli.COMMANDS)


def program(*arguments: str, **options) -> CompletedProcess:
    return finish([sys.executable, "-m", "llama.cli", *arguments], env=environment(), **options)


@pytest.mark.parametrize("command", ["run", "info", "bench", "convert"])
def test_an_empty_name_is_no_folder(command):
    rest = ["out.bin"] if command == "convert" else []
    result = program(command, "", *rest, capture_output=True)
    assert_refused(result, 2)
    assert b" is empty" in result.stderr


EMPTY = [  # and the option that is empty
    (["cache", "clear", ""], "pattern"),
    (["cache", "list", ""], "pattern"),
    (["convert", "model.bin", "out.bin", "--lora", ""], "--lora"),
    (["convert", "model.bin", "out.bin", "--tokenizer", ""], "--tokenizer"),
    (["run", "model.bin", "--lora", ""], "--lora"),
    (["run", "model.bin", "-z", ""], "--tokenizer"),
    (["chat", "model.bin", "-z", ""], "--tokenizer"),
    (["perplexity", "model.bin", "text", "--tokenizer", ""], "--tokenizer"),
    (["perplexity", "model.bin", "text", "--field", ""], "--field"),
    (["perplexity", "model.bin", ""], "text"),
    (["info", "model.bin", "-z", ""], "--tokenizer"),
    (["evaluate", "model.bin", "--lora", ""], "--lora"),
    (["evaluate", "model.bin", "--include", ""], "--include"),
    *((["serve", "model.bin", option, ""], option) for option in ("--tokenizer", "--lora", "--alias")),
    *((["serve", "model.bin", option, ""], option) for option in ("--cors", "--slot-save-path")),
    (["serve", "model.bin", "--allow-host", ""], "--allow-host"),
]


@pytest.mark.parametrize(("arguments", "option"), EMPTY, ids=lambda value: " ".join(value))
def test_what_is_empty_is_refused_by_name(arguments, option, capfd):
    """So nothing is taken for what was left out, as it is where a variable of a shell has no value."""

    def ended() -> int:
        try:
            return run_command(lambda: cli.start(arguments))
        except SystemExit as end:
            return end.code

    assert ended() == UsageError.code
    said = capfd.readouterr().err
    assert said.startswith("error: ")
    assert f"{option}: is empty, allowed is a " in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["info"], ["cache"]])
def test_a_reader_that_has_had_enough_is_told_nothing(tmp_path, monkeypatch, arguments):
    """As head has, which ends a pipeline."""
    monkeypatch.setenv("CRIA_CACHE", str(tmp_path))
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        result = program(*arguments, stdout=pipe, stderr=PIPE)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("start", "command", "name"),
    [
        ("/usr/bin/cria", "serve", "cria serve"),
        ("llama/cli.py", "info", "cria info"),
        ("/x/llama/info.py", "info", "python -m llama.info"),
        ("/x/llama/server/__main__.py", "serve", "python -m llama.server"),
        ("./surgery.py", "surgery", "python surgery.py"),
    ],
)
def test_a_program_is_called_as_it_was_started(monkeypatch, capsys, start, command, name):
    monkeypatch.setattr(sys, "argv", [start])
    with pytest.raises(SystemExit):
        cli.start([command, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: {name} ")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (["-m", "llama.cli", "convert"], "cria convert"),
        (["-m", "llama.convert"], "python -m llama.convert"),
        (["export.py"], "python export.py"),
    ],
)
def test_the_help_of_convert_calls_itself_by_its_name(line, name):
    result = finish([sys.executable, *line, "--help"], env=environment(), cwd=ROOT, capture_output=True)
    text = result.stdout.decode()
    assert text.startswith(f"usage: {name} [options] MODEL OUT\n")
    assert f"  {name} out/last model.bin " in text
    assert text.count("export.py") == (text.count(name) if "export" in name else 0)
