"""Fields of v3 files that have to fit others, and models that are guarded beyond what there is room for.

Left out on purpose: fields that are wrong by themselves (test_v3.py).
"""

from __future__ import annotations

import itertools
import math
import struct
from pathlib import Path

import pytest
from checkpoints import Shape
from test_v3 import ENTRY, YARN, change, export_v3, sealed, write

import llama
from llama._engine import ffi, lib
from llama.formats.chat_templates import Chat
from llama.formats.v3 import Extras
from llama.native import model_open
from model import Config, Llama, RopeScaling

SMALL = Shape(2, 2, 1, 1, 1, vocab_size=8, max_seq_len=16)


def refused(path: Path, message: str) -> None:
    with pytest.raises(llama.BadFileError, match=message):
        llama.Llama(path)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_each_stop_id_is_of_the_vocabulary(tmp_path, count):
    path = tmp_path / "m.bin"
    write(path, SMALL, "fp32", Extras(stops=tuple(range(count))))
    for i, (value, fits) in itertools.product(
        (0, count - 1), ((7, True), (0, True), (8, False), (-1, False))
    ):
        change(path, "<i", 84 + 4 * i, value)
        if fits:
            model = ffi.new("LlamaModel **")
            assert lib.llama_open(str(path).encode(), model, ffi.NULL) == lib.LLAMA_OK
            assert lib.llama_config(model[0]).stops[i] == value
            lib.llama_close(model[0])
        else:
            refused(path, f"stop id {i} = {value}, allowed 0 to 7")
            change(path, "<i", 84 + 4 * i, 0)


@pytest.mark.parametrize("at", [4, 8])
def test_a_tensor_has_the_rows_and_the_columns_that_the_header_asks_for(tmp_path, at):
    write(tmp_path / "m.bin", Shape(), "int8")
    shape = [64, 64]
    for value in (63, 65, 128, -64):
        shape[at // 4 - 1] = value
        change(tmp_path / "m.bin", "<i", ENTRY + at, value)
        refused(
            tmp_path / "m.bin", rf"wq has type 1 and shape \({shape[0]}, {shape[1]}\), allowed \(64, 64\)"
        )


def test_the_last_byte_of_the_file_may_be_a_tensors(tmp_path):
    """And no tensor may lie before the texts, or 64 bytes further on than the file has room for."""
    path = tmp_path / "m.bin"
    write(path, SMALL, "fp32", Extras(tokenizer=b"x" * 40, chat=Chat("other", "{{ x }}", "y", "z")))
    whole = bytearray(path.read_bytes())
    n = struct.unpack_from("<i", whole, 120)[0]
    places = {i: struct.unpack_from("<2Q", whole, 256 + 32 * i + 16) for i in range(n)}
    last = max(places, key=lambda i: places[i][0])
    assert sum(places[last]) == len(whole)
    first, end = (256 + 32 * n) // 64 * 64, places[last][0] + 64
    for i, offset in itertools.product((0, last), (0, first, end)):
        data = bytearray(whole)
        struct.pack_into("<Q", data, 256 + 32 * i + 16, offset)
        path.write_bytes(sealed(data))
        refused(path, f"lies at {offset} with ")


def test_a_file_without_texts_of_chats_points_to_none(tmp_path):
    write(tmp_path / "m.bin", SMALL, "fp32", Extras(chat=Chat("chatml", "", "", "z")))
    model = model_open(tmp_path / "m.bin")
    chat = lib.llama_chat_of(model)
    assert (chat.text, chat.system) == (ffi.NULL, ffi.NULL)
    assert (chat.text_length, chat.system_length, chat.preamble_length) == (0, 0, 1)
    assert ffi.string(chat.preamble, 1) == b"z"


def scaled(path: Path, scaling: RopeScaling) -> Path:
    config = Config(dim=8, n_layers=1, n_heads=1, vocab_size=8, rope_scaling=scaling)
    export_v3(path, config, Llama(config).state_dict(), "fp32")
    llama.Llama(path).close()
    return path


@pytest.mark.parametrize(
    ("form", "at", "value"),
    [("<f", 60, 4.0), ("<f", 60, 5.0), ("<f", 64, 1.0), ("<i", 68, 0)],
)
def test_llama_3s_factors_are_in_order(tmp_path, form, at, value):
    path = scaled(tmp_path / "m.bin", RopeScaling("llama3", 8.0, 1.0, 4.0, 64))
    change(path, form, at, value)
    refused(path, "low_freq_factor = .* allowed low below high and a length of 1 or more")


@pytest.mark.parametrize(
    ("form", "at", "value", "message"),
    [
        ("<f", 172, 0.0, "beta_slow = 0, allowed 0 < slow < fast"),
        ("<f", 172, -1.0, "beta_slow = -1, allowed 0 < slow < fast"),
        ("<f", 172, 32.0, "beta_slow = 32, allowed 0 < slow < fast"),
        ("<f", 168, math.inf, "beta_fast = inf, .*allowed 0 < slow < fast"),
        ("<f", 56, 0.999, "rope factor = 0.999, .*allowed with YaRN 1 or more"),
        ("<f", 176, math.inf, "attention factor = inf, allowed with YaRN"),
        ("<f", 176, math.nan, "attention factor = -?nan, allowed with YaRN"),
        ("<f", 176, -0.5, "attention factor = -0.5, allowed with YaRN"),
        ("<i", 180, -1, "rope truncate = -1, allowed 0 and 1"),
        ("<i", 68, -1, "original_max_seq_len = -1, allowed 0 to"),
        ("<f", 48, 0.5, "no pair turns as YaRN needs it"),
    ],
)
def test_yarns_numbers_are_within_what_it_is_defined_for(tmp_path, form, at, value, message):
    path = scaled(tmp_path / "m.bin", YARN)
    change(path, form, at, value)
    refused(path, message)


def test_as_many_models_are_guarded_as_there_is_room_for(tmp_path):
    path, error = tmp_path / "m.bin", ffi.new("LlamaError *")
    write(path, SMALL, "fp32")
    models = [ffi.new("LlamaModel **") for _ in range(17)]
    for model in models:
        assert lib.llama_open(str(path).encode(), model, error) == lib.LLAMA_OK
    codes = [lib.llama_guard(model[0], error) for model in models]
    assert codes == [lib.LLAMA_OK] * 16 + [lib.LLAMA_ERROR_RESOURCE]
    assert ffi.string(error.text).decode() == f"{path}: 16 models are guarded already"
    lib.llama_close(models[7][0])  # which gives its room back
    assert lib.llama_guard(models[16][0], error) == lib.LLAMA_OK
    for model in models[:7] + models[8:]:
        lib.llama_close(model[0])
