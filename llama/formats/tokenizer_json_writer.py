"""Writes a tokenizer.json and what belongs to it, from which transformers makes a tokenizer.

tokenizer_json.py is the way back, and names the kinds. What a file can't say of a vocabulary is refused.
Special tokens in a text are always special to transformers (unless split_special_tokens is set there).
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from llama.errors import BadFileError
from llama.formats import vocabulary as tokens
from llama.formats.spelling import SPACE, merges_of, pairs_of, pieces_problem, spellings
from llama.formats.split_patterns import STEPS, steps_of
from llama.formats.tokenizer_json import EDGES
from llama.formats.vocabulary import Vocabulary, text_ids

Step = dict[str, Any]

SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
UNDO = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"}]
UNDO += [{"type": "Fuse"}]
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
EACH = tokens.PREFIX | tokens.PREFIX_EACH
PREFIXES: dict[int, tuple[Step, Step | None]] = {  # normalizer and pre_tokenizer
    0: (SPACES, None),
    EACH: ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, SPACES]}, None),
}
SCHEMES = {tokens.PREFIX | tokens.PREFIX_UNLESS_SPACE: "first", EACH | tokens.PREFIX_UNLESS_SPACE: "always"}


def doubles_problem(vocabulary: Vocabulary) -> str | None:
    """Tokens that are spelt alike, None for none: the file has each under its spelling."""
    spelling, n = Counter(spellings(vocabulary)).most_common(1)[0]
    return f"{n} tokens are spelt {spelling!r}, allowed one" if n > 1 else None


def are_runs(pieces: list[bytes]) -> bool:
    """Whether pieces with one score merge by a list as they do by that score, the leftmost first.

    They do if they are the runs of a character of all lengths up to a power of two, and 2, 4, 8 ... come in
    order, each before the shorter ones that are not among them: the list doubles whatever can be doubled. So
    it is with the spaces of Llama 2.
    """
    lengths, longest = [len(piece.decode()) for piece in pieces], len(pieces) + 1
    if len({*b"".join(pieces).decode()}) > 1 or sorted(lengths) != [*range(2, longest + 1)]:
        return False
    place = {length: i for i, length in enumerate(lengths)}
    doubles = [2**i for i in range(1, longest.bit_length())]
    in_order = sorted(doubles, key=place.__getitem__) == doubles and longest in doubles
    return in_order and all(place[n] >= place[2 ** (n - 1).bit_length()] for n in lengths)


def scores_problem(vocabulary: Vocabulary) -> str | None:
    """What of merging by scores a list of pairs of tokens can't say, None for nothing."""
    v, ids = vocabulary, text_ids(vocabulary)
    for piece, i in ids.items():
        characters = [c.encode() for c in piece.decode()]
        if missing := [c for c in characters if c not in ids and len(characters) > 1]:
            return f"token {i} = {piece.decode()!r}, allowed with a token for {missing[0].decode()!r}"
    by_score: dict[float, list[bytes]] = {}
    for piece in sorted({left + right for left, right in pairs_of(v)}, key=ids.__getitem__):
        by_score.setdefault(v.scores[ids[piece]], []).append(piece)
    for score, pieces in by_score.items():
        if len(pieces) > 1 and not are_runs(pieces):
            return f"{len(pieces)} tokens have the score {score}, allowed one"
    return None


def by_metaspace(vocabulary: Vocabulary) -> bool:
    """Whether spaces are a pre_tokenizer's: each begins a word, or names are looked for before it."""
    return vocabulary.pattern == tokens.SPACES or bool(vocabulary.flags & tokens.LATE_AS_GIVEN)


def problem_of(vocabulary: Vocabulary) -> str | None:
    """What a tokenizer.json can't hold of a vocabulary: field, found, allowed. None: nothing."""
    v = vocabulary
    flags = v.flags & ~(tokens.SEARCHES | tokens.UNKNOWN_EACH | tokens.DOUBLES)
    if v.kind == tokens.BYTES:
        if flags & ~tokens.WHOLE_WORDS not in (0, tokens.PREFIXES_BYTES):
            return f"flags = {flags}, of a space in front allowed 0 and {tokens.PREFIXES_BYTES}"
        if v.pattern not in STEPS:
            return f"pattern = {v.pattern}, allowed {', '.join(map(str, STEPS))}"
        if flags & tokens.PREFIX and len(STEPS[v.pattern]) > 1:
            return f"flags = {flags}, allowed with pattern {v.pattern} 0 and {tokens.WHOLE_WORDS}"
    elif (prefix := flags & ~tokens.STRIP) not in (*PREFIXES, *SCHEMES):
        return f"flags = {flags}, of a space in front allowed {', '.join(map(str, (*PREFIXES, *SCHEMES)))}"
    elif prefix and tokens.USER in v.types and not v.flags & tokens.USER_FIRST:
        return f"flags = {flags}, allowed with user-defined tokens {flags | tokens.USER_FIRST}"
    elif prefix == EACH and by_metaspace(v):
        return f"flags = {flags}, allowed with pattern {v.pattern} {', '.join(map(str, (0, *SCHEMES)))}"
    elif 0 < (known := v.types.count(tokens.BYTE)) < 256:
        return f"byte tokens = {known}, allowed all 256, or none"
    by_scores = v.kind == tokens.CHARACTERS and v.merges is None
    return pieces_problem(v) or doubles_problem(v) or (scores_problem(v) if by_scores else None)


