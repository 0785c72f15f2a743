"""v3 files: written as docs/format.md says, run by every kernel as what they say, refused when they lie.

What a file says is read by checkpoints.read_v3, which knows nothing but the format's description.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from checkpoints import Shape, reference_logits
from helpers import DATA, PIECES, ROOT, assert_refused, run, write_ranked
from test_export import config_of, named
from test_forward import FP32_BOUND, INT8_BOUND, INT8_EXACT, INT8_FLIPS, Engine, isas, random_ids, relative
from torch_formats import export_v3, open_source

import llama
from llama import convert
from llama._engine import lib
from llama.errors import BadFileError
from llama.formats import tokenizers
from llama.formats.chat_templates import Chat
from llama.formats.v3 import Extras
from llama.native import c_text, model_open
from model import Config, Llama, RopeScaling

TYPES = ("fp32", "bf16", "int8", "int4")
SHAPES = {
    "gqa": Shape(),
    "head8": Shape(dim=32, hidden_dim=48, n_heads=4, n_kv_heads=2, vocab_size=97),
    "head48": Shape(
        dim=288, hidden_dim=768, n_heads=6, n_kv_heads=6, tied=False
    ),  # nine groups: an odd number
    "head128": Shape(dim=256, hidden_dim=704, n_heads=2, n_kv_heads=2, vocab_size=33),
    "nothing fits": Shape(dim=60, hidden_dim=172, n_heads=6, n_kv_heads=3, vocab_size=45),
    "smallest": Shape(dim=2, hidden_dim=2, n_heads=1, n_kv_heads=1, n_layers=1, vocab_size=2),
}


def write(path: Path, shape: Shape, dtype: str, extras: Extras | None = None) -> checkpoints.Weights:
    """Writes a random model and returns its weights as the file has them."""
    weights = named(shape, checkpoints.random_weights(shape))
    export_v3(path, config_of(shape), weights, dtype, extras=extras)
    return checkpoints.read_v3(path)[1]


def tokenizer_bytes(tmp_path: Path) -> bytes:
    return write_ranked(tmp_path / "pieces.bin", PIECES).read_bytes()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.bin"


# --- What is written


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 0), ("bf16", 2**-8), ("int8", 0.01), ("int4", 0.12)])
def test_a_file_holds_the_weights_within_their_type(path, name, dtype, bound):
    shape = SHAPES[name]
    expected, found = checkpoints.random_weights(shape), write(path, shape, dtype)
    head = checkpoints.read_v3(path)[0]
    assert {key: head[key] for key in ("dim", "hidden_dim", "n_heads", "tied", "head_dim")} == {
        key: getattr(shape, key) for key in ("dim", "hidden_dim", "n_heads", "tied", "head_dim")
    }
    for key, values in expected.items():
        error = relative(found[key] - values, values)
        assert error <= (0 if key in checkpoints.NORMS else bound), key


def test_the_error_that_is_reported_is_that_of_the_file(path):
    shape = SHAPES["head48"]
    weights = checkpoints.random_weights(shape)
    report = export_v3(path, config_of(shape), named(shape, weights), "int4")
    found = checkpoints.read_v3(path)[1]
    expected = relative(found["w1"][1] - weights["w1"][1], weights["w1"][1])
    assert math.isclose(report.errors["layers.1.feed_forward.w1.weight"], expected, rel_tol=1e-4)
    assert list(report.errors.values()) == sorted(report.errors.values(), reverse=True)
    assert report.bytes == path.stat().st_size


NOT_FINITE = "has values that are not finite"


@pytest.mark.parametrize(
    ("value", "problem"),
    [(math.nan, NOT_FINITE), (math.inf, NOT_FINITE), (1e9, "row 3, column 5: is ")],
)
def test_what_a_scale_cannot_hold_is_refused_and_nothing_is_left(path, value, problem):
    shape = Shape()
    weights = named(shape, checkpoints.random_weights(shape))
    weights["layers.1.attention.wo.weight"][3, 5] = value
    with pytest.raises(BadFileError, match=rf"layers\.1\.attention\.wo\.weight {problem}"):
        export_v3(path, config_of(shape), weights, "int8")
    assert list(path.parent.iterdir()) == []


def test_types_of_embedding_and_classifier_can_be_chosen(path):
    shape = SHAPES["head48"]
    weights = named(shape, checkpoints.random_weights(shape))
    export_v3(path, config_of(shape), weights, "int4", "bf16")
    data = path.read_bytes()
    kinds = [struct.unpack_from("<i", data, 256 + 32 * i)[0] for i in (0, 2, 20)]
    assert kinds == [2, 3, 2]
    assert Engine(path).logits([1, 2]).shape == (2, shape.vocab_size)


CHAT = Chat("chatml", "{{ 'ž' }}", "Be kind.", "Day: \x02%d\x03\n")
SAMPLES = {  # of every field; the first is from before files had texts of chats
    "sample_v3.bin": Extras(b"", 1, (2, 3), Chat("llama3")),
    "sample_v3_chat.bin": Extras(b"abc", -1, (), CHAT, add_bos=False, add_eos=True),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_stored_sample_is_what_is_written_today(path, name):
    """A change of the format shows here, and must come with a new version number."""
    shape = Shape(dim=32, hidden_dim=40, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=20, max_seq_len=16)
    weights = {
        name: torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * 0.7).float().view(tensor.shape)
        for name, tensor in named(shape, checkpoints.random_weights(shape)).items()
    }
    export_v3(path, config_of(shape), weights, "int4", "int8", SAMPLES[name])
    assert path.read_bytes() == (DATA / name).read_bytes()
    assert Engine(DATA / name).logits([1, 2, 3]).shape == (3, 20)


def test_what_a_stored_sample_says_of_texts_is_read(path):
    old, new = (open_source(DATA / name) for name in SAMPLES)
    assert (old.chat, old.add_bos, old.add_eos) == (Chat("llama3"), True, False)
    assert (new.chat, new.add_bos, new.add_eos) == (CHAT, False, True)
    model = model_open(DATA / "sample_v3_chat.bin")
    chat, config = lib.llama_chat_of(model), lib.llama_config(model)
    fields = ("text", "system", "preamble")
    texts = [c_text(getattr(chat, name), getattr(chat, f"{name}_length")).decode() for name in fields]
    assert (chat.kind, *texts) == (4, CHAT.text, CHAT.system, CHAT.preamble)
    assert (config.add_bos, config.add_eos) == (0, 1)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (Chat("other", "x" * (2**20 + 1)), "chat template has 1048577 bytes, allowed 1048576"),
        (Chat("chatml", "x", "x" * (2**16 + 1)), "system text has 65537 bytes, allowed 65536"),
        (
            Chat("chatml", "x", "", "x" * 65537),
            "text in front of a system text has 65537 bytes, allowed 65536",
        ),
    ],
)
def test_texts_that_a_file_has_no_room_for_are_refused(path, chat, message):
    with pytest.raises(BadFileError, match=message):
        write(path, Shape(), "int8", Extras(chat=chat))
    assert not path.exists()


# --- What is run


def narrowed(dtype: str, isa: str) -> dict[str, Any]:
    """How activations enter products with weights of a type, as reference_logits takes it."""
    if dtype in ("int8", "int4"):
        return {"group_size": 32}
    return {"activations": torch.bfloat16} if dtype == "bf16" and isa in ("avx512bf16", "amx") else {}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_the_reference_for_every_isa_thread_count_and_batch(path, name, dtype):
    shape, ids = SHAPES[name], random_ids(SHAPES[name], 40)
    weights = write(path, shape, dtype)
    reference = cache(lambda *ids, **narrow: reference_logits(shape, weights, list(ids), **narrow))
    for isa in isas(path):
        engine = Engine(path, kernels=isa)
        logits, expected = engine.logits(ids), reference(*ids)
        if narrow := narrowed(dtype, isa):
            one = [reference(token, **narrow) for token in ids]
            errors = [relative(engine.logits([t]) - e, e) for t, e in zip(ids, one, strict=True)]
            assert np.median(errors) < INT8_EXACT
            assert relative(logits - expected, expected) < INT8_BOUND
            expected = reference(*ids, **narrow)
            assert relative(logits - expected, expected) < INT8_FLIPS
        else:
            np.testing.assert_allclose(logits, expected, rtol=0, atol=FP32_BOUND)
        first = Engine(path, kernels=isa, threads=1, batch=1).logits(ids)
        for threads, batch in itertools.product((1, 2, 3), (1, 2, 3, 5, 17, 128)):
            logits = Engine(path, kernels=isa, threads=threads, batch=batch).logits(ids)
            assert np.array_equal(first, logits), f"{isa}: {threads} threads, batch {batch} change the result"


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("name", SHAPES)
def test_exact_logits_are_those_of_fp32_activations(path, name, dtype):
    shape, ids = SHAPES[name], random_ids(SHAPES[name], 40)
    expected = reference_logits(shape, write(path, shape, dtype), ids)
    for isa in isas(path):
        first = Engine(path, kernels=isa, threads=1, batch=1, exact=1).logits(ids)
        np.testing.assert_allclose(first, expected, rtol=0, atol=FP32_BOUND)
        for threads, batch in ((2, 1), (3, 5), (2, 128)):
            logits = Engine(path, kernels=isa, threads=threads, batch=batch, exact=1).logits(ids)
            assert np.array_equal(first, logits), f"{isa}: {threads} threads, batch {batch} change the result"


YARN = RopeScaling("yarn", 4.0, original_max_seq_len=32)


@pytest.mark.parametrize(
    "config",
    [
        Config(dim=48, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=40, hidden_dim=100, vocab_size=77),
        Config(dim=64, n_layers=2, n_heads=4, vocab_size=50, rope_theta=5e5, norm_eps=1e-2),
        Config(dim=64, n_heads=2, vocab_size=50, rope_scaling=RopeScaling("linear", 4.0)),
        Config(dim=64, n_heads=2, vocab_size=50, rope_scaling=RopeScaling(original_max_seq_len=64)),
        Config(
            dim=64, n_heads=2, vocab_size=50, tied=False, rope_scaling=RopeScaling("llama3", 32, 1, 4, 32)
        ),
        Config(dim=64, n_heads=2, vocab_size=50, rope_scaling=YARN),
        Config(
            dim=64,
            n_heads=2,
            vocab_size=50,
            rope_theta=500.0,
            rope_scaling=RopeScaling("yarn", 2.5, 1, 4, 48, 4.0, 0.5, 1.3, truncate=False),
        ),
        Config(  # whose ramp would end behind the last pair
            dim=64,
            n_heads=2,
            vocab_size=50,
            rope_theta=1.5,
            rope_scaling=RopeScaling("yarn", 3.0, original_max_seq_len=210, attention_factor=0.7),
        ),
    ],
    ids=["head_dim", "theta and eps", "linear", "llama3", "factor 32", "yarn", "yarn, all said", "no room"],
)
def test_every_field_of_the_configuration_reaches_the_engine(path, config):
    torch.manual_seed(1)
    model = Llama(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, parameter.shape[-1] ** -0.5)
    ids = torch.randint(0, config.vocab_size, (1, 120))
    with torch.no_grad():
        expected = model(ids)[0].numpy()
    export_v3(path, config, model.state_dict(), "fp32")
    np.testing.assert_allclose(Engine(path).logits(ids[0].tolist()), expected, rtol=0, atol=FP32_BOUND)


@pytest.mark.parametrize("dtype", TYPES)
def test_yarn_is_that_of_model_py_for_every_type_of_weights(path, dtype):
    shape, ids = Shape(dim=128, n_heads=4, n_kv_heads=2), random_ids(Shape(), 100)
    write(path, shape, dtype)
    source = open_source(path)
    config = dataclasses.replace(source.config, rope_scaling=YARN)
    export_v3(path.with_name("yarn.bin"), config, dict(source.tensors), dtype)
    model = Llama(config).eval()
    model.load_state_dict({"output.weight": source.tensors["tok_embeddings.weight"], **source.tensors})
    with torch.no_grad():
        expected = model(torch.tensor([ids]))[0].numpy()
    for isa in isas(path):
        found = Engine(path.with_name("yarn.bin"), kernels=isa, exact=1).logits(ids)
        np.testing.assert_allclose(found, expected, rtol=0, atol=FP32_BOUND)


def test_a_group_with_nan_reaches_the_logits(path):
    write(path, Shape(), "int8")
    data = bytearray(path.read_bytes())
    offset = struct.unpack_from("<Q", data, 256 + 32 * 2 + 16)[0]  # of wq
    data[offset : offset + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)
    for isa in isas(path):
        assert np.isnan(Engine(path, kernels=isa).logits([1, 2])).any()


# --- The tokenizer inside, and where texts end


@pytest.fixture
def whole(tmp_path):
    """A model with its tokenizer inside, alone in a folder."""
    shape = Shape(vocab_size=len(PIECES))
    extras = Extras(tokenizer_bytes(tmp_path))
    (tmp_path / "alone").mkdir()
    write(tmp_path / "alone" / "model.bin", shape, "int8", extras)
    return tmp_path / "alone" / "model.bin"


@pytest.mark.parametrize("program", ["native", "python"])
def test_a_file_is_all_that_a_run_needs(whole, tmp_path, program):
    arguments = ("model.bin", "-i", "abc", "-n", "40", "-s", "7")
    alone = run(program, *arguments, cwd=whole.parent)
    assert alone.returncode == 0, alone.stderr
    given = run(program, *arguments, "-z", tmp_path / "pieces.bin", cwd=whole.parent)
    assert alone.stdout == given.stdout
    assert len(alone.stdout) > 10


def test_the_tokenizer_outlives_the_model_in_python(whole):
    model = llama.Llama(whole)
    tokenizer = model.tokenizer
    model.close()
    del model
    assert tokenizer.decode(tokenizer.encode("abc abc")) == "abc abc"


@pytest.mark.parametrize(("own", "said", "bos"), [(True, 7, 1), (False, 7, 7), (False, -1, -1)])
def test_the_header_has_a_bos_for_a_tokenizer_without_one(tmp_path, own, said, bos):
    pieces = PIECES if own else [piece.replace("<s>", "<t>") for piece in PIECES]
    path = write_ranked(tmp_path / "t.bin", pieces)
    write(tmp_path / "m.bin", Shape(vocab_size=len(PIECES)), "fp32", Extras(path.read_bytes(), bos=said))
    with llama.Llama(tmp_path / "m.bin") as model:
        assert model.tokenizer.bos_id == bos
        if bos >= 0:
            assert model.encode("a")[0] == bos
        else:
            with pytest.raises(llama.UsageError, match="the vocabulary has no BOS"):
                model.encode("a")


@pytest.mark.parametrize("program", ["native", "python"])
@pytest.mark.parametrize("add_bos", [True, False])
def test_a_text_begins_as_the_models_tokenizer_begins_one(tmp_path, program, add_bos):
    extras = Extras(tokenizer_bytes(tmp_path), add_bos=add_bos)
    path = tmp_path / "model.bin"
    write(path, Shape(vocab_size=len(PIECES)), "fp32", extras)
    with llama.Llama(path) as model:
        bos, plain = [model.tokenizer.bos_id], model.encode("abc", bos=False)
        assert model.config.add_bos is add_bos
        assert model.encode("abc") == [*(bos if add_bos else []), *plain]
        assert model.encode("abc", bos=True, eos=True) == [*bos, *plain, model.tokenizer.eos_id]
        assert model.encode("") == (bos if add_bos else [])
        for prompt, ids in (("abc", model.encode("abc")), ("", bos)):  # a text goes on from some token
            text = "".join(model.generate(ids, max_tokens=12, temperature=0))
            assert "".join(model.generate(prompt, max_tokens=12, temperature=0)) == text
            options = ("-i", prompt, "-t", "0", "-n", str(len(ids) + 11), "--no-echo")
            result = run(program, path, *options, cwd=tmp_path)
            assert result.stdout.decode() == text + "\n"


def test_a_tokenizer_of_another_size_is_refused(tmp_path):
    write(tmp_path / "model.bin", Shape(), "fp32", Extras(tokenizer_bytes(tmp_path)))
    message = f"model.bin: has {len(PIECES)} tokens, the model's vocab_size = 96"
    assert_refused(run("native", "model.bin", cwd=tmp_path), 3, message)


def test_a_text_ends_at_each_stop_id(tmp_path):
    shape = Shape(vocab_size=len(PIECES))
    extras = Extras(tokenizer_bytes(tmp_path))
    write(tmp_path / "free.bin", shape, "fp32", extras)
    with llama.Llama(tmp_path / "free.bin") as model:
        text = "".join(model.generate("a", max_tokens=30, temperature=0))
        ids = model.encode("a" + text)[2:]
    stop = next(token for i, token in enumerate(ids) if i > 1 and token not in ids[:i])
    write(tmp_path / "stops.bin", shape, "fp32", Extras(extras.tokenizer, stops=(ids[-1], stop)))
    with llama.Llama(tmp_path / "stops.bin") as model:
        generation = model.generate("a", max_tokens=30, temperature=0)
        shorter = "".join(generation)
    assert generation.finish == "stop_token"
    assert len(shorter) < len(text)
    assert text.startswith(shorter)


# --- Files that lie


def sealed(data: bytearray) -> bytes:
    """The file with a right checksum, so that what it says is looked at."""
    begin, size = struct.unpack_from("<2Q", data, 128)
    end = begin + size + sum(struct.unpack_from("<3I", data, 156))
    crc = zlib.crc32(bytes(data[256:end]), zlib.crc32(bytes(data[:252])))
    struct.pack_into("<I", data, 252, crc)
    return bytes(data)


def change(path: Path, form: str, at: int, value: float) -> None:
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, at, value)
    path.write_bytes(sealed(data))


@pytest.mark.parametrize(
    ("form", "at", "value", "message"),
    [
        ("<f", 56, 0.5, "rope factor = 0.5, attention factor = 0, allowed with YaRN 1 or more"),
        ("<f", 168, 1.0, "rope beta_fast = 1, beta_slow = 1, allowed 0 < slow < fast"),
        ("<f", 168, math.inf, "rope beta_fast = inf"),
        ("<f", 172, math.nan, "beta_slow = -?nan"),
        ("<f", 176, -1.0, "attention factor = -1"),
        ("<i", 180, 2, "rope truncate = 2, allowed 0 and 1"),
        ("<i", 68, 0, "rope_theta = 10000, original_max_seq_len = 0: no pair turns as YaRN needs it"),
        ("<f", 48, 1.0, "rope_theta = 1, original_max_seq_len = 32: no pair turns"),
    ],
)
def test_a_header_that_lies_about_yarn_is_refused(path, form, at, value, message):
    config = Config(dim=64, n_layers=1, n_heads=2, vocab_size=50, rope_scaling=YARN)
    export_v3(path, config, Llama(config).state_dict(), "fp32")
    assert open_source(path).config == config
    for theta in (1e4, 1e6):
        Engine(path, rope_theta=theta)
    with pytest.raises(RuntimeError, match="rope_theta = 1, allowed those with which pairs turn"):
        Engine(path, rope_theta=1.0)
    change(path, form, at, value)
    with pytest.raises(llama.BadFileError, match=message):
        llama.Llama(path)


ENTRY = 256 + 32 * 2  # of wq of layer 0


@pytest.mark.parametrize(
    ("form", "at", "value", "message"),
    [
        ("<i", 8, 1, "dim = 1, allowed 2 to 131072"),
        ("<i", 16, 0, "n_layers = 0, allowed 1 to 4096"),
        ("<i", 16, 3, "has 20 tensors, allowed 29"),
        ("<i", 24, 3, "n_kv_heads = 3 does not divide n_heads = 8"),
        ("<i", 28, 1 << 25, "vocab_size = 33554432, allowed"),
        ("<i", 28, -(2**31), "vocab_size = -2147483648, allowed"),  # nothing is subtracted from it before
        ("<B", 36, 2, "shared classifier = 2, allowed 0 and 1"),
        ("<i", 40, 7, r"head_dim = 7.*allowed even"),
        ("<i", 40, 0, "head_dim = 0, allowed 2 to 4096"),
        ("<f", 44, 0.0, "norm_eps = 0, allowed finite numbers above 0"),
        ("<f", 48, math.nan, "rope_theta = -?nan, allowed finite"),
        ("<i", 52, 4, "rope scaling = 4, allowed 0 to 3"),
        ("<i", 52, 2, "original_max_seq_len = 0: allowed"),
        ("<f", 56, math.inf, "rope factor = inf, allowed"),
        ("<i", 72, 4, "weight type = 4, allowed 0 to 3"),
        ("<i", 76, 96, "bos = 96, allowed -1 to 95"),
        ("<i", 80, 9, "number of stop ids = 9, allowed 0 to 8"),
        ("<i", 80, 1, "stop id 0 = -1, allowed 0 to 95"),
        ("<i", 116, 9, "chat template = 9, allowed 0 to 7"),
        ("<i", 116, 3, "bytes of the chat template = 0, allowed 1 to 1048576 with chat template = 3"),
        ("<I", 152, 4, "flags of texts = 4, allowed 0 to 3"),
        ("<I", 156, 1048577, "bytes of the chat template = 1048577, allowed 0 to 1048576"),
        ("<I", 156, 1048576, "texts of chats at .* with 1048576 bytes, allowed in a file of"),
        ("<I", 160, 65537, "bytes of the system text = 65537, allowed 0 to 65536"),
        ("<I", 164, 2**32 - 1, "bytes in front of a system text = 4294967295, allowed 0 to 65536"),
        ("<I", 164, 64, "tok_embeddings lies at .* with "),
        ("<Q", 144, 100, "its header says 100"),
        ("<i", ENTRY, 4, r"wq has type 4 and shape \(64, 64\), allowed \(64, 64\)"),
        ("<i", ENTRY, -1, "wq has type -1"),
        ("<i", ENTRY - 32, 1, r"attention_norm has type 1 and shape \(1, 64\)"),
        ("<i", ENTRY + 4, 65, r"wq has type 1 and shape \(65, 64\), allowed \(64, 64\)"),
        ("<Q", ENTRY + 16, 0, "wq lies at 0 with 4352 bytes, allowed 4352 bytes"),
        ("<Q", ENTRY + 16, 1 << 63, "wq lies at 9223372036854775808"),
        ("<Q", ENTRY + 16, 1000, "wq lies at 1000"),
        ("<Q", ENTRY + 24, 2**64 - 64, "wq lies at .* with 18446744073709551552 bytes"),
    ],
)
def test_a_field_that_cannot_be_is_refused_by_name(path, form, at, value, message):
    write(path, Shape(), "int8")
    change(path, form, at, value)
    with pytest.raises(llama.BadFileError, match=message):
        llama.Llama(path)


@pytest.mark.parametrize(
    ("at", "value"), [(120, -1), (120, 1 << 30), (128, 0), (128, 1 << 62), (136, 1 << 62), (136, 2**64 - 1)]
)
def test_sections_outside_the_file_are_refused(path, at, value):
    write(path, Shape(), "int8")
    data = bytearray(path.read_bytes())
    struct.pack_into("<i" if at == 120 else "<Q", data, at, value)
    path.write_bytes(data)
    with pytest.raises(llama.BadFileError, match=r"tokenizer at .* with .* bytes, allowed at"):
        llama.Llama(path)


@pytest.mark.parametrize(("dtype", "code"), [("int8", 1), ("bf16", 2)])
@pytest.mark.parametrize(("tensor", "name"), [(3, "wk"), (4, "wv"), (8, "w3")])
def test_types_that_share_an_input_go_together(path, tmp_path, tensor, name, dtype, code):
    """A file whose wq is fp32 and whose wk is not: activations would have to be in two forms."""
    shape = Shape()
    write(tmp_path / "other.bin", shape, dtype)
    write(path, shape, "fp32")
    data, other = bytearray(path.read_bytes()), (tmp_path / "other.bin").read_bytes()
    entry = 256 + 32 * tensor
    offset, size = struct.unpack_from("<2Q", other, entry + 16)
    data += bytes(-len(data) % 64)
    struct.pack_into("<i", data, entry, code)
    struct.pack_into("<2Q", data, entry + 16, len(data), size)
    data += other[offset : offset + size]
    struct.pack_into("<Q", data, 144, len(data))
    path.write_bytes(sealed(data))
    with pytest.raises(llama.BadFileError, match=f"w1, w3, may be .* a {name} differs"):
        llama.Llama(path)


def test_a_flipped_bit_before_the_tensors_is_found(path, tmp_path):
    write(path, Shape(), "int8", Extras(tokenizer_bytes(tmp_path)))
    data = path.read_bytes()
    end = sum(struct.unpack_from("<2Q", data, 128))
    for at in (*range(44, 52), 152, 156, 160, 164, 168, 251, 255, *range(256, end, 101), end - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(llama.BadFileError):
            llama.Llama(path)


def test_a_flipped_bit_in_a_text_of_chats_is_found(path, tmp_path):
    write(path, Shape(), "int8", Extras(tokenizer_bytes(tmp_path), chat=CHAT))
    data = path.read_bytes()
    begin = sum(struct.unpack_from("<2Q", data, 128))
    for at in range(begin, begin + sum(struct.unpack_from("<3I", data, 156))):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(llama.BadFileError, match="checksum of header, table, tokenizer and texts"):
            llama.Llama(path)


@pytest.mark.parametrize("size", [8, 40, 255, 256, 300, -64, -1])
def test_a_file_that_is_cut_off_is_refused(path, size):
    write(path, Shape(), "int8")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(llama.BadFileError, match=r"has .* bytes"):
        llama.Llama(path)


# --- The program


def test_from_a_bin_file_of_every_version(tmp_path):
    shape, tokens = Shape(vocab_size=len(PIECES)), tokenizer_bytes(tmp_path)
    for version in (0, 1, 2):
        folder = tmp_path / str(version)
        folder.mkdir()
        checkpoints.write(folder / "old.bin", shape, version)
        (folder / "tokenizer.bin").write_bytes(tokens)
        assert convert.main([str(folder / "old.bin"), str(folder / "new.bin"), "--version", "3"]) == 0
        _, weights, inside = checkpoints.read_v3(folder / "new.bin")
        expected = checkpoints.random_weights(shape)
        if version == 2:
            expected = checkpoints.dequantised(expected, shape.group_size)
        for name, values in expected.items():
            assert np.array_equal(weights[name], values.astype(np.float32)), (version, name)
        assert inside == tokenizers.to_bin(tokenizers.load(folder / "tokenizer.bin"))


def test_a_damaged_bin_file_is_refused(tmp_path, capsys):
    checkpoints.write(tmp_path / "old.bin", Shape(), 1)
    data = (tmp_path / "old.bin").read_bytes()
    for cut in (10, 100, 300, len(data) - 4):
        (tmp_path / "old.bin").write_bytes(data[:cut])
        assert convert.main([str(tmp_path / "old.bin"), str(tmp_path / "new.bin"), "--dtype", "int8"]) == 3
        assert f"{tmp_path / 'old.bin'}: " in capsys.readouterr().err
    assert not (tmp_path / "new.bin").exists()


def test_the_help_names_every_type(capsys):
    with pytest.raises(SystemExit):
        convert.main(["--help"])
    text = capsys.readouterr().out
    assert all(kind in text for kind in TYPES)
    assert "format.md" in (ROOT / "README.md").read_text(encoding="utf-8")
