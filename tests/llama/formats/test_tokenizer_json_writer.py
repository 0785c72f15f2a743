"""Tokenizers that are written for transformers give the ids of the engine, and of llama.cpp, for any text.

What compares with llama.cpp needs llama-cpp-python, and is left out where that is not installed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from gguf_files import SMALL, LlamaCpp, random_source
from helpers import TEXTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from references import needs_llama_cpp
from sentencepiece import sentencepiece_model_pb2 as pb
from test_gguf_vocabulary import merge_order
from test_tokenizer_json import KINDS as KINDS_OF_JSON
from torch_formats import export_bin, export_folder, export_gguf, open_source

from llama import convert
from llama.errors import BadFileError
from llama.formats import tokenizers
from llama.formats import vocabulary as tokens
from llama.formats.chat_templates import TEMPLATES, Chat
from llama.formats.huggingface import read_chat
from llama.formats.tokenizer_json_writer import write_tokenizer
from llama.formats.vocabulary import Vocabulary
from model import Config

KINDS = ("trained", "llama3", "gpt2")
HARD = [
    *TEXTS,
    "",
    " ",
    "  two",
    "a  b\n\n c",
    " the  hello  12 thellothe \n\n",
    "12345 \u00bd",
    "\u0130\u00df",
]


@pytest.fixture(params=KINDS)
def known(request) -> tokenizers.Tokenizer:
    return request.getfixturevalue(request.param)


def write(folder: Path, vocabulary: Vocabulary, template: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in write_tokenizer("model", vocabulary, template).items():
        (folder / name).write_bytes(data)
    return folder


def in_transformers(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def run(*arguments: str | Path) -> None:
    assert convert.main([*map(str, arguments)]) == 0


# --- Ids


def test_transformers_gives_the_ids_and_texts_of_the_tokenizer(tmp_path, known):
    theirs = in_transformers(write(tmp_path / "folder", known.vocabulary))
    assert len(theirs) == known.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id) == tuple(
        None if i < 0 else i for i in (known.bos_id, known.eos_id)
    )
    for text in HARD:
        ids = known.encode(text, bos=known.bos_id >= 0)
        assert theirs.encode(text) == ids, text
        assert theirs.decode(ids, skip_special_tokens=True) == known.decode(ids), text


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_text_has_the_same_ids(tmp_path, known, data):
    folder = tmp_path / "folder"
    theirs = in_transformers(folder if folder.exists() else write(folder, known.vocabulary))
    text = data.draw(st.text(st.sampled_from("abhelotTs\u00f9\u4e16 \n\t12'.,\U0001f600"), max_size=40))
    assert theirs.encode(text, add_special_tokens=False) == known.encode(text)


def test_special_tokens_in_a_text_are_meant(tmp_path, llama3):
    theirs = in_transformers(write(tmp_path / "folder", llama3.vocabulary))
    text = "<|start_header_id|>user<|end_header_id|>\n\nhello <|eot_id|> the"
    assert theirs.encode(text) == llama3.encode(text, bos=True, special=True)


def test_a_file_that_is_read_again_is_the_same_tokenizer(tmp_path, known):
    """But for what the library's own files do not say either, that <unk> is no name to ask for."""
    found = tokenizers.load(write(tmp_path / "folder", known.vocabulary) / "tokenizer.json")
    expected = known.vocabulary
    assert [*found.vocabulary.pieces] == [*expected.pieces]
    assert (found.vocabulary.pattern, found.bos_id, found.eos_id) == (
        expected.pattern,
        expected.bos,
        expected.eos,
    )
    for text in HARD:
        assert found.encode(text) == known.encode(text)
        assert found.decode(found.encode(text)) == known.decode(known.encode(text))


