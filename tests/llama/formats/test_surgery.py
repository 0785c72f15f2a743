"""Models made of others: what changes nothing is the input to the bit, all else is what numpy makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import PIECES, write_ranked

from llama import Llama, convert, surgery
from llama.errors import BadFileError, UsageError
from llama.formats import source as sources
from llama.formats.config import Config
from llama.formats.export import export_bin, export_folder, export_gguf, export_v3
from llama.formats.models import open_source
from llama.formats.source import Source, tensor_shapes
from llama.formats.surgery import numbers, weighted, with_layers, with_vocabulary
from llama.formats.tensor import NUMPY, Tensor, rounded, to_floats
from llama.formats.vocabulary import (
    BYTE,
    BYTES,
    CHARACTERS,
    CONTROL,
    SENTENCEPIECE,
    TEXT,
    UNKNOWN,
    Vocabulary,
    read_llama2c,
)

SHAPE = {"dim": 32, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48, "max_seq_len": 64}
kinds = pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])


def random_source(seed: int = 0, dtype: str = "fp32", tied: bool = False, name: str = "random") -> Source:
    random = np.random.default_rng(seed)
    config = Config(**SHAPE, vocab_size=len(PIECES), tied=tied)
    drawn = {
        key: random.standard_normal(shape, np.float32) * 0.2 for key, shape in tensor_shapes(config).items()
    }
    narrow = {key: values if dtype == "fp32" else rounded(values, dtype) for key, values in drawn.items()}
    return Source(name, config, {key: Tensor.of(values, dtype) for key, values in narrow.items()})


def assert_same(found: Source, expected: Source) -> None:
    assert found.config == expected.config
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert (found.tensors[name].dtype, found.tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert np.array_equal(found.tensors[name].values(), tensor.values()), name


# --- Nothing changes


@kinds
@pytest.mark.parametrize("tied", [True, False])
def test_what_changes_nothing_is_the_model_itself(dtype, tied):
    model, other = random_source(0, dtype, tied), random_source(1, dtype, tied)
    assert_same(with_layers(model, range(4)), model)
    assert_same(with_layers(with_layers(model, [0, 1, 2, 3, 0, 1, 2, 3]), range(4)), model)
    assert_same(with_layers(with_layers(model, [0, 1, 0, 1, 2, 3], silent=True), [0, 1, 4, 5]), model)
    assert_same(weighted([model], [1]), model)
    assert_same(weighted([model, other], [0.3, 0]), model)
    assert_same(weighted([model, model], [0.5, 0.5]), model)
    tokens = vocabulary([*PIECES])
    assert_same(with_vocabulary(model, tokens, tokens), replace(model, config=model.config))


# --- Layers


def test_layers_are_those_that_are_listed():
    assert numbers("0-2, 1,3", 4, "layers") == [0, 1, 2, 1, 3]
    model = random_source()
    deeper = with_layers(model, [0, 1, 2, 1, 3])
    assert deeper.config.n_layers == 5
    for at, layer in enumerate([0, 1, 2, 1, 3]):
        found, expected = (
            source.tensors[f"layers.{i}.attention.wq.weight"].values()
            for source, i in ((deeper, at), (model, layer))
        )
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("text", ["4", "2-1", "0-4", "", "a", "-1", "0,,1"])
def test_layers_that_there_are_not_are_refused(text):
    with pytest.raises(UsageError, match=r"layers = .*, allowed numbers from 0 to 3"):
        numbers(text, 4, "layers")


def test_silent_layers_change_no_logit(tmp_path):
    model = random_source()
    for name, source in {
        "a": model,
        "b": with_layers(model, [0, 1, 2, 0, 1, 2, 3, 3], silent=True),
        "c": with_layers(model, [0, 1, 2, 0, 1, 2, 3, 3]),
    }.items():
        export_v3(tmp_path / name, source.config, source.tensors, "fp32")
        (tmp_path / name).rename(tmp_path / f"{name}.bin")
    a, b, c = (Llama(tmp_path / f"{name}.bin").logits([1, 269, 265, 262]) for name in "abc")
    assert np.array_equal(a, b)
    assert not np.allclose(a, c)


# --- Sums


@kinds
def test_a_sum_is_the_nearest_to_that_in_float64(dtype):
    models, weights = [random_source(seed, dtype) for seed in range(3)], [1.0, 3.0, -0.5]
    found = weighted(models, weights)
    for name, tensor in found.tensors.items():
        parts = (to_floats(model.tensors[name].values(), dtype).astype(np.float64) for model in models)
        total = sum(weight / 3.5 * part for weight, part in zip(weights, parts, strict=True))
        expected = total.astype(np.float32)
        assert tensor.dtype == dtype
        assert np.array_equal(tensor.values(), expected if dtype == "fp32" else rounded(expected, dtype))


def test_a_sum_of_several_types_is_fp32():
    found = weighted([random_source(0, "bf16"), random_source(1)], [1, 1])
    assert {tensor.dtype for tensor in found.tensors.values()} == {"fp32"}


def test_models_that_do_not_go_together_are_refused():
    model = random_source()
    other = replace(model, name="other", config=replace(model.config, rope_theta=5e5))
    with pytest.raises(UsageError, match=r"other: rope_theta = 500000.0, allowed 10000.0, as random has"):
        weighted([model, other], [1, 1])
    with pytest.raises(UsageError, match="weights add up to 0, allowed more than 0"):
        weighted([model, model], [1, -1])


def test_a_writer_gets_a_chunk_at_a_time(tmp_path, monkeypatch):
    asked = []

    def watched(tensor: Tensor) -> Tensor:
        def rows(begin: int, end: int) -> np.ndarray:
            asked.append((end - begin) * int(np.prod(tensor.shape[1:])))
            return tensor.rows(begin, end)

        return Tensor(tensor.dtype, tensor.shape, rows)

    monkeypatch.setattr(sources, "CHUNK_VALUES", 256)
    model = random_source()
    model = replace(model, tensors={name: watched(tensor) for name, tensor in model.tensors.items()})
    made = with_layers(weighted([model, model], [1, 2]), [0, 1, 2, 3, 3])
    made = with_vocabulary(made, vocabulary(PIECES), vocabulary([*PIECES[:100], "ab"]))
    export_bin(tmp_path / "model.bin", made.config, made.tensors, 0)
    assert max(asked) <= 256


# --- Tokens


def vocabulary(names: list[str], special: tuple[str, ...] = ()) -> Vocabulary:
    """sentencepiece's kind, with names as a tokenizer.bin has them. special: more tokens that are no text."""
    known = [name.strip("\n") for name in names]
    kinds = [
        UNKNOWN if name == "<unk>" else CONTROL if name in ("<s>", "</s>", *special) else TEXT
        for name in known
    ]
    kinds = [BYTE if name.startswith("<0x") else kind for name, kind in zip(known, kinds, strict=True)]
    pieces = [
        bytes([int(name[3:5], 16)]) if kind == BYTE else name.encode()
        for name, kind in zip(known, kinds, strict=True)
    ]
    ends = (known.index(name) if name in known else -1 for name in ("<s>", "</s>", "<unk>"))
    scores = [-float(i) for i in range(len(pieces))]
    return Vocabulary(CHARACTERS, pieces, scores, kinds, *ends, flags=SENTENCEPIECE)


