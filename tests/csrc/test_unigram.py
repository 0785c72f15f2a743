"""The engine's Unigram (llama/csrc/text/unigram.h) against sentencepiece, on models that are trained here."""

import functools
import io
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from sentencepiece import sentencepiece_model_pb2 as pb
from test_tokenizer import NOT_UTF8, SCRIPTS, TRICKY, encode_c, texts

from llama import Tokenizer
from llama._engine import ffi, lib
from llama.formats.sentencepiece_model import read_sentencepiece

thorough = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
NORMAL, UNUSED = 1, 5  # types of sentencepiece's pieces


@functools.cache
def trained(byte_fallback: bool, user: tuple[str, ...] = ()) -> bytes:
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(SCRIPTS.split("\n") * 4),
        model_writer=model,
        model_type="unigram",
        vocab_size=600,
        hard_vocab_limit=False,
        byte_fallback=byte_fallback,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=list(user),
        unk_surface=" \u2047 ",
        minloglevel=2,
    )
    return model.getvalue()


USER = ("<sep>", "▁big", "ll", "once")


def with_ties() -> bytes:
    """A model whose pieces have few scores, so that many ways to make up a text are equally good."""
    rng, model = random.Random(1), pb.ModelProto.FromString(trained(True))
    for piece in model.pieces:
        if piece.type == NORMAL:
            piece.score = -rng.choice([1.5, 2.5, 3.0, 4.0, 7.3])
    return model.SerializeToString()


def with_unused() -> bytes:
    """A model with pieces that are not to be used."""
    rng, model = random.Random(1), pb.ModelProto.FromString(trained(False))
    for piece in model.pieces:
        if piece.type == NORMAL and rng.random() < 0.1:
            piece.type = UNUSED
    return model.SerializeToString()


MODELS = {
    "bytes": functools.partial(trained, True),
    "unknown": functools.partial(trained, False),
    "user-defined": functools.partial(trained, True, USER),
    "user-defined, unknown": functools.partial(trained, False, USER),
    "ties": with_ties,
    "unused": with_unused,
}


@dataclass
class Pair:
    """One vocabulary, read by the two that must agree."""

    sp: SentencePieceProcessor
    tokenizer: Tokenizer


@pytest.fixture(scope="module", params=MODELS)
def pair(request) -> Pair:
    sp = SentencePieceProcessor(model_proto=MODELS[request.param]())
    return Pair(sp, Tokenizer.from_bytes(read_sentencepiece(Path("model"), sp).indexed))


def test_ids_are_those_of_sentencepiece_on_tricky_text(pair):
    for text in [*TRICKY, *SCRIPTS.split("\n"), SCRIPTS, *USER, "".join(USER), "a big ball<sep> once"]:
        assert pair.tokenizer.encode(text, bos=False) == pair.sp.encode(text), text


@thorough
@given(texts)
@example("ab " * 60)
def test_ids_are_those_of_sentencepiece_on_any_text(pair, text):
    assert pair.tokenizer.encode(text, bos=False) == pair.sp.encode(text)


def test_rounding_is_that_of_sentencepiece_on_a_long_text(pair):
    rng = random.Random(1)
    text = "".join(rng.choice("ab éow▁ ") for _ in range(20_000))
    assert pair.tokenizer.encode(text, bos=False) == pair.sp.encode(text)


OVERLAPPING = ["l", "ll", " ", "a", "on", "once", "ce", " big", "<sep>", "sep>", "é", "東"]


def test_rounding_is_that_of_sentencepiece_where_user_defined_pieces_overlap(pair):
    rng = random.Random(1)
    for _ in range(5000):
        text = "".join(rng.choices(OVERLAPPING, k=rng.randint(1, 14)))
        assert pair.tokenizer.encode(text, bos=False) == pair.sp.encode(text), text


def test_sums_begin_anew_where_those_of_sentencepiece_do(pair):
    rng = random.Random(2)
    text = "".join(rng.choices(OVERLAPPING, k=400_000))
    assert pair.tokenizer.encode(text, bos=False) == pair.sp.encode(text)


@thorough
@given(texts)
def test_ids_become_the_text_that_sentencepiece_makes_of_them(pair, text):
    ids = [i for i in pair.sp.encode(text) if not pair.sp.is_unused(i)]
    assert pair.tokenizer.decode(ids) == pair.sp.decode(ids)


@pytest.mark.parametrize("text", NOT_UTF8)
def test_bytes_that_are_not_utf8_count_as_replacement_characters(pair, text):
    out = ffi.new("LlamaTokenizer **")
    data = ffi.from_buffer(indexed := read_sentencepiece(Path("model"), pair.sp).indexed)
    assert lib.llama_tokenizer_open_bytes(data, len(indexed), b"t", out, ffi.NULL) == lib.LLAMA_OK
    handle = ffi.gc(out[0], lib.llama_tokenizer_close)
    assert encode_c(handle, text) == pair.sp.encode(text)
