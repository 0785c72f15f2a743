"""Matrices in tiles: the same bytes as numpy's, on every instruction set and any number of threads.

The reference says in numpy what csrc/weights/pack_group.h and docs/format.md say, and shares nothing
with them.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

import llama
from llama.errors import BadFileError
from llama.formats import tiles
from llama.pack import pack, packed_bytes

DTYPES = ("int8", "int4")
LIMITS = {"int8": 127 * 65504.0, "int4": 4 * 65504.0}
DIVISORS = (-9.1, -8.8, -8.6, -8.4, -8.2, -8.1, -7.9, -7.7, -7.3, -7.1, -6.8, -6.2)
SHAPES = [(1, 1), (16, 32), (17, 33), (5, 100), (40, 64), (2, 31), (2100, 40)]


# --- The reference


def inverse(x: np.ndarray) -> np.ndarray:
    """1 / x, or 0 where half precision has no scale so small."""
    return np.divide(1, x, out=np.zeros_like(x), where=np.abs(x) >= 2**-24)


def scales_int8(groups: np.ndarray) -> np.ndarray:
    return np.abs(groups).max(axis=-1) / np.float32(127)


def last_sum(x: np.ndarray) -> np.ndarray:
    """Sums over the last axis, from the first value to the last."""
    return np.cumsum(x, axis=-1, dtype=np.float32)[..., -1]


def scales_int4(groups: np.ndarray) -> np.ndarray:
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=-1)[..., None], -1)
    best_qw, best_qq = np.float32(0), np.float32(1)
    for divisor in DIVISORS:
        q = np.clip(np.rint(groups * (inverse(largest) * np.float32(divisor))), -8, 7)
        qw, qq = last_sum(q * groups), last_sum(q * q)
        better = qw * qw * best_qq > best_qw * best_qw * qq
        best_qw, best_qq = np.where(better, qw, best_qw), np.where(better, qq, best_qq)
    return best_qw / best_qq


def quantise(values: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers (rows, groups, 32) and scales (rows, groups) as float16; both filled up with zeros."""
    rows, cols = values.shape
    padded = np.pad(values.astype(np.float32), ((0, -rows % 16), (0, -cols % 32)))
    groups = padded.reshape(len(padded), -1, 32)
    scales = (scales_int8 if dtype == "int8" else scales_int4)(groups).astype(np.float16)
    scales += np.float16(0)  # no -0
    low, high = (-127, 127) if dtype == "int8" else (-8, 7)
    whole = np.rint(groups * inverse(scales.astype(np.float32))[..., None])
    return np.clip(whole, low, high).astype(int), scales


def group_bytes(q: np.ndarray, dtype: str) -> bytes:
    """A group of a tile, (16, 32)."""
    if dtype == "int8":
        return (q + 128).astype(np.uint8).reshape(16, 8, 4).transpose(1, 0, 2).tobytes()
    halves = (q + 8).astype(np.uint8).reshape(16, 4, 2, 4)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).transpose(1, 0, 2).tobytes()


def reference(values: np.ndarray, dtype: str) -> bytes:
    q, scales = quantise(values, dtype)
    out = b""
    for row in range(0, len(q), 16):
        for g in range(0, q.shape[1], 2):
            out += np.ascontiguousarray(scales[row : row + 16, g : g + 2].T).tobytes().ljust(64, b"\0")
            for i in range(g, min(g + 2, q.shape[1])):
                out += group_bytes(q[row : row + 16, i], dtype)
    return out


def dequantised(values: np.ndarray, dtype: str) -> np.ndarray:
    q, scales = quantise(values, dtype)
    return (q * scales[..., None].astype(np.float64)).reshape(len(q), -1)[: len(values), : values.shape[1]]


FLOATS = ("fp32", "bf16")


