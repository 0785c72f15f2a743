"""The indexed file of a tokenizer: docs/format.md, formats/vocabulary.py and the engine agree on it, and the
engine survives every lie in it.

tests/data/sample_characters.bin, sample_bytes.bin, sample_edges.bin and sample_unigram.bin are such files,
written once and never again.
"""

import math
import random
import re
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers import DATA
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_formats import export_v3

import llama
from llama import BadFileError, Tokenizer
from llama._engine import ffi, lib
from llama.formats import vocabulary as tokens
from llama.formats.vocabulary import BYTE, CONTROL, TEXT, UNKNOWN, USER, Vocabulary
from llama.native import encode_spans

BYTE_PIECES = [bytes([byte]) for byte in range(256)]
CHARACTERS = Vocabulary(
    tokens.CHARACTERS,
    pieces=[b"<unk>", b"<s>", b"</s>", *BYTE_PIECES, b" ", b"a", b"b", b" a", b"ab", "é".encode(), b"<sep>"],
    scores=[0.0] * 259 + [-5.0, -5.0, -5.0, -1.0, -2.0, -5.0, 0.0],
    types=[UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[TEXT] * 6, USER],
    bos=1,
    eos=2,
    unknown=0,
    flags=tokens.SENTENCEPIECE,
)
BYTES = Vocabulary(
    tokens.BYTES,
    pieces=[*BYTE_PIECES, b"ab", b"abc", b"bc", b" abab", b"<|bos|>", b"<|eot|>"],
    scores=[0.0] * 262,
    types=[TEXT] * 260 + [CONTROL] * 2,
    bos=260,
    eos=261,
    pattern=tokens.LLAMA3,
    flags=tokens.WHOLE_WORDS | tokens.USER_FIRST,
    merges=[(b"b", b"c"), (b"a", b"b"), (b"a", b"bc")],
)
UNIGRAM = Vocabulary(
    tokens.UNIGRAM,
    pieces=[b"<unk>", b"<s>", b"</s>", b" ", b"a", b"b", b" a", b"ab", b" ab", b"<sep>", b"<late>"],
    scores=[0.0, 0.0, 0.0, -2.0, -2.5, -3.1, -4.0, -5.0, -8.0, 0.0, 0.0],
    types=[UNKNOWN, CONTROL, CONTROL, *[TEXT] * 6, USER, CONTROL],
    bos=1,
    eos=2,
    unknown=0,
    flags=tokens.SENTENCEPIECE | tokens.DOUBLES,
    late=frozenset([10]),
)
EDGED = replace(
    BYTES,
    pieces=[*BYTES.pieces, b"<word>"],
    scores=[0.0] * 263,
    types=[*BYTES.types, USER],
    edges={260: tokens.LEFT, 261: tokens.LEFT | tokens.RIGHT, 262: tokens.WORD},
)
SAMPLES = {  # ids of a text, written down by hand
    "characters": (CHARACTERS, "abab <s>é!<sep>", [262, 261, 263, 259, 1, 259, 264, 36, 265]),
    "bytes": (BYTES, "abcab abab<|eot|>", [257, 256, 259, 261]),
    "edges": (
        EDGED,
        "a <|bos|> b \t<|eot|>\n <word> <word>_",
        [97, 260, 32, 98, 261, 262, 32, 60, *b"word>_"],
    ),
    "unigram": (UNIGRAM, "abab a <late>b<s>éé <sep>", [3, 7, 7, 6, 10, 5, 1, 3, 0, 3, 9]),
}


@pytest.fixture(params=SAMPLES)
def sample(request) -> tuple[Vocabulary, str, list[int]]:
    return SAMPLES[request.param]


# --- The layout


@pytest.mark.parametrize("name", SAMPLES)
def test_the_stored_file_is_read_and_would_be_written_again(name):
    vocabulary, text, ids = SAMPLES[name]
    path = DATA / f"sample_{name}.bin"
    assert Tokenizer(path).encode(text, bos=False, special=True) == ids
    assert tokens.read_bin(path, path.read_bytes()) == vocabulary
    assert vocabulary.indexed == path.read_bytes()


