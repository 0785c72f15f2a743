"""The stream of the engine (llama/csrc/text/stream.h) against a model of it in a few lines of Python."""

import io
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import assert_linear, write_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from llama._engine import ffi, lib

thorough = settings(max_examples=1000, deadline=None)

# Few bytes: characters whole and broken, stop strings that overlap themselves and each other.
WHOLE = [b"a", b"b", b"ab", b" ", "é".encode(), "€".encode(), "\U0001f600".encode()]
BROKEN = [b"\xe2", b"\x82", b"\xac", b"\xf0", b"\x9f", b"\xff", b"\xed\xa0", b"\xe0\x80", b"\xf4\x90"]
FRAGMENTS = WHOLE + BROKEN


def joined(numbers: bytes) -> bytes:
    """The fragments with these numbers: hypothesis draws bytes far faster than a list."""
    return b"".join(FRAGMENTS[n % len(FRAGMENTS)] for n in numbers)


datas = st.binary(max_size=25).map(joined)
stop_lists = st.lists(st.binary(min_size=1, max_size=4).map(joined), max_size=4)


class Stream:
    def __init__(self, stops: list[bytes] = ()) -> None:
        self.strings = [ffi.new("char[]", stop) for stop in stops]
        out = ffi.new("LlamaStream **")
        array = ffi.new("char *[]", self.strings)
        assert lib.llama_stream_init(array, len(stops), out, ffi.NULL) == lib.LLAMA_OK
        self.handle = ffi.gc(out[0], lib.llama_stream_free)
        self.text, self.length, self.stopped = ffi.new("char **"), ffi.new("size_t *"), ffi.new("int *")

    def result(self) -> str:
        return ffi.buffer(self.text[0], self.length[0])[:].decode()  # strict: whole characters only

    def push(self, data: bytes) -> str:
        arguments = (self.handle, data, len(data), self.text, self.length, self.stopped, ffi.NULL)
        assert lib.llama_stream_push(*arguments) == lib.LLAMA_OK
        return self.result()

    def flush(self) -> str:
        assert lib.llama_stream_flush(self.handle, self.text, self.length, ffi.NULL) == lib.LLAMA_OK
        return self.result()


def decodes(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def is_unfinished(data: bytes) -> bool:
    """Whether data is the beginning of one character and lacks some of it."""
    tails = (tail * n for tail in (b"\x80", b"\xbf") for n in (1, 2, 3))
    return decodes(data) is None and any(len(decodes(data + tail) or "") == 1 for tail in tails)


def characters(data: bytes, final: bool) -> Iterator[tuple[str, int]]:
    """The characters of data and their bytes; without `final`, up to one that is unfinished."""
    at = 0
    while at < len(data):
        starts = (data[at : at + n] for n in range(1, 5))
        whole = next((start for start in starts if decodes(start)), None)
        if whole is None and is_unfinished(data[at:]) and not final:
            return
        yield (whole.decode(), len(whole)) if whole else ("\ufffd", 1)
        at += len(whole) if whole else 1


def first_stop(data: bytes, stops: list[bytes]) -> int | None:
    return min((data.find(stop) for stop in stops if stop in data), default=None)


def first_open(data: bytes, stops: list[bytes]) -> int:
    """Where the first stop string that may become complete begins; the end of data if none does."""
    return next(
        (i for i in range(len(data)) if any(s.startswith(data[i:]) and s != data[i:] for s in stops)),
        len(data),
    )


def whole_text(data: bytes, stops: list[bytes]) -> str:
    return "".join(char for char, _ in characters(data[: first_stop(data, stops)], final=True))


def text_so_far(data: bytes, stops: list[bytes]) -> tuple[str, bool]:
    """What may be printed once data has come in, and whether a stop string was found."""
    stop, limit = first_stop(data, stops), first_open(data, stops)
    if stop is not None and stop <= limit:
        return whole_text(data, stops), True
    text, at = "", 0
    for char, size in characters(data, final=False):
        at += size
        if at > limit:
            break
        text += char
    return text, False


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(at)]


# --- The model


@thorough
@given(datas, stop_lists, st.lists(st.integers(0, 200), max_size=12))
@example(b"aaab", [b"aab"], [])
@example(b"abababac", [b"ababac"], [5])
@example(b"abcd", [b"abcd", b"c"], [3])
@example(b"abce", [b"abcd", b"c"], [3])
def test_any_split_of_the_bytes_gives_the_text_of_the_whole(data, stops, cuts):
    stream = Stream(stops)
    text = "".join(stream.push(part) for part in split(data, cuts))
    assert text + stream.flush() == whole_text(data, stops)


@thorough
@given(datas, stop_lists)
@example(b"ab", [b"abcd", b"c"])
@example("x€".encode()[:-1], [])
@example(b"\xe2a", [b"ab"])
def test_only_what_may_become_a_character_or_a_stop_string_is_held_back(data, stops):
    stream, text = Stream(stops), ""
    for i in range(len(data)):
        text += stream.push(data[i : i + 1])
        if stream.stopped[0]:
            break
        assert (text, False) == text_so_far(data[: i + 1], stops)
    assert text == text_so_far(data, stops)[0]
    assert bool(stream.stopped[0]) == text_so_far(data, stops)[1]


@thorough
@given(datas, datas, stop_lists)
@example(b"a", b"b", [b"ab"])
@example(b"\xe2", b"\x82\xac", [])
@example(b"ab", b"a", [b"ab"])
def test_a_reset_stream_is_as_new(before, data, stops):
    stream = Stream(stops)
    stream.push(before)
    lib.llama_stream_reset(stream.handle)
    assert stream.push(data) + stream.flush() == whole_text(data, stops)


