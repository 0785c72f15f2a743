"""formats/tokenizer_json.py and the engine against the tokenizers library, on tokenizers trained here."""

import functools
import json
import math
import random
import re
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_linear
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from references import llama3_tokenizer_path, mistral_tokenizer_path
from test_tokenizer import MILLION, SCRIPTS, TRICKY, published
from test_tokenizer_bytes import random_text

from llama.errors import BadFileError
from llama.formats import tokenizers
from llama.formats.split_patterns import LLAMA3_PATTERN
from llama.formats.tokenizer_json import TAKES_AS_IT_IS, merges_any_pair

hf = pytest.importorskip("tokenizers")

SPECIAL = ["<unk>", "<s>", "</s>", "<|eot|>"]
SPACE = "\u2581"
thorough = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
characters = st.characters(exclude_categories=["Cs"], max_codepoint=0x11DDF) | st.sampled_from(
    sorted(set(SCRIPTS))
)
texts = st.one_of(
    st.lists(characters | st.sampled_from(SCRIPTS.split() + TRICKY + SPECIAL), max_size=40).map("".join),
    st.text(st.sampled_from("ab'sSl \n\r\t1é世\u017f½."), max_size=60),
)


@dataclass
class Pair:
    """A tokenizer of the library, and ours of the same file."""

    library: Any
    ours: tokenizers.Tokenizer

    def expected(self, text: str, special: bool = True) -> list[int]:
        self.library.encode_special_tokens = not special
        return self.library.encode(text, add_special_tokens=False).ids


def copied(make: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Makes a file once, and gives a copy of it each time."""
    once = functools.cache(lambda *arguments, **options: json.dumps(make(*arguments, **options)))
    return functools.wraps(make)(lambda *arguments, **options: json.loads(once(*arguments, **options)))


def trained(
    normalizer: Any,
    splitter: Any,
    decoder: Any,
    byte_level: bool,
    vocab_size: int,
    all_bytes: bool = True,
    **model: Any,
) -> Any:
    """A tokenizer of the library, trained on SCRIPTS. all_bytes: each byte has a token."""
    usual = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": all_bytes and not byte_level}
    tokenizer = hf.Tokenizer(hf.models.BPE(**usual | model))
    if normalizer:
        tokenizer.normalizer = normalizer
    if splitter:
        tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoder
    alphabet = hf.pre_tokenizers.ByteLevel.alphabet() if byte_level and all_bytes else []
    names = [] if byte_level or not all_bytes else [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL, *names],
        initial_alphabet=alphabet,
        limit_alphabet=10**6 if all_bytes else 40,
        show_progress=False,
    )
    tokenizer.train_from_iterator(re.split("(?<= )", SCRIPTS * 4), trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in names]
    return data


@copied
def llama2(normal: bool = True, scheme: str = "first", split: bool = False, **model: Any) -> dict[str, Any]:
    """As the tokenizer.json of Llama 2: with normalizers, or with Metaspace."""
    n, d = hf.normalizers, hf.decoders
    spaces = n.Sequence([n.Prepend(SPACE), n.Replace(" ", SPACE)])
    metaspace = hf.pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    undo = d.Sequence([d.Replace(SPACE, " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])
    if scheme == "never":
        undo = d.Sequence([d.Replace(SPACE, " "), d.ByteFallback(), d.Fuse()])
    return trained(spaces if normal else None, None if normal else metaspace, undo, False, 700, **model)


@copied
def llama3() -> dict[str, Any]:
    p = hf.pre_tokenizers
    split = p.Split(hf.Regex(LLAMA3_PATTERN), "isolated")
    splitter = p.Sequence([split, p.ByteLevel(add_prefix_space=False, use_regex=False)])
    return trained(None, splitter, hf.decoders.ByteLevel(), True, 600, ignore_merges=True)


@copied
def gpt2(digits: bool = False, **model: Any) -> dict[str, Any]:
    p = hf.pre_tokenizers
    last = p.ByteLevel(add_prefix_space=False)
    splitter = p.Sequence([p.Digits(individual_digits=True), last]) if digits else last
    return trained(None, splitter, hf.decoders.ByteLevel(), True, 600, **model)


@copied
def normalised() -> dict[str, Any]:
    """As Llama 2's first tokenizer.json: some names are looked for once spaces are in place."""
    data = llama2()
    data["added_tokens"] = [
        token | {"normalized": token["content"] != "</s>", "special": token["content"] != "<|eot|>"}
        for token in data["added_tokens"]
    ]
    return data


@copied
def unigram(byte_fallback: bool = True, normal: bool = True, split: bool = False) -> dict[str, Any]:
    data, names = llama2(normal=normal, split=split), [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = hf.Tokenizer(hf.models.Unigram())
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Metaspace(split=split)
    special = SPECIAL + (names if byte_fallback else [])
    options = {
        "unk_token": "<unk>",
        "special_tokens": special,
        "initial_alphabet": [],
        "show_progress": False,
    }
    trainer = hf.trainers.UnigramTrainer(vocab_size=500, **options)
    tokenizer.train_from_iterator(re.split("(?<= )", SCRIPTS * 4), trainer)
    model = json.loads(tokenizer.to_str())["model"] | {"byte_fallback": byte_fallback}
    if not byte_fallback:  # so that some characters are unknown
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] not in "żшψ世🇮∀"]
    return data | {"model": model}


