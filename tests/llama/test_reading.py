"""What texts are to a model: their log-probabilities and embeddings are those of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

import llama
from llama.reading import CHUNK, embedding, logprobs, result

VOCABULARY = 97
TEXT = [int(i) for i in np.random.default_rng(1).integers(3, VOCABULARY, 2 * CHUNK + 5)]


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=256, **sizes
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    reference.save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRIA_CACHE", str(folder / "cache"))
        with llama.Llama(folder, dtype="fp32") as model:
            yield model


@torch.no_grad()
def expected_logprobs(reference) -> np.ndarray:
    """(tokens, vocabulary)"""
    return reference(torch.tensor([TEXT])).logits[0].log_softmax(-1).numpy()


@torch.no_grad()
def hidden_states(reference) -> np.ndarray:
    """(tokens, dim)"""
    return reference.model(torch.tensor([TEXT])).last_hidden_state[0].numpy()


def test_logprobs_are_those_of_transformers(reference, model):
    found, expected = model.logprobs(TEXT, top=5), expected_logprobs(reference)
    assert found[0] == (None, ())
    for scored, row, token in zip(found[1:], expected, TEXT[1:], strict=False):
        assert scored.logprob == pytest.approx(row[token], abs=1e-5)
        np.testing.assert_allclose([logprob for _, logprob in scored.top], np.sort(row)[:-6:-1], atol=1e-5)
        assert all(row[i] == pytest.approx(logprob, abs=1e-5) for i, logprob in scored.top)


def test_a_token_and_its_entry_among_the_most_likely_are_the_same_number(model):
    """So a client that compares the two sees that it is the most likely one."""
    ids = TEXT[:3]
    for _ in range(20):
        ids = [*ids, model.logprobs([*ids, 0], top=1)[-1].top[0][0]]
    greedy = model.logprobs(ids, top=2)[3:]
    assert [scored.top[0] for scored in greedy] == [
        (token, scored.logprob) for token, scored in zip(ids[3:], greedy, strict=True)
    ]


def test_logprobs_are_the_scores(model):
    assert [scored.logprob for scored in model.logprobs(TEXT, top=0)[1:]] == model.score(TEXT)
    assert model.logprobs([], top=3) == []
    assert model.logprobs([5], top=3) == [(None, ())]


@pytest.mark.parametrize(
    ("pooling", "expected"), [("mean", lambda rows: rows.mean(0)), ("last", lambda rows: rows[-1])]
)
def test_an_embedding_is_the_pooled_last_hidden_state_of_transformers(reference, model, pooling, expected):
    found = model.embed(TEXT, pooling)
    assert (found.dtype, found.shape) == (np.float32, (32,))
    np.testing.assert_allclose(found, expected(hidden_states(reference)), atol=1e-5)


def test_readings_take_turns(model):
    """A reader in another sequence does not change what comes out."""
    context = llama.native.context_init(model._model, sequences=2)
    one, two = logprobs(context, TEXT, 2), embedding(context, TEXT[::-1], sequence=1)
    next(one)
    next(two)
    assert result(one) == model.logprobs(TEXT, 2)
    assert np.array_equal(result(two), model.embed(TEXT[::-1]))


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda model: model.logprobs(TEXT, top=129), "top = 129, allowed 0 to 128"),
        (lambda model: model.logprobs([*TEXT, VOCABULARY, 1]), f"token = {VOCABULARY}"),
        (lambda model: model.logprobs([1] * 258), "257 tokens do not fit in the context of 256"),
        (lambda model: model.embed([]), "no tokens"),
        (lambda model: model.embed([1] * 257), "257 tokens do not fit in the context of 256"),
        (lambda model: model.embed([2**40]), "does not fit"),
        (lambda model: model.embed(TEXT, "max"), "pooling = 'max', allowed mean, last"),
    ],
)
def test_what_cannot_be_read_is_refused(model, read, message):
    with pytest.raises(llama.UsageError, match=message):
        read(model)
