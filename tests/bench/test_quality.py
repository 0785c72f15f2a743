"""bench.quality: its figures are those of llama.perplexity and of the files, and coarser types lose more."""

import json
import math
import sys

import checkpoints
import numpy as np
import pytest
import torch
from helpers import PIECES, write_ranked
from test_perplexity import SHAPE
from torch_formats import AsTorch, export_v3, open_source

import llama
from bench import quality
from llama import convert, perplexity
from llama.command import run_command

TEXTS = ["abc def ghij", "jihg fed cba " * 30]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model with its tokenizer and a text in one folder."""
    folder = tmp_path_factory.mktemp("quality")
    checkpoints.write(folder / "model.bin", SHAPE)
    write_ranked(folder / "tokenizer.bin", PIECES)
    (folder / "text.json").write_text(json.dumps(TEXTS))
    (folder / "empty.txt").write_text(" ")
    return folder / "model.bin"


@pytest.fixture(scope="module")
def rows(source):
    kinds = ["fp32", "bf16", "int8", "int4", "int4:int4"]
    return {row.type: row for row in quality.measure(str(source), kinds, TEXTS, None, {"threads": 1})}


def test_figures_are_those_of_the_file_that_export_writes(source, rows, tmp_path):
    path = tmp_path / "int8.bin"
    assert convert.main([str(source), str(path), "--version", "3", "--dtype", "int8"]) == 0
    with llama.Llama(path) as model:
        expected = perplexity.measure(model, iter(TEXTS))
    assert rows["int8"].bytes == path.stat().st_size
    assert rows["int8"].perplexity == expected.perplexity
    assert rows["int8"].bits_per_byte == expected.bits_per_byte
    assert rows["int8"].loss == expected.perplexity / rows["fp32"].perplexity - 1


def test_errors_of_logits_are_those_of_the_first_tokens(source, rows, tmp_path):
    logits = []
    for dtype in ("fp32", "int4"):
        path = tmp_path / f"{dtype}.bin"
        assert convert.main([str(source), str(path), "--version", "3", "--dtype", dtype]) == 0
        with llama.Llama(path) as model:
            ids = [model.encode(text)[: model.context] for text in TEXTS]
            logits.append(np.concatenate([model.logits(some) for some in ids]))
    errors = np.abs(logits[0] - logits[1]).astype(np.float64)
    assert sum(map(len, ids)) < quality.LOGIT_TOKENS
    assert rows["int4"].max_logit_error == errors.max()
    assert math.isclose(rows["int4"].rms_logit_error, math.sqrt(np.square(errors).mean()))


def test_what_follows_a_plus_is_told_to_the_engine(source, tmp_path):
    told = {"int8": {}, "int8+exact": {"exact": True}, "int8+fp16": {"kv": "fp16"}}
    told["int8+exact+bf16"] = {"exact": True, "kv": "bf16"}
    rows = {row.type: row for row in quality.measure(str(source), list(told), TEXTS, None, {"threads": 1})}
    path = tmp_path / "int8.bin"
    assert convert.main([str(source), str(path), "--version", "3", "--dtype", "int8"]) == 0
    for kind, options in told.items():
        with llama.Llama(path, **options) as model:
            assert rows[kind].perplexity == perplexity.measure(model, iter(TEXTS)).perplexity
    assert len({rows[kind].perplexity for kind in told}) == len(told)


def round_by_hand(weight):
    """Q4_0 of llama.cpp: the value of a group farthest from zero becomes -8 steps."""
    rows, cols = weight.shape
    groups = np.pad(weight, ((0, 0), (0, -cols % 32))).reshape(rows, -1, 32)
    farthest = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1)
    scale = farthest / np.float32(-8)
    steps = np.minimum(np.trunc(groups * (np.float32(1) / scale) + np.float32(8.5)), 15) - 8
    return (steps * scale.astype(np.float16).astype(np.float32)).reshape(rows, -1)[:, :cols]


def test_q4_0_has_the_values_of_llama_cpp_and_the_bits_of_int4(source, tmp_path, monkeypatch):
    weights = open_source(source).tensors
    rounded = AsTorch(quality.AsLlamaCpp(weights.ours))
    assert list(rounded) == list(weights)
    for name in weights:
        if weights[name].ndim == 1:
            assert torch.equal(rounded[name], weights[name])
        elif name not in ("tok_embeddings.weight", "output.weight"):
            assert np.array_equal(rounded[name].numpy(), round_by_hand(weights[name].numpy())), name
        else:
            assert 0 < (rounded[name] - weights[name]).abs().max() < weights[name].abs().max() / 200
    rows = {row.type: row for row in quality.measure(str(source), ["int4", "q4_0"], TEXTS, None, {})}
    assert (rows["q4_0"].bytes, rows["q4_0"].bits_per_weight) == (
        rows["int4"].bytes,
        rows["int4"].bits_per_weight,
    )
    path = tmp_path / "rounded.bin"
    export_v3(path, open_source(source).config, rounded, "fp32")
    with llama.Llama(path, tokenizer=source.with_name("tokenizer.bin")) as model:
        assert rows["q4_0"].perplexity == perplexity.measure(model, iter(TEXTS)).perplexity


def test_no_more_logits_are_kept_than_are_compared(source):
    with llama.Llama(source) as model:
        assert len(quality.first_logits(model, TEXTS * 9)) == quality.LOGIT_TOKENS


def test_fewer_bits_lose_more(rows):
    assert rows["fp32"].loss == rows["fp32"].max_logit_error == rows["fp32"].rms_logit_error == 0
    errors = [rows[kind].rms_logit_error for kind in ("fp32", "bf16", "int8", "int4", "int4:int4")]
    assert errors == sorted(set(errors))
    bits = [rows[kind].bits_per_weight for kind in ("fp32", "bf16", "int8", "int4", "int4:int4")]
    assert bits == sorted(set(bits), reverse=True)
    assert 32 <= bits[0] < 32.1  # rows are filled up to whole tiles, tensors to 64 bytes
    assert 8.5 < bits[2] < 9.5  # norms are fp32


def test_the_command_line(source, capsys):
    text = str(source.with_name("text.json"))
    quality.main([str(source), text, "--types", "int4:bf16", "--documents", "1", "-j", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| type | bytes | bits per weight | perplexity |")
    assert [line.split()[1] for line in lines[2:]] == ["fp32", "int4:bf16"]
    quality.main([str(source), text, "--types", "bf16", "--json"])
    assert [row["type"] for row in json.loads(capsys.readouterr().out)] == ["fp32", "bf16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.bin", "text.json"], "none.bin"),
        (["model.bin", "none.json"], "none.json"),
        (["model.bin", "text.json", "--types", "int3"], "int3"),
        (["model.bin", "text.json", "--types", "int8+x"], "int8+x: allowed after + are exact, fp16, bf16"),
        (["model.bin", "text.json", "--documents", "0"], "--documents = 0, allowed 1 or more"),
        (["model.bin", "empty.txt"], "holds no text"),
    ],
)
def test_what_cannot_be_judged_ends_in_a_line_that_says_why(source, monkeypatch, capsys, arguments, message):
    paths = [str(source.with_name(name)) if "." in name else name for name in arguments]
    monkeypatch.setattr("sys.argv", ["quality", *paths])
    try:
        code = run_command(lambda: quality.main(sys.argv[1:]))
    except SystemExit as stopped:  # a parser's
        code = stopped.code
    assert code in (2, 3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
