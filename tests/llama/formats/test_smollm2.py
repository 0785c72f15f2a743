"""SmolLM2-135M-Instruct, published as a GGUF, is what transformers makes of it: ids, logits and text."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from references import smollm2_path
from test_tokenizer import SCRIPTS, TRICKY
from test_tokenizer_bytes import EDGES

import llama
from llama import convert

PROMPT = "The capital of France is"
QUESTION, ANSWER, SECOND = "What is the capital of France?", "Paris.", "And of Italy?"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """The model in fp32, which holds what the GGUF stands for without another rounding."""
    path = tmp_path_factory.mktemp("smollm2") / "model.bin"
    assert convert.main([str(smollm2_path()), str(path), "--version", "3", "--dtype", "fp32"]) == 0
    return path


@pytest.fixture(scope="module")
def engine(path) -> Iterator[llama.Llama]:
    with llama.Llama(path, context=256) as engine:
        yield engine


@pytest.fixture(scope="module")
def model() -> Any:
    folder, file = smollm2_path().parent, smollm2_path().name
    return transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return transformers.AutoTokenizer.from_pretrained(smollm2_path().parent, gguf_file=smollm2_path().name)


def test_ids_logits_and_the_greedy_text_are_those_of_transformers(engine, model, tokenizer):
    ids = tokenizer(PROMPT).input_ids
    assert engine.encode(PROMPT) == ids
    text = "".join(engine.generate(PROMPT, max_tokens=20, temperature=0))
    assert text.startswith(" Paris")
    more = tokenizer(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        expected = model(torch.tensor([[*ids, *more]])).logits[0].numpy()
    assert expected.std() > 5
    np.testing.assert_allclose(engine.logits([*ids, *more]), expected, rtol=0, atol=1e-3)
    assert expected[len(ids) - 1 : -1].argmax(-1).tolist() == more


def test_its_tokenizer_equals_transformers(engine, tokenizer):
    for text in [*TRICKY, *EDGES, *SCRIPTS.split("\n")]:
        assert engine.encode(text) == tokenizer(text, add_special_tokens=False).input_ids, ascii(text)


def test_its_chat_has_the_ids_of_its_own_template(engine, tokenizer):
    """ChatML, and a first message of the system's that says who it is."""

    def rendered(*messages: tuple[str, str]) -> list[int]:
        told = [{"role": role, "content": text} for role, text in messages]
        return tokenizer.apply_chat_template(told, add_generation_prompt=True, return_dict=False)

    first = engine.encode_turn(QUESTION)
    assert first == rendered(("user", QUESTION))
    assert engine.encode_turn(QUESTION, "Be brief.") == rendered(("system", "Be brief."), ("user", QUESTION))
    later = engine.encode_turn(SECOND, first=False)
    answer = engine.encode(ANSWER, bos=False)
    expected = rendered(("user", QUESTION), ("assistant", ANSWER), ("user", SECOND))
    assert [*first, *answer, *later] == expected


CHAT = "import sys; {}; from llama.cli import main; sys.exit(main())"


@pytest.mark.parametrize("before", ["pass", "sys.modules['jinja2'] = None"])
@pytest.mark.parametrize("options", [(), ("--dtype", "fp32"), ("--dtype", "int8", "--exact")])
def test_two_questions_on_standard_input_have_sensible_answers(options, before):
    command = [sys.executable, "-c", CHAT.format(before), "chat", smollm2_path(), "-t", "0", *options]
    questions = f"{QUESTION}\n{SECOND}\n".encode()
    result = subprocess.run(command, input=questions, capture_output=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    first, second = re.findall(r"Assistant: (.*)", result.stdout.decode())
    assert first == "The capital of France is Paris."
    assert "Rome" in second