@copied
def sentencepiece_as_json() -> dict[str, Any]:
    """What a sentencepiece model as Llama 2's becomes there: a pair for each way to cut a piece."""
    import sentencepiece

    sp = sentencepiece.SentencePieceProcessor(model_proto=published(mistral_tokenizer_path()))
    pieces = [sp.id_to_piece(i) for i in range(sp.vocab_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for i in sorted(range(259, len(pieces)), key=lambda i: -sp.get_score(i)):
        cuts = ((pieces[i][:at], pieces[i][at:]) for at in range(1, len(pieces[i])))
        local = [cut for cut in cuts if cut[0] in vocab and cut[1] in vocab]
        merges += sorted(local, key=lambda cut: (vocab[cut[0]], vocab[cut[1]]))
    data = llama2()
    return data | {
        "model": data["model"] | {"vocab": vocab, "merges": merges},
        "added_tokens": data["added_tokens"][:3],
    }


@copied
def tiktoken_as_json() -> dict[str, Any]:
    """What Llama 3's own tokenizer becomes there, by transformers: 280,147 pairs."""
    converters = pytest.importorskip("transformers.convert_slow_tokenizer")
    converter = converters.TikTokenConverter(str(llama3_tokenizer_path()))
    data = json.loads(converter.converted().to_str())
    return data | {"model": data["model"] | {"ignore_merges": True}}  # as Llama 3's file has it


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "llama2": llama2,
    "llama2_first": functools.partial(llama2, normal=False),
    "llama2_always": functools.partial(llama2, normal=False, scheme="always"),
    "llama2_never": functools.partial(llama2, normal=False, scheme="never"),
    "llama3": llama3,
    "gpt2": gpt2,
    "smollm": functools.partial(gpt2, digits=True),
    "sentencepiece": sentencepiece_as_json,
    "normalised": normalised,
    "split": functools.partial(llama2, normal=False, split=True),
    "unknown": functools.partial(llama2, all_bytes=False),
    "unknown_each": functools.partial(llama2, all_bytes=False, fuse_unk=False),
    "unknown_split": functools.partial(llama2, normal=False, split=True, all_bytes=False),
    "left_out": functools.partial(llama2, all_bytes=False, unk_token=None),
    "bytes_left_out": functools.partial(gpt2, digits=True, all_bytes=False, unk_token=None),
    "bytes_unknown": functools.partial(gpt2, all_bytes=False),
    "bytes_unknown_each": functools.partial(gpt2, all_bytes=False, fuse_unk=False),
    "bytes_whole_words": functools.partial(gpt2, all_bytes=False, unk_token=None, ignore_merges=True),
    "unigram": unigram,
    "unigram_unknown": functools.partial(unigram, byte_fallback=False),
    "unigram_split": functools.partial(unigram, normal=False, split=True),
    "unigram_unknown_split": functools.partial(unigram, byte_fallback=False, normal=False, split=True),
}


def make_pair(data: dict[str, Any], path: Path) -> Pair:
    path.write_text(json.dumps(data, ensure_ascii=False))
    return Pair(hf.Tokenizer.from_str(path.read_text()), tokenizers.load(path))


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory) -> Pair:
    return make_pair(KINDS[request.param](), tmp_path_factory.mktemp("json") / "tokenizer.json")