FLAGS = {
    "none": 0,
    "in front": tokens.PREFIX | tokens.PREFIX_EACH | tokens.STRIP,
    "kept when printed": tokens.PREFIX | tokens.PREFIX_EACH,
    "of the first": tokens.PREFIX | tokens.PREFIX_UNLESS_SPACE | tokens.STRIP,
    "unless there is one": tokens.PREFIX | tokens.PREFIX_EACH | tokens.PREFIX_UNLESS_SPACE | tokens.STRIP,
}


@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_spaces_in_front_and_user_defined_tokens_are_as_they_were(tmp_path, trained, flags):
    v = trained.vocabulary
    pieces, types, at = [*v.pieces], [*v.types], v.pieces.index(b"def")
    pieces[at], types[at] = b"<user>", tokens.USER
    vocabulary = replace(v, types=types, pieces=pieces, flags=flags | tokens.USER_FIRST)
    ours = tokenizers.load_vocabulary(Path("ours"), "tokenizer.json", vocabulary.indexed, vocabulary)
    theirs = in_transformers(write(tmp_path / "folder", vocabulary))
    for text in [*HARD, "<user>the <user> girl<user><user> a</s> girl"]:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == ours.encode(text, special=True), text
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids), text


def with_runs(v: Vocabulary, lengths: list[int]) -> Vocabulary:
    """The vocabulary, with runs of spaces that share a score."""
    pieces, n = [*v.pieces, *(b" " * length for length in lengths)], len(lengths)
    return replace(v, pieces=pieces, types=[*v.types, *[tokens.TEXT] * n], scores=[*v.scores, *[-1e9] * n])


def test_runs_of_spaces_with_one_score_are_found_as_sentencepiece_finds_them(tmp_path, trained):
    """As in Llama 2, whose runs of 2 to 16 spaces all have the score -1e9."""
    v = with_runs(trained.vocabulary, [2, 4, 8, 5, 16, 6, 12, 13, 10, 14, 3, 9, 7, 11, 15])
    ours = tokenizers.load_vocabulary(Path("ours"), "tokenizer.bin", v.indexed, v)
    theirs = in_transformers(write(tmp_path / "folder", v))
    for spaces in range(1, 100):
        for text in (" " * spaces, f"a{' ' * spaces}b"):
            assert theirs.encode(text) == ours.encode(text, bos=True), spaces
    for lengths in ([*range(2, 17)], [2, 4, 3, 5], [2, 4, 8], [2, 4, 3, 5, 6, 7, 8], [4, 2, 3]):
        with pytest.raises(BadFileError, match="tokens have the score -1000000000"):
            write_tokenizer("model", with_runs(trained.vocabulary, lengths), "none")


def test_pairs_are_kept_in_their_order(tmp_path):
    pieces, merges = [*map(bytes, zip(range(256)))], [(b"a", b"b"), (b"b", b"c"), (b"b", b"bc")]
    pieces += [left + right for left, right in merges]
    n, found = len(pieces), []
    for order in (merges, [*reversed(merges)]):
        v = Vocabulary(tokens.BYTES, pieces, [0.0] * n, [tokens.TEXT] * n, pattern=tokens.GPT2, merges=order)
        ours = tokenizers.load_vocabulary(Path("ours"), "tokenizer.json", v.indexed, v)
        theirs = in_transformers(write(tmp_path / str(len(found)), v))
        found.append([ours.encode(text) for text in ("abc", "abbc", "bbbc ab")])
        assert [theirs.encode(text) for text in ("abc", "abbc", "bbbc ab")] == found[-1]
    assert found[0] != found[1]


# --- By way of files


def gguf_of(path: Path, known: tokenizers.Tokenizer) -> Path:
    """Writes a random model with this tokenizer as GGUF."""
    source = random_source(Config(**SMALL | {"vocab_size": known.vocab_size, "tied": False}))
    source = replace(source, bos=known.bos_id, stops=(known.eos_id,), chat=Chat("llama3"))
    export_gguf(path, source, "fp32", vocabulary=known.vocabulary)
    return path


