"""The command line: ./run and python -m llama.run take the same options and give the same text and messages.

    python -m pytest tests/llama/test_run.py                          with ./run
    RUN_BINARY=/path/to/run python -m pytest tests/llama/test_run.py  with another build of it

Left out on purpose: wrong options (test_options.py), what a prompt means (test_prompt.py), chat
(test_converse.py), --perplexity (test_perplexity.py), bad files (test_checkpoint.py), other hosts of the
command line (test_host.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import Shape, write_zeros
from helpers import (
    assert_refused,
    both,
    command,
    each_program,
    environment,
    finish,
    run,
    without_times,
    write_pieces,
    write_ranked,
)
from references import SHARED, STORIES260K, needs_stories260k
from tiny_models import SPECIAL, VOCABULARY, write_chain

import llama

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


HELLO = [" he", "llo", " wor", "ld", "</s>"]


@pytest.fixture
def hello(tmp_path) -> Path:
    """Writes hello world and ends."""
    return write_chain(tmp_path, HELLO[:-1], dict(zip(["<s>", *HELLO], HELLO, strict=False)))


@pytest.fixture
def loop(tmp_path) -> Path:
    """Writes x for ever; a prompt of x is BOS and one token."""
    return write_chain(tmp_path, [" x"], {"<s>": " x"})


def output(program: str, model: Path, *options: str | bytes | Path, stdin: bytes = b"") -> bytes:
    """What a run that must succeed writes to standard output."""
    result = run(program, model.name, *options, cwd=model.parent, stdin=stdin)
    assert result.returncode == 0, result.stderr
    return result.stdout


def counts(result: subprocess.CompletedProcess) -> tuple[int, int]:
    """Tokens of the prompt and tokens generated, as the line of the speed says."""
    found = re.search(rb"^prompt: (\d+) tokens, .*; generated: (\d+) tokens, ", result.stderr, re.MULTILINE)
    assert found, result.stderr
    return int(found[1]), int(found[2])


# --- The same text from both programs

FLAGS = [
    ["-t", "0"],
    ["-t", "0", "-n", "1"],
    ["-t", "0", "-n", "10"],
    ["-t", "0", "-n", "0"],
    ["-t", "0", "-n", "256"],
    ["-t", "0", "-n", "2147483647"],
    ["-s", "1"],
    ["-s", "2", "-t", "0.5"],
    ["-s", "3", "-p", "0.5"],
    ["-s", "4", "-t", "2", "-p", "0"],
    ["-s", "5", "-t", "0.7", "-p", "1"],
    ["-s", str(2**64 - 1), "-t", "1.0", "-p", "0.9"],
    ["-s", "1", "--top-k", "3"],
    ["-s", "1", "--top-k", "1"],
    ["-s", "1", "--min-p", "0.2", "-p", "0"],
    ["-s", "1", "--repeat-penalty", "1.5"],
    ["-s", "1", "--presence-penalty", "2"],
    ["-s", "1", "--frequency-penalty=-0.5"],
    ["-t", "0", "--repeat-penalty", "1.2", "--presence-penalty=0.1", "--frequency-penalty=0.3", "-i", "the"],
    [
        "--seed=1",
        "--temperature=0.9",
        "--top-p=0.8",
        "--top-k=40",
        "--min-p=0.01",
        "--steps=40",
        "--prompt=th",
    ],
    ["-t", "0", "-i", ""],
    ["-t", "0", "-i", "the tin"],
    ["-t", "0", "-i", "  two spaces \n and a line "],
    ["-t", "0", "-i", "日本語 žluťoučký 🦙"],
    ["-t", "0", "-i", b"\xff\xfe caf\xe9 \xe6\x97"],
    ["-t", "0", "-i", "-t"],
    ["-t", "0", "-i", "--help"],
    ["-t", "0", "-i", "<s></s><unk><0x41>"],
    ["-t", "0", "-f", "opening.txt"],
    ["-t", "0", "-f", "odd.txt"],
    ["-t", "0", "-f", "empty.txt"],
    ["-t", "0", "-f", "newline.txt"],
    ["-t", "0", "-f", "-"],
    ["-s", "1", "--samples", "3", "-n", "30"],
    ["-s", "1", "--samples", "3", "-n", "30", "-i", "the", "--repeat-penalty", "1.3", "--no-echo"],
    ["-s", "1", "--stop", "t"],
    ["-s", "2", "--stop", "zz", "--stop", "n", "--stop", "an"],
    ["-t", "0", "-i", "the", "--no-echo"],
    ["-t", "0", "-i", "the", "--no-echo", "--echo"],
    ["-t", "0", "-c", "7"],
    ["-t", "0", "-c", "100", "-n", "0"],
    ["-t", "0", "-j", "1", "--stats"],
    ["-t", "0", "--kv", "fp16", "--stats"],
    ["-s", "1", "--kv=bf16"],
    ["-s", "1", "-j", "2", "--stats"],
    ["-s", "1", "-j", "4", "--stats", "-i", "the tin"],
    ["-s", "1", "-z", "tokenizer.bin", "-m", "generate"],
]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: " ".join(map(repr, flags)))
def test_both_programs_write_the_same(noise, flags):
    result = both(noise / "v0.bin", *flags, stdin=b"a tin hat\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(b"\n")


@pytest.mark.parametrize("version", [1, 2])
def test_both_programs_write_the_same_from_every_version(noise, version):
    assert both(noise / f"v{version}.bin", "-s", "3", "-i", "the", "--stats").returncode == 0


@needs_stories260k
@each_program
def test_the_golden_text_of_stories260K(program, tmp_path):
    golden = json.loads(STORIES260K.read_text())
    model, tokenizer = SHARED / golden["model"], SHARED / golden["tokenizer"]
    options = ("-t", str(golden["temperature"]), "-n", str(golden["steps"]), "-z", tokenizer)
    result = run(program, model, *options, cwd=tmp_path)
    assert result.stdout.decode() == golden["text"] + "\n"
    assert counts(result) == (1, golden["steps"])


# --- What the options of sampling mean

SAMPLING = [
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"top_p": 0.3},
    {"top_k": 2},
    {"min_p": 0.3},
    {"repeat_penalty": 1.7},
    {"presence_penalty": 3.0},
    {"frequency_penalty": 2.0},
]


@pytest.mark.parametrize("sampling", SAMPLING, ids=lambda sampling: next(iter(sampling)))
def test_each_option_of_sampling_reaches_the_field_of_its_name(noise, sampling):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sampling.items()]
    model = noise / "v0.bin"
    with llama.Llama(model) as reference:
        text = "".join(reference.generate("the", seed=9, max_tokens=98, **sampling))
    assert (
        output("native", model, "-s", "9", "-n", "99", "-i", "the", "--no-echo", *options).decode()
        == text + "\n"
    )
    assert output("native", model, "-s", "9", "-n", "99", "-i", "the", "--no-echo").decode() != text + "\n"


def test_fp32_that_takes_long_to_read_is_said_to_have_an_alternative(tmp_path):
    shape = Shape(2048, 5632, n_heads=32, n_kv_heads=32, vocab_size=len(VOCABULARY))
    write_ranked(tmp_path / "tokenizer.bin", VOCABULARY)
    for layers, said in (
        (5, b""),
        (6, b"1.2 GB of fp32 are read for each token; --dtype int8 "),
    ):
        write_zeros(tmp_path / "big.bin", replace(shape, n_layers=layers))
        result = run(
            "native", "big.bin", "-n", "1", "-i", "abc", cwd=tmp_path
        )  # too long, so nothing is read
        assert result.returncode == 2
        assert result.stderr.startswith(said or b"error: ")


def test_a_seed_gives_its_text_again_and_another_seed_another(noise):
    model = noise / "v0.bin"
    texts = [output("native", model, "-s", str(seed)) for seed in (1, 2, 3, 4, 5)]
    assert texts == [output("native", model, "-s", str(seed)) for seed in (1, 2, 3, 4, 5)]
    assert len(set(texts)) == 5


@pytest.mark.parametrize("version", [0, 2])
def test_the_number_of_threads_does_not_change_the_text(noise, version):
    options = ("-s", "7", "-i", "the tin hat and the rest of it" * 5)
    texts = {output("native", noise / f"v{version}.bin", *options, "-j", str(n)) for n in (1, 2, 3, 4)}
    assert len(texts) == 1


@each_program
def test_samples_share_the_prompt_and_differ(noise, program):
    model, options = noise / "v0.bin", ("-s", "1", "-n", "60", "-i", "the tin")
    alone = output(program, model, *options)
    result = run(program, "v0.bin", *options, "--samples", "3", cwd=noise)
    assert counts(result)[0] == 1  # that the last one read: it began before the last token
    samples = result.stdout.split(b"---\n")
    assert samples[0] == alone
    assert len(set(samples)) == len(samples) == 3
    assert all(sample.startswith(b"the tin") for sample in samples)
    silent = output(program, model, *options, "--samples", "3", "--no-echo").split(b"---\n")
    assert [b"the tin" + sample for sample in silent] == samples


@each_program
def test_greedy_samples_are_equal(noise, program):
    """So going back to the prompt leaves nothing behind, neither in the cache nor in the penalties."""
    penalties = ("--repeat-penalty", "1.3", "--frequency-penalty", "0.5")
    for prompt in ("the tin", ""):
        options = ("-t", "0", "-n", "60", "-i", prompt, *penalties)
        texts = output(program, noise / "v0.bin", *options, "--samples", "3").split(b"---\n")
        assert texts == [output(program, noise / "v0.bin", *options)] * 3


# --- Prompts


@each_program
@pytest.mark.parametrize("prompt", ["the tin", "", "日本", "two\nlines\n", " the "])
def test_a_prompt_gives_the_same_text_from_everywhere(noise, tmp_path, program, prompt):
    model, file = noise / "v0.bin", tmp_path / "prompt.txt"
    expected = output(program, model, "-t", "0", "-i", prompt)
    assert expected.startswith(prompt.encode())
    file.write_bytes(prompt.encode() + b"\n")  # one newline at the end belongs to the file
    assert output(program, model, "-t", "0", "-f", file) == expected
    assert output(program, model, "-t", "0", "-f", "-", stdin=prompt.encode() + b"\n") == expected
    if not prompt.endswith("\n"):
        assert output(program, model, "-t", "0", "-f", "-", stdin=prompt.encode()) == expected


@each_program
def test_a_prompt_is_written_as_it_was_given(noise, program):
    prompt = b"a\0\xff\xc3(\xed\xa0\x80\r \n\n"
    text = output(program, noise / "v0.bin", "-t", "0", "-f", "-", stdin=prompt + b"\n")
    assert text.startswith(prompt)
    silent = output(program, noise / "v0.bin", "-t", "0", "--no-echo", "-f", "-", stdin=prompt + b"\n")
    assert prompt + silent == text
    silent.decode()  # what is generated is UTF-8, whatever the prompt is


@each_program
def test_a_long_prompt_on_the_command_line_is_read(tmp_path, program):
    model = write_chain(tmp_path, [" x"], {}, context=6_000)
    prompt = " ".join("x" * 5_000)
    result = run(program, model, "-i", prompt, "-n", "5003", cwd=tmp_path)
    assert result.stdout.decode() == prompt + " x x x\n"
    assert counts(result) == (5_001, 3)


def test_a_prompt_file_that_can_not_be_read_is_a_bad_file(noise):
    for name, message in (("missing.txt", "No such file or directory"), (".", "Is a directory")):
        result = both(noise / "v0.bin", "-f", name)
        assert_refused(result, 3, f"{name}: {message}")
        assert result.stdout == b""


# --- The rules of llama2.c


@each_program
def test_without_a_prompt_the_text_starts_from_bos(hello, program):
    result = run(program, hello, cwd=hello.parent)
    assert result.stdout == b"hello world\n"
    assert counts(result) == (1, 5)


@each_program
@pytest.mark.parametrize(("prompt", "n_prompt"), [("", 1), ("x", 2), ("x x x", 4)])
@pytest.mark.parametrize("steps", [4, 10, 64, 65, 0])
def test_the_steps_count_positions_and_the_prompt_is_part_of_them(loop, program, prompt, n_prompt, steps):
    result = run(program, loop, "-n", str(steps), "-i", prompt, cwd=loop.parent)
    expected = min(steps or 64, 64) - n_prompt + 1
    assert counts(result) == (n_prompt, expected)
    assert result.stdout.decode() == " ".join("x" * (n_prompt - 1 + expected)) + "\n"


@each_program
def test_256_steps_are_the_default(tmp_path, program):
    model = write_chain(tmp_path, [" x"], {"<s>": " x"}, context=1000)
    assert counts(run(program, model, cwd=tmp_path)) == (1, 256)
    assert counts(run(program, model, "-c", "100", cwd=tmp_path)) == (1, 100)
    assert counts(run(program, model, "-c", "100", "-n", "0", cwd=tmp_path)) == (1, 100)
    assert counts(run(program, model, "-c", "100", "-n", "50", cwd=tmp_path)) == (1, 50)
    assert counts(run(program, model, "-n", "0", cwd=tmp_path)) == (1, 1000)


@each_program
@pytest.mark.parametrize("end", ["<s>", "</s>"])
def test_bos_and_eos_end_the_text(tmp_path, program, end):
    model = write_chain(tmp_path, [" a", "b", "c"], {"<s>": " a", " a": "b", "b": "c", "c": end})
    for options in (("-t", "0"), ("-s", "1"), ("-i", "a")):
        result = run(program, model, *options, cwd=tmp_path)
        assert result.stdout == b"abc\n"
        assert sum(counts(result)) == 5


@each_program
@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (["lo w"], "hel"),
        (["hello world"], ""),
        (["world"], "hello "),
        (["d"], "hello worl"),
        (["world", "lo"], "hel"),
        (["o w", "lo wo", "zzz"], "hel"),  # the one that begins first
        (["hello world!"], "hello world"),
        (["hellow"], "hello world"),
        ([" hello"], "hello world"),
    ],
)
def test_a_stop_string_ends_the_text_wherever_tokens_end(hello, program, stops, text):
    options = [part for stop in stops for part in ("--stop", stop)]
    assert output(program, hello, *options).decode() == text + "\n"


@each_program
def test_a_stop_string_in_the_prompt_ends_nothing(tmp_path, program):
    model = write_chain(tmp_path, [" x", "y"], {" x": "y", "y": "</s>"})
    assert output(program, model, "-i", "x", "--stop", "x") == b"xy\n"


# --- What is said about a run


@each_program
def test_stats_say_what_ran(noise, program):
    with llama.Llama(noise / "v2.bin", threads=2) as model:
        millions, kernels = model.parameters / 1e6, model.kernels
    result = run(program, "v2.bin", "-t", "0", "-n", "10", "-j", "2", "--stats", cwd=noise)
    lines = without_times(result.stderr).decode().splitlines()
    start = f"model: v2.bin, {millions:.1f} M parameters, int8, context 10, 2 threads, {kernels} kernels, "
    assert lines[0].startswith(start)
    assert re.fullmatch(r"\d+\.\d MiB fp32 cache and scratch", lines[0].removeprefix(start))
    assert lines[1:2] == ["opened in # ms"]
    assert re.fullmatch(
        r"prompt: 1 tokens, # tokens/s; generated: \d+ tokens, # tokens/s; first token: # ms; # GB/s",
        lines[2],
    )
    assert len(lines) == 3
    assert b"inf" not in result.stderr
    assert b"nan" not in result.stderr


@each_program
def test_llama_isa_chooses_the_kernels(noise, program):
    result = run(program, "v0.bin", "-t", "0", "--stats", cwd=noise, LLAMA_ISA="scalar")
    assert b" scalar kernels, " in result.stderr
    result = run(program, "v0.bin", "-t", "0", cwd=noise, LLAMA_ISA="sse9")
    assert_refused(result, 2)
    assert result.stderr.startswith(b"error: kernels = sse9, this CPU has: ")


# --- Another base of RoPE


def test_the_base_of_rope_reaches_the_model(noise):
    model, options = noise / "v0.bin", ("-t", "0", "-n", "100", "-i", "the tin", "--no-echo")
    result = both(model, *options, "--rope-theta", "1e6")
    with llama.Llama(model, rope_theta=1e6) as reference:
        ids = reference.encode("the tin")
        text = "".join(reference.generate(ids, temperature=0, max_tokens=100 - len(ids) + 1))
    assert result.stdout.decode() == text + "\n"
    assert result.stdout != both(model, *options).stdout
    assert result.stdout == both(noise / "v1.bin", *options, "--rope-theta=1000000").stdout


# --- Where the tokenizer is looked for


@pytest.fixture
def places(noise, tmp_path) -> tuple[Path, Path]:
    """A folder with a model and no tokenizer, and the folder to work in."""
    beside, here = tmp_path / "beside", tmp_path / "here"
    beside.mkdir()
    here.mkdir()
    shutil.copy(noise / "v0.bin", beside / "model.bin")
    return beside, here


SIZE = len(VOCABULARY)
FITTING = f"tok{SIZE}.bin"


@each_program
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("beside", "tokenizer.bin"),
        ("beside", FITTING),
        ("here", "tokenizer.bin"),
        ("here", FITTING),
    ],
)
@pytest.mark.parametrize("another", [False, True])
def test_the_tokenizer_that_fits_is_found(noise, places, program, folder, name, another):
    beside, here = places
    shutil.copy(noise / "tokenizer.bin", places[folder == "here"] / name)
    if another:  # a tokenizer of another size must not hide it
        for other in {beside / "tokenizer.bin", here / "tokenizer.bin"}:
            if not other.exists():
                write_pieces(other, [("<unk>", 0), ("<s>", 0), ("</s>", 0)])
    result = run(program, beside / "model.bin", "-t", "0", "-n", "20", cwd=here)
    assert result.returncode == 0, result.stderr
    assert result.stdout == output(program, noise / "v0.bin", "-t", "0", "-n", "20")


@each_program
def test_the_tokenizer_beside_the_model_comes_first(noise, places, program):
    beside, here = places
    shutil.copy(noise / "tokenizer.bin", beside / FITTING)
    write_pieces(here / "tokenizer.bin", [(piece, 0) for piece in SPECIAL] + [("!", 0)] * (SIZE - 3))
    result = run(program, beside / "model.bin", "-t", "0", "-n", "20", cwd=here)
    assert result.stdout == output(program, noise / "v0.bin", "-t", "0", "-n", "20")
    result = run(program, beside / "model.bin", "-t", "0", "-n", "20", "-z", "tokenizer.bin", cwd=here)
    assert set(result.stdout) <= set(b"!\n")


@each_program
def test_without_a_tokenizer_the_message_names_what_was_looked_for(places, program):
    beside, here = places
    model = beside / "model.bin"
    message = (
        f"no tokenizer for {model}: neither tokenizer.bin nor {FITTING} is beside it or in the working "
        "directory; give its path (-z)"
    )
    assert_refused(run(program, model, cwd=here), 3, message)
    write_pieces(beside / "tokenizer.bin", [("<unk>", 0), ("<s>", 0), ("</s>", 0)])
    message = f"{beside}/tokenizer.bin: has 3 tokens, the model's vocab_size = {SIZE}"
    assert_refused(run(program, model, cwd=here), 3, message)


# --- Output that fails


@needs_full
@each_program
@pytest.mark.parametrize("options", [["-t", "0"], ["-i", "the"], ["-h"], ["-m", "chat"]])
def test_a_full_disk_is_an_error(noise, program, options):
    with Path("/dev/full").open("wb") as full:
        result = run_to(full, program, noise / "v0.bin", *options)
    assert_refused(result, 4, "standard output: No space left on device")


@each_program
@pytest.mark.parametrize("options", [["-t", "0"], ["-i", "the"], ["-h"], ["-m", "chat"]])
def test_a_closed_pipe_ends_a_run_without_a_word(noise, program, options):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        result = run_to(pipe, program, noise / "v0.bin", *options)
    assert (result.returncode, result.stderr) == (141, b"")


def run_to(stdout, program: str, model: Path, *options: str) -> subprocess.CompletedProcess:
    """Runs a program that writes to an open file."""
    line = command(program, model.name, *options)
    return finish(
        line,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=model.parent,
        env=environment(),
    )
