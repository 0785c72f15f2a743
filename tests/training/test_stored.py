"""The folder of tensors that a run goes on from: read as PyTorch reads it, but nothing that it names runs."""

from __future__ import annotations

import io
import os
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as distributed
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from llama.errors import BadFileError
from training import checkpoints, states
from training.stored import read_index

TENSORS = {"model": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}}


class Runs:
    """What makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Some tensors, a number and a text."""
    state = {**TENSORS, "optimizer": {"step": 7, "name": "x"}}
    states.write(tmp_path / "state", state, None)
    return tmp_path / "state"


def empty() -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {name: torch.zeros_like(tensor) for name, tensor in TENSORS["model"].items()}}


def index_of(folder: Path) -> Metadata:
    return pickle.loads((folder / ".metadata").read_bytes())


def refused(folder: Path, index: bytes) -> str:
    (folder / ".metadata").write_bytes(index)
    with pytest.raises(BadFileError) as found:
        states.read(folder, empty(), alone=True)
    assert "\n" not in str(found.value)
    return str(found.value).removeprefix(f"{folder / '.metadata'}: is not an index of tensors: ")


def test_an_index_is_what_pytorch_reads(folder):
    found, theirs = read_index(folder / ".metadata"), index_of(folder)
    found.storage_meta = theirs.storage_meta  # of which the path is a text here
    assert found == theirs
    state = empty() | {"optimizer": {"step": 0, "name": ""}}
    states.read(folder, state, alone=True)
    assert state["optimizer"] == {"step": 7, "name": "x"}
    for name, tensor in TENSORS["model"].items():
        assert torch.equal(state["model"][name], tensor)
    assert states.stored_weights(folder).keys() == TENSORS["model"].keys()


def test_an_index_runs_nothing(folder, tmp_path):
    index = index_of(folder)
    index.planner_data = Runs(tmp_path / "ran")
    assert re.fullmatch(r"it asks for \w+\.mkdir, .*", refused(folder, pickle.dumps(index)))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("wrong", [{"fqn": ((),)}, {"offset": ((),)}, {"index": ((),)}])
def test_a_place_that_could_take_for_ever_to_hash_is_refused(folder, wrong):
    index = index_of(folder)
    place = next(iter(index.storage_data))
    vars(place).update(wrong)
    assert re.search("as a key", refused(folder, pickle.dumps(index)))


def test_what_is_no_tensor_runs_nothing(folder, tmp_path):
    class Writer(distributed.DefaultSavePlanner):
        def transform_object(self, write_item, object):
            return io.BytesIO(pickle.dumps(Runs(tmp_path / "ran")))

    state = {"optimizer": {"step": 7}}
    distributed.save(state, checkpoint_id=folder, planner=Writer())
    with pytest.raises(BadFileError, match="Weights only load failed"):
        states.read(folder, state, alone=True)
    assert not (tmp_path / "ran").exists()


def test_a_number_in_the_place_of_a_tensor_is_refused(folder):
    index = index_of(folder)
    index.state_dict_metadata["model.a"] = BytesStorageMetadata()
    index.storage_data[MetadataIndex("model.a")] = index.storage_data[MetadataIndex("optimizer.step")]
    assert refused(folder, pickle.dumps(index)).endswith("model.a is a int, allowed Tensor")


def test_a_file_elsewhere_is_not_opened(folder):
    index = index_of(folder)
    index.storage_data[MetadataIndex("optimizer.step")].relative_path = "../secret"
    assert refused(folder, pickle.dumps(index)) == "it is of a file ../secret"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "EOFError"),
        (b"\x80\x04N.", "'NoneType' object has no attribute 'state_dict_metadata'"),
        (pickle.dumps(bytearray(10), 5), "it holds a bytearray, which is not a tensor"),
        (pickle.dumps({1}), "it holds a set, which is not a tensor"),
        (b"\x80\x04r\xff\xff\xff\xff.", "list index out of range"),
        (pickle.dumps(os.mkdir), ".mkdir, which is not of an index"),
        (pickle.dumps(states.read), "it asks for training.states.read, which is not of an index"),
    ],
    ids=["empty", "none", "bytearray", "set", "memo", "function", "ours"],
)
def test_what_is_no_index_is_refused_in_a_line(folder, data, message):
    assert message in refused(folder, data)


def test_a_class_has_no_fields_to_set(folder):
    """As that would change what PyTorch does with every other index."""
    fields = b"N}Vsize\nI1\ns\x86b."  # (None, {"size": 1})
    name = b"ctorch.distributed.checkpoint.metadata\nTensorStorageMetadata\n"
    assert refused(folder, b"\x80\x02" + name + fields) == "it sets fields of a type"
    assert not hasattr(TensorStorageMetadata, "size")


def test_a_resume_from_a_hostile_folder_is_one_line(data, tmp_path, train_here):
    out = tmp_path / "out"
    place = [f"--data={data}", f"--out_dir={out}"]
    train_here(*place, "--max_steps=1")
    path = out.resolve() / "step-0000001" / "state" / ".metadata"
    old, sums = checkpoints.sha256(path), out / "last" / "checksums.txt"
    path.write_bytes(pickle.dumps(Runs(tmp_path / "ran")))
    sums.write_text(sums.read_text().replace(old, checkpoints.sha256(path)))
    with pytest.raises(BadFileError, match=f"{path}: is not an index of tensors: it asks for .*mkdir"):
        train_here(*place, "--max_steps=2", "--init_from=resume")
    assert not (tmp_path / "ran").exists()
