"""BPE models of sentencepiece that its own trainer does not make: edited, extended, and by converters."""

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from sentencepiece import sentencepiece_model_pb2 as pb
from test_tokenizer import SCRIPTS, train

from llama import Tokenizer
from llama.errors import BadFileError
from llama.formats.sentencepiece_model import read_sentencepiece

NORMAL, CONTROL, UNUSED = 1, 3, 5
WORDS = [*"laoé東𝄞 \t\0", "ll", "the", "once", "On", " b", "ce", " ▁", "<s>", "th", "tm"]


def edited(byte_fallback: bool, change: Callable[[Any, random.Random], None]) -> bytes:
    """A model whose pieces of text are changed one by one."""
    rng, model = random.Random(1), pb.ModelProto.FromString(train(700, byte_fallback))
    for piece in model.pieces:
        if piece.type == NORMAL:
            change(piece, rng)
    return model.SerializeToString()


def extended(*pieces: str) -> bytes:
    """A model with more pieces, of score 0, as those who extend a vocabulary add them."""
    model = pb.ModelProto.FromString(train(700, byte_fallback=True))
    for piece in pieces:
        model.pieces.add(piece=piece, score=0.0, type=NORMAL)
    return model.SerializeToString()


def signs_of_zero(piece: Any, rng: random.Random) -> None:
    piece.score = rng.choice([-0.0, 0.0])


def single_unused(piece: Any, rng: random.Random) -> None:
    if len(piece.piece) == 1 and rng.random() < 0.3:
        piece.type = UNUSED


def long_unused(piece: Any, rng: random.Random) -> None:
    if len(piece.piece) > 1 and rng.random() < 0.3:
        piece.type = UNUSED


def some_control(piece: Any, rng: random.Random) -> None:
    if len(piece.piece) > 1 and rng.random() < 0.1:
        piece.type = CONTROL


MODELS = {
    "zeros of both signs": lambda: edited(True, signs_of_zero),
    "extended": lambda: extended("tm", "th", "▁th"),
    "unused characters": lambda: edited(True, single_unused),
    "unused characters, no bytes": lambda: edited(False, single_unused),
    "pieces that control": lambda: edited(True, some_control),
    "a piece of a zero byte": lambda: extended("\0"),  # which the library takes as unused
}


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_sentencepiece(name):
    sp, rng = SentencePieceProcessor(model_proto=MODELS[name]()), random.Random(1)
    tokenizer = Tokenizer.from_bytes(read_sentencepiece(Path("model"), sp).indexed)
    for _ in range(3000):
        text = "".join(rng.choices(WORDS, k=rng.randint(1, 14)))
        assert tokenizer.encode(text, bos=False) == sp.encode(text), text


def test_unused_pieces_that_merge_are_refused():
    sp = SentencePieceProcessor(model_proto=edited(True, long_unused))
    with pytest.raises(BadFileError, match=r"^model: piece \d+ is unused, allowed are pieces in use$"):
        read_sentencepiece(Path("model"), sp)


OF_ITS_OWN = {"quotes": ("201C\t22\n201D\t22", "\u201cthe\u201d"), "a tab": ("9\t20", "on\tce")}


@pytest.mark.parametrize("name", OF_ITS_OWN)
def test_rules_of_its_own_that_make_other_characters_of_some_are_refused(tmp_path, name):
    rules, text = OF_ITS_OWN[name]
    (tmp_path / "rules.tsv").write_text(rules + "\n")
    model, options = io.BytesIO(), {"vocab_size": 700, "model_type": "bpe", "hard_vocab_limit": False}
    options |= {"normalization_rule_tsv": str(tmp_path / "rules.tsv"), "character_coverage": 0.98}
    lines = SCRIPTS.split("\n") * 4
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, byte_fallback=True, minloglevel=2, **options
    )
    sp = SentencePieceProcessor(model_proto=model.getvalue())
    assert sp.normalize(text) != "\u2581" + text
    with pytest.raises(
        BadFileError, match=r"^model: normalisation changes text, allowed identity with a space"
    ):
        read_sentencepiece(Path("model"), sp)
