"""Each family of Llamas, from a folder of transformers to the engine: the logits are those of transformers.

What lies between has tests of its own: test_huggingface.py (reading), test_model.py, test_v3.py (the file).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from test_huggingface import save
from test_model import FAMILIES, fresh, tokens

import llama
from llama import convert


@torch.no_grad()
def in_transformers(folder, ids: list[int], **options) -> np.ndarray:
    """Logits (T, vocab_size)."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    return model(torch.tensor([ids])).logits[0].float().numpy()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_engine_has_the_logits_of_transformers(tmp_path, family, dtype):
    model = fresh(FAMILIES[family])
    model = model.bfloat16().float() if dtype == "bf16" else model  # so that bf16 loses nothing
    folder, ids = save(model, tmp_path / "theirs"), tokens(1, 96)[0].tolist()
    expected = in_transformers(folder, ids, dtype=torch.float32)
    assert convert.main([str(folder), str(tmp_path / "v3.bin"), "--version", "3", "--dtype", dtype]) == 0
    with llama.Llama(tmp_path / "v3.bin", exact=True) as engine:  # some CPUs round activations for bf16
        found = engine.logits(ids)
    assert expected.std() > 0.5
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["Llama 2, eps 1e-6", "Code Llama", "Llama 3", "Llama 3.1", "Llama 3.2"])
def test_what_makes_a_family_is_seen_in_its_logits(tmp_path, family):
    """Else the test above could not tell whether the engine knows of it."""
    model, plain = fresh(FAMILIES[family]), FAMILIES["Llama 2"]
    folder, ids = save(model, tmp_path / "theirs"), tokens(1, 96)[0].tolist()
    expected = in_transformers(folder, ids, dtype=torch.float32)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.rms_norm_eps, config.rope_parameters = plain.norm_eps, {"rope_type": "default", "rope_theta": 1e4}
    assert np.abs(in_transformers(folder, ids, dtype=torch.float32, config=config) - expected).max() > 2e-4