def names_a_piece(pair: Pair, text: str, names: str) -> bool:
    """Whether a Unigram's text names a piece: the library takes it for that, the engine for text."""
    return "Unigram" in str(type(pair.library.model)) and re.search(names, text) is not None


@pytest.mark.parametrize("text", [*TRICKY, *SCRIPTS.split("\n"), SCRIPTS, *SPECIAL], ids=ascii)
def test_ids_are_those_of_the_library_on_tricky_text(pair, text):
    if not names_a_piece(pair, text, "<0x..>"):
        assert pair.ours.encode(text, special=True) == pair.expected(text)


@thorough
@given(texts)
def test_ids_are_those_of_the_library_on_any_text(pair, text):
    assume(not names_a_piece(pair, text, "<0x..>"))
    assert pair.ours.encode(text, special=True) == pair.expected(text)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "tiktoken"])
def test_ids_are_those_of_the_library_on_a_million_characters(tmp_path, kind):
    pair = make_pair((KINDS | {"tiktoken": tiktoken_as_json})[kind](), tmp_path / "tokenizer.json")
    text = random_text(random.Random(1), MILLION)
    if kind.startswith("unigram"):  # the library takes names of bytes for pieces
        text = re.sub("<0x..>", "", text)
    assert pair.ours.encode(text, special=True) == pair.expected(text)


@thorough
@given(texts)
def test_names_of_special_tokens_are_text_unless_asked_for(pair, text):
    assume(not names_a_piece(pair, text, "<(unk|s|/s|.eot.|0x..)>"))
    assert pair.ours.encode(text) == pair.expected(text, special=False)


@thorough
@given(texts)
def test_ids_become_the_text_that_the_library_makes_of_them(pair, text):
    ids = [i for i in pair.expected(text) if i >= len(SPECIAL)]  # it prints the names of some
    runs = re.compile("\ufffd+")  # of bytes that are no UTF-8: it has one for several
    assert runs.sub("\ufffd", pair.ours.decode(ids)) == runs.sub("\ufffd", pair.library.decode(ids))


@pytest.mark.parametrize("name", KINDS)
def test_a_written_file_is_the_same_tokenizer(name, tmp_path):
    ours = make_pair(KINDS[name](), tmp_path / "tokenizer.json").ours
    path = tmp_path / "tokenizer.bin"
    tokenizers.export_bin(ours, path, indexed=True)
    read = tokenizers.load(path)
    assert (read.hash, read.special) == (ours.hash, ours.special)
    assert read.vocabulary == ours.vocabulary
    assert read.encode(SCRIPTS) == ours.encode(SCRIPTS)


# --- Which pairs merge, and in which order


def handmade(merges: list[tuple[str, str]], whole_words: bool) -> dict[str, Any]:
    """A byte-level tokenizer that merges these pairs. Where two make the same piece, both come to it."""
    alphabet = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    pieces = dict.fromkeys(
        [*alphabet, *(part for left, right in merges for part in (left, right, left + right))]
    )
    data = gpt2()
    data["model"] |= {"vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": merges}
    return data | {"model": data["model"] | {"ignore_merges": whole_words}, "added_tokens": []}


parts = st.text(st.sampled_from("ab"), min_size=1, max_size=3)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(parts, parts), max_size=12),
    st.booleans(),
    st.text(st.sampled_from("abc "), max_size=30),
)
@example([("a", "a"), ("a", "aa"), ("aa", "a")], False, "aaaaa aabaaa")
@example([("a", "b"), ("b", "a"), ("a", "ba"), ("ab", "a")], False, "ababa")
@example([("aa", "a"), ("a", "a")], True, "aaaa")
def test_any_list_of_pairs_merges_as_in_the_library(tmp_path, merges, whole_words, text):
    pair = make_pair(handmade(merges, whole_words), tmp_path / "tokenizer.json")
    assert pair.ours.encode(text) == pair.expected(text)


