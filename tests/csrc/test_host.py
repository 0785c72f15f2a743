"""llama_run among its hosts: what it asks of one, when it is interrupted, and when memory or paths run out.

Left out on purpose: what a run writes (test_run.py, test_converse.py), output that is closed or full
(test_run.py).
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field, replace
from pathlib import Path

import checkpoints
import pytest
from checkpoints import Shape
from helpers import ROOT, RUN, assert_refused, each_program, environment, run, without_times
from test_adapter import config_of, random_adapter
from test_vocabulary import SAMPLES
from tiny_models import write_chain

import llama.run
from llama._engine import ffi, lib
from llama.formats import vocabulary as tokens
from llama.formats.adapter_file import write_adapter
from llama.formats.vocabulary import Vocabulary


@pytest.fixture
def answers(tmp_path) -> Path:
    """Answers ab to whatever it is told, and ends."""
    return write_chain(tmp_path, ["a", "b"], {"<unk>": "a", "a": "b", "b": "</s>"})


@pytest.fixture
def loop(tmp_path) -> Path:
    """Writes x for ever."""
    return write_chain(tmp_path, [" x"], {"<s>": " x"}, context=10_000)


# --- What a host is asked


@dataclass
class Host:
    """A host in Python, which keeps what it is given."""

    input: bytes = b""
    room: int = 1 << 20  # bytes that one call takes or gives
    errors: list[int] = field(default_factory=list)  # errno of the next calls
    interrupt_after: int = 1 << 30  # times that it is asked
    output: list[bytes] = field(default_factory=list)
    notes: bytes = b""
    asked: int = 0

    def write(self, _user, text, n):
        if self.errors:
            return -self.errors.pop(0)
        self.output.append(ffi.buffer(text, min(n, self.room))[:])
        return min(n, self.room)

    def read(self, _user, text, room):
        if self.errors:
            return -self.errors.pop(0)
        piece = self.input[: min(room, self.room)]
        self.input = self.input[len(piece) :]
        ffi.memmove(text, piece, len(piece))
        return len(piece)

    def note(self, _user, text, n):
        self.notes += ffi.buffer(text, n)[:]

    def interrupted(self, _user):
        self.asked += 1
        return self.asked > self.interrupt_after

    def run(self, *arguments: str | Path) -> tuple[int, str]:
        """The code and the error of a command line."""
        options = llama.run.parse([b"host", *map(os.fsencode, arguments)])
        calls = {
            "write": ffi.callback("int64_t(void *, const char *, size_t)", self.write),
            "read": ffi.callback("int64_t(void *, char *, size_t)", self.read),
            "note": ffi.callback("void(void *, const char *, size_t)", self.note),
            "interrupted": ffi.callback("int(void *)", self.interrupted),
        }
        error = ffi.new("LlamaError *")
        code = lib.llama_run(options, ffi.new("LlamaHost *", calls), error)
        return code, ffi.string(error.text).decode() if code else ""


def test_a_run_reads_and_writes_through_its_host_alone(answers, capfd):
    host = Host(b"be kind\nhi\n")
    assert host.run(answers, "-m", "chat") == (0, "")
    assert b"".join(host.output) == b"Enter system prompt (optional): User: Assistant: ab\nUser: \n"
    host = Host()
    assert host.run(answers, "-i", "a", "--stats") == (0, "")
    assert b"".join(host.output) == b"ab\n"
    assert re.fullmatch(rb"model: .*\nopened in .*\nprompt: 3 tokens, .*\n", host.notes)
    assert capfd.readouterr() == ("", "")


def test_text_comes_piece_by_piece(loop):
    host = Host()
    assert host.run(loop, "-n", "5") == (0, "")
    assert host.output == [b"x", b" x", b" x", b" x", b" x", b"\n"]


@pytest.mark.parametrize("room", [1, 2, 7])
def test_a_host_may_take_and_give_a_few_bytes_at_a_time(answers, room):
    host = Host("\ufeffbe kind\r\nhi\r\n".encode(), room)
    assert host.run(answers, "-m", "chat") == (0, "")
    assert b"".join(host.output) == b"Enter system prompt (optional): User: Assistant: ab\nUser: \n"
    host = Host("\ufeffa\r\n".encode(), room)
    assert host.run(answers, "-f", "-") == (0, "")
    assert b"".join(host.output) == b"ab\n"


def test_what_a_host_can_not_do_is_an_error(answers):
    assert Host(errors=[errno.EPIPE]).run(answers) == (141, "standard output: Broken pipe")
    assert Host(errors=[errno.EISDIR]).run(answers, "-f", "-") == (3, "standard input: Is a directory")
    assert Host(room=0).run(answers) == (4, "standard output: Input/output error")


def test_without_a_model_the_library_says_so():
    assert Host().run() == (2, "no model is given")


# --- Interrupts


def test_an_interrupt_ends_a_text_at_the_next_piece(loop):
    for pieces in (0, 1, 50):
        host = Host(interrupt_after=2 * pieces)  # it is asked before a piece is made and before it is written
        assert host.run(loop, "-n", "0") == (130, "interrupted")
        assert len(host.output) == pieces


def test_an_interrupt_ends_the_reading_of_a_file_and_of_a_line(answers, tmp_path):
    os.mkfifo(tmp_path / "nobody")
    for options in (["-m", "chat"], ["-f", "-"], ["-f", tmp_path / "nobody"], ["--perplexity", "-"]):
        assert Host(b"hi\n", interrupt_after=0).run(answers, *options) == (130, "interrupted")


def test_a_call_that_a_signal_cut_short_is_made_again(answers):
    host = Host(b"hi\n", errors=[errno.EINTR] * 3)
    assert host.run(answers, "-m", "chat", "-y", "") == (0, "")
    assert b"".join(host.output) == b"User: Assistant: ab\nUser: \n"
    host = Host(b"hi\n", errors=[errno.EINTR] * 3, interrupt_after=2)
    assert host.run(answers, "-m", "chat", "-y", "") == (130, "interrupted")


HANDLER = """
import signal, sys
from llama.run import main

