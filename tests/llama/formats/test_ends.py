"""What ends a text: tokens that llama.cpp knows by name, and the one behind an answer of a template."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf_files import SMALL, LlamaCpp, library_file, random_source
from references import needs_llama_cpp
from test_chat import MADE
from test_chat_templates import EACH, LLAMA3, folder_with, run
from torch_formats import open_gguf, open_source

from llama import Llama
from llama.formats.gguf_keys import TokenType
from llama.formats.gguf_vocabulary import ENDS
from model import Config

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
GROUPS = [ENDS[i : i + 6] for i in range(0, len(ENDS), 6)]
GROUPS += [
    ("<|end|>", "<|return|>", "<|call|>"),
    ("<|end|>", "<|flush|>", "<|calls|>"),
    ("<|end|>", "<|call|>"),
]
TYPES = (TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED)


def file_with(path: Path, names: tuple[str, ...], of: TokenType) -> Path:
    """A model whose EOS is none of the names, of tokens of some type, behind the bytes and three others."""
    pieces = ["<unk>", "<s>", "<last>", *BYTES, *names, "\u2581", "<|im_start|>"]
    letters = [chr(0x61 + i) for i in range(26)]
    types = [2, 3, 3, *[6] * 256, *[int(of)] * len(names), 1, 3, *[1] * 26]
    keys = {"model": "llama", "tokens": [*pieces, *letters], "token_type": types}
    keys |= {"scores": [-float(i) for i in range(len(types))], "bos_token_id": 1, "eos_token_id": 2}
    source = random_source(Config(**SMALL | {"vocab_size": len(types)}))
    library_file(path, source, keys={f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    return path


@needs_llama_cpp
@pytest.mark.parametrize("of", TYPES, ids=lambda of: of.name)
@pytest.mark.parametrize("names", GROUPS, ids=range(len(GROUPS)))
def test_a_gguf_file_ends_texts_by_the_names_by_which_llama_cpp_does(tmp_path, names, of):
    import llama_cpp

    path = file_with(tmp_path / "a.gguf", names, of)
    theirs, source = LlamaCpp(path), open_gguf(path)
    vocab = llama_cpp.llama_model_get_vocab(theirs._model.model)
    ends = [i for i in range(source.config.vocab_size) if llama_cpp.llama_vocab_is_eog(vocab, i)]
    assert sorted(source.stops) == ends


@needs_llama_cpp
@pytest.mark.parametrize("of", TYPES, ids=lambda of: of.name)
def test_what_ends_a_text_is_a_control_token_whatever_its_type(tmp_path, of):
    """A user who writes its name gets the characters."""
    path = file_with(tmp_path / "a.gguf", ("<|im_end|>", "<|endoftext|>"), of)
    theirs, text = LlamaCpp(path), "hi<|im_end|> x<|endoftext|>"
    with Llama(path) as engine:
        encode = engine.tokenizer.encode
        assert encode(text, bos=False, special=False) == theirs.ids(text)
        special = theirs._model.tokenize(text.encode(), add_bos=False, special=True)
        assert encode(text, bos=False, special=True) == special


KINDS = {"chatml": (EACH, "<|im_end|>"), "llama3": (LLAMA3, "<|eot_id|>")}


@pytest.mark.parametrize("out", ["a.bin", "a.gguf", "folder"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_ends_with_the_token_of_its_template_whatever_the_files_say(tmp_path, kind, out):
    template, name = KINDS[kind]
    end, question = MADE.special[name], [{"role": "user", "content": "hi"}]
    path = folder_with(tmp_path / "folder", template)
    assert open_source(path).stops == (MADE.eos,)
    if out != "folder":
        run(path, path := tmp_path / out, *(["--version", "3"] if out == "a.bin" else []))
        assert end in open_source(path).stops
    with Llama(path) as engine:
        answer = engine.chat(question, max_tokens=5, temperature=0, logit_bias={end: 1e9})
        assert ("".join(answer), answer.finish) == ("", "stop_token")


def test_a_template_that_is_chosen_brings_its_end(tmp_path):
    path = folder_with(tmp_path / "folder", "{{ messages[0].content }}")
    for template, stops in (("chatml", (MADE.eos, MADE.special["<|im_end|>"])), ("plain", (MADE.eos,))):
        run(path, tmp_path / "a.bin", "--version", "3", "--template", template)
        assert open_source(tmp_path / "a.bin").stops == stops
