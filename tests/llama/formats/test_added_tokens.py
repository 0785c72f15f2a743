"""Tokens that a folder adds to its tokenizer.model (formats/added_tokens.py), against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from gguf_files import SMALL, random_source
from helpers import TEXTS
from torch_formats import export_folder

from llama import Tokenizer, convert
from llama.errors import BadFileError
from llama.formats import tokenizers
from llama.formats import vocabulary as tokens
from llama.formats.gguf_file import GgufFile
from llama.formats.gguf_vocabulary import Keys
from model import Config

NAMES = {"<|im_start|>": 331, "<|im_end|>": 330, "<tool>": 332}
PLAIN = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
CHAT = "<|im_start|>user\nthe  ball<tool> is<|im_end|> big"


def decoder() -> dict[str, Any]:
    usual = {"<unk>": 0, "<s>": 1, "</s>": 2}
    return {
        str(i): {"content": name, "special": name != "<tool>", **PLAIN} for name, i in (usual | NAMES).items()
    }


def config(**fields: Any) -> dict[str, Any]:
    ends = {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}
    return {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, **ends, **fields}


def put(folder: Path, model: Path, added: Any = None, **fields: Any) -> Path:
    """A folder with a tokenizer.model and what is added to it."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(config(**fields)))
    if added is not None:
        (folder / "added_tokens.json").write_text(json.dumps(added))
    return folder


@pytest.fixture
def folder(tmp_path, trained) -> Path:
    return put(tmp_path / "chat", trained.path, NAMES, added_tokens_decoder=decoder())


def test_added_tokens_are_found_and_named_as_transformers_has_them(folder):
    ours = tokenizers.load(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (CHAT, "<tool>", "the<|im_end|>ball", *TEXTS):
        assert ours.encode(text, special=True) == theirs.encode(text, add_special_tokens=False), text
    assert ours.special == {"<s>": 1, "</s>": 2, "<|im_end|>": 330, "<|im_start|>": 331}
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (333, 1, 330)
    assert {331, 332} & {*ours.encode(CHAT)} == {332}  # special ones are text unless asked for


@pytest.mark.parametrize("legacy", [False, True])
def test_what_follows_an_added_token_has_a_space_in_front_only_where_the_folder_is_of_old(
    tmp_path, trained, legacy
):
    folder = put(tmp_path / "chat", trained.path, added_tokens_decoder=decoder(), legacy=legacy)
    ids = tokenizers.load(folder).encode("<|im_start|>the", special=True)
    assert ids == [331, *trained.encode("the")] if legacy else ids[1:] != trained.encode("the")


def test_without_a_decoder_those_with_a_part_to_play_are_special(tmp_path, trained):
    vocabulary = tokenizers.load(put(tmp_path / "chat", trained.path, NAMES)).vocabulary
    assert [vocabulary.types[i] for i in (330, 331, 332)] == [tokens.CONTROL, tokens.USER, tokens.USER]


def test_tokens_beyond_the_rows_of_the_model_are_left_out(tmp_path, trained):
    folder = put(tmp_path / "chat", trained.path, {"<pad>": 330})
    assert tokenizers.load(folder, 330).vocab_size == 330
    assert tokenizers.load(folder, 331).vocab_size == 331


@pytest.mark.parametrize(
    "added",
    [
        {"x": -1},
        {"x": "y"},
        {"": 330},
        {"x": 2**24},
        {"x\ud800": 330},
        {"x": True},
        {"x": 330.0},
        {"x": "1" * 5000},
        {"x": "٣٣٠"},
    ],
)
def test_an_added_token_that_can_not_be_is_refused(tmp_path, trained, added):
    with pytest.raises(BadFileError, match=r"added_tokens\.json: added token .*, allowed a name, and an id"):
        tokenizers.load(put(tmp_path / "chat", trained.path, added))


def test_two_names_of_one_id_are_refused(tmp_path, trained):
    with pytest.raises(BadFileError, match=r"added_tokens\.json: added token 330 = 'x' and 'y', allowed one"):
        tokenizers.load(put(tmp_path / "chat", trained.path, {"x": 330, "y": 330}))


def test_an_id_far_behind_the_others_takes_no_memory(tmp_path, trained):
    most = 330 + 1 + (1 << 17) - 1
    with pytest.raises(BadFileError, match=rf"added token 16777214 = 'x', allowed ids from 0 to {most}"):
        tokenizers.load(put(tmp_path / "chat", trained.path, {"x": 16777214}))


def test_names_reach_every_format_and_come_back(tmp_path, trained, folder):
    model = tmp_path / "model"
    export_folder(model, random_source(Config(**SMALL | {"vocab_size": 333})))
    put(model, trained.path, NAMES, added_tokens_decoder=decoder())
    expected = tokenizers.load(model).encode(CHAT, special=True)
    for out, options in (("m.bin", ["--version", "3"]), ("m.gguf", []), ("folder", []), ("again", [])):
        source = tmp_path / "m.bin" if out == "again" else model
        assert convert.main([str(source), str(tmp_path / out), *options]) == 0
    for name in ("folder", "again"):
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / name)
        assert theirs.encode(CHAT, add_special_tokens=False) == expected
        assert theirs.eos_token == "<|im_end|>"
    file = GgufFile(tmp_path / "m.gguf")
    assert [file.many(Keys.LIST, str)[i] for i in (330, 331, 332)] == ["<|im_end|>", "<|im_start|>", "<tool>"]
    assert file.many(Keys.TOKEN_TYPE, int)[330:] == [3, 3, 4]