class Late(Exception): pass

def late(*_):
    raise Late

signal.signal(signal.SIGALRM, late)
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    main([sys.argv[1], "-n", "0", "--samples", "1000000", "--no-echo"])
except Late:
    print("\\nlate", flush=True)
print(main([sys.argv[1], "-n", "3"]))
"""


def test_what_a_handler_of_signals_raises_comes_out_of_main(loop):
    result = subprocess.run(
        [sys.executable, "-c", HANDLER, loop], env=environment(), capture_output=True, timeout=60, check=False
    )
    assert result.stdout.endswith(b"\nlate\nx x x\n0\n"), result.stderr
    assert re.fullmatch(rb"prompt: 1 tokens, .*; generated: 3 tokens, .*\n", result.stderr)


# --- Memory


@pytest.fixture(scope="module")
def fallible(tmp_path_factory) -> Path:
    """A build of ./run in which any one allocation can fail."""
    program = tmp_path_factory.mktemp("fallible") / "run"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    options = ["-O0", "-ffp-contract=off", "-Wno-unknown-pragmas", "-o", program, "-lm"]
    source = ROOT / "tests" / "csrc" / "allocations.c"
    subprocess.run([*compiler, source, *options], env=os.environ | {"LD_PRELOAD": ""}, check=True)
    return program


@pytest.mark.parametrize(
    "options",
    [
        ["-m", "chat", "-y", "be kind", "-i", "a"],
        ["-m", "chat"],
        ["-i", "a", "--stop", "z"],
        ["-f", "-"],
        ["--info"],
        ["--perplexity", "-"],
    ],
    ids=" ".join,
)
def test_whichever_allocation_fails_the_exit_code_is_4(answers, fallible, options):
    assert_4_whichever_fails([fallible, answers, "-t", "0", *options])


SOME_BYTES = Vocabulary(
    tokens.BYTES,
    pieces=[b"a", b"b", b"ab", b"<unk>"],
    scores=[0.0] * 4,
    types=[tokens.TEXT] * 3 + [tokens.UNKNOWN],
    bos=0,
    merges=[(b"a", b"b")],
    unknown=3,
)
VOCABULARIES = {kind: vocabulary for kind, (vocabulary, *_) in SAMPLES.items()} | {
    "some bytes, unknown": SOME_BYTES,
    "some bytes": replace(SOME_BYTES, unknown=-1, types=[tokens.TEXT] * 4),
}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_the_same_of_every_kind_of_tokenizer_and_of_an_adapter(tmp_path, fallible, kind):
    shape = Shape(8, 8, 1, 2, 1, vocab_size=len(VOCABULARIES[kind]), max_seq_len=64)
    checkpoints.write(tmp_path / "m.bin", shape)
    (tmp_path / "t.bin").write_bytes(VOCABULARIES[kind].indexed)
    write_adapter(tmp_path / "x.lora.bin", random_adapter(shape), config_of(shape))
    files = ["m.bin", "-z", "t.bin", "--lora", "x.lora.bin"]
    assert_4_whichever_fails([fallible, *files, "-i", "abc ab\xff", "-n", "12", "-t", "0"], cwd=tmp_path)


def assert_4_whichever_fails(command: list[str | Path], **options: Path) -> None:
    """A program writes one line, whichever of its allocations fails, or the text that it always writes."""
    keywords = {"input": b"a\na\n", "capture_output": True, "timeout": 60, "check": False} | options
    whole = subprocess.run(command, **keywords)
    assert whole.returncode == 0, whole.stderr
    for at in range(1, 1000):
        result = subprocess.run(command, env=os.environ | {"FAIL_AT": str(at)}, **keywords)
        if result.returncode == 0:  # there are no more: but for a note, which is given up, all went well
            break
        assert_refused(result, 4)
    assert at > 5
    assert without_times(result.stdout) == without_times(whole.stdout)


# --- Long paths


@each_program
@pytest.mark.parametrize("option", [None, "-z", "-f", "--perplexity"])
def test_a_path_of_any_length_leaves_room_for_the_reason(answers, program, option):
    path = "p" * 5_000
    arguments = [path] if option is None else [answers, option, path]
    result = run(program, *arguments, cwd=answers.parent)
    assert_refused(result, 3)
    assert re.fullmatch(rb"error: p{500,}\.\.\.p{400,}: File name too long\n", result.stderr)


@each_program
def test_a_model_may_lie_deep(answers, program):
    folder = answers.parent.joinpath(*["deep" * 50] * 15)
    folder.mkdir(parents=True)
    for name in ("chain.bin", "tokenizer.bin"):
        (answers.parent / name).rename(folder / name)
    result = run(program, folder / "chain.bin", "-i", "a", "--stats", cwd=answers.parent)
    assert (result.returncode, result.stdout) == (0, b"ab\n")
    assert result.stderr.startswith(f"model: {folder}/chain.bin, ".encode())


def test_the_program_may_lie_deep(tmp_path):
    folder = tmp_path.joinpath(*["deep" * 50] * 15)
    folder.mkdir(parents=True)
    (folder / "run").symlink_to(RUN)
    result = subprocess.run([folder / "run"], capture_output=True, timeout=60, check=False)
    assert_refused(result, 3)
    assert result.stderr.endswith(b"/llama/models/stories.bin: No such file or directory\n")