@pytest.mark.parametrize(
    ("merges", "same"),
    [
        ([], True),
        ([("a", "b"), ("ab", "c")], True),
        ([("a", "b"), ("ab", "c"), ("b", "c")], False),  # (a, bc) is not listed, but its bytes make abc
        ([("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")], True),
        ([("ab", "c"), ("a", "b")], False),  # made before its part
        ([("b", "c"), ("a", "bc"), ("a", "b"), ("ab", "c")], False),  # abc's pairs do not stand together
        ([("a", "a"), ("aa", "a"), ("a", "aa")], False),  # in [a][aa][a] the left pair comes second
    ],
)
def test_scores_are_enough_only_where_they_come_to_the_same(merges, same):
    spelt = [(left.encode(), right.encode()) for left, right in merges]
    pieces = {b"a", b"b", b"c"} | {left + right for left, right in spelt}
    assert merges_any_pair(pieces, spelt, True) == same


def test_a_long_token_takes_time_by_its_length():
    def work(n):
        letters = [b"a" * 2**i for i in range(8)]
        merges_any_pair({*letters, b"a" * n}, [(part, part) for part in letters[:-1]], False)

    assert_linear(work, 1 << 19)


def test_a_pair_that_makes_a_special_token_leaves_its_name_text(tmp_path):
    data = handmade([("a", "b"), ("<", "s"), ("<s", ">")], False)
    data["added_tokens"] = [{"id": data["model"]["vocab"]["<s>"], "content": "<s>", "special": True}]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    tokenizer = tokenizers.load(path)
    assert tokenizer.special["<s>"] not in tokenizer.encode("ab<s>")
    assert tokenizer.encode("ab<s>", special=True)[-1] == tokenizer.bos_id == tokenizer.special["<s>"]


# --- The file


@pytest.mark.parametrize("name", ["tokenizer_config.json", None])
def test_bos_and_eos_are_those_of_the_configuration_or_of_usual_names(tmp_path, name):
    if name:
        (tmp_path / name).write_text(json.dumps({"bos_token": {"content": "<|eot|>"}, "eos_token": "<s>"}))
    ours = make_pair(gpt2(), tmp_path / "tokenizer.json").ours
    bos, eos = ("<|eot|>", "<s>") if name else ("<s>", "</s>")
    assert (ours.bos_id, ours.eos_id) == (ours.special[bos], ours.special[eos])
    assert tokenizers.load(tmp_path).hash == ours.hash