def byte_level(vocabulary: Vocabulary) -> dict[str, Step | None]:
    """The steps of a byte-level tokenizer."""
    *before, last = steps_of(vocabulary.pattern, bool(vocabulary.flags & tokens.PREFIX))
    splitter = {"type": "Sequence", "pretokenizers": [*before, last]} if before else last
    return {"normalizer": None, "pre_tokenizer": splitter, "decoder": last}


def byte_fallback(vocabulary: Vocabulary) -> dict[str, Step | None]:
    """The steps of a tokenizer of characters."""
    prefix, strip = vocabulary.flags & (EACH | tokens.PREFIX_UNLESS_SPACE), vocabulary.flags & tokens.STRIP
    if prefix in PREFIXES and not by_metaspace(vocabulary):
        normalizer, splitter = PREFIXES[prefix]
    else:
        metaspace = {
            "type": "Metaspace",
            "replacement": SPACE,
            "prepend_scheme": SCHEMES.get(prefix, "never"),
        }
        normalizer, splitter = None, metaspace | {"split": vocabulary.pattern == tokens.SPACES}
    decoder = {"type": "Sequence", "decoders": [*UNDO, STRIP] if strip else UNDO}
    return {"normalizer": normalizer, "pre_tokenizer": splitter, "decoder": decoder}


def begins_with(bos: str, token: int) -> Step:
    """The step that puts BOS in front of a text."""
    special, a, b = ({"SpecialToken": {"id": bos, "type_id": 0}}, *({"Sequence": {"id": x}} for x in "AB"))
    a["Sequence"]["type_id"], b["Sequence"]["type_id"] = 0, 1
    return {
        "type": "TemplateProcessing",
        "single": [special, a],
        "pair": [special, a, special, b],
        "special_tokens": {bos: {"id": bos, "ids": [token], "tokens": [bos]}},
    }


def count_listed(vocabulary: Vocabulary) -> int:
    """How many tokens the model lists: not those at the end that are found by their names alone, which would
    be pieces of text there.
    """
    v = vocabulary
    typed = enumerate(zip(v.pieces, v.types, strict=True))
    alone = {i for i, (piece, of) in typed if piece and of in (tokens.CONTROL, tokens.USER)} - v.textual
    return max({*range(len(v))} - alone | {v.unknown}) + 1


def bpe(vocabulary: Vocabulary, names: list[str]) -> Step:
    """The model of a vocabulary whose pieces merge. names: of the tokens that it lists."""
    v = vocabulary
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": names[v.unknown] if v.unknown >= 0 else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": not v.flags & tokens.UNKNOWN_EACH,
        "byte_fallback": v.kind != tokens.BYTES and tokens.BYTE in v.types,
        "ignore_merges": bool(v.flags & tokens.WHOLE_WORDS),
        "vocab": {name: i for i, name in enumerate(names)},
        "merges": merges_of(v),
    }


def unigram(vocabulary: Vocabulary, names: list[str]) -> Step:
    """The model of a vocabulary of kind UNIGRAM. names: of the tokens that it lists."""
    v = vocabulary
    listed = [[name, float(score)] for name, score in zip(names, v.scores, strict=False)]
    unknown = v.unknown if v.unknown >= 0 else None
    return {"type": "Unigram", "unk_id": unknown, "vocab": listed, "byte_fallback": tokens.BYTE in v.types}


def tokenizer_json(vocabulary: Vocabulary, add_bos: bool) -> dict[str, Any]:
    """The fields of a tokenizer.json. add_bos: a text begins with BOS, where there is one."""
    v, names = vocabulary, spellings(vocabulary)
    is_bytes = v.kind == tokens.BYTES
    added = [
        {"id": i, "content": names[i], "special": of != tokens.USER, "normalized": i in v.late}
        | {name: bool(v.edges.get(i, 0) & bit) for name, bit in EDGES.items()}
        for i, of in enumerate(v.types)
        if of in (tokens.CONTROL, tokens.USER, tokens.UNKNOWN) and v.pieces[i]
    ]
    listed = names[: count_listed(v)]
    model = unigram(v, listed) if v.kind == tokens.UNIGRAM else bpe(v, listed)
    steps = byte_level(v) if is_bytes else byte_fallback(v)
    first = begins_with(names[v.bos], v.bos) if v.bos >= 0 and add_bos else None
    fields = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    return fields | steps | {"post_processor": first, "model": model}


def tokenizer_config(vocabulary: Vocabulary, add_bos: bool) -> dict[str, Any]:
    """What transformers must be told besides: names of special tokens."""
    v, names = vocabulary, spellings(vocabulary)
    ends = {"bos_token": v.bos, "eos_token": v.eos, "unk_token": v.unknown}
    said = {name: names[i] if i >= 0 else None for name, i in ends.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": add_bos,
    } | said


def write_tokenizer(
    name: str, vocabulary: Vocabulary, template: str = "", add_bos: bool = True
) -> dict[str, bytes]:
    """The files of a tokenizer for transformers, by name. name: for messages. template: of chats, in Jinja.

    add_bos: a text begins with BOS, where there is one.
    Tokens at the end that have no name are not in them: config.json has the size of the embedding.
    Raises BadFileError for what they can't say.
    """
    vocabulary, add_bos = vocabulary.unpadded, add_bos and vocabulary.bos >= 0
    if problem := problem_of(vocabulary):
        raise BadFileError(f"{name}: a tokenizer.json can't hold the tokenizer: {problem}")
    fields = {
        "tokenizer.json": tokenizer_json(vocabulary, add_bos),
        "tokenizer_config.json": tokenizer_config(vocabulary, add_bos),
    }
    files = {file: json.dumps(values, ensure_ascii=False).encode() for file, values in fields.items()}
    return files | ({"chat_template.jinja": template.encode()} if template else {})
