"""BOS and EOS of a tokenizer.json, and which tokens it puts around a text."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llama.errors import BadFileError
from llama.formats.files import read_json
from llama.formats.tokenizer_fields import refuse, require, steps
from llama.formats.vocabulary import Vocabulary

CONFIG = "tokenizer_config.json"  # beside the file
USUAL = {
    "bos_token": ("<s>", "<|begin_of_text|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
}


def end_said(path: Path, said: Mapping[str, Any], name: str) -> str | None:
    """The name of the token that bos_token or eos_token is, None where nothing is said.

    Raises BadFileError.
    """
    token = said.get(name)
    found = token.get("content", 0) if isinstance(token, dict) else token
    if not isinstance(found, str | None):
        raise BadFileError(f"{path}: {name} = {token!r:.80}, allowed the name of a token, or null")
    return found


def note_of(name: str, token: str, instead: str | None) -> str:
    """What to say of a bos_token or eos_token that the tokenizer lacks. instead: the name of what it has."""
    kind, other = name[:3].upper(), "nothing" if instead is None else repr(instead)
    return f"{CONFIG}: {name} = {token!r:.80} is no special token; {other} is {kind}"


def ends_of(path: Path, special: dict[str, int]) -> tuple[list[int], tuple[str, ...]]:
    """BOS and EOS, by tokenizer_config.json beside the file or by the names that are usual; -1: none.

    And notes, where it names what is no special token. Raises BadFileError.
    """
    config = path.with_name(CONFIG)
    said = read_json(config).values if config.exists() else {}
    ends, notes = list[int](), list[str]()
    for name, usual in USUAL.items():
        token = end_said(config, said, name)
        found = next((known for known in (token, *usual) if known in special), None)
        if token is not None and token != found:
            notes.append(note_of(name, token, found))
        ends.append(-1 if found is None else special[found])
    return ends, tuple(notes)


PROCESSORS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel")


Named = list[tuple[str, int]]  # tokens by name and id


def step_around(path: Path, step: dict[str, Any]) -> tuple[Named, Named]:
    """The tokens that a step of a post_processor puts before a text, and behind it."""
    require(path, "post_processor", step, {"type": PROCESSORS})
    if step["type"] == "ByteLevel":
        return [], []
    if step["type"] != "TemplateProcessing":
        (cls, cls_id), (sep, sep_id) = step["cls"], step["sep"]
        return [(cls, cls_id)], [(sep, sep_id)]
    names = [part["SpecialToken"]["id"] if "SpecialToken" in part else None for part in step["single"]]
    if {part["Sequence"]["id"] for part in step["single"] if "SpecialToken" not in part} != {"A"}:
        raise ValueError("of two texts")
    text = names.index(None)
    parts = [[(name, i) for i in step["special_tokens"][name]["ids"]] for name in names if name is not None]
    return [*itertools.chain(*parts[:text])], [*itertools.chain(*parts[text:])]


def put_around(path: Path, data: dict[str, Any]) -> tuple[Named, Named]:
    """The tokens that a post_processor puts before a text, and behind it.

    Raises BadFileError for more than one in either place.
    """
    before, behind = Named(), Named()
    try:
        for step in steps(data.get("post_processor"), "processors"):
            begin, end = step_around(path, step)
            before, behind = begin + before, behind + end
        if len(before) <= 1 and len(behind) <= 1:
            return before, behind
    except (TypeError, ValueError, KeyError, AttributeError):
        pass
    allowed = "at most one token before a text and one behind it"
    return refuse(path, "post_processor", data.get("post_processor"), allowed)


def with_ends(path: Path, data: dict[str, Any], vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary, whose BOS and EOS are the tokens around a text where it has no others.

    Raises BadFileError where it has.
    """
    ends = []
    for put, end in zip(put_around(path, data), (vocabulary.bos, vocabulary.eos), strict=True):
        name, i = put[0] if put else ("", -1)
        token = vocabulary.special.get(name, -1)
        if name and token < 0:
            refuse(path, "post_processor", name, "special tokens")
        if name and (type(i) is not int or i != token):
            refuse(path, f"post_processor: id of {name!r:.80}", i, str(token))
        if name and end >= 0 and token != end:
            where, known = ("BOS", "EOS")[len(ends)], vocabulary.pieces[end].decode()
            refuse(path, f"post_processor, in place of {where}", name, json.dumps(known))
        ends.append(token if name else end)
    return replace(vocabulary, bos=ends[0], eos=ends[1])
