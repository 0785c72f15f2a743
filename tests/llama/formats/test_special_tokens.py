"""Special tokens of a tokenizer.json, the text beside them, ids that no token has, against the library."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any
from unicodedata import category

import pytest
import transformers
from gguf_files import SMALL, random_source
from helpers import assert_linear
from test_tokenizer_json import gpt2, llama2, llama3, normalised, unigram
from torch_formats import export_folder

from llama import Tokenizer, convert
from llama.errors import BadFileError
from llama.formats import tokenizer_json, tokenizers
from llama.formats import vocabulary as tokens
from llama.formats.gguf_vocabulary import NO_EDGES
from llama.formats.tokenizer_json_writer import write_tokenizer
from llama.native import c_bytes, encode_spans
from model import Config

hf = pytest.importorskip("tokenizers")

EDGES = ("lstrip", "rstrip", "single_word")
MAKERS = {
    "prepend": llama2,
    "metaspace": lambda: llama2(normal=False),
    "always": lambda: llama2(normal=False, scheme="always", split=True),
    "late": normalised,
    "bytes": llama3,
    "words": gpt2,
    "unigram": unigram,
}
NAMES = {
    "<mask>": {},
    "<|end|>": {"special": False},
    "</s>": {},
    "\t\t": {"special": False},
    "ab": {"special": False},
}
BESIDE = [
    *" \n\t\r\x0b\x1c\x85\xa0\u2003\u3000\u200b\u2581",
    "  ",
    "\n\n",
    *"aZ1_-\u00e9\u0301\u00b2\u2163\u203f\u4e16",
    ".",
]


def token(i: int, name: str, **fields: Any) -> dict[str, Any]:
    """An added token as the library writes it."""
    plain = dict.fromkeys((*EDGES, "normalized"), False)
    return {"id": i, "content": name, "special": True, **plain, **fields}


def with_names(data: dict[str, Any], edges: dict[str, set[str]]) -> dict[str, Any]:
    """The file with NAMES added; edges: of each, what is true."""
    vocab = data["model"]["vocab"]
    ids = vocab if isinstance(vocab, dict) else {piece: i for i, (piece, _) in enumerate(vocab)}
    late = any(added["normalized"] for added in data["added_tokens"])
    known = {added["content"]: added for added in data["added_tokens"]}
    for name, fields in NAMES.items():
        i = ids.get(name, len(ids) + sum(other not in ids for other in known))
        usual = {"normalized": late and name in ("<mask>", "<|end|>")} | fields
        known[name] = token(i, name, **usual | dict.fromkeys(edges[name], True))
    return data | {"added_tokens": [*known.values()]}


def all_with(*edges: str) -> dict[str, set[str]]:
    return {name: {*edges} for name in NAMES}


def both(data: dict[str, Any]) -> tuple[Any, Tokenizer, tokens.Vocabulary]:
    """The library's tokenizer and the engine's."""
    text = json.dumps(data)
    vocabulary = tokenizer_json.read(Path("tokenizer.json"), text.encode())
    return hf.Tokenizer.from_str(text), Tokenizer.from_bytes(vocabulary.indexed), vocabulary


def encoded(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", MAKERS)
def test_ids_equal_the_library_s_whatever_is_beside_special_tokens(make, seed):
    rng, parts = random.Random(f"{make} {seed}"), [*NAMES, *BESIDE, "the ball"]
    edges = {name: {edge for edge in EDGES if rng.random() < 0.5} for name in NAMES}
    edges["\t\t"] -= {"lstrip"}  # the library panics where it went with the token before
    edges["</s>"] -= {"single_word"} if make == "unigram" else set()  # a piece of text there, too
    library, engine, _ = both(with_names(MAKERS[make](), edges))
    for _ in range(300):
        text = "".join(rng.choices([*parts, *NAMES, *rng.choices(parts, k=2) * 9], k=rng.randint(1, 20)))
        assert engine.encode(text, bos=False, special=True) == encoded(library, text), (edges, text)


@pytest.mark.parametrize("field", EDGES)
def test_every_character_beside_a_token_is_to_it_what_it_is_to_the_library(field):
    data = with_names(llama3(), all_with() | {"<mask>": {field}})
    library, engine, _ = both(data)
    ends = {code for code in range(0x3100, 0x20000) if category(chr(code)) != category(chr(code - 1))}
    codes = sorted(ends | {end - 1 for end in ends} | {*range(0x3100)})
    codes = [code for code in codes if not 0xD800 <= code < 0xE000]
    for at in range(0, len(codes), 256):
        text = "".join(f"|{chr(code)}<mask>{chr(code)}|" for code in codes[at : at + 256])
        assert engine.encode(text, bos=False, special=True) == encoded(library, text), hex(codes[at])


def test_a_token_of_white_space_that_goes_with_the_one_before_is_gone():
    library, engine, _ = both(with_names(llama3(), all_with("lstrip", "rstrip")))
    for text in ("<mask>\t\t", "<mask> \t\t \t\t<mask>", "a\t\t\t\t<mask>\t\t b"):
        assert engine.encode(text, bos=False, special=True) == encoded(library, text), text


def test_a_name_beside_bytes_that_are_no_text_is_found():
    """They count as U+FFFD, which is neither white space nor of a word."""
    _, engine, _ = both(with_names(llama3(), all_with(*EDGES)))
    for bad in (b"\xff", b"\x80\x80\x80\x80", b"\xe2\x80", b"\xf0\x9f"):
        same = ("\ufffd" * len(bad)).encode()
        expected = encode_spans(engine._handle, same + b"<mask>" + same, [])
        assert encode_spans(engine._handle, bad + b"<mask>" + bad, []) == expected


def test_white_space_that_people_wrote_goes_too_but_not_a_given_token():
    """As transformers does with a chat: a template's text and people's are one text to it."""
    library, engine, _ = both(with_names(llama3(), all_with("lstrip", "rstrip")))
    text, eos = "a <mask> \n b", library.token_to_id("</s>")
    handle = engine._handle
    people = encode_spans(handle, c_bytes(text), [(0, 2, -1), (8, 12, -1)])
    assert people == encoded(library, text)
    given = encode_spans(handle, c_bytes(text), [(8, 9, eos)])
    assert given == encoded(library, "a <mask></s> b")


@pytest.mark.parametrize("text", ["<mask> ", " <mask>", "\t\t", "\t\t \t", "<|end|>\t"])
def test_the_cost_is_linear_in_the_text(text):
    _, engine, _ = both(with_names(llama3(), all_with("lstrip", "rstrip")))
    assert_linear(lambda n: engine.encode(text * n, bos=False, special=True), 20_000)


@pytest.mark.parametrize("make", MAKERS)
def test_what_was_read_is_written_and_read_again(tmp_path, make):
    rng = random.Random(make)
    data = with_names(MAKERS[make](), {name: {e for e in EDGES if rng.random() < 0.5} for name in NAMES})
    library, _, vocabulary = both(data)
    assert tokens.read_bin(tmp_path, vocabulary.indexed) == vocabulary
    files = write_tokenizer("model", vocabulary)
    written = hf.Tokenizer.from_str(files["tokenizer.json"].decode())
    again = tokenizer_json.read(tmp_path / "tokenizer.json", files["tokenizer.json"])
    assert again.edges == vocabulary.edges != {}
    for text in ("a <mask>  b", "the\t <|end|> ball", "x</s>\n\ny"):
        assert encoded(written, text) == encoded(library, text)


def test_a_folder_that_says_it_of_the_tokens_of_its_model_is_heard(tmp_path, trained):
    listed = {0: "<unk>", 1: "<s>", 2: "</s>", 330: "<|end|>"}
    decoder = {str(i): token(i, name) | {"rstrip": i >= 2} for i, name in listed.items()}
    for added in decoder.values():
        del added["id"]
    fields = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": decoder, "legacy": False}
    (tmp_path / "tokenizer.model").write_bytes(trained.path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields | {"unk_token": "<unk>"}))
    ours, theirs = tokenizers.load(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the<|end|>  ball", "the</s>\n ball", "the ball <|end|>", "a<|end|>\n\n</s> "):
        assert ours.encode(text, special=True) == theirs.encode(text, add_special_tokens=False), text
    del decoder["330"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    assert tokenizers.load(tmp_path).vocabulary.edges == {2: tokens.RIGHT}


def test_a_model_carries_it_and_gguf_says_that_it_can_not(tmp_path, capsys):
    data = with_names(llama3(), all_with("rstrip"))
    text, library = "a<mask>  \n b", hf.Tokenizer.from_str(json.dumps(data))
    model = tmp_path / "model"
    n = max(added["id"] for added in data["added_tokens"]) + 1
    export_folder(model, random_source(Config(**SMALL | {"vocab_size": n})))
    (model / "tokenizer.json").write_text(json.dumps(data))
    (model / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    for source, out, options in (
        ("model", "m.bin", ["--version", "3"]),
        ("m.bin", "again", []),
        ("model", "m.gguf", []),
    ):
        assert convert.main([str(tmp_path / source), str(tmp_path / out), *options]) == 0
    assert tokenizers.load(tmp_path / "again").encode(text, special=True) == encoded(library, text)
    assert NO_EDGES in capsys.readouterr().err


# --- Ids that no token has


def with_gaps(data: dict[str, Any], *missing: int) -> dict[str, Any]:
    """The file without these ids: tokens from each on have the next."""

    def moved(i: int) -> int:
        for gap in missing:
            i += i >= gap
        return i

    vocab = {name: moved(i) for name, i in data["model"]["vocab"].items()}
    added = [entry | {"id": vocab[entry["content"]]} for entry in data["added_tokens"]]
    return data | {"model": data["model"] | {"vocab": vocab}, "added_tokens": added}


@pytest.mark.parametrize("make", ["prepend", "metaspace", "late", "bytes", "words"])
def test_ids_may_have_gaps_which_nothing_means_and_that_print_nothing(tmp_path, make):
    data = with_gaps(MAKERS[make](), 1, 20, 300)
    library, engine, vocabulary = both(data)
    assert len(vocabulary) == len(data["model"]["vocab"]) + 3
    for text in ("the ball <|eot|>", "\u4e16\u754c </s> 1 [PAD20]", "<s> a"):
        assert engine.encode(text, bos=False, special=True) == encoded(library, text)
    assert engine.decode([1, 20, 300]) == ""
    assert vocabulary.special.keys() == both(MAKERS[make]())[2].special.keys()
    files = write_tokenizer("model", vocabulary)
    written = hf.Tokenizer.from_str(files["tokenizer.json"].decode())
    assert encoded(written, "the ball") == encoded(library, "the ball")
    assert [written.id_to_token(i) for i in (1, 20, 300)] == ["[PAD1]", "[PAD20]", "[PAD300]"]


def test_added_tokens_have_the_ids_of_the_file_with_a_note_where_the_library_has_others():
    data = llama3()
    n = len(data["model"]["vocab"])
    data["added_tokens"] += [token(n + 64, "<|one|>"), token(n + 66, "<|two|>")]
    library, engine, vocabulary = both(data)
    assert engine.encode("<|one|><|two|>", bos=False, special=True) == [n + 64, n + 66]
    assert encoded(library, "<|one|><|two|>") == [n, n + 1]  # a file that it would not write itself
    assert vocabulary.notes == (
        f"token {n + 64} = '<|one|>', as the file says; the tokenizers library makes it {n}",
    )
    assert (len(vocabulary), both(llama3())[2].notes) == (n + 67, ())


@pytest.mark.parametrize(
    ("name", "i", "message"),
    [
        ("<|new|>", 5, 'model.vocab, added_tokens = "id 5 twice", allowed each id once'),
        ("</s>", 9999, "added_tokens.id = 9999, allowed 2 for '</s>'"),
        ("<|new|>", 2**24 - 1, "allowed ids from 0 to 131672"),
        ("<|new|>", -1, "allowed ids from 0 to 131672"),
    ],
)
def test_ids_that_can_not_be_are_refused(name, i, message):
    data = llama3()
    data["added_tokens"].append(token(i, name))
    with pytest.raises(BadFileError) as caught:
        both(data)
    assert message in str(caught.value)
