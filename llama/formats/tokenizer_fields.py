"""The fields of a tokenizer.json: their kinds, and how one that can't be is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from llama.errors import BadFileError


def refuse(path: Path, field: str, found: Any, allowed: str) -> NoReturn:
    text = json.dumps(found, ensure_ascii=False)
    raise BadFileError(
        f"{path}: {field} = {text if len(text) < 200 else text[:200] + '...'}, allowed {allowed}"
    )


def require(path: Path, where: str, part: dict[str, Any], fields: dict[str, tuple[Any, ...]]) -> None:
    """Refuses a part of the file with a field of another value than those allowed; the first is the usual."""
    for name, allowed in fields.items():
        if part.get(name, allowed[0]) not in allowed:
            refuse(path, f"{where}.{name}", part[name], " or ".join(map(json.dumps, allowed)))


def steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a Sequence; a lone step is one, nothing is none."""
    if not part:
        return []
    return list(part[name]) if part.get("type") == "Sequence" else [part]


FLAGS = {"special", "normalized", "lstrip", "rstrip", "single_word"}  # of added tokens
FLAGS |= {"byte_fallback", "ignore_merges", "fuse_unk"}  # of models
FLAGS |= {"add_prefix_space", "use_regex", "split", "individual_digits"}  # of steps
PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
PARTS |= {"post_processor": "processors"}


def check_flags(path: Path, where: str, part: dict[str, Any]) -> None:
    """Refuses a part whose truth values are none. null is as good as not there."""
    for name in FLAGS & part.keys():
        if not isinstance(part[name], bool | None):
            refuse(path, f"{where}.{name}", part[name], "true and false")


def check_kinds(path: Path, data: dict[str, Any]) -> None:
    """Refuses what is not of the kind that the library asks for, and could be taken for true or false."""
    check_flags(path, "model", data["model"])
    if not isinstance(data["model"].get("unk_token"), str | None):
        refuse(path, "model.unk_token", data["model"]["unk_token"], "text, or null")
    if not isinstance(data["model"].get("merges", []), list):
        refuse(path, "model.merges", data["model"]["merges"], "a list of pairs")
    if not isinstance(data.get("added_tokens"), list | None):
        refuse(path, "added_tokens", data["added_tokens"], "a list, or null")
    for token in data.get("added_tokens") or []:
        check_flags(path, "added_tokens", token)
    for where, name in PARTS.items():
        if not isinstance(data.get(where), dict | None):
            refuse(path, where, data[where], "an object, or null")
        for step in steps(data.get(where), name):
            check_flags(path, where, step)
