"""Embeddings beside transformers: the mean, or the last, of its last hidden states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from llama.formats.export import export_folder
from llama.formats.models import open_source

TEXTS = ["abc", "a bc def " * 9, "j"]


@pytest.fixture(scope="module")
def reference(tiny, tmp_path_factory) -> transformers.PreTrainedModel:
    folder = tmp_path_factory.mktemp("reference") / "model"
    export_folder(folder, open_source(Path(tiny.path)))
    return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_those_of_transformers(server, tiny, reference, pooling):
    data = server.post("/v1/embeddings", {"input": TEXTS, "pooling": pooling}).json["data"]
    for text, found in zip(TEXTS, data, strict=True):
        with torch.no_grad():
            hidden = reference(torch.tensor([tiny.encode(text)])).last_hidden_state[0]
        expected = hidden.mean(0) if pooling == "mean" else hidden[-1]
        torch.testing.assert_close(torch.tensor(found["embedding"]), expected, rtol=1e-4, atol=1e-4)


def test_a_long_text_is_read_between_the_tokens_of_others(server, tiny):
    ids = [5] * tiny.context
    assert server.post("/v1/embeddings", {"input": ids}).status == 200
    assert server.post("/v1/embeddings", {"input": [*ids, 5]}).status == 400
