"""bench.engine: models that all programs can read, floors, turns, tables."""

import json
import math
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from references import needs_llama_cpp
from torch_formats import AsTorch

import llama
from bench import engine, machine, report, shapes, turns
from bench.models import RandomWeights, write_bin
from bench.programs import ik
from bench.shapes import TYPES, Case
from model import Config, Llama

SHAPE = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 96, "vocab_size": 300}
SHAPE |= {"max_seq_len": 64, "tied": True}
IDS = [1, 17, 42, 299, 5]


def reference_logits(shape):
    """(len(IDS), vocab_size)"""
    config = Config(**shape)
    model = Llama(config).eval()
    model.load_state_dict(dict(AsTorch(RandomWeights(config))), strict=False)
    with torch.no_grad():
        return model(torch.tensor([IDS]))[0].numpy()


def distance(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# --- Models


def test_the_same_shape_has_the_same_weights():
    config = Config(**SHAPE)
    one, two = AsTorch(RandomWeights(config)), AsTorch(RandomWeights(config))
    assert len(one) == 2 + 9 * 2
    for name in one:
        assert torch.equal(one[name], two[name])
    assert not torch.equal(one["layers.0.attention.wq.weight"], one["layers.1.attention.wq.weight"])


def test_a_text_does_not_end_early():
    logits = reference_logits(SHAPE)
    assert (logits[:, 1:3] < logits.max(axis=1, keepdims=True) / 2).all()


def test_a_large_tensor_is_filled(monkeypatch):
    monkeypatch.setattr("bench.models.POOL", 1001)
    values = AsTorch(RandomWeights(Config(**SHAPE)))["tok_embeddings.weight"].numpy()[3:]
    assert math.isclose(values.std(), 64**-0.5, rel_tol=0.1)
    assert not np.array_equal(values[0], values[1])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_the_engine_reads_every_type(tmp_path, kind, tied):
    shape = SHAPE | {"tied": tied}
    with llama.Llama(write_bin(tmp_path, shape, kind)) as model:
        assert model.config.version == TYPES[kind].version
        assert model.tokenizer.vocab_size == shape["vocab_size"]
        bound = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.05, "int4": 0.4}[TYPES[kind].dtype]
        assert distance(model.logits(IDS), reference_logits(shape)) < bound


@needs_llama_cpp
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_llama_cpp_computes_the_same(tmp_path, kind, tied):
    from bench.gguf_models import write_gguf
    from bench.programs import llamacpp

    shape = SHAPE | {"tied": tied}
    path = write_gguf(tmp_path, shape, kind)
    context = llamacpp.open_context(llamacpp.open_model(path), 64, 1, 64, 1)
    llamacpp.run(context, llamacpp.batch_of((token, i, 0, True) for i, token in enumerate(IDS)))
    size = (len(IDS), shape["vocab_size"])
    found = np.ctypeslib.as_array(llamacpp.api.llama_get_logits(context), size)
    bound = {"fp32": 0.01, "bf16": 0.02, "int8": 0.05, "int4": 0.4}[TYPES[kind].dtype]
    assert distance(found, reference_logits(shape)) < bound


def test_parameters_are_those_of_the_model():
    for shape in (SHAPE, SHAPE | {"tied": False}, shapes.SHAPES["110M"]):
        with torch.device("meta"):
            model = Llama(Config(**shape))
        assert sum(p.numel() for p in model.parameters() if p.dim() == 2) == shapes.parameters(shape)


# --- Floors


MACHINE = machine.Machine(
    "none", 1, {1: {100: [5.0, 10.0, 20.0], 10000: [1.0]}}, {1: {"fp32": [2.0], "int8": [8.0]}}
)


@pytest.mark.parametrize(("size", "rate"), [(1, 10e9), (100, 10e9), (1000, 5.5e9), (10000, 1e9), (1e9, 1e9)])
def test_bandwidth_between_two_sizes_is_on_a_line(size, rate):
    assert math.isclose(MACHINE.read_rate(1, size), rate)


def test_a_type_without_an_instruction_is_computed_in_fp32():
    assert MACHINE.peak_rate(1, "int8") == 8e9
    assert MACHINE.peak_rate(1, "bf16") == 2e9


