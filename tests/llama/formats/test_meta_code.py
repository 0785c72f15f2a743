"""What Meta's own code makes of a Llama 3.1 folder, model.py and the engine make of it: one answer.

The code is that of llama-models; its layers are fairscale's, for one process among which nothing is split.
Left out on purpose: shards and other families (test_meta.py), what transformers makes of them.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from fairscale.nn.model_parallel import initialize as split
from hypothesis import given, settings
from llama_models.llama3 import model as code
from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer
from references import llama3_tokenizer_path
from test_tokenizer import SCRIPTS, TRICKY
from test_tokenizer_bytes import EDGES, NAMES, texts
from torch import distributed
from torch_formats import open_source

import llama
from llama import convert
from llama.formats import tokenizers
from model import Llama

# Heads of 8 have two pairs that turn as before, one that is stretched in part and one in full.
LLAMA31 = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 64, "norm_eps": 1e-5}
LLAMA31 |= {"multiple_of": 32, "ffn_dim_multiplier": 1.3, "rope_theta": 500000.0, "use_scaled_rope": True}
LENGTH = 8192 + 8  # beyond the original context, where scaling counts most
CASES = {
    "Llama 3.1": (LLAMA31, LENGTH),
    "without scaling": (LLAMA31 | {"use_scaled_rope": False, "max_seq_len": LENGTH}, LENGTH),
    "without groups": (LLAMA31 | {"n_kv_heads": 4}, 64),
    "one head of keys": (LLAMA31 | {"n_kv_heads": 1}, 64),
}
ATOL = 1e-4  # of logits of a few units, which come to 3e-6; without scaling they differ by 1
AT_ONCE = 512  # positions, or the scores of a layer would take a gigabyte


@functools.cache
def both_tokenizers() -> tuple[MetaTokenizer, tokenizers.Tokenizer]:
    return MetaTokenizer(llama3_tokenizer_path()), tokenizers.load(llama3_tokenizer_path())


@pytest.fixture(scope="module")
def meta() -> Iterator[ModuleType]:
    """The module of Meta's code, in a group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    split.initialize_model_parallel(1)
    yield code
    split.destroy_model_parallel()
    distributed.destroy_process_group()


def random_model(meta: ModuleType, params: dict[str, Any], length: int) -> Any:
    """Weights whose logits spread over a few units."""
    torch.manual_seed(0)
    arguments = meta.ModelArgs(**params | {"max_batch_size": 1, "max_seq_len": length})
    model = meta.Transformer(arguments).eval()
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        else:
            torch.nn.init.normal_(weight, 0, 1 if name.startswith("tok") else weight.shape[-1] ** -0.5)
    return model


def save(model: Any, params: dict[str, Any], folder: Path) -> Path:
    """As Meta publishes a model."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))
    torch.save(model.state_dict(), folder / "consolidated.00.pth")
    return folder


def logits_of_meta(model: Any, ids: list[int]) -> np.ndarray:
    """Logits (T, vocab_size); keys and values of what came before are kept."""
    tokens = torch.tensor([ids])
    starts = range(0, len(ids), AT_ONCE)
    return torch.cat([model(tokens[:, i : i + AT_ONCE], i)[0] for i in starts]).numpy()


def logits_of_model_py(folder: Path, ids: list[int]) -> np.ndarray:
    source = open_source(folder)
    model = Llama(source.config).eval()
    model.load_state_dict(dict(source.tensors))
    with torch.no_grad():
        return model(torch.tensor([ids]))[0].numpy()


def opened(folder: Path, context: int) -> llama.Llama:
    path = folder.with_suffix(".bin")
    assert convert.main([str(folder), str(path), "--version", "3", "--dtype", "fp32"]) == 0
    return llama.Llama(path, context=context)


@pytest.mark.parametrize("case", CASES)
def test_metas_code_model_py_and_the_engine_give_one_answer(meta, tmp_path, case):
    params, length = CASES[case]
    model = random_model(meta, params, length)
    folder = save(model, params, tmp_path / "meta")
    ids = torch.randint(64, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    expected = logits_of_meta(model, ids)
    assert expected.std() > 0.5
    np.testing.assert_allclose(logits_of_model_py(folder, ids), expected, rtol=0, atol=ATOL)
    with opened(folder, length) as engine:
        np.testing.assert_allclose(engine.logits(ids), expected, rtol=0, atol=ATOL)


def test_a_folder_with_its_tokenizer_gives_metas_ids_and_logits(meta, tmp_path):
    theirs, text = both_tokenizers()[0], "The capital of France is\n\n1234 世界 \U0001f600"
    params = LLAMA31 | {"vocab_size": theirs.n_words}
    model = random_model(meta, params, 64)
    folder = save(model, params, tmp_path / "meta")
    shutil.copy(llama3_tokenizer_path(), folder / "tokenizer.model")
    ids = theirs.encode(text, bos=True, eos=False)
    with opened(folder, 64) as engine:
        assert engine.encode(text) == ids
        np.testing.assert_allclose(engine.logits(ids), logits_of_meta(model, ids), rtol=0, atol=ATOL)


# --- The tokenizer


def assert_same(text: str) -> None:
    theirs, ours = both_tokenizers()
    plain = theirs.encode(text, bos=False, eos=False)
    assert ours.encode(text) == plain
    assert ours.encode(text, special=True) == theirs.encode(text, bos=False, eos=False, allowed_special="all")
    assert ours.decode(plain) == theirs.decode(plain)


@pytest.mark.parametrize("text", [*TRICKY, *EDGES, *NAMES, *SCRIPTS.split("\n"), SCRIPTS], ids=ascii)
def test_the_tokenizer_equals_metas_on_tricky_text(text):
    assert_same(text)


@settings(max_examples=300)
@given(texts)
def test_the_tokenizer_equals_metas_on_any_text(text):
    assert_same(text)


def test_special_tokens_have_metas_names_and_ids():
    theirs, ours = both_tokenizers()
    assert ours.special == theirs.special_tokens
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (theirs.n_words, theirs.bos_id, theirs.eos_id)
