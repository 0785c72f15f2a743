"""How likely a text is: against a softmax in float64, in windows, and from the files that hold documents.

The last chapter holds --perplexity of ./run and python -m llama.run to the same figures.
"""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from helpers import PIECES, PROGRAMS, assert_refused, both, each_program, run, without_times, write_ranked
from tiny_models import write_chain

import llama
from llama import perplexity
from llama.command import run_command

SHAPE = checkpoints.Shape(vocab_size=len(PIECES))
IDS = np.random.default_rng(0).integers(0, len(PIECES), 150).tolist()  # more than a batch of the engine


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("perplexity")
    checkpoints.write(folder / "model.bin", SHAPE)
    write_ranked(folder / "tokenizer.bin", PIECES)
    return folder / "model.bin"


@pytest.fixture(scope="module")
def model(path):
    with llama.Llama(path) as model:
        yield model


@pytest.fixture
def even(tmp_path):
    """A model to which all tokens are equally likely."""
    weights = {name: values * 0 for name, values in checkpoints.random_weights(SHAPE).items()}
    (tmp_path / "even.bin").write_bytes(checkpoints.v0(SHAPE, weights))
    write_ranked(tmp_path / "tokenizer.bin", PIECES)
    return tmp_path / "even.bin"


def expected_scores(model, ids):
    logits = model.logits(ids).astype(np.float64)[:-1]
    logits -= logits.max(axis=1, keepdims=True)
    return logits[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(logits).sum(axis=1))


def judge(model, *texts):
    return perplexity.measure(model, iter(texts))


def test_a_lone_surrogate_counts_as_the_character_that_stands_for_it(model, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud800 abc"}')
    found = [model.perplexity(text) for text in ("\ud800 abc", "\ufffd abc")]
    found.append(perplexity.judged(model, str(tmp_path / "a.jsonl"), None))
    assert {(result.bytes, result.log_probability) for result in found} == {(7, found[0].log_probability)}


# --- Llama.score


def test_scores_equal_a_softmax_in_float64(model):
    assert np.abs(np.array(model.score(IDS)) - expected_scores(model, IDS)).max() < 1e-6


@pytest.mark.parametrize("ids", [[], [1]])
def test_nothing_to_predict(model, ids):
    assert model.score(ids) == []


@pytest.mark.parametrize("ids", [[1, len(PIECES)], [1, -1, 2], [1] * 162, [1, 2**40]])
def test_wrong_ids_are_refused(model, ids):
    with pytest.raises(llama.UsageError):
        model.score(ids)


def test_a_score_ends_a_text(model):
    generation = model.generate("a", max_tokens=30)
    model.score([1, 2])
    with pytest.raises(llama.ClosedError):
        next(generation)


def test_a_logit_that_is_no_number_is_an_error(tmp_path):
    weights = checkpoints.random_weights(SHAPE)
    weights["norm"][3] = np.nan
    (tmp_path / "nan.bin").write_bytes(checkpoints.v0(SHAPE, weights))
    with (
        llama.Llama(tmp_path / "nan.bin") as broken,
        pytest.raises(llama.BadFileError, match="not a finite number"),
    ):
        broken.score([1, 2, 3])


# --- Documents longer than the context


@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 15, 16, 37])
def test_windows_judge_each_token_once_with_half_a_context_before_it(length):
    ids, judged = list(range(length)), []
    for piece, new in perplexity.windows(ids, 10):
        assert len(piece) <= 10
        assert piece[0] == 0 or len(piece) - new >= 5
        judged += piece[len(piece) - new :]
    assert judged == ids[1:]


def test_a_long_document_is_the_sum_of_its_windows(model):
    text = "ab cd ef gh " * 17
    ids = model.encode(text.strip())
    new = len(ids) - 160
    assert 0 < new <= 80  # one more window is enough
    expected = sum(model.score(ids[:160])) + sum(model.score(ids[new:])[-new:])
    result = judge(model, text.strip())
    assert result.tokens == len(ids) - 1
    assert math.isclose(result.log_probability, expected, abs_tol=1e-6)


def test_a_context_that_holds_no_window_is_refused(path):
    with (
        llama.Llama(path, context=1) as short,
        pytest.raises(llama.UsageError, match="context = 1, allowed 2"),
    ):
        judge(short, "abc")


# --- Figures


def test_figures_are_sums_over_documents(model):
    a, b, both = judge(model, "abc"), judge(model, "dé ef"), judge(model, "abc", "dé ef")
    assert (both.documents, both.tokens, both.bytes) == (2, a.tokens + b.tokens, 3 + 6)
    assert math.isclose(both.log_probability, a.log_probability + b.log_probability)
    assert math.isclose(both.perplexity, math.exp(-both.log_probability / both.tokens))
    assert math.isclose(both.bits_per_byte, -both.log_probability / math.log(2) / 9)


def test_where_all_tokens_are_equally_likely_perplexity_is_their_number(even):
    with llama.Llama(even) as model:
        assert math.isclose(judge(model, "abcabc").perplexity, len(PIECES), rel_tol=1e-6)


