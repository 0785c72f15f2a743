"""python -m llama.bench: what it runs, what it counts, what it says."""

import json
import sys
import time

import checkpoints
import numpy as np
import pytest
from helpers import finish

import llama
from llama import bench
from llama._engine import ffi
from llama.command import run_command
from llama.native import model_open

SHAPE = checkpoints.Shape()  # a context of 160 positions
QUICK = ["-r", "2", "-n", "3", "-p", "2", "-j", "1", "--sequences", "1,3", "--prefill", "5"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "model.bin"
    checkpoints.write(path, SHAPE)
    return path


@pytest.fixture(autouse=True)
def short_turns(monkeypatch):
    monkeypatch.setattr(bench, "TURN", 0.0)


def run(path, *arguments):
    return bench.bench(bench.parse([str(path), *arguments]))


# --- Work


def test_decoding_goes_position_by_position_with_logits_for_all():
    rows = bench.rows(sequences=2, start=7, n=2, vocab_size=96, at_once=False)
    assert [row[1:] for row in rows] == [(7, 0, 1), (7, 1, 1), (8, 0, 1), (8, 1, 1)]


def test_a_prompt_goes_sequence_by_sequence_with_logits_for_its_end():
    rows = bench.rows(sequences=2, start=0, n=3, vocab_size=96, at_once=True)
    assert [row[1:] for row in rows] == [(0, 0, 0), (1, 0, 0), (2, 0, 1), (0, 1, 0), (1, 1, 0), (2, 1, 1)]


def test_tokens_are_in_the_vocabulary_and_always_the_same():
    rows = bench.rows(4, 0, 50, 96, at_once=True)
    assert {row[0] for row in rows} <= set(range(96))
    assert len({row[0] for row in rows}) > 50
    assert rows == bench.rows(4, 0, 50, 96, at_once=True)


@pytest.mark.parametrize(
    ("case", "steps", "width"),
    [
        (bench.Case(5, prompt=3), 5, 1),
        (bench.Case(5, prompt=0, sequences=4), 5, 4),
        (bench.Case(70, at_once=True), 1, 70),
        (bench.Case(50, prompt=20, sequences=3, at_once=True), 1, 150),  # more than a batch of the engine
    ],
)
def test_steps_make_all_tokens_and_start_over(path, case, steps, width):
    work = bench.Work(model_open(path), case, threads=1)
    assert (work.steps, work.width) == (steps, width)
    for _ in range(2 * steps + 1):
        work.step()


def test_what_is_run_is_what_the_model_says(path):
    """Logits of the last step equal those of each sequence alone."""
    case = bench.Case(4, prompt=3, sequences=2)
    work = bench.Work(model_open(path), case, threads=1)
    for _ in range(case.tokens):
        work.step()
    found = np.frombuffer(ffi.buffer(work._logits), np.float32).reshape(2, -1)
    prompt = bench.rows(2, 0, 3, SHAPE.vocab_size, at_once=True)
    text = bench.rows(2, 3, 4, SHAPE.vocab_size, at_once=False)
    with llama.Llama(path) as model:
        for sequence in range(2):
            ids = [row[0] for row in prompt + text if row[2] == sequence]
            assert np.array_equal(found[sequence], model.logits(ids)[-1])


class Sleeper:
    """Work whose speed is known."""

    steps, width, taken = 2, 10, 0

    def step(self):
        self.taken += 1
        time.sleep(0.01)


@pytest.mark.parametrize(("least", "taken"), [(0.0, 2), (0.03, 4)])
def test_speed_is_that_of_whole_runs(least, taken):
    work = Sleeper()
    assert 0 < bench.speed(work, least) <= 10 / 0.01
    assert work.taken <= taken  # a machine under load sleeps longer
    assert work.taken % 2 == 0


# --- What is measured


@pytest.mark.parametrize(
    ("arguments", "context", "expected"),
    [
        ([], 512, [(64, 16, 1), (64, 16, 8), (64, 16, 32), (128, 0, 1), (512, 0, 1)]),
        ([], 256, [(64, 16, 1), (64, 16, 8), (64, 16, 32), (128, 0, 1)]),
        ([], 20, [(10, 10, 1), (10, 10, 8), (10, 10, 32)]),
        ([], 1, [(1, 0, 1), (1, 0, 8), (1, 0, 32)]),
        (["-p", "0", "-n", "9", "--sequences", "2", "--prefill", "7"], 9, [(9, 0, 2), (7, 0, 1)]),
    ],
)
def test_defaults_give_way_to_the_context(arguments, context, expected):
    found = bench.cases(bench.parse(arguments), context)
    assert [(case.tokens, case.prompt, case.sequences) for case in found] == expected


def test_every_case_is_measured_for_each_number_of_threads(path):
    report = run(path, *QUICK, "-j", "1,2")
    found = [(result.case.name, result.threads) for result in report.results]
    names = ["decode", "decode, 3 sequences", "prefill 5"]
    assert found == [(name, threads) for threads in (1, 2) for name in names]
    assert all(len(result.speeds) == 2 and min(result.speeds) > 0 for result in report.results)


def test_sizes_are_those_of_the_model(path):
    report = run(path, *QUICK)
    with llama.Llama(path) as model:
        assert report.parameters == model.parameters
        assert report.kernels == model.kernels
    assert report.file_bytes == path.stat().st_size
    assert 0 < report.token_bytes <= report.file_bytes
    one, three, _ = report.results
    assert 0 < one.context_bytes < three.context_bytes


# --- The command line


def test_the_table_has_a_line_for_each_case(path, capsys):
    bench.main([str(path), *QUICK])
    head, kernels, empty, titles, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{path}: v0, fp32, 0.1 M parameters")
    assert "kernels" in kernels
    assert empty == ""
    assert titles.split() == ["threads", "tokens/s", "range", "GB/s", "MiB"]
    assert [line.split("  ")[0] for line in lines] == ["decode", "decode, 3 sequences", "prefill 5"]
    assert len({len(line) for line in [titles, *lines]}) == 1


def test_json_holds_the_same(path, capsys):
    bench.main([str(path), *QUICK, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(path)
    assert found["config"]["dim"] == SHAPE.dim
    assert len(found["open_seconds"]) == 2
    decode = found["results"][0]
    assert (decode["name"], decode["threads"], decode["sequences"], decode["prompt"]) == ("decode", 1, 1, 2)
    assert min(decode["speeds"]) <= decode["median"] <= max(decode["speeds"])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["missing.bin"], 3),
        (["MODEL", "-p", "100", "-n", "61"], 2),
        (["MODEL", "--prefill", "161"], 2),
        (["MODEL", "--sequences", "70000"], 2),
    ],
)
def test_what_can_not_be_is_one_line(path, monkeypatch, capsys, arguments, code):
    monkeypatch.setattr("sys.argv", ["bench", *(str(path) if a == "MODEL" else a for a in arguments)])
    assert run_command(lambda: bench.main(sys.argv[1:])) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["-r", "0"], ["-n", "0"], ["-p", "-1"], ["-j", "1,x"], ["-j", "0"]])
def test_a_wrong_option_is_refused(path, arguments):
    with pytest.raises(SystemExit) as left:
        bench.main([str(path), *arguments])
    assert left.value.code == 2


def test_neither_numpy_nor_torch_is_needed(path):
    code = (
        "import sys; from llama import bench; bench.main(sys.argv[1:]);"
        "print({'numpy', 'torch'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(path), *QUICK]
    result = finish(command, capture_output=True, text=True, check=True)
    assert result.stdout.endswith("set()\n")
