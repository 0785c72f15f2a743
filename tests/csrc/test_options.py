"""The options of ./run and python -m llama.run: their help, and command lines that both refuse alike."""

from __future__ import annotations

import os
import re
import shutil
from operator import attrgetter
from typing import Any

import pytest
from checkpoints import Shape
from helpers import PROGRAMS, ROOT, assert_refused, both, finish, run
from test_adapter import config_of, random_adapter, write_adapter
from tiny_models import VOCABULARY

from llama._engine import ffi, lib
from llama.errors import UsageError
from llama.run import parse

# --- Help


def help_lines() -> list[tuple[list[str], str]]:
    """The names of each option in the help, and what stands for its value, "" for none."""
    lines = re.findall(r"^ {2,6}(-.*?)(?: ([A-Z]+))? {2,}\S", run_help(), re.MULTILINE)
    return [(names.split(", "), value) for names, value in lines]


def run_help() -> str:
    return ffi.string(lib.llama_run_help()).decode()


def test_both_programs_print_the_same_help(tmp_path):
    for option in ("-h", "--help"):
        for program in PROGRAMS:
            result = run(program, option, cwd=tmp_path)
            assert (result.returncode, result.stdout.decode(), result.stderr) == (0, run_help(), b"")


def test_the_help_lists_every_option_that_the_parser_takes():
    source = (ROOT / "llama" / "csrc" / "program" / "options.h").read_text()
    table = re.findall(r'^ +\{"(-\w)?", "(--[\w-]+)",', source, re.MULTILINE)
    assert len(table) > 20
    assert sorted(n for pair in table for n in pair if n) == sorted(n for ns, _ in help_lines() for n in ns)


def test_every_option_in_the_help_is_taken(noise):
    values = {
        "TEXT": ["the"],
        "FILE": ["opening.txt"],
        "MODE": ["generate"],
        "N": ["4", "1"],
        "K": ["0", "7"],
        "S": ["1", str(2**64 - 1)],
        "X": ["1", "1e6"],
        "T": ["0", "0.5", "1e3"],
        "P": ["0", "0.5", "1"],
        "R": ["0.5", "1.5"],
        "TYPE": ["fp32", "fp16", "bf16"],
        "D": ["fp32", "bf16", "int8", "int4"],
        "NAME": ["llama2", "llama3", "chatml", "zephyr", "mistral", "plain"],
        "LORA": ["x.lora.bin", "x.lora.bin:0.5"],
        "": [None],
    }
    shape = Shape(vocab_size=len(VOCABULARY), max_seq_len=256, tied=False)
    write_adapter(noise / "x.lora.bin", random_adapter(shape), config_of(shape))
    for names, kind in help_lines():
        for name in names:
            if name == "--dtype":  # which the binary refuses
                continue
            for value in ["tokenizer.bin"] if name in ("-z", "--tokenizer") else values[kind]:
                forms = [[name, value]] if value else [[name]]
                if value and name.startswith("--"):
                    forms.append([f"{name}={value}"])
                for options in forms:
                    result = run("native", "v0.bin", "--steps=4", *options, cwd=noise)
                    assert result.returncode == 0, (options, result.stderr)


# --- Values, as they arrive

BOUNDS = {  # of whole numbers and of others; the least, the most, and a field
    "--steps": (0, 2**31 - 1, "steps"),
    "--samples": (1, 2**31 - 1, "samples"),
    "--top-k": (0, 2**31 - 1, "sampling.top_k"),
    "--context": (1, 2**31 - 1, "context"),
    "--threads": (1, 1024, "threads"),
    "--seed": (0, 2**64 - 1, "sampling.seed"),
    "--temperature": (0.0, 1e9, "sampling.temperature"),
    "--top-p": (0.0, 1.0, "sampling.top_p"),
    "--min-p": (0.0, 1.0, "sampling.min_p"),
    "--repeat-penalty": (0.001, 1000.0, "sampling.repeat_penalty"),
    "--presence-penalty": (-1000.0, 1000.0, "sampling.presence_penalty"),
    "--frequency-penalty": (-1000.0, 1000.0, "sampling.frequency_penalty"),
    "--rope-theta": (1.0, 1e9, "rope_theta"),
}
CHOICES = {
    "--mode": ({"generate": 0, "chat": 1}, "chat"),
    "--kv": ({"fp32": lib.LLAMA_KV_FP32, "bf16": 1, "fp16": 2, "int8": 3}, "kv"),
    "--dtype": ({"fp32": lib.LLAMA_FP32, "int8": 1, "bf16": 2, "int4": 3}, "dtype"),
    "--template": (
        {"llama2": 1, "llama3": 2, "chatml": 4, "zephyr": 5, "mistral": 6, "plain": 7},
        "template_kind",
    ),
}


def value_of(field: str, *arguments: str) -> Any:
    """A field of the options that a command line comes to; of a text its bytes, None where there is none."""
    options = parse([b"run", *map(os.fsencode, arguments)])  # which the text is a part of
    value = attrgetter(field)(options)
    return value if isinstance(value, int | float) else ffi.string(value) if value else None