def reference_floats(values: np.ndarray, dtype: str) -> bytes:
    size = 1 if dtype == "fp32" else 2  # columns side by side
    rounded = torch.from_numpy(values.copy()).to(torch.float32 if dtype == "fp32" else torch.bfloat16)
    bits = rounded.view(torch.int32 if dtype == "fp32" else torch.int16).numpy()
    padded = np.pad(bits, ((0, -len(bits) % 16), (0, -bits.shape[1] % size)))
    return padded.reshape(-1, 16, padded.shape[1] // size, size).transpose(0, 2, 1, 3).tobytes()


# --- What is packed


def isas() -> list[str]:
    """The instruction sets that this CPU has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_ISA", "none")
        with pytest.raises(llama.UsageError, match="kernels = none, this CPU has:") as raised:
            packed(np.zeros((1, 1), np.float32), "int8")
    return str(raised.value).split(":")[1].split()


def packed(values: np.ndarray, dtype: str, **options) -> tuple[bytes, float, float]:
    """Bytes and both sums, from a buffer that held something else."""
    out = bytearray(b"\xa5") * packed_bytes(dtype, *values.shape)
    return (*(pack(out, values, dtype, **options)), bytes(out))[::-1]


def bf16(values: np.ndarray) -> np.ndarray:
    """The bits of the upper halves."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def normal(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(np.float32)


def awkward(shape: tuple[int, int]) -> np.ndarray:
    """Values of all magnitudes, ties, zeros of both signs, groups of zeros, numbers next to nothing."""
    rng = np.random.default_rng(1)
    values = rng.integers(-16, 17, shape).astype(np.float32) / 2
    values *= np.float32(2) ** rng.integers(-40, 14, (shape[0], 1)).astype(np.float32)
    values[rng.random(shape) < 0.1] = -0.0
    values[rng.random(shape[0]) < 0.1] = 0
    values[rng.random(shape) < 0.01] = 1e-42
    return values


@pytest.fixture(params=isas())
def isa(request, monkeypatch):
    monkeypatch.setenv("LLAMA_ISA", request.param)
    return request.param


@pytest.mark.parametrize("make", [normal, awkward])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bytes_are_those_of_the_reference(isa, dtype, shape, make):
    values = make(shape)
    assert packed(values, dtype)[0] == reference(values, dtype)
    assert packed(bf16(values), dtype)[0] == reference(widened(bf16(values)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_and_sums_depend_neither_on_threads_nor_on_the_instruction_set(isa, monkeypatch, dtype):
    values = normal((1111, 70))
    found = [packed(values, dtype, threads=threads) for threads in (1, 2, 3, 7, 100, None)]
    monkeypatch.setenv("LLAMA_ISA", "scalar")
    assert set(found) == {packed(values, dtype, threads=1)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_scale_that_half_precision_has_is_met(isa, dtype):
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    for nudge in (1, 1 + 2**-12, 1 + 2**-11, 1 + 2**-10):  # of a half: none, ties and their sides
        values = np.zeros((len(halves), 2), np.float32)
        values[:, 0] = np.minimum(halves * np.float32(127 if dtype == "int8" else 4) * nudge, LIMITS[dtype])
        assert packed(values, dtype)[0] == reference(values, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sums_say_what_packing_costs(dtype):
    values = normal((100, 300))
    _, error_squares, squares = packed(values, dtype)
    lost = dequantised(values, dtype) - values
    assert math.isclose(squares, np.square(values.astype(np.float64)).sum(), rel_tol=1e-6)
    assert math.isclose(error_squares, np.square(lost).sum(), rel_tol=1e-5)


# --- How good int4 is


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x.astype(np.float64)).mean()))


@pytest.mark.parametrize("draw", ["normal", "laplace", "uniform"])
def test_int4_is_better_than_q4_0_at_the_same_bits(draw):
    """llama.cpp's type takes the largest weight for the scale: it is -8."""
    values = getattr(np.random.default_rng(0), draw)(size=(2048, 32)).astype(np.float32)
    scales = np.take_along_axis(values, np.abs(values).argmax(axis=-1)[:, None], -1) / np.float32(-8)
    q4_0 = (np.clip(np.floor(values / scales + 8.5), 0, 15) - 8) * scales.astype(np.float16)
    assert rms(dequantised(values, "int4") - values) < 0.97 * rms(q4_0 - values)


def test_int4_is_near_the_best_of_all_scales():
    groups = np.random.default_rng(0).normal(size=(500, 1, 32))
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=-1)[..., None], -1)
    scales = largest * np.concatenate([1 / np.linspace(-10, -4, 500), 1 / np.linspace(4, 10, 500)])[:, None]
    errors = np.square(np.clip(np.rint(groups / scales), -8, 7) * scales - groups).sum(-1).min(-1)
    values = groups.reshape(500, 32).astype(np.float32)
    assert rms(dequantised(values, "int4") - values) < 1.002 * math.sqrt(errors.mean() / 32)