@thorough
@given(datas)
def test_without_stop_strings_the_text_is_what_sentencepiece_decodes(data):
    stream, sp = Stream(), byte_model()
    expected = sp.decode([sp.piece_to_id(f"<0x{byte:02X}>") for byte in data])
    assert stream.push(data) + stream.flush() == expected


# --- Examples


def byte_model() -> SentencePieceProcessor:
    if not hasattr(byte_model, "sp"):
        model = io.BytesIO()
        SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c"]),
            model_writer=model,
            model_type="bpe",
            vocab_size=270,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="identity",
            minloglevel=2,
        )
        byte_model.sp = SentencePieceProcessor(model_proto=model.getvalue())
    return byte_model.sp


def test_an_emoji_of_byte_tokens_comes_out_as_one_character(tmp_path: Path):
    path = write_tokenizer(tmp_path / "tok.bin", byte_model())
    out, length = ffi.new("LlamaTokenizer **"), ffi.new("size_t *")
    assert lib.llama_tokenizer_open(str(path).encode(), out, ffi.NULL) == lib.LLAMA_OK
    tokenizer = ffi.gc(out[0], lib.llama_tokenizer_close)
    stream, texts, previous = Stream(), [], -1
    for token in byte_model().encode("\U0001f600!"):
        data = lib.llama_token_bytes_of(tokenizer, previous, token, length)
        texts.append(stream.push(ffi.buffer(data, length[0])[:]))
        previous = token
    assert texts == ["", "", "", "", "\U0001f600", "!"]


def test_a_stop_string_ends_the_text_and_drops_the_rest():
    stream = Stream([b"STOP"])
    assert stream.push(b"go ST") == "go "
    assert stream.push(b"ART ST") == "START "
    assert stream.push(b"OP and on") == ""
    assert stream.stopped[0]
    assert stream.push(b"more") == stream.flush() == ""
    assert stream.stopped[0]


def test_the_stop_string_that_begins_first_wins():
    stream = Stream([b"c", b"abcd"])
    assert stream.push(b"_abc") == "_"
    assert not stream.stopped[0]  # "abcd" may still be complete, and begins before "c"
    assert stream.push(b"d") == ""
    assert stream.stopped[0]
    other = Stream([b"c", b"abcd"])
    assert other.push(b"_abc") + other.push(b"e") == "_ab"
    assert other.stopped[0]


def test_the_place_of_a_match_survives_any_length_of_text_before_it():
    for n in range(300):  # so that memory is moved at every step of the match, for some n
        stream = Stream([b"c", b"abcdefgh"])
        text = "".join(stream.push(byte) for byte in [b"x"] * n + [b"a", b"b", b"c", b"d", b"e", b"x", b"h"])
        assert (text, stream.stopped[0]) == ("x" * n + "ab", 1)


def test_the_end_of_the_text_decides_what_was_held_back():
    stream = Stream([b"c", b"abcd"])
    assert stream.push(b"_abc") + stream.flush() == "_ab"
    assert stream.push(b"more") + stream.flush() == ""
    stream = Stream([b"STOP"])
    assert stream.push(b"a STO") + stream.flush() == "a STO"
    stream = Stream()
    assert stream.push(b"\xf0\x9f\x98") + stream.flush() == "\ufffd" * 3


def test_a_flushed_stream_goes_on_with_new_text():
    stream = Stream([b"ab"])
    assert stream.push(b"_a") + stream.flush() == "_a"
    assert stream.push(b"b\xe2") + stream.flush() == "b\ufffd"
    assert stream.push(b"\x82\xac") == "\ufffd\ufffd"
    assert not stream.stopped[0]


@pytest.mark.parametrize("strings", [[""], ["a", ""], [None]])
def test_an_empty_stop_string_is_refused(strings):
    kept = [ffi.NULL if s is None else ffi.new("char[]", s.encode()) for s in strings]
    out, error = ffi.new("LlamaStream **"), ffi.new("LlamaError *")
    code = lib.llama_stream_init(ffi.new("char *[]", kept), len(kept), out, error)
    assert code == lib.LLAMA_ERROR_USAGE
    assert ffi.string(error.text).decode() == f"stop string {len(kept)} is empty"
    assert out[0] == ffi.NULL


def test_more_bytes_than_memory_has_addresses_for_are_refused():
    stream, error = Stream([b"ab"]), ffi.new("LlamaError *")
    for n in (2**60 + 1, 2**64 - 1):
        arguments = (stream.handle, b"x", n, stream.text, stream.length, stream.stopped, error)
        assert lib.llama_stream_push(*arguments) == lib.LLAMA_ERROR_RESOURCE
        assert ffi.string(error.text).startswith(b"out of memory: ")
    assert stream.push(b"xab") == "x"


def test_a_negative_number_of_stop_strings_is_refused():
    out, error = ffi.new("LlamaStream **"), ffi.new("LlamaError *")
    assert lib.llama_stream_init(ffi.NULL, -1, out, error) == lib.LLAMA_ERROR_USAGE
    assert ffi.string(error.text) == b"n_stops = -1, allowed are 0 and more"


# At each step as much comes in as goes out, while half the text is held back.
@pytest.mark.parametrize(("n", "step"), [(100_000, 1), (3_200_000, 8), (10_000_000, 1_000_000)])
def test_the_cost_is_linear_in_the_text(n, step):
    def work(n: int) -> None:
        data, stream = b"a" * n, Stream([b"a" * (n // 2) + b"b", b"a" * 10 + b"b"])
        given_out = [stream.push(data[i : i + step]) for i in range(0, n, step)]
        assert "".join(given_out) + stream.flush() == data.decode()

    assert_linear(work, n)