def test_every_field_lies_where_the_format_says(sample):
    v, data = sample[0], sample[0].indexed
    words = struct.unpack("<5I4i7I", data[:64])
    flags = v.flags | (tokens.RANKED if v.merges else 0) | (tokens.EDGED if v.edges else 0)
    assert words[:9] == (0x6B6F746C, 1, v.kind, v.pattern, flags, len(v), v.bos, v.eos, v.unknown)
    n_special, n_slots, longest, n_bytes, n_words, n_late, checksum = words[9:]
    assert (n_words, n_late) == ((7, 1) if v is UNIGRAM else (0, 0))
    assert checksum == zlib.crc32(data[64:], zlib.crc32(data[:60]))
    found = {piece: i for i, piece in enumerate(v.pieces) if v.types[i] == TEXT and v is not UNIGRAM}
    assert longest == max(map(len, found), default=0)
    at = 64

    def take(form: str, n: int) -> tuple:
        nonlocal at
        at += struct.calcsize(f"<{n}{form}")
        return struct.unpack_from(f"<{n}{form}", data, at - struct.calcsize(f"<{n}{form}"))

    assert take("i", 256)[65] == {CHARACTERS.kind: 68, BYTES.kind: 65, UNIGRAM.kind: -1}[v.kind]
    joined = take("B", 8192)
    assert {b for b in range(65536) if joined[b // 8] >> b % 8 & 1} == {
        256 * a + b for piece in found for a, b in pairwise(piece)
    }
    offsets, scores, special = take("I", len(v) + 1), take("f", len(v)), take("I", n_special)
    late, sorted_words, slots = take("I", n_late), take("I", n_words), take("I", n_slots)
    ranks, doubles = take("I", n_bytes if v.merges else 0), take("d", len(v) if v is UNIGRAM else 0)
    edges = take("B", len(v) if v.edges else 0)
    assert {i: bits for i, bits in enumerate(edges) if bits} == v.edges
    types, pieces = take("B", len(v)), data[at:]
    assert [pieces[a:b] for a, b in pairwise(offsets)] == v.pieces
    assert (list(doubles or scores), list(types), len(pieces)) == (v.scores, v.types, n_bytes)
    assert list(scores) == pytest.approx(v.scores, rel=1e-6)
    assert [v.pieces[i] for i in special] == sorted(
        v.pieces[i] for i, kind in enumerate(v.types) if kind in (2, 3) and i not in v.late
    )
    assert (set(late), list(sorted_words)) == (v.late, [3, 6, 8, 9, 4, 7, 5] if v is UNIGRAM else [])
    assert sorted((slot & 0xFFFFFF) - 1 for slot in slots if slot) == sorted(found.values())
    if v.merges:
        assert [ranks[offsets[i] + 1] for i in (258, 256, 257)] == [0, 1, 2]
        assert ranks[offsets[257] + 2] == 2**32 - 1


def test_reading_undoes_writing(sample):
    assert tokens.read_bin(Path("x"), sample[0].indexed) == sample[0]
    assert tokens.count_bin(Path("x"), sample[0].indexed) == len(sample[0])


def test_a_file_that_was_damaged_is_not_read(sample):
    data = bytearray(sample[0].indexed)
    data[-1] ^= 1
    with pytest.raises(BadFileError, match="x: checksum of the tokenizer"):
        tokens.read_bin(Path("x"), bytes(data))


def test_a_special_token_may_have_one_byte():
    v = Vocabulary(tokens.BYTES, [*BYTE_PIECES, b"#"], [0.0] * 257, [TEXT] * 256 + [CONTROL])
    engine = Tokenizer.from_bytes(v.indexed)
    assert engine.encode("a#b", bos=False, special=True) == [ord("a"), 256, ord("b")]
    assert engine.encode("a#b", bos=False) == [*b"a#b"]


def test_the_room_for_ids_holds_the_text_that_needs_most():
    """Between tokens of one byte, each with a space in front that has no token, bytes that are no UTF-8."""
    v = Vocabulary(tokens.CHARACTERS, [*BYTE_PIECES, b"#"], [0.0] * 257, [BYTE] * 256 + [USER])
    engine = Tokenizer.from_bytes(replace(v, flags=tokens.SENTENCEPIECE | tokens.USER_FIRST).indexed)
    for n in range(3):
        ids = encode_spans(engine._handle, b"\xff" + b"#\xff" * n, [])
        assert len(ids) == lib.llama_encode_bound(2 * n + 1) - 2  # without BOS and EOS


def test_a_vocabulary_of_131072_fits_into_the_table():
    pieces = [f"{i:x}".encode() for i in range(1 << 17)]
    assert (tokens.place([tokens.hash_bytes(piece) for piece in pieces]) >= 0).sum() == 1 << 17


# --- The engine


def open_bytes(data: bytes) -> Tokenizer:
    return Tokenizer.from_bytes(data, "tok.bin")


def test_a_tokenizer_from_memory_names_itself_in_messages():
    with pytest.raises(BadFileError, match=r"tok\.bin: is empty"):
        open_bytes(b"")
    with pytest.raises(BadFileError, match=r"tok\.bin: has no tokens"):
        open_bytes(b"1")


def patch(at: int, form: str, value: float) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        copy = bytearray(data)
        struct.pack_into(form, copy, at if at >= 0 else len(data) + at, value)
        return bytes(copy)

    return change


OFFSETS = 64 + 1024 + 8192
N = len(CHARACTERS)
TYPES_AT = -sum(map(len, CHARACTERS.pieces)) - N
HOSTILE = {
    "header": (lambda data: data[:63], "has 63 bytes, needed are at least 64"),
    "version": (patch(4, "<I", 2), "version = 2, allowed 1 to 1"),
    "kind": (patch(8, "<I", 3), "kind = 3, allowed 0 to 2"),
    "pattern": (patch(12, "<I", 11), "pattern = 11, allowed 0 to 10"),
    "flags": (patch(16, "<I", 2048), "flags = 2048, allowed 0 to 2047"),
    "vocab_size": (patch(20, "<i", 0), "vocab_size = 0, allowed 1 to 16777215"),
    "least vocab_size": (patch(20, "<i", -(2**31)), "vocab_size = -2147483648, allowed 1 to 16777215"),
    "huge vocab_size": (patch(20, "<i", 2**31 - 1), "vocab_size = 2147483647, allowed 1 to 16777215"),
    "bos": (patch(24, "<i", N), f"bos = {N}, allowed -1 to {N - 1}"),
    "eos": (patch(28, "<i", -2), f"eos = -2, allowed -1 to {N - 1}"),
    "unknown": (patch(32, "<i", N), f"unknown = {N}, allowed -1 to {N - 1}"),
    "specials": (patch(36, "<I", 2**32 - 1), f"number of special tokens = 4294967295, allowed 0 to {N}"),
    "slots": (patch(40, "<I", 3), "number of slots = 3, allowed are powers of two up to 67108864"),
    "no slots": (patch(40, "<I", 0), "number of slots = 0, allowed are powers of two"),
    "many slots": (patch(40, "<I", 1 << 27), "number of slots = 134217728, allowed are powers of two"),
    "fewer slots": (patch(40, "<I", 8), "bytes, its header says"),
    "bytes": (patch(48, "<I", 2**32 - 1), "bytes, its header says"),
    "ranks": (patch(16, "<I", 32 + 67), "bytes, its header says"),
    "first offset": (patch(OFFSETS, "<I", 1), "offsets of tokens, allowed are ascending ones"),
    "falling offset": (patch(OFFSETS + 4 * 9, "<I", 0), "offsets of tokens, allowed are ascending ones"),
    "last offset": (patch(OFFSETS + 4 * N, "<I", 2**31), "offsets of tokens, allowed are ascending ones"),
    "type": (patch(TYPES_AT, "<B", 5), "types of tokens, allowed are 0 to 4"),
    "score": (patch(OFFSETS + 4 * (N + 1), "<f", math.inf), "scores of tokens, allowed are finite numbers"),
    "special id": (
        patch(OFFSETS + 8 * N + 4, "<I", N),
        "special or byte tokens, allowed are ids of the vocabulary",
    ),
    "byte id": (patch(64, "<i", N), "special or byte tokens, allowed are ids of the vocabulary"),
    "negative byte id": (patch(64, "<i", -2), "special or byte tokens, allowed are ids of the vocabulary"),
    "sums without unknown": (
        lambda data: patch(64, "<i", -1)(patch(32, "<i", -1)(patch(8, "<I", 2)(data))),
        "has neither <unk> nor",
    ),
    "sorted": (patch(52, "<I", N + 1), f"number of sorted pieces = {N + 1}, allowed 0 to {N}"),
    "fewer sorted": (patch(52, "<I", 1), "bytes, its header says"),
    "late": (patch(56, "<I", N + 1), f"number of late special tokens = {N + 1}, allowed 0 to {N}"),
    "doubles": (patch(16, "<I", 256 + 67), "bytes, its header says"),
    "edges": (patch(16, "<I", 512 + 67), "bytes, its header says"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_lie_is_refused_with_the_field(name):
    change, message = HOSTILE[name]
    with pytest.raises(BadFileError, match=r"^tok\.bin: .*" + re.escape(message)):
        open_bytes(change(CHARACTERS.indexed))


def test_a_double_that_is_no_number_is_refused():
    data, scores = UNIGRAM.indexed, np.array(UNIGRAM.scores, "<f8").tobytes()
    assert data.count(scores) == 1
    with pytest.raises(BadFileError, match="scores of tokens, allowed are finite numbers"):
        open_bytes(data.replace(scores, scores[:-8] + struct.pack("<d", math.nan)))


def test_bytes_that_are_not_aligned_are_refused():
    data, error, out = CHARACTERS.indexed, ffi.new("LlamaError *"), ffi.new("LlamaTokenizer **")
    room = ffi.new("uint64_t[]", len(data) // 8 + 2)
    for shift in range(5):
        at = ffi.cast("char *", room) + shift
        ffi.memmove(at, data, len(data))
        code = lib.llama_tokenizer_open_bytes(at, len(data), b"t", out, error)
        assert code == (lib.LLAMA_ERROR_USAGE if shift % 4 else lib.LLAMA_OK)
        lib.llama_tokenizer_close(out[0])
    assert ffi.string(error.text) == b"t: bytes of a tokenizer must be aligned to 4"


def test_a_name_that_cuts_a_character_apart_leads_nowhere_beyond_it():
    """A word of what is before it would reach over it, and ids over the room for them."""
    pieces, types = [*CHARACTERS.pieces[:259], b"\xbf\xbd"], [*CHARACTERS.types[:259], USER]
    made = replace(CHARACTERS, pieces=pieces, types=types, scores=[0.0] * 260, flags=0)
    tokenizer = open_bytes(replace(made, pattern=tokens.GPT2_DIGITS).indexed)
    assert tokenizer.encode("\ufffd", bos=False) == [3 + 0xEF, 259]


def use(data: bytes) -> None:
    """Opens and uses a file that may say anything: it is refused, or all its ids are in the vocabulary."""
    try:
        tokenizer = open_bytes(data)
    except BadFileError:
        return
    for text in ("abab <s>é!<sep>", "abcab abab<|eot|> \ud800\r\n 12345's", "a" * 300, "\0é" * 9):
        for special in (False, True):
            ids = tokenizer.encode(text, bos=False, special=special)
            assert all(0 <= i < tokenizer.vocab_size for i in ids)
            tokenizer.decode(ids)
    for i in range(0, tokenizer.vocab_size, 7):
        tokenizer.name(i)


def test_every_truncation_is_refused(sample):
    data = sample[0].indexed
    for size in [*range(1, 100), *range(100, len(data), 331), len(data) - 1]:
        with pytest.raises(BadFileError):
            open_bytes(data[:size])


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(SAMPLES)),
    st.integers(0, 2**32),
    st.integers(1, 2000),
    st.sampled_from([64, 9280, 0]),
)
def test_any_damage_is_refused_or_harmless(name, seed, n, begin):
    data, rng = bytearray(SAMPLES[name][0].indexed), random.Random(seed)
    for _ in range(n):
        data[rng.randrange(begin, len(data))] = rng.choice([0, 1, 97, 255, rng.randrange(256)])
    use(bytes(data))


@pytest.mark.parametrize("value", [0, 1, 0xFFFFFFFF, 0x61000062])
def test_a_search_ends_in_a_table_without_an_empty_slot(sample, value):
    v, data = sample[0], bytearray(sample[0].indexed)
    n_special, n_slots = struct.unpack_from("<2I", data, 36)
    at = OFFSETS + 8 * len(v) + 4 + 4 * n_special
    data[at : at + 4 * n_slots] = struct.pack("<I", value) * n_slots
    use(bytes(data))


def test_threads_that_encode_first_at_the_same_time_agree(tmp_path):
    """The table of a tokenizer.bin of llama2.c is made then."""
    path = tmp_path / "tok.bin"
    v = replace(CHARACTERS, types=[*CHARACTERS.types[:-1], TEXT])
    path.write_bytes(tokens.write_llama2c(v, path))
    expected = Tokenizer(path).encode("abab é" * 99)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(30):
            tokenizer = Tokenizer(path)
            assert list(pool.map(tokenizer.encode, ["abab é" * 99] * 8)) == [expected] * 8


# --- Inside a model's file


@pytest.fixture
def model(tmp_path) -> Path:
    """A v3 file with an indexed tokenizer inside."""
    torch = pytest.importorskip("torch")
    from llama.formats.v3 import Extras
    from model import Config, Llama

    torch.manual_seed(1)
    config = Config(
        dim=32, hidden_dim=32, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=len(BYTES), max_seq_len=64
    )
    export_v3(
        tmp_path / "model.bin", config, Llama(config).state_dict(), "fp32", extras=Extras(BYTES.indexed)
    )
    return tmp_path / "model.bin"


def test_a_model_speaks_with_the_indexed_tokenizer_in_its_file(model):
    with llama.Llama(model) as opened:
        assert opened.encode("abcab abab<|eot|>", bos=False, special=True) == SAMPLES["bytes"][2]
        assert isinstance("".join(opened.generate("abcab", max_tokens=5, seed=1)), str)


def test_a_models_checksum_covers_the_header_of_its_tokenizer(model):
    data = model.read_bytes()
    at = data.index(BYTES.indexed[:64])
    model.write_bytes(patch(at + 60, "<I", 0)(data))
    with pytest.raises(BadFileError, match="checksum of header, table, tokenizer and texts"):
        llama.Llama(model)