# --- What is refused


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "beyond", 1e38])
def test_the_first_row_with_a_value_that_no_scale_holds_is_named(isa, dtype, value):
    limit = np.float32(LIMITS[dtype])
    value = np.nextafter(limit, np.float32(np.inf)) if value == "beyond" else value
    values = normal((100, 40))
    values[37, 35], values[38, 0], values[99, 3] = value, math.nan, math.inf
    message = rf"^row 1037, column 35: is -?{abs(value):g}, allowed are magnitudes up to {limit:g}$"
    with pytest.raises(llama.BadFileError, match=message.replace("+", r"\+")):
        packed(values, dtype, first_row=1000)
    values[37:] = 0
    values[37, 35] = -limit
    assert packed(values, dtype)[0] == reference(values, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bf16_that_is_no_number_is_refused(isa, dtype):
    bits = bf16(normal((20, 40)))
    bits[18, 39] = 0x7FC0
    with pytest.raises(llama.BadFileError, match="row 18, column 39: is nan"):
        packed(bits, dtype)


def test_the_other_weights_of_a_group_do_not_make_a_scale_too_large():
    """All but one are 1 by the scale that 6.2 gives, and as large as that allows."""
    values = np.full((16, 32), LIMITS["int4"] * 1.49 / 6.2, np.float32)
    values[:, 0] = LIMITS["int4"]
    assert np.isfinite(quantise(values, "int4")[1]).all()
    assert packed(values, "int4")[0] == reference(values, "int4")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_floats_are_as_pytorch_rounds_them(monkeypatch, shape, dtype):
    for values in (normal(shape), awkward(shape)):
        for isa in isas():
            monkeypatch.setenv("LLAMA_ISA", isa)
            data, error_squares, squares = packed(values, dtype, threads=2)
            assert data == reference_floats(values, dtype)
            rounded = (
                values if dtype == "fp32" else torch.from_numpy(values).to(torch.bfloat16).double().numpy()
            )
            assert math.isclose(squares, np.square(values, dtype=np.float64).sum(), rel_tol=1e-5)
            assert math.isclose(
                error_squares,
                np.square(rounded - values.astype(np.float64)).sum(),
                rel_tol=1e-4,
                abs_tol=1e-9 * squares,
            )
        assert packed(bf16(values), dtype)[0] == reference_floats(widened(bf16(values)), dtype)


@pytest.mark.parametrize(("dtype", "value"), [("fp32", math.inf), ("fp32", math.nan), ("bf16", 3.4e38)])
def test_floats_that_their_type_does_not_have_are_refused(dtype, value):
    values = normal((20, 40))
    values[17, 5] = value
    with pytest.raises(llama.BadFileError, match="row 17, column 5: is "):
        packed(values, dtype)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 3)), "values of format d and shape"),
        (np.zeros(3, np.float32), r"shape \(3,\), allowed are contiguous rows of f, e, h or H"),
        (np.zeros((4, 4), np.float32).T[:, :3], "contiguous"),
        (np.zeros((0, 4), np.float32), "a strip of 0 rows and 4 columns, allowed 1 or more"),
        (np.zeros((4, 0), np.float32), "a strip of 4 rows and 0 columns"),
    ],
)
def test_other_buffers_are_refused(values, message):
    with pytest.raises(llama.UsageError, match=message):
        pack(bytearray(), values, "int8")


