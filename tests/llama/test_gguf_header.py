"""llama.info of a GGUF file says what the gguf library reads in it, and refuses damage in a line."""

import json
import struct
from dataclasses import replace

import pytest
from test_model import FAMILIES, fresh
from test_vocabulary import CHARACTERS
from torch_formats import write_gguf

from llama import BadFileError, UsageError, info
from llama.formats import gguf_header
from llama.formats import vocabulary as tokens
from llama.formats.chat_templates import Chat
from llama.formats.source import Source

gguf = pytest.importorskip("gguf")

VOCABULARY = replace(CHARACTERS, flags=CHARACTERS.flags | tokens.USER_FIRST)
NAMES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}


def write(path, family="Llama 3.2", dtype="fp32"):
    """A model of a family as a GGUF file, and its configuration."""
    config = replace(FAMILIES[family], vocab_size=len(CHARACTERS.pieces))
    source = Source("weights", config, fresh(config).state_dict(), bos=1, stops=(2,), chat=Chat("llama2"))
    write_gguf(path, source, dtype, None if dtype == "fp32" else "int8", VOCABULARY)
    return config


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8", "int4"])
def test_what_is_said_is_what_the_library_reads(tmp_path, family, dtype):
    config, found = write(tmp_path / "m.gguf", family, dtype), info.info(str(tmp_path / "m.gguf"))
    expected = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    assert [(t.name, t.type, t.shape, t.bytes) for t in found.tensors] == [
        (
            t.name,
            NAMES.get(t.tensor_type.name, t.tensor_type.name),
            tuple(map(int, t.shape[::-1])),
            int(t.n_bytes),
        )
        for t in expected
    ]
    for name in ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "tied"):
        assert found.config[name] == getattr(config, name), name
    assert found.config["norm_eps"] == pytest.approx(config.norm_eps)
    assert found.config["rope_theta"] == config.rope_theta
    scaling = found.config.get("rope_scaling") or {}
    assert scaling.get("kind") == (config.rope_scaling.kind if config.rope_scaling else None)
    assert found.tokenizer == {
        "file": "in the file",
        "kind": "llama of llama.cpp",
        "vocab_size": len(CHARACTERS.pieces),
        "bos": 1,
        "eos": 2,
    }
    assert (found.kind, found.template, found.stops) == ("GGUF, llama", "in the file", [2])
    assert found.parameters == sum(p.numel() for p in fresh(config).parameters())
    assert found.bytes == (tmp_path / "m.gguf").stat().st_size
    assert "blk.0-1.attn_q.weight" in info.text(found)
    assert json.loads(json.dumps(found.to_dict()))["path"].endswith("m.gguf")


def test_a_list_is_no_number_of_heads(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_head_count_kv([1, 2, 3])
    writer.add_block_count(3)
    writer.add_eos_token_id(7)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    found = info.info(str(tmp_path / "m.gguf"))
    assert found.config == {"n_layers": 3}
    assert (found.tokenizer, found.stops, found.memory.cache) == (None, [7], None)


def test_the_types_have_the_sizes_of_the_library():
    for kind, (name, block, size) in gguf_header.TYPES.items():
        theirs = gguf.GGMLQuantizationType(kind)
        assert NAMES.get(theirs.name, theirs.name) == name
        assert gguf.GGML_QUANT_SIZES[theirs] == (block, size)


def test_memory_is_that_of_the_context(tmp_path):
    config = write(tmp_path / "m.gguf")
    found = info.info(str(tmp_path / "m.gguf"), context=32).memory
    assert found.cache == 2 * 4 * 32 * config.n_layers * config.n_kv_heads * config.head_dim
    with pytest.raises(UsageError, match="--context = 999999, allowed 1 to"):
        info.info(str(tmp_path / "m.gguf"), context=999999)


def test_every_truncation_is_refused_in_one_line(tmp_path):
    write(tmp_path / "m.gguf", "Llama 2", "int4")
    data, path = (tmp_path / "m.gguf").read_bytes(), tmp_path / "cut.gguf"
    for size in [*range(4, 400), *range(400, len(data), 997), len(data) - 4000]:
        path.write_bytes(data[:size])
        with pytest.raises(
            BadFileError,
            match=r"^\S*cut\.gguf: (has \d+ bytes, too few for|\S+ ends at byte \d+, the file at \d+$)",
        ):
            info.info(str(path))


def text(words: str) -> bytes:
    return struct.pack("<Q", len(words)) + words.encode()


HEAD = b"GGUF" + struct.pack("<I", 3)
HOSTILE = {
    "version = 9, allowed 2 and 3": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
    "too few for the 8 ": HEAD + struct.pack("<QQ", 2**63, 2**63),
    "too few for the 9223372036854775808 ": HEAD + struct.pack("<QQQ", 0, 1, 2**63),
    "has a value of type 13 ": HEAD + struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IQ", 13, 0),
    "no list in a list": HEAD + struct.pack("<QQ", 0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1),
    "too few for the 73786976294838206456 ": HEAD
    + struct.pack("<QQ", 0, 1)
    + text("a")
    + struct.pack("<IIQ", 9, 10, 2**63 - 1)[:-1]
    + b"\x7f",
    "t has a shape that can't be": HEAD
    + struct.pack("<QQ", 1, 0)
    + text("t")
    + struct.pack("<IQQIQ", 2, 2**63, 1, 0, 0),
    "t ends at byte 4611686018427387968, the file at 57": HEAD
    + struct.pack("<QQ", 1, 0)
    + text("t")
    + struct.pack("<IQIQ", 1, 2**60, 0, 0),
}


@pytest.mark.parametrize("message", HOSTILE)
def test_a_hostile_file_is_one_line(tmp_path, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(HOSTILE[message])
    with pytest.raises(BadFileError, match=r"^\S*m\.gguf: ") as caught:
        info.info(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
