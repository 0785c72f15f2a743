"""bench.full_size: its models are what their layout says, and its figures are there."""

import pytest
import torch
from torch_formats import AsTorch, checked_tensors, open_source

from bench import full_size
from bench.models import RandomWeights
from llama.errors import BadFileError, UsageError
from model import Config, RopeScaling

SHAPE = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 96, "vocab_size": 300}
SHAPE |= {"max_seq_len": 64, "tied": False}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(full_size.SHAPES, "tiny", SHAPE)


@pytest.mark.parametrize("layout", ["meta", "huggingface"])
def test_a_model_is_read_as_the_random_weights_that_it_is_made_of(tmp_path, layout):
    full_size.make("tiny", layout, tmp_path / "model")
    source, expected = open_source(tmp_path / "model"), AsTorch(RandomWeights(Config(**SHAPE)))
    assert source.config.rope_scaling == (RopeScaling() if layout == "meta" else None)
    found = checked_tensors(source)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].bfloat16()) for name in expected)
    with pytest.raises(UsageError, match="exists already"):
        full_size.make("tiny", layout, tmp_path / "model")


def test_what_is_measured_is_printed_and_the_copy_is_gone(tmp_path, capsys):
    full_size.make("tiny", "meta", tmp_path / "model")
    full_size.measure(tmp_path / "model", tmp_path / "model.bin", ["--dtype", "int8"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'model.bin'}: v3, int8")
    assert [line.split(":")[0] for line in lines[-3:]] == ["cp", "export", "memory beyond the page cache"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.bin"]
    with pytest.raises(BadFileError, match=r"export\.py: ended with 2"):
        full_size.measure(tmp_path / "model", tmp_path / "model.bin", ["--version", "0", "--dtype", "int8"])