# --- Files


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", " one\n\ntwo \n", ["one\n\ntwo"]),
        ("a.json", json.dumps([{"story": " one "}, {"text": "two"}, "three", ""]), ["one", "two", "three"]),
        ("a.jsonl", '{"text": "one"}\n\n"two"\n', ["one", "two"]),
        ("a.txt", "\ufeffone \ufeff", ["one \ufeff"]),
        ("a.jsonl", '\ufeff"one"\n"\ufefftwo"\n', ["one", "\ufefftwo"]),
        ("a.json", '\ufeff["one"]', ["one"]),
    ],
)
def test_documents_of_a_file(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    assert list(perplexity.documents(str(tmp_path / name))) == expected


def test_a_field_can_be_named(tmp_path):
    (tmp_path / "a.json").write_text('[{"story": "no", "body": "yes"}]')
    assert list(perplexity.documents(str(tmp_path / "a.json"), "body")) == ["yes"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{}", "found dict, allowed is a list"),
        ("a.json", b"[1]", "record 0: found int, allowed are strings or objects with story or text"),
        ("a.json", b'[{"body": ""}]', r"record 0: found \['body'\]"),
        ("a.jsonl", b'"a"\n{', "Expecting"),
        ("a.json", b"[" * 100_000, "it is nested too deeply"),
        ("a.txt", b"\xff", "byte 0 is not UTF-8"),
        ("a.txt", b" ", "holds no text"),
        ("missing.txt", None, "No such file"),
    ],
)
def test_a_bad_file_gives_one_line(path, tmp_path, monkeypatch, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr("sys.argv", ["perplexity", str(path), str(tmp_path / name)])
    assert run_command(lambda: perplexity.main(sys.argv[1:])) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {tmp_path / name}: ")
    assert captured.err.count("\n") == 1
    with pytest.raises(llama.BadFileError, match=message):
        perplexity.main([str(path), str(tmp_path / name)])


def test_the_command_line(path, tmp_path, capsys):
    (tmp_path / "a.json").write_text('["abc", "ab"]')
    perplexity.main([str(path), str(tmp_path / "a.json"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["documents"], found["bytes"]) == (2, 5)
    perplexity.main([str(path), str(tmp_path / "a.json"), "-c", "2"])
    text = capsys.readouterr().out
    assert text.startswith(f"2 documents, {found['tokens']} tokens, 5 bytes: log-probability ")
    assert "bits per byte" in text


# --- ./run --perplexity


def figures(result: subprocess.CompletedProcess) -> list[float]:
    """Tokens, bytes, log-probability, perplexity and bits per byte."""
    number = r"(-?[\d.]+)"
    found = re.fullmatch(
        rf"1 document, {number} tokens, {number} bytes: log-probability {number}, perplexity {number}, "
        rf"{number} bits per byte; \d+ tokens/s\n",
        result.stdout.decode(),
    )
    assert found, result
    return [float(figure) for figure in found.groups()]


TEXTS_JUDGED = {
    "short": b"the tin",
    "stripped": b" \n\t the tin hat \r\n\x0b\x0c",
    "blanks of Unicode stay": "\u00a0the tin\u2003".encode(),
    "lines": b"the tin\r\nhat\r\n",
    "long": b"the tin hat and the heron in the rain " * 40,
    "other": "日本語 žluťoučký 🦙".encode(),
}


@pytest.mark.parametrize("name", TEXTS_JUDGED)
@pytest.mark.parametrize("context", ["2", "7", "256"])
def test_both_programs_and_the_package_judge_a_text_alike(noise, tmp_path, name, context):
    text, file = TEXTS_JUDGED[name], tmp_path / "text.txt"
    file.write_bytes(text)
    native, python = (
        figures(run(program, "v0.bin", "--perplexity", file, "-c", context, cwd=noise))
        for program in PROGRAMS
    )
    with llama.Llama(noise / "v0.bin", context=int(context)) as model:
        result = perplexity.measure(model, perplexity.documents(str(file)))
    tokens, size, nats = result.tokens, result.bytes, result.log_probability
    expected = [tokens, size, nats, result.perplexity, result.bits_per_byte]
    for found in (native, python):
        assert found == pytest.approx(expected, rel=1e-6, abs=0.06)
        assert (
            found[:2] == [tokens, size] == [len(model_ids(noise, text)) - 1, len(text.strip(b" \t\n\v\f\r"))]
        )


def model_ids(noise: Path, text: bytes) -> list[int]:
    return llama.Tokenizer(noise / "tokenizer.bin").encode(text.strip(b" \t\n\v\f\r").decode())


@each_program
def test_a_text_to_judge_may_come_from_standard_input(noise, program):
    file = run(program, "v0.bin", "--perplexity", "opening.txt", cwd=noise)
    line = run(program, "v0.bin", "--perplexity", "-", "--stats", cwd=noise, stdin=b"the tin\n")
    assert figures(file) == figures(line)
    assert line.stderr.startswith(b"model: v0.bin, ")
    assert file.stderr == b""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odd.txt", "odd.txt: byte 3 is not UTF-8"),
        ("empty.txt", "empty.txt: holds no text"),
        ("newline.txt", "newline.txt: holds no text"),
        ("missing.txt", "missing.txt: No such file or directory"),
        (".", ".: Is a directory"),
        ("-", "standard input: byte 2 is not UTF-8"),
    ],
)
def test_a_text_that_can_not_be_judged_is_one_line(noise, name, message):
    result = both(noise / "v0.bin", "--perplexity", name, stdin=b"ab\xc3(")
    assert_refused(result, 3, message)
    assert result.stdout == b""


def test_a_text_that_can_not_be_has_an_endless_perplexity(tmp_path):
    model = write_chain(tmp_path, ["a", "b"], {"<s>": "a", "a": "b", "b": "a"})
    data = bytearray(model.read_bytes())
    output = np.frombuffer(data, np.float32, offset=len(data) - 4 * 6 * 6)
    output *= np.float32(1e34)
    model.write_bytes(data)
    options = (model, "--perplexity", "-", "-c", "8")
    native, python = (run(program, *options, cwd=tmp_path, stdin=b"aa") for program in PROGRAMS)
    assert (native.returncode, native.stderr) == (0, b"")
    assert b"perplexity inf, " in native.stdout
    assert without_times(native.stdout) == without_times(python.stdout)
