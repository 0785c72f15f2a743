"""Between two texts Code Llama writes from the ids that Meta's code makes: BOS PRE prefix SUF suffix MID.

Left out on purpose: Meta's order that begins with the suffix.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from checkpoints import Shape
from checkpoints import write as write_checkpoint
from helpers import TEXTS

import llama.native
from llama import UsageError
from llama.formats import tokenizers
from llama.formats import vocabulary as tokens

NAMES = ("PRE", "SUF", "MID", "EOT")


def with_infill(
    vocabulary: tokens.Vocabulary, names: list[bytes], of: int = tokens.CONTROL
) -> tokens.Vocabulary:
    more = len(names)
    return replace(
        vocabulary,
        pieces=[*vocabulary.pieces, *names],
        scores=[*vocabulary.scores, *[0.0] * more],
        types=[*vocabulary.types, *[of] * more],
    )


def without_space(known: tokenizers.Tokenizer, text: str) -> list[int]:
    """As Meta's code: behind a character of its own, whose tokens are dropped (here its three bytes)."""
    ids = known.model.encode("☺" + text)
    mark = known.model.encode("☺")
    assert ids[: len(mark)] == mark
    return ids[len(mark) :]


@pytest.mark.parametrize("spelling", ["▁<{}>", " <{}>"])
@pytest.mark.parametrize("of", [tokens.CONTROL, tokens.TEXT, tokens.USER])
def test_the_ids_are_those_of_metas_code(trained, spelling, of):
    vocabulary = with_infill(trained.vocabulary, [spelling.format(name).encode() for name in NAMES], of)
    n = len(trained.vocabulary)
    tokenizer = llama.Tokenizer.from_bytes(vocabulary.indexed)
    for prefix in ["", *TEXTS]:
        for suffix in ["", " the", *TEXTS]:
            expected = [
                trained.bos_id,
                n,
                *trained.encode(prefix),
                n + 1,
                *without_space(trained, suffix),
                n + 2,
            ]
            assert llama.native.encode_infill(tokenizer.handle, prefix.encode(), suffix.encode()) == expected


def test_names_in_the_texts_are_text(trained):
    vocabulary = with_infill(trained.vocabulary, [f"▁<{name}>".encode() for name in NAMES])
    tokenizer, n = llama.Tokenizer.from_bytes(vocabulary.indexed), len(trained.vocabulary)
    text = "▁<MID> </s> <s>".encode()
    ids = llama.native.encode_infill(tokenizer.handle, text, text)
    assert [i for i in ids if tokenizer.is_special(i)] == [trained.bos_id, n, n + 1, n + 2]


def test_a_model_fills_in_if_its_tokenizer_knows_how(tmp_path, trained):
    vocabulary = with_infill(trained.vocabulary, [f"▁<{name}>".encode() for name in NAMES])
    (tmp_path / "tokenizer.bin").write_bytes(vocabulary.indexed)
    write_checkpoint(tmp_path / "model.bin", Shape(vocab_size=len(vocabulary)))
    with llama.Llama(tmp_path / "model.bin") as engine:
        ids = engine.encode_infill("def f(", "):\n")
        assert ids == llama.native.encode_infill(engine.tokenizer.handle, b"def f(", b"):\n")
        assert "".join(engine.generate(ids, max_tokens=3, seed=1)) is not None


def test_a_tokenizer_without_bos_has_no_beginning(trained):
    vocabulary = with_infill(trained.vocabulary, [f"▁<{name}>".encode() for name in NAMES])
    tokenizer = llama.Tokenizer.from_bytes(replace(vocabulary, bos=-1).indexed)
    with pytest.raises(UsageError, match="the vocabulary has no BOS"):
        llama.native.encode_infill(tokenizer.handle, b"a", b"b")


@pytest.mark.parametrize("missing", range(3))
def test_a_tokenizer_without_the_tokens_is_refused_by_name(trained, missing):
    names = [f"▁<{name}>".encode() for i, name in enumerate(NAMES) if i != missing]
    tokenizer = llama.Tokenizer.from_bytes(with_infill(trained.vocabulary, names).indexed)
    message = f"^the tokenizer has no ▁<{NAMES[missing]}>: only Code Llama fills in$"
    with pytest.raises(UsageError, match=message):
        llama.native.encode_infill(tokenizer.handle, b"a", b"b")


def test_the_first_token_may_be_one_of_them(trained):
    v = with_infill(trained.vocabulary, [f"▁<{name}>".encode() for name in NAMES])
    first = len(trained.vocabulary)
    order = [first, *range(first), *range(first + 1, len(v))]
    moved = replace(
        v,
        pieces=[v.pieces[i] for i in order],
        scores=[v.scores[i] for i in order],
        types=[v.types[i] for i in order],
        **{name: order.index(getattr(v, name)) for name in ("bos", "eos", "unknown")},
    )
    ids = [
        llama.native.encode_infill(llama.Tokenizer.from_bytes(each.indexed).handle, b"a", b"b")
        for each in (v, moved)
    ]
    assert [order[i] for i in ids[1]] == ids[0]