def changed(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The file with one field changed, named as a.b.c; an index of a list is a number."""
    data = json.loads(json.dumps(data))
    *parents, last = [int(name) if name.isdigit() else name for name in path.split(".")]
    functools.reduce(lambda part, name: part[name], parents, data)[last] = value
    return data


WORDPIECE = {"type": "WordPiece", "vocab": {}}
REFUSED = [
    (gpt2, "model", WORDPIECE, 'model.type = "WordPiece", allowed "BPE" or "Unigram"'),
    (gpt2, "model.dropout", 0.1, "model.dropout = 0.1, allowed null or 0.0"),
    (gpt2, "model.end_of_word_suffix", "</w>", 'model.end_of_word_suffix = "</w>", allowed null or ""'),
    (gpt2, "normalizer", {"type": "NFKC"}, 'normalizer = {"type": "NFKC"}, allowed null or NFC'),
    (
        llama3,
        "pre_tokenizer.pretokenizers.1.add_prefix_space",
        True,
        "pre_tokenizer.add_prefix_space = true, allowed false",
    ),
    (
        llama3,
        "pre_tokenizer.pretokenizers.0.pattern",
        {"Regex": "."},
        "pre_tokenizer = .*, allowed the patterns",
    ),
    (llama3, "pre_tokenizer.pretokenizers.0.behavior", "Removed", "pre_tokenizer = .*, allowed the patterns"),
    (llama3, "pre_tokenizer.pretokenizers.0.type", "Punctuation", "pre_tokenizer = .*, allowed the patterns"),
    (
        llama3,
        "added_tokens.0.id",
        10**6,
        "added_tokens.id = 1000000, allowed 0 for .<unk>.",
    ),
    (
        llama2,
        "added_tokens.1",
        {"id": 1000, "content": "<unk>", "special": True},
        "added_tokens.id = 1000, allowed 0 for .<unk>.",
    ),
    (
        unigram,
        "added_tokens",
        [{"id": i, "content": "<new>", "special": True} for i in (496, 497)],
        "added_tokens.id = 497, allowed 496 for .<new>.",
    ),
    (llama2, "added_tokens.0.id", False, "added_tokens.id = false, allowed 0 for .<unk>."),
    (llama3, "model.merges.0", "a", "model.merges = "),
    (llama3, "model.merges.0", ["a", "nowhere"], "model.merges = "),
    (llama2, "model.vocab.<0x41>", 10**8, "model.vocab, added_tokens = .*, allowed ids from 0 to 131771"),
    (llama2, "model.ignore_merges", True, "model.ignore_merges = true, allowed false"),
    (llama2, "normalizer.normalizers.0.prepend", "_", "normalizer, pre_tokenizer = .*, allowed Prepend"),
    (llama2, "pre_tokenizer", {"type": "Whitespace"}, "normalizer, pre_tokenizer = "),
    (functools.partial(llama2, normal=False), "pre_tokenizer.prepend_scheme", "x", "prepend_scheme = "),
    (gpt2, "model.vocab", {"a": 0}, "model.vocab, added_tokens = .id 0 twice., allowed each id once"),
    (gpt2, "decoder", {"type": "WordPiece"}, 'decoder = {"type": "WordPiece"}, allowed ByteLevel'),
    (llama2, "decoder", {"type": "Fuse"}, 'decoder = {"type": "Fuse"}, allowed Replace, ByteFallback'),
    (gpt2, "model.merges", None, "model.merges = null, allowed a list of pairs"),
    (gpt2, "model.vocab", None, "is no tokenizer.json"),
    (gpt2, "model.ignore_merges", "false", 'model.ignore_merges = "false", allowed true and false'),
    (llama2, "model.byte_fallback", 0, "model.byte_fallback = 0, allowed true and false"),
    (llama2, "model.unk_token", 5, "model.unk_token = 5, allowed text, or null"),
    (llama2, "added_tokens", False, "added_tokens = false, allowed a list, or null"),
    (llama2, "added_tokens.0.special", "false", 'added_tokens.special = "false", allowed true and false'),
    (llama2, "added_tokens.0.lstrip", 1, "added_tokens.lstrip = 1, allowed true and false"),
    (
        gpt2,
        "pre_tokenizer.add_prefix_space",
        "false",
        "pre_tokenizer.add_prefix_space = ",
    ),
    (gpt2, "pre_tokenizer.use_regex", 0, "pre_tokenizer.use_regex = 0, allowed true and false"),
    (
        llama2,
        "post_processor",
        {"type": "BertProcessing", "cls": ["<s>", 5], "sep": ["</s>", 2]},
        "post_processor: id of .<s>. = 5, allowed 1",
    ),
    (
        functools.partial(llama2, normal=False),
        "pre_tokenizer.add_prefix_space",
        False,
        "pre_tokenizer.add_prefix_space = false, allowed true where prepend_scheme is ",
    ),
    (llama2, "decoder", {"type": "Metaspace", "replacement": "X"}, "decoder.replacement = .X., allowed"),
    (
        llama2,
        "decoder",
        {"type": "Metaspace", "prepend_scheme": "x"},
        "decoder.prepend_scheme = .x., allowed",
    ),
    (llama2, "normalizer", False, "normalizer = false, allowed an object, or null"),
    (gpt2, "model.vocab.a", 64.0, "model.vocab = 64.0, allowed integers as ids"),
    *[
        (unigram, "model.unk_id", value, f"model.unk_id = {said}, allowed null and 0 to 495")
        for value, said in ((-1, -1), (496, 496), (8 * 10**19, 8 * 10**19), (1.5, 1.5), (True, "true"))
    ],
    *[
        (unigram, "model.vocab.300.1", value, "model.vocab: score of .* = .*, allowed finite numbers")
        for value in (None, "1", True, math.nan, -math.inf, 10**400)
    ],
]


@pytest.mark.parametrize(
    ("make", "field", "value", "says"), REFUSED, ids=[f"{row[1]}={row[2]}"[:40] for row in REFUSED]
)
def test_what_can_not_be_represented_is_refused_with_its_field(tmp_path, make, field, value, says):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(changed(make(), field, value)))
    with pytest.raises(BadFileError, match=re.escape(f"{path}: ") + f".*({says})"):
        tokenizers.load(path)


@pytest.mark.parametrize("data", ["{", "{}", "[]", '{"model": 5}', '{"model": {"type": "BPE"}}', "[" * 10**5])
def test_other_json_is_refused_in_one_line(tmp_path, data):
    path = tmp_path / "tokenizer.json"
    path.write_text(data)
    with pytest.raises(BadFileError, match=r"tokenizer\.json: is") as caught:
        tokenizers.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "note"),
    [
        ("</s>", ""),
        ({"content": "</s>"}, ""),
        (None, ""),
        ("a", "tokenizer_config.json: eos_token = 'a' is no special token; '</s>' is EOS"),
        ("<nope>", "tokenizer_config.json: eos_token = '<nope>' is no special token; '</s>' is EOS"),
    ],
)
def test_an_end_that_is_no_special_token_is_said_aloud(tmp_path, said, note):
    (tmp_path / "tokenizer.json").write_text(json.dumps(llama2()))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": said}))
    vocabulary = tokenizers.load(tmp_path / "tokenizer.json").vocabulary
    assert vocabulary.pieces[vocabulary.eos] == b"</s>"
    assert vocabulary.notes == ((note,) if note else ())


@pytest.mark.parametrize("said", [5, ["</s>"], {}, {"content": 1}, True])
def test_an_end_that_is_no_name_is_refused_with_its_file(tmp_path, said):
    (tmp_path / "tokenizer.json").write_text(json.dumps(llama2()))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": said}))
    with pytest.raises(
        BadFileError, match=r"tokenizer_config\.json: eos_token = .*, allowed the name of a token"
    ):
        tokenizers.load(tmp_path / "tokenizer.json")


def test_a_score_beyond_32_bits_counts_as_it_does_in_the_library(tmp_path):
    path = tmp_path / "tokenizer.json"
    data = unigram()
    data["model"]["vocab"][300][1] = -1e300
    path.write_text(json.dumps(data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tokenizers.load(path)
    assert found.encode(SCRIPTS, bos=False) == hf.Tokenizer.from_file(str(path)).encode(SCRIPTS).ids


def test_a_normalizer_that_composes_is_left_out_with_a_note(tmp_path):
    data = gpt2() | {"normalizer": {"type": "NFC"}}
    pair = make_pair(data, tmp_path / "tokenizer.json")
    assert pair.ours.encode("Ou\u0300", special=True) != pair.expected("Ou\u0300")
    for text in SCRIPTS.splitlines():
        composed = unicodedata.normalize("NFC", text)
        assert pair.ours.encode(composed, special=True) == pair.expected(text)
    assert pair.ours.vocabulary.notes == (TAKES_AS_IT_IS,)


# --- What is put around a text


def test_a_token_put_in_front_is_bos_where_the_file_names_no_other(tmp_path):
    data = llama3()
    data["added_tokens"][1]["content"] = "<begin>"
    data["post_processor"] = {"type": "RobertaProcessing", "cls": ["<begin>", 1], "sep": ["</s>", 2]}
    data["model"]["vocab"]["<begin>"] = data["model"]["vocab"].pop("<s>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    ours = tokenizers.load(tmp_path)
    assert (ours.bos_id, ours.eos_id) == (1, 2)
    expected = hf.Tokenizer.from_str(json.dumps(data)).encode("the ball").ids
    assert ours.encode("the ball", bos=True, eos=True) == expected


@pytest.mark.parametrize(("cls", "found"), [("</s>", "in place of BOS"), ("the", "special tokens")])
def test_another_token_in_front_is_refused(tmp_path, cls, found):
    data = llama3() | {"post_processor": {"type": "BertProcessing", "cls": [cls, 2], "sep": ["</s>", 2]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(BadFileError, match=f"post_processor.*{found}"):
        tokenizers.load(tmp_path)