@needs_llama_cpp
def test_llama_cpp_and_the_engine_agree_on_one_gguf_file(tmp_path, known):
    cpp = LlamaCpp(gguf_of(tmp_path / "model.gguf", known))
    for text in HARD[:3]:
        assert cpp.ids(text) == known.encode(text)


def test_the_engine_and_transformers_agree_on_one_gguf_file(tmp_path, known):
    run(gguf_of(tmp_path / "model.gguf", known), tmp_path / "folder")
    theirs = in_transformers(tmp_path / "folder")
    for text in HARD[:3]:
        assert theirs.encode(text, add_special_tokens=False) == known.encode(text)
    messages = [{"role": "user", "content": "hello"}]
    assert "hello<|eot_id|>" in theirs.apply_chat_template(messages, tokenize=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    assert model.config.vocab_size == known.vocab_size
    assert model.generation_config.eos_token_id in (known.eos_id, [268, 275, 276])  # Llama 3 has three


def test_a_tokenizer_bin_beside_a_model_becomes_a_tokenizer_json(tmp_path, trained):
    source = random_source(Config(**SMALL | {"vocab_size": trained.vocab_size}))
    export_bin(tmp_path / "model.bin", source.config, source.tensors)
    tokenizers.export_bin(trained, tmp_path / "tokenizer.bin")
    run(tmp_path / "model.bin", tmp_path / "folder")
    tokenizers.export_bin(trained, tmp_path / "other.bin", indexed=True)
    run(tmp_path / "model.bin", tmp_path / "again", "--tokenizer", tmp_path / "other.bin")
    for folder in ("folder", "again"):
        theirs = in_transformers(tmp_path / folder)
        for text in HARD:
            assert theirs.encode(text) == trained.encode(text, bos=True)
    run(tmp_path / "folder", tmp_path / "v3.bin", "--version", "3")
    assert merge_order(open_source(tmp_path / "v3.bin").vocabulary()) == merge_order(trained.vocabulary)


# --- What is refused

REFUSED = {
    "flags = 1, of a space in front allowed 0, 3, 5, 7": {"flags": tokens.PREFIX},
    "flags = 67, allowed with user-defined tokens 83": {"types": {5: tokens.USER}},
    "byte tokens = 255, allowed all 256": {"types": {5: tokens.TEXT}},
    "2 tokens are spelt '<s>', allowed one": {"pieces": {-1: b"<s>"}, "types": {-1: tokens.USER}, "flags": 0},
    "2 tokens have the score ": {"scores": {-60: 7.5, -61: 7.5}},
    "token 287 = ' \U0001f600', allowed with a token for '\U0001f600'": {
        "pieces": {-1: b"<user>"},
        "types": {-1: tokens.CONTROL},
    },
    "token 329 = b'\\xff', allowed is UTF-8": {"pieces": {-1: b"\xff"}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_the_file_cannot_say_is_refused_by_field(trained, message):
    changes: dict[str, Any] = {}
    for name, change in REFUSED[message].items():
        values = change
        if isinstance(change, dict):
            values = [*getattr(trained.vocabulary, name)]
            for i, value in change.items():
                values[i] = value
        changes[name] = values
    with pytest.raises(BadFileError) as error:
        write_tokenizer("model", replace(trained.vocabulary, **changes))
    assert str(error.value).startswith(f"model: a tokenizer.json can't hold the tokenizer: {message}")


def test_the_template_goes_along(tmp_path, trained):
    for name, template in (*TEMPLATES.items(), ("none", "")):
        folder = write(tmp_path / name, trained.vocabulary, template)
        assert read_chat(folder) == (Chat("other", template) if template else Chat())
    assert json.loads((tmp_path / "none" / "tokenizer_config.json").read_text())["eos_token"] == "</s>"


# --- Kinds that only a tokenizer.json brings


@pytest.mark.parametrize("kind", [*KINDS_OF_JSON])
def test_what_was_read_from_a_file_of_the_library_is_written_with_the_same_ids(tmp_path, kind):
    (path := tmp_path / "tokenizer.json").write_text(json.dumps(KINDS_OF_JSON[kind]()))
    ours = tokenizers.load(path)
    theirs = in_transformers(write(tmp_path / "folder", ours.vocabulary))
    for text in (*HARD, "the \u017c\u0448 ball", "x<|eot|>y <|eot|>"):
        assert theirs.encode(text, add_special_tokens=False) == ours.encode(text, special=True), text


# --- A tokenizer.model in a folder


@pytest.mark.parametrize("add_bos", [True, False])
def test_a_folder_with_a_copied_model_has_the_ids_of_sentencepiece(tmp_path, trained, add_bos):
    source = random_source(Config(**SMALL | {"vocab_size": trained.vocab_size}))
    export_folder(model := tmp_path / "model", source)
    (model / "tokenizer.model").write_bytes(trained.path.read_bytes())
    said = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": add_bos,
        "chat_template": "x",
        "legacy": False,
    }
    (model / "tokenizer_config.json").write_text(json.dumps(said))
    run(model, tmp_path / "folder")
    theirs = in_transformers(tmp_path / "folder")
    assert (tmp_path / "folder" / "tokenizer.model").read_bytes() == trained.path.read_bytes()
    assert theirs.chat_template == "x"
    for text in (*HARD, " a", "  a   b", "a  ", "\n  x"):
        assert theirs.encode(text) == trained.encode(text, bos=add_bos), text


def test_a_model_that_no_tokenizer_json_can_hold_is_copied_as_it_is(tmp_path, trained):
    model = with_user_defined(trained.path.read_bytes(), [300])
    export_folder(folder := tmp_path / "model", random_source(Config(**SMALL | {"vocab_size": 330})))
    (folder / "tokenizer.model").write_bytes(model)
    run(folder, tmp_path / "folder")
    assert (tmp_path / "folder" / "tokenizer.model").read_bytes() == model
    assert not (tmp_path / "folder" / "tokenizer.json").exists()


def test_user_defined_pieces_are_text_in_a_gguf_file(tmp_path, trained, capfd):
    """As llama.cpp's converter has them. Texts without their names have the same ids."""
    export_folder(folder := tmp_path / "model", random_source(Config(**SMALL | {"vocab_size": 330})))
    (folder / "tokenizer.model").write_bytes(with_user_defined(trained.path.read_bytes(), [329]))
    run(folder, tmp_path / "m.gguf")
    assert "m.gguf: user-defined pieces are text like any other" in capfd.readouterr().err
    found = open_source(tmp_path / "m.gguf").vocabulary()
    assert found.types[329] == tokens.TEXT
    ours = tokenizers.load_vocabulary(Path("gguf"), "gguf", found.indexed, found)
    for text in HARD:
        assert ours.encode(text) == tokenizers.load(folder / "tokenizer.model").encode(text), text


def test_a_user_defined_piece_with_spaces_comes_back_from_a_gguf_file(tmp_path, trained):
    export_folder(folder := tmp_path / "model", random_source(Config(**SMALL | {"vocab_size": 330})))
    model = with_user_defined(trained.path.read_bytes(), [329], "\u2581x\u2581")
    (folder / "tokenizer.model").write_bytes(model)
    run(folder, tmp_path / "m.gguf")
    assert open_source(tmp_path / "m.gguf").vocabulary().pieces[329] == b" x "


def with_user_defined(model: bytes, ids: list[int], name: str = "[REFERENCE_{}]") -> bytes:
    """A sentencepiece model in which some pieces are user-defined names."""
    changed = pb.ModelProto.FromString(model)
    for i in ids:
        changed.pieces[i].piece, changed.pieces[i].type, changed.pieces[i].score = name.format(i), 4, 0
    return changed.SerializeToString()