@kinds
def test_new_tokens_are_the_mean_of_what_they_are_made_of(dtype):
    names = ["<s>", "<|end|>", "c", "abc", " ab", "é", "</s>", "a", "<0x41>", "<unk>"]
    model, old, new = random_source(0, dtype), vocabulary(PIECES), vocabulary(names, ("<|end|>",))
    swapped = with_vocabulary(model, old, new)
    at = PIECES.index
    bytes_of = [at(f"<0x{byte:02X}>") for byte in "é".encode()]
    expected = [[1], range(len(PIECES)), [at("c")], [at(c) for c in "abc"], [at(c) for c in " ab"]]
    expected += [bytes_of, [2], [at("a")], [at("<0x41>")], [0]]
    assert swapped.config == replace(model.config, vocab_size=len(names))
    for name in ("tok_embeddings.weight", "output.weight"):
        floats = to_floats(model.tensors[name].values(), dtype).astype(np.float64)
        for found, ids in zip(swapped.tensors[name].floats(), expected, strict=True):
            mean = floats[list(ids)].mean(axis=0).astype(np.float32)
            wanted = mean if dtype == "fp32" else to_floats(rounded(mean, dtype), dtype)
            assert np.allclose(found, wanted, rtol=1e-6, atol=1e-7), ids
        assert swapped.tensors[name].values().dtype == NUMPY[dtype]
    assert (swapped.bos, swapped.stops, swapped.vocabulary()) == (-1, (), None)


