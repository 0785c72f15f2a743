"""Messages are one line of a terminal, whatever a file or a path is called."""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import PROGRAMS, ROOT, assert_refused, run

from llama import convert
from llama.errors import LONGEST, BadFileError, ResourceError, UsageError, one_line

ESCAPE = "\x1b[2J\x9b2J\u202e"


def test_a_line_holds_nothing_that_a_terminal_obeys():
    assert one_line(f"a{ESCAPE}é\nb\udcff") == "a?[2J?2J?é b\udcff"


@pytest.mark.parametrize("kind", [BadFileError, UsageError, ResourceError])
def test_an_error_of_the_package_is_such_a_line_too(kind):
    assert str(kind(f"a{ESCAPE}\nb")) == "a?[2J?2J? b"


def test_a_long_line_keeps_its_beginning_and_its_end():
    text = one_line("a" * 10**6 + ": the reason")
    assert len(text) == LONGEST + len("...")
    assert text.startswith("aaa")
    assert text.endswith(": the reason")


@pytest.mark.parametrize("name", [f"a{ESCAPE}", "a" * 3_000_000])
def test_names_in_a_file_do_not_reach_the_terminal(tmp_path, capfd, name):
    torch.save({"model": {"tok_embeddings.weight": [name]}, "model_args": {name: 1}}, tmp_path / "a.pt")
    torch.save({name: torch.ones(1), "tok_embeddings.weight": 5}, tmp_path / "b.pt")
    torch.save({"model": {name: 5}, "model_args": {name: 1}}, tmp_path / "c.pt")
    for file in ("a.pt", "b.pt", "c.pt"):
        assert convert.main([str(tmp_path / file), str(tmp_path / "o.bin")]) == 3
        said = capfd.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        assert said[:-1].isprintable()
        assert len(said) < 2 * LONGEST


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_path_that_is_an_escape_sequence_does_not_reach_the_terminal(tmp_path, program):
    result = run(program, f"{ESCAPE}\x7f.bin", cwd=tmp_path)
    assert_refused(result, 3)
    assert not set("\x1b\x9b\x7f") & set(result.stderr.decode())


def test_special_tokens_that_are_escape_sequences_do_not_reach_the_terminal(tmp_path):
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    back = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
    data = {
        "model": {"type": "BPE", "vocab": {"<unk>": 0}, "merges": [], "unk_token": "<unk>"},
        "added_tokens": [{"id": 1, "content": ESCAPE, "special": True}],
        "normalizer": space,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    line = [sys.executable, str(ROOT / "tokenizer.py"), "info", str(path)]
    result = subprocess.run(line, capture_output=True, check=True, env=os.environ)
    assert b"?[2J" in result.stdout
    assert b"\x1b" not in result.stdout
