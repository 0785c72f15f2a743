"""What torch.save and safetensors wrote is mapped to the bit, whatever the strides; lies are refused."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llama.errors import BadFileError
from llama.formats.kinds import OLD_TORCH
from llama.formats.mapped import SafetensorsFile, open_pickle
from llama.formats.pickles import MAX_PICKLE, entry_begins
from training.weights import to_torch

TENSORS = {
    "plain": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "turned": torch.arange(12, dtype=torch.float64).reshape(3, 4).T,
    "every other column": torch.arange(12, dtype=torch.float16).reshape(3, 4)[:, ::2],
    "some rows": torch.arange(12).bfloat16().reshape(6, 2)[2:5],
    "one for all": torch.ones(1).expand(3, 4),
    "a parameter": torch.nn.Parameter(torch.ones(2, 3)),
    "empty": torch.empty(0, 4),
}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "a.pth"


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_torch_save_come_back_whatever_their_strides(path, zipped):
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    found = open_pickle(path)
    assert list(found) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert torch.equal(to_torch(found[name]), tensor.detach()), name


def test_two_names_of_one_storage_are_mapped_once(path):
    weight = torch.randn(4, 4)
    torch.save({"a": weight, "b": weight, "c": weight[1:3]}, path)
    found = {name: tensor.values() for name, tensor in open_pickle(path).items()}
    assert found["a"].ctypes.data == found["b"].ctypes.data == found["c"].ctypes.data - 16
    assert np.array_equal(found["c"], weight[1:3].numpy())


def old(path: Path, tensors: object) -> bytes:
    """As PyTorch wrote files before 1.6."""
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


def test_an_old_file_is_read_as_far_as_it_is_whole(path):
    weight = torch.arange(64.0)
    data = old(path, {"a": weight, "b": weight[8:16].view(2, 4)})
    assert np.array_equal(open_pickle(path)["b"].values(), weight[8:16].view(2, 4).numpy())
    path.write_bytes(data[:-1])
    with pytest.raises(
        BadFileError, match=f"^{path}: its pickle is not read: the file ends before its storage"
    ):
        open_pickle(path)
    for n in range(len(OLD_TORCH), len(data) - 64 * 4, 7):
        path.write_bytes(data[:n])
        with pytest.raises(BadFileError, match=f"^{path}: its pickle is not read: "):
            open_pickle(path)


def test_code_in_an_old_file_is_not_run(path):
    old(path, {"a": torch.ones(1), "b": Path("x")})
    with pytest.raises(BadFileError, match=r"it asks for pathlib\.[\w.]+, which is not a tensor"):
        open_pickle(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrappers_put_before_a_name_is_taken_off(tmp_path, prefix):
    tensors = {f"{prefix}a.weight": torch.ones(2), f"{prefix}b": torch.zeros(2)}
    torch.save(tensors, tmp_path / "a.pth")
    save_file(tensors, tmp_path / "a.safetensors")
    for found in (open_pickle(tmp_path / "a.pth"), SafetensorsFile(tmp_path / "a.safetensors")):
        assert set(found) == {"a.weight", "b"}
        assert found["a.weight"].values().tolist() == [1, 1]
    torch.save(tensors | {"b": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(BadFileError, match=r"a\.pth: has two tensors of one name, but for module"):
        open_pickle(tmp_path / "a.pth")


def test_tensors_of_safetensors_are_views_also_at_odd_places(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.randn(5).half(), "c": torch.randn(3, 3)}
    save_file(tensors, path, {"x": "y"})
    file = SafetensorsFile(path)
    assert (set(file), file.metadata) == (set(tensors), {"x": "y"})
    for name in ("b", "c"):
        assert torch.equal(to_torch(file[name]), tensors[name])
        assert not file[name].values().flags.owndata
    assert (file["a"].dtype, file["a"].shape) == ("uint8", (3,))


def zipped(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in files.items():
            archive.writestr(f"archive/{name.replace('__', '/')}", content)
    return path


def repacked(path: Path, compression: int = zipfile.ZIP_STORED, **changes: bytes) -> None:
    """Writes an archive anew. changes: files that get other bytes."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            kind = compression if "/data/" in name else zipfile.ZIP_STORED
            archive.writestr(name, changes.get(name.rpartition("/")[2], data), kind)


def test_compressed_storages_are_refused_by_name(path):
    torch.save({"a": torch.ones(100)}, path)
    repacked(path, zipfile.ZIP_DEFLATED)
    with pytest.raises(BadFileError, match=rf"^{path}: .*/data/0 is compressed, allowed are stored files$"):
        open_pickle(path)


def test_a_storage_that_is_too_short_or_of_another_order_is_refused(path):
    torch.save({"a": torch.ones(100)}, path)
    repacked(path, **{"0": bytes(396)})
    with pytest.raises(BadFileError, match=r"a tensor of shape \(100,\) is not in its storage 0"):
        open_pickle(path)
    repacked(path, **{"0": bytes(400), "byteorder": b"big"})
    with pytest.raises(BadFileError, match=r"its byte order is b'big', allowed little"):
        open_pickle(path)


def test_an_order_that_can_not_be_read_is_refused(path):
    """Found by coverage: zipfile's own error came out."""
    torch.save({"a": torch.ones(100)}, path)
    repacked(path, byteorder=b"little" * 1000)
    with pytest.raises(BadFileError, match=r"/byteorder has 6000 bytes, allowed 16$"):
        open_pickle(path)
    torch.save({"a": torch.ones(100)}, path)
    with zipfile.ZipFile(path) as archive:
        at = next(entry.header_offset for entry in archive.infolist() if "byteorder" in entry.filename)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"XX")
    with pytest.raises(BadFileError, match=r"/byteorder is not read: Bad magic number for file header$"):
        open_pickle(path)