@pytest.mark.parametrize("name", BOUNDS)
def test_a_number_is_taken_up_to_its_bounds_and_not_past_them(name):
    least, most, field = BOUNDS[name]
    step = 1 if isinstance(least, int) else 1e-4
    for number in (least, most, least + step):
        assert value_of(field, name, str(number)) == pytest.approx(number, rel=1e-6)
    for number in (least - step, most + max(step, abs(most) * step if step < 1 else 1)):
        with pytest.raises(UsageError, match=re.escape(f"{name} = {number}, allowed ")):
            parse([b"run", name.encode(), str(number).encode()])


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("word", ["", "x", "1x", "1 ", "nan", "inf", "-"])
def test_what_is_no_number_is_refused(name, word):
    with pytest.raises(UsageError, match=f"{name} = {word}, allowed "):
        parse([b"run", name.encode(), word.encode()])


@pytest.mark.parametrize("word", ["+1", " 1", "1e3", "0x1", "1.0"])
def test_a_seed_is_digits_alone(word):
    with pytest.raises(UsageError, match=re.escape(f"--seed = {word}, allowed ")):
        parse([b"run", b"--seed", word.encode()])
    assert value_of("sampling.top_k", "--top-k", word) in (1, 1000)


@pytest.mark.parametrize("name", CHOICES)
def test_a_name_is_taken_as_what_it_stands_for(name):
    values, field = CHOICES[name]
    for word, number in values.items():
        assert value_of(field, name, word) == number
        assert value_of(field, f"{name}={word}") == number
    for word in ("", "none", "other", next(iter(values)) + "x", next(iter(values))[:-1]):
        with pytest.raises(UsageError, match=f"{name} = {word}, allowed "):
            parse([b"run", name.encode(), word.encode()])


def test_switches_texts_and_what_nobody_said():
    for name in ("--escape", "--echo", "--stats", "--info", "--help", "--exact"):
        assert value_of(name[2:], name) == 1
    assert [value_of("echo", *more) for more in ([], ["--no-echo"], ["--no-echo", "--echo"])] == [1, 0, 1]
    assert (value_of("cache"), value_of("cache", "--no-cache")) == (1, 0)
    for name in ("prompt", "system", "tokenizer", "lora", "perplexity"):
        assert [value_of(name, *more) for more in ([], [f"--{name}", "x=y"], [f"--{name}=x=y"])] == [
            None,
            b"x=y",
            b"x=y",
        ]
    assert value_of("prompt_file", "-f", "a") == b"a"
    assert value_of("model", "-n", "1", "m.bin", "-e") == b"m.bin"
    options = parse([b"run", b"--stop", b"a", b"--stop=", b"--stop", b"--stop"])
    assert [ffi.string(options.stops[i]) for i in range(options.n_stops)] == [b"a", b"", b"--stop"]
    whole = [["-m", "chat"], ["--info"], ["--perplexity", "a"]]  # as far as there is room
    assert [value_of("steps", *more) for more in ([], *whole, ["-m", "chat", "-n", "7"])] == [256, 0, 0, 0, 7]
    nobody = {
        "sampling.temperature": 1,
        "sampling.repeat_penalty": 1,
        "sampling.seed": 0,
        "sampling.top_k": 0,
    }
    nobody |= {"dtype": -1, "samples": 1, "template_kind": 0, "chat": 0, "escape": 0, "rope_theta": 0}
    assert {field: value_of(field) for field in nobody} == nobody


# --- Errors

