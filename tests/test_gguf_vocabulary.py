"""Tokenizers in GGUF files: they come back as they were, and llama.cpp splits text as they do."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_files import SMALL, LlamaCpp, library_file, random_source, refuses

import tokenizer as tokenizers
from formats import gguf_vocabulary as vocabularies
from formats.gguf import read_vocabulary, write_gguf
from formats.gguf_vocabulary import Vocabulary
from model import Config

TEXTS = [
    "Once upon a time, there was a little girl.\nShe  loved to play",
    "def f(x):\n\treturn 12",
    "Où? 世界 \U0001f600",
]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.gguf"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tokenizers.Tokenizer:
    return tokenizers.train(TEXTS * 3, 330, tmp_path_factory.mktemp("tokenizer") / "tok.model")


@pytest.fixture(scope="module")
def llama3(tmp_path_factory) -> tokenizers.Tokenizer:
    """A tokenizer in Llama 3's form: the 256 bytes, some merges, 256 special tokens."""
    merges = [b"th", b"he", b" t", b"the", b" the", b"ll", b"llo", b"hello", b"  ", b"12", b"\xc3\xb9"]
    path = tmp_path_factory.mktemp("llama3") / "tokenizer.model"
    tokens = [bytes([byte]) for byte in range(256)] + merges
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens)))
    return tokenizers.load(path)


def vocabulary_of(tokenizer: tokenizers.Tokenizer) -> Vocabulary:
    if tokenizer.kind == "sentencepiece":
        return vocabularies.from_sentencepiece(tokenizer)
    tokens = tokenizer.model.token_byte_values()
    ranks = {token: tokenizer.model.encode_single_token(token) for token in tokens}
    return vocabularies.from_ranks(ranks, tokenizer.special)


@pytest.mark.parametrize("template", ["none", "llama2", "llama3"])
def test_a_sentencepiece_vocabulary_comes_back_as_it_was(path, trained, template):
    data, source = tokenizers.to_bin(trained), random_source(Config(**SMALL | {"vocab_size": 330}))
    vocabulary = vocabularies.from_bin(trained.path, data)
    assert vocabulary == vocabulary_of(trained)
    write_gguf(path, source, "int8", vocabulary=replace(vocabulary, template=template))
    back = read_vocabulary(path)
    assert back == replace(vocabulary, template=template)
    assert vocabularies.to_bin(back) == data
    assert (back.tokens[:4], back.types[:4]) == (["<unk>", "<s>", "</s>", "<0x00>"], [2, 3, 3, 6])
    assert (back.bos, back.eos) == (1, 2)


def test_a_llama_3_vocabulary_comes_back_as_it_was(path, llama3):
    vocabulary = vocabulary_of(llama3)
    write_gguf(
        path,
        random_source(Config(**SMALL | {"vocab_size": llama3.vocab_size})),
        "int8",
        vocabulary=vocabulary,
    )
    back = read_vocabulary(path)
    assert back == vocabulary
    assert (back.kind, back.bos, back.eos) == ("gpt2", llama3.bos_id, llama3.eos_id)
    assert back.stops == (llama3.special["<|eom_id|>"], llama3.special["<|eot_id|>"])
    assert back.merges[:5] == ["t h", "h e", "Ġ t", "t he", "th e"]
    assert back.tokens[256 + 10] == "Ã¹"


def test_all_that_ends_a_text_of_an_instruct_model_is_found(path, llama3):
    """Their files have <|eot_id|> as EOS."""
    eom, eot = llama3.special["<|eom_id|>"], llama3.special["<|eot_id|>"]
    vocabulary = replace(vocabulary_of(llama3), eos=eot)
    source = random_source(Config(**SMALL | {"vocab_size": llama3.vocab_size}))
    write_gguf(path, source, "int8", vocabulary=vocabulary)
    back = read_vocabulary(path)
    assert (back.eos, back.stops) == (eot, (llama3.eos_id, eom))


MESSAGES = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hello "},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Go on"},
]
CHATS = {
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST] Hi. </s><s>[INST] Go on [/INST]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nGo on<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
}


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_template_renders_as_its_model_was_trained(name):
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Template(vocabularies.TEMPLATES[name])
    text = template.render(messages=MESSAGES, bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
    assert text == CHATS[name]


# --- llama.cpp


@pytest.mark.parametrize("kind", ["trained", "llama3"])
def test_llama_cpp_splits_text_as_the_tokenizer_does(path, kind, request):
    tokenizer = request.getfixturevalue(kind)
    source = random_source(Config(**SMALL | {"vocab_size": tokenizer.vocab_size}))
    write_gguf(path, source, "int8", vocabulary=vocabulary_of(tokenizer))
    model = LlamaCpp(path)
    for text in [*TEXTS, " the  hello  12 thellothe \n\n <s> <|eot_id|>"]:
        assert model.ids(text) == tokenizer.encode(text), text


# --- What is refused

VOCABULARIES = {
    "another kind": (
        {"tokenizer.ggml.model": "bert"},
        r"tokenizer\.ggml\.model = 'bert', allowed 'llama' and 'gpt2'",
    ),
    "another pattern": (
        {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2"},
        r"tokenizer\.ggml\.pre = 'qwen2', allowed 'llama-bpe' and 'llama3' and 'llama-v3'",
    ),
    "no tokens": ({"tokenizer.ggml.tokens": None}, r"tokenizer\.ggml\.tokens is missing"),
    "too few scores": ({"tokenizer.ggml.scores": [0.5]}, r"tokenizer\.ggml\.scores has 1 values, allowed 3"),
    "scores that are none": (
        {"tokenizer.ggml.scores": ["a", "b", "c"]},
        r".*scores = \['a', 'b', 'c'\], allowed a list",
    ),
    "EOS that is none": (
        {"tokenizer.ggml.eos_token_id": 3},
        r"tokenizer\.ggml\.eos_token_id = 3, allowed 0 to 2",
    ),
    "no space in front": (
        {"tokenizer.ggml.add_space_prefix": False},
        r".*add_space_prefix = False, allowed True",
    ),
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_a_vocabulary_that_the_engine_cannot_have_is_refused(path, case):
    keys, message = VOCABULARIES[case]
    usual = {"model": "llama", "tokens": ["a", "b", "c"], "scores": [0.0, 0.5, 1.0], "token_type": [1, 1, 1]}
    usual = {f"tokenizer.ggml.{key}": value for key, value in usual.items()}
    library_file(path, random_source(Config(**SMALL)), keys=usual | keys)
    refuses(path, message, read_vocabulary)