def test_the_engine_opens_such_a_folders_model_as_it_is(folder):
    assert Tokenizer(folder / "tokenizer.model").encode(CHAT, bos=False, special=True) == (
        tokenizers.load(folder).encode(CHAT, special=True)
    )


# --- A tokenizer.json beside the model


def beside(folder: Path, model: Path, **changed: Any) -> Path:
    """A folder with a model and the tokenizer.json that transformers makes of it, but for changed fields."""
    ends = {"eos_token": "</s>"}
    transformers.AutoTokenizer.from_pretrained(put(folder, model, **ends)).save_pretrained(folder)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return put(folder, model, **ends)


def test_a_json_that_puts_spaces_elsewhere_than_the_model_counts(tmp_path, trained):
    """As in Mistral 7B Instruct v0.3, where text behind a token such as [/INST] has no space in front."""
    folder = beside(tmp_path / "chat", trained.path)
    ours, theirs = tokenizers.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.kind == "tokenizer.json"
    for text in ("<s>the ball</s> is", "the<s>ball", *TEXTS):
        assert ours.encode(text, special=True) == theirs.encode(text, add_special_tokens=False), text


def test_the_model_counts_beside_a_json_that_puts_spaces_as_it_does(tmp_path, trained):
    prepend = {"type": "Prepend", "prepend": "\u2581"}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    normalizer = {"type": "Sequence", "normalizers": [prepend, spaces]}
    folder = beside(tmp_path / "old", trained.path, normalizer=normalizer, pre_tokenizer=None)
    assert tokenizers.load(folder).kind == "sentencepiece"


# --- What a folder says of a model without adding to it


@pytest.mark.parametrize("added", [None, decoder()], ids=["alone", "with added tokens"])
@pytest.mark.parametrize("legacy", [None, False, True])
def test_no_space_goes_in_front_where_the_folder_says_so(tmp_path, trained, legacy, added):
    said = {"add_prefix_space": False, "legacy": legacy, "added_tokens_decoder": added, "eos_token": "</s>"}
    folder = put(tmp_path / "chat", trained.path, **{name: v for name, v in said.items() if v is not None})
    ours, theirs = tokenizers.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.encode("the ball") != trained.encode("the ball")
    for text in ("the ball", "<s>the</s>ball is</s> big", "b</s>", CHAT if added else "", "x"):
        ids = ours.encode(text, special=True)
        assert ids == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


def test_that_no_space_goes_in_front_reaches_every_format(tmp_path, trained):
    model, text = tmp_path / "model", "<s>the</s>ball is big"
    export_folder(model, random_source(Config(**SMALL | {"vocab_size": 330})))
    put(model, trained.path, add_prefix_space=False, eos_token="</s>")
    theirs = transformers.AutoTokenizer.from_pretrained(model)
    expected = theirs.encode(text, add_special_tokens=False)
    for out, options in (("m.bin", ["--version", "3"]), ("m.gguf", []), ("folder", [])):
        assert convert.main([str(model), str(tmp_path / out), *options]) == 0
        assert tokenizers.load(tmp_path / out).encode(text, special=True) == expected
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert theirs.encode(text, add_special_tokens=False) == expected


@pytest.mark.parametrize("added", [None, NAMES], ids=["alone", "with added tokens"])
def test_an_end_that_is_no_token_is_noted_and_does_not_count(tmp_path, trained, added):
    known = tokenizers.load(put(tmp_path / "chat", trained.path, added, eos_token="<|over|>"))
    note = "tokenizer_config.json: eos_token = '<|over|>' is no special token; '</s>' is EOS"
    assert (known.eos_id, known.vocabulary.eos, known.vocabulary.notes) == (2, 2, (note,))
    known = tokenizers.load(put(tmp_path / "chat", trained.path, added, eos_token="<s>"))
    assert (known.eos_id, known.vocabulary.eos, known.vocabulary.notes) == (1, 1, ())