def test_one_row_waits_for_memory_and_many_for_arithmetic():
    weights = shapes.layer_weights(SHAPE) + shapes.classifier_weights(SHAPE)
    decode = MACHINE.floor(1, SHAPE, Case("decode", 9), "int8", 10**6)
    assert math.isclose(decode, 1e9 / 10**6)
    batch = MACHINE.floor(1, SHAPE, Case("decode", 9, sequences=1000), "int8", 10**6)
    assert math.isclose(batch, 8e9 / (2 * weights))
    prefill = MACHINE.floor(1, SHAPE, Case("prefill", 1000), "int8", 10**6)
    assert batch < prefill < 8e9 / (2 * shapes.layer_weights(SHAPE))


def test_drift_is_the_worst_ratio():
    later = machine.Machine("none", 1, {1: {100: [30.0], 10000: [1.0]}}, {1: {"fp32": [2.0], "int8": [7.0]}})
    assert MACHINE.drift(MACHINE) == 1
    assert MACHINE.drift(later) == later.drift(MACHINE) == 3


def test_the_machine_is_measured():
    found = machine.measure([1, 2], repeats=2, seconds=0.001, sizes=[1 << 16, 1 << 20])
    assert [list(found.read), list(found.peak)] == [[1, 2], [1, 2]]
    assert all(len(rates) == 2 for team in found.read.values() for rates in team.values())
    assert found.peak_rate(1, "fp32") > 0
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()


# --- Turns


def fake_llama2c(folder: Path, says: str) -> Path:
    program = folder / "run"
    program.write_text(f'#!/bin/sh\necho x >> "{folder}/turns"\necho "{says}" >&2\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def test_speed_counts_the_seconds_that_a_step_says():
    assert turns.speed(turns.Work(lambda: 0.5, tokens=10), 0) == 20


def test_programs_take_turns_and_one_that_fails_is_left_out(tmp_path):
    good, bad = (tmp_path / name for name in ("good", "bad"))
    good.mkdir()
    bad.mkdir()
    target = "bench.programs.llama2c:Model"
    programs = [
        ("good", target, (fake_llama2c(good, "achieved tok/s: 50"), tmp_path / "m.bin", 1)),
        ("bad", target, (fake_llama2c(bad, "failed loading"), tmp_path / "m.bin", 1)),
        ("missing", "bench.shapes:Nothing", ()),
    ]
    cases, notes = [Case("decode", 8, prompt=2), Case("prefill", 8)], []
    one, other = turns.alternate(programs, cases, repeats=3, least=0, note=notes.append)
    assert one.speeds.keys() == {"good"}
    assert np.allclose(one.speeds["good"], [50, 50, 50])
    assert (other.speeds, one.memory) == ({}, {})
    assert len((good / "turns").read_text().splitlines()) == 4  # one to warm up
    assert [note.split(":")[0] for note in notes] == ["missing", "bad"]
    assert "says no speed" in notes[1]


IK_TABLE = """llama_init_from_model: graph splits = 1
|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
"""
IK_ROW = (
    "|     8 |      4 |    2 |     24 |    0.{pp} |   556.50 |    0.{tg} |   120.18 |    0.561 |   142.54 |\n"
)


def fake_ik_llama(folder: Path, rows: list[str]) -> Path:
    """What prints a table as llama-batched-bench does, and keeps the options that it was given."""
    program = folder / "llama-batched-bench"
    program.write_text(
        f"#!/bin/sh\necho \"$@\" > {folder}/options\ncat <<'.' >&2\n{IK_TABLE}{''.join(rows)}.\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def test_the_times_of_ik_llama_cpp_are_those_of_its_table(tmp_path):
    rows = [IK_ROW.format(pp=pp, tg=500) for pp in (800, 200, 400)]
    prompts = ik.Model(fake_ik_llama(tmp_path, rows), tmp_path / "m.gguf", 3, "int8").work(Case("prefill", 8))
    assert turns.speed(prompts, 0) == pytest.approx(8 / 0.2)  # of its three the best
    options = (tmp_path / "options").read_text()
    assert f"-m {tmp_path / 'm.gguf'} -t 3 -rtr -ctk q8_0 -ctv q8_0 -c 9 " in options
    assert "-npl 1 -npp 8,8,8 -ntg 1" in options

    batch = ik.Model(fake_ik_llama(tmp_path, rows[:1]), tmp_path / "m.gguf", 1, "fp16")
    assert turns.speed(batch.work(Case("decode", 4, sequences=2, prompt=8)), 0) == pytest.approx(2 * 4 / 0.5)
    assert "-c 24 -b 512 -npl 2 -npp 8 -ntg 4" in (tmp_path / "options").read_text()


def test_ik_llama_cpp_without_a_table_is_refused(tmp_path):
    model = ik.Model(fake_ik_llama(tmp_path, []), tmp_path / "m.gguf", 1, "fp32")
    with pytest.raises(turns.Refused, match="ended with 0 and shows no table"):
        model.work(Case("decode", 4)).step()
    assert model.work(Case("prefill", 4, prompt=2)) is None


def test_what_a_function_apart_raises_comes_back():
    assert turns.apart("bench.shapes:arbitrary_ids", 3, 10) == shapes.arbitrary_ids(3, 10)
    with pytest.raises(ZeroDivisionError):
        turns.apart("operator:floordiv", 1, 0)


# --- Tables and the command line


def test_cells_have_median_range_and_ratio():
    assert report.cell([1234.4, 1000.0, 2000.0]) == "1,234 (1,000-2,000)"
    assert report.cell([1.234]) == "1.23 (1.23-1.23)"
    assert report.cell([]) == report.ratio([], [1.0]) == report.ratio([1.0], []) == ""
    assert report.ratio([3.0], [2.0]) == "1.50"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--shapes", "2B"],
        ["--repeats", "0"],
        ["--threads", "0"],
        ["--shapes", "15M", "--prompt", "250"],
        ["--llama2c", "missing"],
        ["--models", "missing.bin"],
        ["--depths", "-1"],
        ["--json", "missing/out.json"],
    ],
)
def test_a_wrong_option_is_one_line(arguments, capsys):
    try:
        code = engine.main(arguments)
    except SystemExit as left:
        code = left.code
    assert code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_a_real_model_is_measured_behind_positions(tmp_path, capfd):
    path = write_bin(tmp_path, SHAPE, "int8")
    arguments = f"""--models {path} --parts decode prefill --peers --repeats 1 --seconds 0 --tokens 3
        --prompt 2 --prefill 4 60 --depths 0 40 --threads 1 --kv int8 --json {tmp_path / "out.json"}"""
    assert engine.main(arguments.split()) == 0
    results = json.loads((tmp_path / "out.json").read_text())["speeds"]
    found = {(r["model"], r["type"], r["name"], r["prompt"]) for r in results}
    names = {
        ("decode", 2),
        ("prefill 4", 0),
        ("prefill 60", 0),
        ("decode at 40", 40),
        ("prefill 4 at 40", 40),
    }
    assert found == {("int8", "int8", *name) for name in names}
    assert "| int8 | int8 | 1 | prefill 4 at 40 | " in capfd.readouterr().out