def test_parts_of_characters_are_their_bytes():
    """As byte-level vocabularies have them."""
    model, old = random_source(), vocabulary(PIECES)
    pieces = [b"a", b"\xc3", b"\xc3\xa9", b"\xa9a"]
    new = Vocabulary(BYTES, pieces, [0.0] * 4, [TEXT] * 4)
    embedding = model.tensors["tok_embeddings.weight"].values()
    a, c3, a9 = (PIECES.index(name) for name in ("a", "<0xC3>", "<0xA9>"))
    expected = [embedding[ids].mean(axis=0) for ids in ([a], [c3], [c3, a9], [a9, PIECES.index("<0x61>")])]
    found = with_vocabulary(model, old, new).tensors["tok_embeddings.weight"].values()
    assert np.allclose(found, expected, atol=1e-6)


# --- The program


def write(folder, model: Source) -> None:
    """A model in each format that is not a checkpoint, with its tokenizer beside it."""
    data = write_ranked(folder / "tokenizer.bin", PIECES).read_bytes()
    export_bin(folder / "v0.bin", model.config, model.tensors, 0)
    export_v3(folder / "v3.bin", model.config, model.tensors, "fp32")
    export_folder(folder / "folder", model)
    export_gguf(folder / "model.gguf", model, "fp32", vocabulary=read_llama2c(folder, data))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surgery")
    write(folder, random_source())
    return folder


@pytest.mark.parametrize("model", ["v0.bin", "v3.bin", "folder", "model.gguf"])
def test_every_kind_of_model_doubled_and_halved_is_what_export_writes(folder, tmp_path, capsys, model):
    name = str(folder / model)
    tokenizer = ["--version", "3", "--tokenizer", str(folder / "tokenizer.bin")]
    surgery.main([name, str(tmp_path / "deep"), "--layers", "0-3,0-3"])
    assert open_source(tmp_path / "deep").config.n_layers == 8
    surgery.main([str(tmp_path / "deep"), str(tmp_path / "again.bin"), "--drop", "4-7", *tokenizer])
    surgery.main([name, str(tmp_path / "sum.bin"), "--merge", f"{name}:2", *tokenizer])
    assert convert.main([name, str(tmp_path / "plain.bin"), *tokenizer]) == 0
    plain = (tmp_path / "plain.bin").read_bytes()
    assert (tmp_path / "again.bin").read_bytes() == plain
    weights = open_source(tmp_path / "sum.bin").tensors
    for key, tensor in open_source(tmp_path / "plain.bin").tensors.items():
        assert np.allclose(weights[key].values(), tensor.values(), rtol=1e-6), key
    assert "again.bin: v3, fp32" in capsys.readouterr().out


def test_a_swap_to_the_same_tokens_is_what_export_writes(folder, tmp_path, capsys):
    model, tokenizer = str(folder / "v0.bin"), str(folder / "tokenizer.bin")
    surgery.main([model, str(tmp_path / "swapped.bin"), "--vocabulary", tokenizer])
    assert convert.main([model, str(tmp_path / "plain.bin"), "--version", "3"]) == 0
    assert (tmp_path / "swapped.bin").read_bytes() == (tmp_path / "plain.bin").read_bytes()
    said = f"of {len(PIECES)} tokens {len(PIECES)} are one of before, 0 the mean of several, 0 of all"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "0-4"], "layers = 0-4: '0-4', allowed numbers from 0 to 3"),
        (["--drop", "0-3"], "n_layers would be 0, allowed 1 to"),
        (["--merge", "{folder}/v0.bin:-1"], "weights add up to 0"),
    ],
)
def test_what_can_not_be_is_one_line(folder, tmp_path, options, message):
    options = [option.format(folder=folder) for option in options]
    with pytest.raises(UsageError, match=message):
        surgery.main([str(folder / "v0.bin"), str(tmp_path / "out.bin"), *options])
    assert not list(tmp_path.iterdir())


def test_models_with_other_tokens_are_not_added(folder, tmp_path):
    write_ranked(tmp_path / "tokenizer.bin", [*PIECES[:-1], "z"])
    (tmp_path / "v0.bin").write_bytes((folder / "v0.bin").read_bytes())
    with pytest.raises(BadFileError, match=r"token 269 is b'z', allowed b'j', as in the first model"):
        surgery.main([str(folder / "v0.bin"), str(tmp_path / "out.bin"), "--merge", str(tmp_path / "v0.bin")])


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--silent", "--drop", "1"],
        ["--drop", "1", "--layers", "0"],
        ["--vocabulary", "a", "--tokenizer", "b"],
    ],
)
def test_options_that_do_not_go_together_end_the_program(options):
    with pytest.raises(SystemExit) as ended:
        surgery.main(["model.bin", "out.bin", *options])
    assert ended.value.code == UsageError.code