BYTES = b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00."  # a bytearray of 64 GB


def test_a_small_file_takes_no_large_memory(path):
    for data, message in (
        (BYTES, "its pickle is not read: it holds a bytearray"),
        (
            b"}" * (MAX_PICKLE + 1),
            f"its data.pkl has {MAX_PICKLE + 1} bytes, allowed {MAX_PICKLE}, not compressed",
        ),
    ):
        with pytest.raises(BadFileError, match=rf"^{path}: {message}"):
            open_pickle(zipped(path, data))
    with pytest.raises(BadFileError, match=r"not compressed$"):
        open_pickle(zipped(path, pickle.dumps([1]), zipfile.ZIP_DEFLATED))


def shared(levels: int, code: bytes) -> bytes:
    """A pickle's instructions for what holds twice what holds twice, and so on, an empty tuple."""
    made = b")q\0000"
    for i in range(levels):
        made += b"h%ch%c" % (i, i) + code + b"q%c0" % (i + 1)
    return made + b"h%c" % levels


PAIR = b"\x86"
TREES = {
    "a tuple as a key": (b"})\x85" + b"K\1s.", "it has a tuple as a key, allowed are numbers and text"),
    "a deep key": (b"}" + b")" + b"\x85" * 200_000 + b"K\1s.", "it has a tuple as a key"),
    "a key of shared tuples": (b"}" + shared(60, PAIR) + b"K\1s.", "it has a tuple as a key"),
    "more than one": (b"}(K\1K\1" + shared(60, PAIR) + b"K\1u.", "it has a tuple as a key"),
    "of a dict at once": (b"(" + shared(60, PAIR) + b"K\1d.", "it has a tuple as a key"),
    "of an ordered dict": (
        b"ccollections\nOrderedDict\n(]" + shared(60, PAIR) + b"K\1\x86atR.",
        "it has a tuple as a key",
    ),
    "a set": (b"(" + shared(60, PAIR) + b"\x91.", "it holds a set, which is not a tensor"),
    "a deep value": (b"}K\1" + b")" + b"\x85" * 200_000 + b"s.", "it is nested too deeply"),
    "a value of shared tuples": (b"}K\1" + shared(60, PAIR) + b"s.", "it holds the same again and again"),
    "a long number": (pickle.dumps({1: 10**5000}, 2), "it holds a number of more than 128 bits"),
    "a number of text": (b"I%d\n." % 2**128, "it holds a number of more than 128 bits"),
}


@pytest.mark.parametrize("name", TREES)
def test_a_pickle_that_takes_for_ever_or_ends_the_process_is_refused(path, name):
    """To hash or to print what is nested or shared."""
    data, message = TREES[name]
    with pytest.raises(BadFileError, match=rf"^{path}: its pickle is not read: {message}"):
        open_pickle(zipped(path, b"\x80\4" + data.removeprefix(b"\x80\2")))


def test_a_storage_that_is_there_twice_or_elsewhere_is_refused(path):
    """PyTorch and zipfile may take another of two."""
    weight = torch.ones(4)
    for name, message in (
        ("data/0", "has two files of the name .*/data/0"),
        ("x/data/0", "x/data/0 is not of"),
    ):
        torch.save({"a": weight}, path)
        with zipfile.ZipFile(path, "a") as archive:
            folder = archive.namelist()[0].partition("/")[0]
            with warnings.catch_warnings(action="ignore"):  # zipfile's, of the name
                archive.writestr(name if name.startswith("x") else f"{folder}/{name}", bytes(16))
        with pytest.raises(BadFileError, match=message):
            open_pickle(path)


@pytest.mark.parametrize("offset", [2**40, 2**62])
def test_a_storage_behind_the_file_is_refused(path, offset):
    torch.save({"a": torch.ones(4)}, path)
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(next(name for name in archive.namelist() if name.endswith("data/0")))
    entry.header_offset = offset
    with path.open("rb") as file, pytest.raises(ValueError, match="is not in the file"):
        entry_begins(file, entry)


def strided(path: Path, begin: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Path:
    """A file whose pickle says this of a tensor in a storage of 4 floats, written by hand."""
    sizes = [b"(" + b"".join(b"L%dL\n" % n for n in numbers) + b"t" for numbers in (shape, strides)]
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"L%dL\n" % begin
        + sizes[0]
        + sizes[1]
        + b"\x89}tR"
    )
    return zipped(path, b"\x80\x02}X\x01\x00\x00\x00a" + tensor + b"s.", data__0=bytes(16))


@pytest.mark.parametrize(
    ("begin", "shape", "strides"),
    [
        (1, (4,), (1,)),
        (0, (3,), (2,)),
        (0, (2, 2), (3, 1)),
        (5, (1,), (1,)),
        (0, (2**40, 2**40), (0, 1)),
        (2**62, (1,), (1,)),
    ],
)
def test_what_is_not_in_a_storage_is_refused(path, begin, shape, strides):
    with pytest.raises(BadFileError, match="is not in its storage 0"):
        open_pickle(strided(path, begin, shape, strides))


@pytest.mark.parametrize(
    ("begin", "shape", "strides"),
    [(-1, (1,), (1,)), (0, (2,), (-1,)), (0, (2,), (1, 1)), (0, (2,) * 9, (1,) * 9)],
)
def test_shapes_that_cannot_be_are_refused(path, begin, shape, strides):
    with pytest.raises(BadFileError, match="its pickle is not read: a shape that can't be"):
        open_pickle(strided(path, begin, shape, strides))
    assert open_pickle(strided(path, 1, (2,), (2,)))["a"].shape == (2,)