@pytest.mark.slow
def test_a_short_run_makes_table_json_and_picture(tmp_path, capfd):
    files, program = (
        [tmp_path / "out.json", tmp_path / "out.png"],
        fake_llama2c(tmp_path, "achieved tok/s: 50"),
    )
    arguments = f"""--shapes 260K --types fp32 int8-v2 int8 --parts machine decode prefill batch sampling
        --repeats 1 --seconds 0 --tokens 3 --sequences 2 --prefill 4 --threads 1
        --peers llama2.c --llama2c {program} --json {files[0]} --plot {files[1]}"""
    assert engine.main(arguments.split()) == 0
    captured = capfd.readouterr()
    results = json.loads(files[0].read_text())
    found = [(r["model"], r["type"], r["name"]) for r in results["speeds"]]
    names = ["decode", "prefill 4", "decode x2"]
    assert found == [("260K", kind, name) for kind in ("fp32", "int8") for name in names]
    assert all(min(r["speeds"]["cria"]) > 0 and r["floor"] > 0 for r in results["speeds"])
    assert results["speeds"][0]["memory"].keys() == {"cria"}
    assert math.isclose(results["speeds"][0]["speeds"]["llama2.c"][0], 50)
    assert [record["vocab_size"] for record in results["sampling"]] == [32_000, 128_256]
    assert "| 260K | fp32 | 1 | decode | " in captured.out
    assert files[1].read_bytes().startswith(b"\x89PNG")
