"""cria: the programs of the package under one name."""

from __future__ import annotations

import importlib

import pytest

from llama import chat, cli
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


def test_what_is_no_command_is_refused():
    with pytest.raises(UsageError, match="command = walk, allowed run, chat"):
        cli.start(["walk"])


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_help_names_every_command(capsys, arguments):
    assert cli.start(arguments) is None
    text = capsys.readouterr().out
    assert all(f"cria {command} " in text or f"cria {command}\n" in text for command in cli.COMMANDS)