INTEGERS = "allowed whole numbers from"
USAGE = [
    (["-t", "word"], "--temperature = word, allowed numbers from 0 to 1000000000"),
    (["-t", "nan"], "--temperature = nan, allowed numbers from 0 to 1000000000"),
    (["-t", "inf"], "--temperature = inf, allowed numbers from 0 to 1000000000"),
    (["-t", "-1"], "--temperature = -1, allowed numbers from 0 to 1000000000"),
    (["-t", ""], "--temperature = , allowed numbers from 0 to 1000000000"),
    (["-t", "1x"], "--temperature = 1x, allowed numbers from 0 to 1000000000"),
    (["-t", "1,5"], "--temperature = 1,5, allowed numbers from 0 to 1000000000"),
    (["-t", b"\xff"], "--temperature = \udcff, allowed numbers from 0 to 1000000000"),
    (["-n", "-5"], f"--steps = -5, {INTEGERS} 0 to 2147483647"),
    (["-n", "1.5"], f"--steps = 1.5, {INTEGERS} 0 to 2147483647"),
    (["-n", "99999999999"], f"--steps = 99999999999, {INTEGERS} 0 to 2147483647"),
    (["-n", "2147483648"], f"--steps = 2147483648, {INTEGERS} 0 to 2147483647"),
    (["-p", "2"], "--top-p = 2, allowed numbers from 0 to 1"),
    (["-p", "-0.1"], "--top-p = -0.1, allowed numbers from 0 to 1"),
    (["--min-p", "1.1"], "--min-p = 1.1, allowed numbers from 0 to 1"),
    (["--top-k", "-1"], f"--top-k = -1, {INTEGERS} 0 to 2147483647"),
    (["--repeat-penalty", "0"], "--repeat-penalty = 0, allowed numbers from 0.001 to 1000"),
    (["--presence-penalty=nan"], "--presence-penalty = nan, allowed numbers from -1000 to 1000"),
    (["-s", "-1"], f"--seed = -1, {INTEGERS} 0 to 18446744073709551615"),
    (["-s", "word"], f"--seed = word, {INTEGERS} 0 to 18446744073709551615"),
    (["-s", "18446744073709551616"], f"--seed = 18446744073709551616, {INTEGERS} 0 to 18446744073709551615"),
    (["-j", "0"], f"--threads = 0, {INTEGERS} 1 to 1024"),
    (["--kv", "int4"], "--kv = int4, allowed fp32, bf16, fp16 and int8"),
    (["--dtype", "fp16"], "--dtype = fp16, allowed int8, int4, bf16 and fp32"),
    (["--no-cache=1"], "--no-cache takes no value"),
    (["-c", "0"], f"--context = 0, {INTEGERS} 1 to 2147483647"),
    (["-n", "0", "-c", "257"], "--context = 257, allowed 1 to 256, the model's max_seq_len"),
    (["--samples", "0"], f"--samples = 0, {INTEGERS} 1 to 2147483647"),
    (["--stop", ""], "stop string 1 is empty"),
    (["-m", "poem"], "--mode = poem, allowed generate and chat"),
    (["-i", "a", "-f", "opening.txt"], "--prompt and --prompt-file are both given"),
    (["-i", "", "-f", "-"], "--prompt and --prompt-file are both given"),
    (["-m", "chat", "-f", "-"], "--prompt-file is not for a chat, which reads standard input"),
    (["-c", "257"], "--context = 257, allowed 1 to 256, the model's max_seq_len"),
    (["--bogus"], "unknown option --bogus, --help lists them"),
    (["-x"], "unknown option -x, --help lists them"),
    (["-"], "unknown option -, --help lists them"),
    (["--"], "unknown option --, --help lists them"),
    (["--steps4"], "unknown option --steps4, --help lists them"),
    (["--step=4"], "unknown option --step=4, --help lists them"),
    (["-n=4"], "unknown option -n=4, --help lists them"),
    (["-n4"], "unknown option -n4, --help lists them"),
    (["-n"], "--steps needs a value"),
    (["-t", "0", "--stop"], "--stop needs a value"),
    (["--stats=1"], "--stats takes no value"),
    ([""], "the name of the model is empty"),
    (["--perplexity", "a", "-m", "chat"], "only one of --info, --perplexity and --mode chat can be given"),
    (["v1.bin"], "two models are given: v0.bin and v1.bin"),
    (["--rope-theta", "0"], "--rope-theta = 0, allowed numbers from 1 to 1000000000"),
    (["--info", "-m", "chat"], "only one of --info, --perplexity and --mode chat can be given"),
    (["--info", "--perplexity", "a"], "only one of --info, --perplexity and --mode chat can be given"),
    (["--perplexity", "opening.txt", "-c", "1"], "--context = 1, allowed 2 or more to judge a text"),
    *(
        (
            ["--perplexity", name],
            f"--perplexity = {name}, allowed plain text; python -m llama.perplexity reads lists of documents",
        )
        for name in ("a.json", "/a/b.jsonl")
    ),
]


@pytest.mark.parametrize(("options", "message"), USAGE, ids=lambda value: repr(value)[:40])
def test_a_wrong_command_line_is_refused_in_one_line(noise, options, message):
    result = both(noise / "v0.bin", *options)
    assert_refused(result, 2, message)
    assert result.stdout == b""


def test_the_binary_refuses_to_convert(noise):
    message = "--dtype: a model runs here as it is; python -m llama.run converts it"
    assert_refused(run("native", "v0.bin", "--dtype", "int8", cwd=noise), 2, message)


def test_a_value_of_any_length_is_refused_in_one_line(noise):
    for options in (
        ["-t", "9" * 100_000],
        ["--" + "x" * 100_000],
        ["--top-k=" + "é" * 50_000],
        ["y" * 100_000],
    ):
        result = both(noise / "v0.bin", *options)
        assert_refused(result, 2)
        assert len(result.stderr) < 1100


def test_without_the_model_that_ships_its_name_is_said(tmp_path):
    """A program that lies elsewhere: the model is looked for beside it."""
    program = tmp_path / "run"
    shutil.copy(PROGRAMS["native"][0], program)
    for options in ([], ["-t", "0"]):
        result = finish([program, *options], capture_output=True)
        assert_refused(result, 3)
        assert result.stderr.endswith(b"/llama/models/stories.bin: No such file or directory\n")
        assert result.stdout == b""
