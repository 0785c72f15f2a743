"""Quantised types of GGUF: the same bits as the gguf library's, of real weights and of any bytes."""

import gguf
import numpy as np
import pytest

from llama.formats.gguf_header import BLOCKS, TYPES
from llama.formats.gguf_quants import DECODERS, dequantise

WRITTEN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4")  # what the library also writes


def test_every_quantised_type_that_the_library_reads_is_read():
    readable = {kind: gguf.GGML_QUANT_SIZES[kind] for kind in gguf.quants._type_traits}
    assert {kind.name for kind in readable} >= set(DECODERS)
    found = {kind: TYPES.get(kind) for kind in readable if kind.name not in ("F32", "F16", "BF16")}
    assert found == {kind: (kind.name, *readable[kind]) for kind in found}


@pytest.mark.parametrize("name", DECODERS)
def test_any_blocks_are_the_library_s_values(name):
    (values, size), kind = BLOCKS[name], gguf.GGMLQuantizationType[name]
    data = np.random.default_rng(1).integers(0, 256, (7, 40 * size), np.uint8)
    with np.errstate(all="ignore"):  # some scales are infinite or no numbers
        expected, found = gguf.quants.dequantize(data, kind), dequantise(data, name)
    assert found.dtype == np.float32
    assert found.shape == (7, 40 * values)
    assert np.array_equal(found, expected, equal_nan=True)


@pytest.mark.parametrize("name", WRITTEN)
def test_weights_come_back(name):
    weights = np.random.default_rng(2).normal(0, 0.05, (3, 4, 512)).astype(np.float32)
    data = gguf.quants.quantize(weights, gguf.GGMLQuantizationType[name])
    error = np.linalg.norm(dequantise(data, name) - weights) / np.linalg.norm(weights)
    assert error < 0.15