@pytest.mark.parametrize("shape", [(17, 192), (16, 160), (5, 100)], ids=str)
@pytest.mark.parametrize("scale_cols", [64, 96])
def test_int8_of_larger_groups_keeps_its_whole_numbers(isa, shape, scale_cols):
    rng = np.random.default_rng(3)
    q = rng.integers(-60, 61, shape)  # most groups of 32 have nothing near 127
    q[:, ::scale_cols] = -127  # but all that share a scale do
    scales = np.repeat(rng.uniform(1e-3, 1e-2, (shape[0], -(-shape[1] // scale_cols))), scale_cols, 1)
    scales = scales[:, : shape[1]].astype(np.float32)
    data = packed(q.astype(np.float32) * scales, "int8", scale_cols=scale_cols)[0]
    expected = q * scales.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(tiles.unpack(np.frombuffer(data, np.uint8), "int8", *shape), expected)
    assert packed(q.astype(np.float32) * scales, "int8")[0] != data


def test_other_arguments_are_refused():
    values = np.zeros((16, 64), np.float32)
    with pytest.raises(llama.UsageError, match="out has 1087 bytes, allowed 1088"):
        pack(bytearray(1087), values, "int8")
    with pytest.raises(llama.UsageError, match="dtype = 'fp16', allowed fp32, bf16, int8, int4"):
        pack(bytearray(1088), values, "fp16")
    with pytest.raises(llama.UsageError, match="threads = -1, allowed 0 or more"):
        pack(bytearray(1088), values, "int8", threads=-1)
    for scale_cols in (-32, 16, 33):
        with pytest.raises(llama.UsageError, match=f"scale_cols = {scale_cols}, allowed multiples of 32"):
            pack(bytearray(1088), values, "int8", scale_cols=scale_cols)
    with pytest.raises((TypeError, BufferError, llama.UsageError)):
        pack(bytes(1088), values, "int8")


@pytest.mark.parametrize("dtype", [*DTYPES, *FLOATS])
def test_halves_are_packed_as_the_floats_that_they_are(isa, dtype):
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 64)  # all that there are
    finite = every[np.isfinite(every.astype(np.float32)).all(1)]
    assert len(finite) == len(every) - 2 * 1024 // 64
    for values in (finite, normal((17, 33)).astype(np.float16)):
        assert packed(values, dtype) == packed(values.astype(np.float32), dtype)
    for value in (math.nan, math.inf, -math.inf):
        values = np.zeros((20, 40), np.float16)
        values[18, 39] = value
        with pytest.raises(llama.BadFileError, match=f"row 18, column 39: is {value}"):
            packed(values, dtype)


# --- Tensors, in strips


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("as_", [np.asarray, bf16])
def test_strips_make_a_whole(dtype, as_):
    weight, errors = as_(normal((100, 50))), tiles.Errors()
    strips = [tiles.pack(weight[at : at + 32], dtype, errors, at) for at in range(0, 100, 32)]
    values = widened(weight) if as_ is bf16 else weight
    data = b"".join(map(bytes, strips))
    assert data == reference(values, dtype)
    assert len(data) == tiles.packed_bytes(dtype, 100, 50)
    assert math.isclose(errors.relative, rms(dequantised(values, dtype) - values) / rms(values), rel_tol=1e-5)


def test_a_strip_names_the_row_of_its_tensor():
    weight = np.zeros((100, 50), np.float32)
    weight[77, 3] = math.nan
    for first_row in (0, 1600):
        with pytest.raises(ValueError, match=f"row {first_row + 77}, column 3: is nan"):
            tiles.pack(weight, "int8", tiles.Errors(), first_row)


def test_without_the_engine_a_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama.pack", None)
    with pytest.raises(BadFileError, match=r"build it with pip install -e \.$"):
        tiles.packed_bytes("int8", 1, 1)
