"""The tokenizer of the engine (llama/csrc/text/tokenizer.h) against sentencepiece, and on hostile files."""

import io
import os
import random
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import assert_linear, write_pieces, write_tokenizer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from references import sentencepiece_paths
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from sentencepiece import sentencepiece_model_pb2 as pb

from llama import Tokenizer
from llama._engine import ffi, lib
from llama.formats import vocabulary as tokens

MILLION = 1_000_000

# Each line says "hello world" or the like; together they have letters of one to four bytes, marks and emoji.
SCRIPTS = """
Once upon a time, there was a little girl named Lily. She loved to play outside in the park.
Žluťoučký kůň úpěl ďábelské ódy. Où êtes-vous, ça va? Straße, Øl, Łódź, şğı.
Съешь же ещё этих мягких французских булок. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.
שלום עולם! مرحبا بالعالم. नमस्ते दुनिया। สวัสดีชาวโลก გამარჯობა მსოფლიო
世界您好。こんにちは、世界。 안녕하세요 세계 𠜎𠜱𡿺 👩‍👩‍👧‍👦 🇮🇸 e\u0301 \U0001f600 ∀x∈M: ⌈x⌉ ≥ ⌊x⌋
if (x[i] == 0) {\n\treturn x->y;\n}\n\n\n    # 3.14159, 1e-9, 2024-01-01 \\"quoted\\" <b>&amp;</b>
"""
TRICKY = [
    *["", " ", "  ", "   x", "x   ", " \t \n ", "\n\n\n", "\r\n", "\0", "a\0b", "\0" * 5, "\u3000\xa0"],
    *["▁", "▁▁a", "a▁b", " ▁ ", "a ▁b"],
    *["<s>", "</s>", "<unk>", "\n<s>\n", "\n</s>\n", "<0x41>", "<0xE2><0x96><0x81>", " ⁇ ", "[INST] <<SYS>>"],
    *["\ufffd", "\ufeff", "\u200d", "\U0010ffff", "\U0001f600" * 3, "e\u0301" * 9, "a" * 999, "ab" * 333],
]
NOT_UTF8 = [
    *[
        b"\xff",
        b"\x80",
        b"a\xc3",
        b"\xe2\x96",
        b"\xe2\x96a",
        b"\xe2\x96\x81\x81",
        b"\xf0\x9f\x98",
        b"\xf0\x9f\x98x",
    ],
    *[b"\xc0\x80", b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80"],
    *[
        b"\xf5\x80\x80\x80",
        b"\xfe\xfe\xff\xff",
        b"\xe0\xa0\x80\xe0\x80",
        b"\xf4\x8f\xbf\xbf\xbf",
        bytes(range(256)),
    ],
]

characters = st.one_of(
    st.sampled_from(sorted(set(SCRIPTS))),
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from("  ▁\0\t\n<>"),
)
texts = st.one_of(
    st.lists(characters | st.sampled_from(SCRIPTS.split() + TRICKY), max_size=40).map("".join),
    st.text(st.sampled_from("ab é▁"), max_size=60),
)
thorough = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@dataclass
class Pair:
    """One vocabulary, read by the two that must agree."""

    sp: SentencePieceProcessor
    tokenizer: Tokenizer
    handle: Any  # LlamaTokenizer *, for what Tokenizer has no method for
    path: Path


def open_c(path: Path) -> Any:
    out = ffi.new("LlamaTokenizer **")
    assert lib.llama_tokenizer_open(str(path).encode(), out, ffi.NULL) == lib.LLAMA_OK
    return ffi.gc(out[0], lib.llama_tokenizer_close)


def make_pair(model: bytes, path: Path) -> Pair:
    sp = SentencePieceProcessor(model_proto=model)
    write_tokenizer(path, sp)
    return Pair(sp, Tokenizer(path), open_c(path), path)


def train(vocab_size: int, byte_fallback: bool) -> bytes:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(SCRIPTS.split("\n") * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=byte_fallback,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return model.getvalue()


def published(path: Path) -> bytes:
    """A model file with what a tokenizer.bin can't say set to what the engine does."""
    model = pb.ModelProto.FromString(path.read_bytes())
    model.normalizer_spec.remove_extra_whitespaces = False
    model.trainer_spec.unk_surface = " ⁇ "
    return model.SerializeToString()


MODELS = {
    "bytes": lambda: train(700, byte_fallback=True),
    "no_bytes": lambda: train(400, byte_fallback=False),
    **{name: partial(published, path) for name, path in sentencepiece_paths().items()},
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory) -> Pair:
    return make_pair(MODELS[request.param](), tmp_path_factory.mktemp("tokenizer") / "tok.bin")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Pair:
    return make_pair(MODELS["bytes"](), tmp_path_factory.mktemp("tokenizer") / "tok.bin")


def handmade_model(pieces: list[tuple[str, float]], byte_fallback: bool) -> bytes:
    """A sentencepiece model with these pieces of text after <unk>, <s>, </s> and the bytes."""
    model = pb.ModelProto()
    model.trainer_spec.model_type = pb.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = byte_fallback
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    kind = pb.ModelProto.SentencePiece
    model.pieces.add(piece="<unk>", score=0, type=kind.UNKNOWN)
    model.pieces.add(piece="<s>", score=0, type=kind.CONTROL)
    model.pieces.add(piece="</s>", score=0, type=kind.CONTROL)
    for byte in range(256 if byte_fallback else 0):
        model.pieces.add(piece=f"<0x{byte:02X}>", score=0, type=kind.BYTE)
    for piece, score in pieces:
        model.pieces.add(piece=piece, score=score)
    return model.SerializeToString()


def encode_c(handle: Any, data: bytes, bos: bool = False, eos: bool = False) -> list[int]:
    """The ids of any bytes, written to exactly the room that llama_encode_bound asks for."""
    ids = ffi.new("int32_t[]", lib.llama_encode_bound(len(data)))
    n = ffi.new("size_t *")
    assert lib.llama_encode(handle, data, len(data), bos, eos, ids, n, ffi.NULL) == lib.LLAMA_OK
    return ffi.unpack(ids, n[0])


def token_bytes(handle: Any, previous: int, token: int) -> bytes | None:
    length = ffi.new("size_t *")
    data = lib.llama_token_bytes_of(handle, previous, token, length)
    return None if data == ffi.NULL else bytes(ffi.buffer(data, length[0]))


# --- Encoding equals the library


@pytest.mark.parametrize("text", [*TRICKY, *SCRIPTS.split("\n"), SCRIPTS], ids=ascii)
def test_encode_equals_sentencepiece_on_tricky_text(pair, text):
    assert pair.tokenizer.encode(text, bos=False) == pair.sp.encode(text)


@thorough
@given(texts)
def test_encode_equals_sentencepiece_on_any_text(pair, text):
    assert pair.tokenizer.encode(text, bos=False) == pair.sp.encode(text)


@pytest.mark.parametrize("data", NOT_UTF8, ids=ascii)
def test_encode_equals_sentencepiece_on_bytes_that_are_not_utf8(pair, data):
    assert encode_c(pair.handle, data) == pair.sp.encode(data)


@thorough
@given(st.binary(max_size=30) | st.lists(st.sampled_from(NOT_UTF8), max_size=4).map(b"".join))
def test_encode_equals_sentencepiece_on_any_bytes(pair, data):
    assert encode_c(pair.handle, data) == pair.sp.encode(data)


def test_encode_equals_sentencepiece_on_a_million_characters(pair):
    rng = random.Random(1)
    parts = SCRIPTS.split(" ") + TRICKY + ["the ", "\n", "  "]
    text = "".join(rng.choice(parts) + rng.choice(" ▁\n") for _ in range(MILLION // 4))[:MILLION]
    assert len(text) == MILLION
    assert pair.tokenizer.encode(text, bos=False) == pair.sp.encode(text)


# Few letters and few scores make ties, overlaps, pieces that no merge reaches and letters that are only in
# longer pieces; a vocabulary without "▁" leaves spaces to the byte tokens.
@thorough
@given(
    pieces=st.dictionaries(
        st.text(st.sampled_from("abé▁"), min_size=1, max_size=5),
        st.sampled_from([0.0, -1.0, -2.0, -1e9, 3.5]),
        min_size=1,
        max_size=25,
    ),
    byte_fallback=st.booleans(),
    text=st.text(st.sampled_from("abé ▁ü"), max_size=30),
)
@example(pieces={"ab": 0.0}, byte_fallback=True, text="ab a b")
@example(pieces={"aa": 0.0, "▁a": 0.0}, byte_fallback=False, text="aaaa")
def test_encode_equals_sentencepiece_on_any_vocabulary(tmp_path, pieces, byte_fallback, text):
    made = make_pair(handmade_model(list(pieces.items()), byte_fallback), tmp_path / "tok.bin")
    assert made.tokenizer.encode(text, bos=False) == made.sp.encode(text)


def test_text_that_looks_like_a_special_token_is_plain_text(pair):
    special = {pair.sp.bos_id(), pair.sp.eos_id(), *(i for i in range(300) if pair.sp.is_byte(i))}
    ids = [i for text in ("<s>", "</s>", "<0x41>") for i in pair.tokenizer.encode(text, bos=False)]
    known = [i for i in ids if not pair.sp.is_byte(i)]
    assert known
    assert not special & set(known)


def test_a_special_token_is_never_text_even_when_pieces_lead_to_it(tmp_path):
    pieces = [
        (piece, -float(i))
        for i, piece in enumerate(["<s", "<0", "x4", "<0x4", "1>", "<unk", "▁", "<", "s", ">"])
    ]
    made = make_pair(handmade_model(pieces, byte_fallback=True), tmp_path / "tok.bin")
    for text in ("<s>", "<0x41>", "<unk>"):
        assert made.tokenizer.encode(text, bos=False) == made.sp.encode(text)


def test_bos_and_eos_are_put_around_the_text(pair):
    bos, eos, ids = pair.sp.bos_id(), pair.sp.eos_id(), pair.sp.encode("Once")
    assert pair.tokenizer.encode("Once") == [bos, *ids]
    assert pair.tokenizer.encode("Once", bos=False, eos=True) == [*ids, eos]
    assert pair.tokenizer.encode("", bos=True, eos=True) == [bos, eos]
    assert pair.tokenizer.encode("", bos=False) == []


@pytest.mark.parametrize("pieces", [[b"</s>", b"a", b"<s>", b"<unk>"], [b"<s>", b"a", b"</s>", b"<unk>"]])
def test_the_first_token_may_be_special(tmp_path, pieces):
    path = tmp_path / "tok.bin"
    path.write_bytes(vocabulary(pieces))
    ids = Tokenizer(path).encode("<s>a</s>", bos=False, special=True)
    assert [i for i in ids if i in (0, 2)] == [pieces.index(b"<s>"), pieces.index(b"</s>")]


def test_special_ids_come_from_the_file(tmp_path):
    pieces = [b" ", b"a", b"</s>", b"<0x41>", b"<s>", b"<unk>", b"\n<s>\n"]
    path = tmp_path / "tok.bin"
    path.write_bytes(vocabulary(pieces))
    tokenizer = Tokenizer(path)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id) == (7, 4, 2)  # the first <s> counts
    assert tokenizer.encode("aAA", bos=True, eos=True) == [
        4,
        0,
        1,
        5,
        2,
    ]  # one byte token is no byte fallback


def test_a_vocabulary_without_bos_has_none_to_give(tmp_path):
    path = tmp_path / "tok.bin"
    path.write_bytes(vocabulary([b"<unk>", b"a"]))
    tokenizer = Tokenizer(path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (-1, -1)
    with pytest.raises(ValueError, match="the vocabulary has no BOS"):
        tokenizer.encode("a", bos=True)
    with pytest.raises(ValueError, match="the vocabulary has no EOS"):
        tokenizer.encode("a", bos=False, eos=True)
    path.write_bytes(vocabulary([b"<unk>", b"a", b"<s>"]))
    assert Tokenizer(path).encode("", bos=True) == [2]
    with pytest.raises(ValueError, match="the vocabulary has no EOS"):
        Tokenizer(path).encode("a", bos=True, eos=True)


def test_the_bound_holds_for_the_text_that_needs_most(tmp_path):
    made = make_pair(handmade_model([("q", 0.0)], byte_fallback=True), tmp_path / "tok.bin")
    for data in (b" " * 50, b"\xff" * 50, b""):
        n = len(encode_c(made.handle, data, bos=True, eos=True))
        assert n == (3 * len(data) + 5 if data else 2) <= lib.llama_encode_bound(len(data))
    assert lib.llama_encode_bound(2**64 - 1) == 2**64 - 1


def test_a_text_of_two_gigabytes_is_refused(trained):
    error, n = ffi.new("LlamaError *"), ffi.new("size_t *")
    ids = ffi.new("int32_t[]", 8)
    assert lib.llama_encode(trained.handle, b"a", 2**31, 0, 0, ids, n, error) == lib.LLAMA_ERROR_USAGE
    assert ffi.string(error.text) == b"text has 2147483648 bytes, allowed are 2147483647"


# --- Decoding equals the library


@thorough
@given(st.data())
def test_decode_equals_sentencepiece_for_any_ids(pair, data):
    size = pair.sp.vocab_size()
    space = pair.sp.piece_to_id("▁")
    ids = data.draw(st.lists(st.integers(0, size - 1) | st.sampled_from([0, 1, 2, space]), max_size=20))
    assert pair.tokenizer.decode(ids) == pair.sp.decode(ids)


@thorough
@given(st.data())
def test_decode_equals_sentencepiece_for_any_byte_tokens(trained, data):
    piece = st.sampled_from([1, 2, trained.sp.piece_to_id("▁"), *trained.sp.encode("a ▁b")])
    byte = st.sampled_from([0x20, 0x41, 0x80, 0x96, 0x9F, 0xC3, 0xE2, 0xED, 0xF0, 0xFF]) | st.integers(0, 255)
    tokens = st.one_of(piece, byte.map(lambda b: trained.sp.piece_to_id(f"<0x{b:02X}>")))
    ids = data.draw(st.lists(tokens, max_size=20))
    assert trained.tokenizer.decode(ids) == trained.sp.decode(ids)


@thorough
@given(texts)
@example("  two spaces")
@example("<s>\0 \U0001f600")
def test_decode_undoes_encode(trained, text):
    plain = text.replace("▁", " ")
    assert trained.tokenizer.decode(trained.tokenizer.encode(text)) == plain
    assert trained.tokenizer.decode(trained.tokenizer.encode(text, bos=False, eos=True)) == plain


def test_one_space_is_dropped_after_bos_and_at_the_start_only(trained):
    sp, handle = trained.sp, trained.handle
    space, word, byte = sp.piece_to_id("▁"), sp.piece_to_id("▁t"), sp.piece_to_id("<0x20>")
    assert word != sp.unk_id()
    assert [token_bytes(handle, p, word) for p in (-1, sp.bos_id(), sp.eos_id(), word)] == [
        b"t",
        b"t",
        b" t",
        b" t",
    ]
    assert [token_bytes(handle, p, space) for p in (-1, space)] == [b"", b" "]
    assert token_bytes(handle, -1, byte) == b" "
    assert token_bytes(handle, -1, sp.unk_id()) == " ⁇ ".encode()
    assert token_bytes(handle, -1, sp.bos_id()) == token_bytes(handle, -1, sp.eos_id()) == b""


@pytest.mark.parametrize("token", [-1, -(2**31), 2**31 - 1])
def test_an_id_outside_the_vocabulary_has_no_bytes(trained, token):
    assert token_bytes(trained.handle, -1, token) is None
    length, size = ffi.new("size_t *"), trained.sp.vocab_size()
    assert token_bytes(trained.handle, -1, size) is None
    for outside in (token, size):
        assert lib.llama_token_name(trained.handle, outside, length) == ffi.NULL
        assert not lib.llama_token_is_special(trained.handle, outside)
    assert lib.llama_token_name(trained.handle, size - 1, length) != ffi.NULL


# --- Time and threads


@pytest.mark.parametrize(
    "text",
    ["a", " ", "\n", "ab", "e\u0301", "\U0001f600", "\0", "=-", "the cat sat on the mat. ", "\U0002070e"],
)
def test_the_cost_is_linear_whatever_the_text(pair, text):
    data = text.encode() * (MILLION // len(text.encode()))
    assert encode_c(pair.handle, data) == pair.sp.encode(data)
    assert_linear(lambda n: encode_c(pair.handle, data[:n]), len(data))


def test_threads_share_a_tokenizer(trained):
    texts = [text * 50 for text in SCRIPTS.split("\n")]
    expected = trained.sp.encode(texts)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert list(pool.map(lambda text: encode_c(trained.handle, text.encode()), texts)) == expected


# --- Files


def record(piece: bytes, score: float = 0.0) -> bytes:
    return struct.pack("<fi", score, len(piece)) + piece


def vocabulary(pieces: list[bytes], longest: int = 0) -> bytes:
    return struct.pack("<I", longest) + b"".join(map(record, pieces))


HEAD = vocabulary([b"<unk>", b"<s>"])
HOSTILE = {
    "empty": (b"", "is empty"),
    "header_only": (HEAD[:4], "has no tokens"),
    "less_than_a_header": (b"\1\0", "has no tokens"),
    "negative_length": (HEAD + struct.pack("<fi", 0, -5), "token 2 has length = -5, allowed 0 to 16384"),
    "huge_length": (
        HEAD + struct.pack("<fi", 0, 2**31 - 1),
        "token 2 has length = 2147483647, allowed 0 to 16384",
    ),
    "long_length": (HEAD + record(b"x" * 16385), "token 2 has length = 16385, allowed 0 to 16384"),
    "cut_piece": (HEAD + record(b"abc")[:-1], "token 2 has length = 3, but the file ends after 2 bytes"),
    "cut_record": (HEAD + b"\0" * 7, "token 2 has 7 bytes of its record, needed are at least 8"),
    "trailing_byte": (HEAD + b"\n", "token 2 has 1 bytes of its record, needed are at least 8"),
    "nan": (HEAD + record(b"a", float("nan")), "token 2 has score = nan, allowed are finite numbers"),
    "infinity": (HEAD + record(b"a", float("-inf")), "token 2 has score = -inf, allowed are finite numbers"),
    "nothing_for_unknown": (vocabulary([b"a"]), "has neither <unk> nor the byte tokens <0x00> to <0xFF>"),
    "gguf": (b"GGUF" + b"\3\0\0\0" + b"\xff" * 16, "is a model; for a tokenizer.bin made of it: python"),
    "v3": (b"24ka" + b"\3\0\0\0" + b"\xff" * 16, "is a model; for a tokenizer.bin made of it: python"),
    "json": (b'{"model": {"type": "BPE"}}', "is a JSON file, such as a tokenizer.json; for a tokenizer.bin"),
    "json, spaced": (b'{ \n "model": {"type": 1}}', "is a JSON file, such as a tokenizer.json"),
    "json, short": (b'{"model": {}}', "can't be read as a tokenizer: it is a JSON file"),
    "a brace": (b"{x" + b"\xff" * 20, "can't be read as a tokenizer: it is a JSON file"),
    "a newline": (b"\n\x05x\0" + b"\xff\xff\xff\x7f" * 4, "token 0 has score = nan"),
    "two newlines": (b"\n\x05\n\x04" + b"\xff\xff\xff\x7f" * 4, "token 0 has score = nan"),
    "sentencepiece": (b"\n\x05\n\x03" + b"\xff" * 20, "is a sentencepiece model"),
    "tiktoken": (b"IQ== 0\nIg== 1\n", "is a tiktoken file, as of Llama 3"),
    "no number": (b"IQ== x\nIg== 1\n", "token 0 has length = "),
    "no base64": (b"I-== 0\nIg== 1\n", "token 0 has length = "),
    "a word": (b"IQ==", "has no tokens"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_the_reason(tmp_path, name):
    data, message = HOSTILE[name]
    path = tmp_path / "tok.bin"
    path.write_bytes(data)
    error, out = ffi.new("LlamaError *"), ffi.new("LlamaTokenizer **")  # Python may read what C refuses
    assert lib.llama_tokenizer_open(str(path).encode(), out, error) == lib.LLAMA_ERROR_FILE
    assert ffi.string(error.text).decode().startswith(f"{path}: {message}")


def test_a_file_of_more_tokens_than_an_id_can_be_is_refused(tmp_path):
    """All of them empty, on no block of the disk."""
    path = tmp_path / "tok.bin"
    path.touch()
    os.truncate(path, 4 + 8 * 2**24)
    with pytest.raises(ValueError, match="has more than 16777215 tokens"):
        Tokenizer(path)


def test_byte_tokens_are_spelt_in_one_way(tmp_path):
    """Two upper-case digits between <0x and >; all else is text."""
    others = ["<0x4a>", "<0x4G>", "<0xG4>", "<0x4A]", "<0X4A>", "<0x04A>", "<0x4>", "<0x4\0>", "[0x4A>"]
    path = write_pieces(tmp_path / "t.bin", [(piece, 0.0) for piece in ["<unk>", "<0x4A>", *others]])
    handle = open_c(path)
    assert token_bytes(handle, 0, 1) == b"J"
    assert [token_bytes(handle, 0, 2 + i).decode() for i in range(len(others))] == others


def crowd(count: int, slots: int) -> list[str]:
    """Characters of four bytes that all begin to be looked for in one place of a table."""
    characters = [chr(code) for code in range(0x10000, 0x110000)]
    words = np.frombuffer("".join(characters).encode(), "<u4").astype(np.uint64)
    hashes = (words ^ np.uint64(4)) * np.uint64(0x9E3779B97F4A7C15)
    places = (hashes ^ hashes >> np.uint64(32)) % np.uint64(slots)
    return [characters[i] for i in np.flatnonzero(places == 0)[:count]]


def test_a_piece_that_is_out_of_reach_is_not_found_and_all_others_are(tmp_path):
    """300 pieces that begin to be looked for in one place, as only a file made for it has them: 256 fit."""
    crowded, bytes_of = crowd(300, 2048), [f"<0x{byte:02X}>" for byte in range(256)]
    path = write_pieces(tmp_path / "t.bin", [(piece, 0.0) for piece in ["<unk>", " ", *bytes_of, *crowded]])
    tokenizer = Tokenizer(path)
    found = [tokenizer.encode(character, bos=False)[1:] for character in crowded]
    assert found[:256] == [[2 + 256 + i] for i in range(256)]
    assert found[256:] == [[2 + byte for byte in character.encode()] for character in crowded[256:]]


def test_a_sentencepiece_model_is_named_as_such(tmp_path):
    """By C, which does not read it; Tokenizer(path) does."""
    path, error = tmp_path / "tok.model", ffi.new("LlamaError *")
    path.write_bytes(train(700, byte_fallback=True))
    out = ffi.new("LlamaTokenizer **")
    assert lib.llama_tokenizer_open(str(path).encode(), out, error) == lib.LLAMA_ERROR_FILE
    assert ffi.string(error.text).decode() == (
        f"{path}: is a sentencepiece model; for a tokenizer.bin made of it: python tokenizer.py export {path}"
    )


def test_a_file_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="No such file"):
        Tokenizer(tmp_path / "tok.bin")


@pytest.mark.parametrize("longest", [0, 1, 123, 2**32 - 1])  # 123 is "{", which JSON begins with
def test_the_longest_length_in_the_header_is_only_a_hint(tmp_path, longest):
    path = tmp_path / "tok.bin"
    path.write_bytes(vocabulary([b"<unk>", b" ", b"a", b" a", b"aa", b"", b" aa", b"a"], longest))
    assert Tokenizer(path).encode("aaa", bos=False) == [6, 2]


def is_refused(path: Path) -> bool:
    """Opens and uses a file that may be anything; a refusal must name it."""
    try:
        tokenizer = Tokenizer(path)
    except ValueError as error:
        return str(path) in str(error) or pytest.fail(str(error))
    ids = tokenizer.encode("a \U0001f600 <s>", bos=False)
    return not all(0 <= i < tokenizer.vocab_size for i in ids) and pytest.fail(str(ids))


def test_every_truncation_is_refused_but_between_two_tokens(trained, tmp_path):
    data = trained.path.read_bytes()
    ends, at = set(), 4
    while at < len(data):
        at += 8 + struct.unpack_from("<i", data, at + 4)[0]
        ends.add(at)
    path = tmp_path / "tok.bin"
    for size in [*range(200), *range(200, len(data), 97), len(data) - 1, len(data)]:
        path.write_bytes(data[:size])
        assert is_refused(path) == (size not in ends)


@thorough
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_refused_or_read(tmp_path, data, with_head):
    path = tmp_path / "tok.bin"
    path.write_bytes(HEAD + data if with_head else data)
    is_refused(path)


# --- The first llama2.c


def test_a_tokenizer_bin_whose_byte_tokens_are_characters_is_read_as_its_model(trained, tmp_path):
    path = tmp_path / "old.bin"
    records = [(trained.sp.id_to_piece(i), trained.sp.get_score(i)) for i in range(trained.sp.vocab_size())]
    names = {f"<0x{byte:02X}>": chr(byte) for byte in range(256)} | {"<s>": "\n<s>\n", "</s>": "\n</s>\n"}
    write_pieces(path, [(names.get(piece, piece).replace("▁", " "), score) for piece, score in records])
    old = Tokenizer(path)
    assert tokens.read_bin(path, path.read_bytes()) == tokens.read_bin(path, trained.path.read_bytes())
    for text in [*TRICKY, *SCRIPTS.split("\n"), "\U0001f600, \0"]:
        ids = trained.sp.encode(text)
        assert old.encode(text, bos=False) == ids, text
        assert old.decode(ids) == trained.sp.decode(ids), text


def test_characters_elsewhere_are_characters(tmp_path):
    names = ["<unk>", "\n<s>\n", "\n</s>\n", "x", *map(chr, range(256))]
    tokenizer = Tokenizer(write_pieces(tmp_path / "t.bin", [(name, 0.0) for name in names]))
    assert tokenizer.encode("\u00e9", bos=False) == [4 + 32, 4 + 0xE9]
