"""What is said of texts in a file of weights of train.py: where they begin and end, the chat template."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from llama.errors import BadFileError
from llama.formats.chat_templates import KINDS, Chat
from llama.formats.files import parse_json
from llama.formats.header import printable
from llama.formats.source import Source

KEY = "texts"  # of the metadata
FIELDS = ("bos", "stops", "add_bos", "add_eos")


def told(source: Source) -> dict[str, str]:
    """The metadata for what a source says of texts; {} where it has no chat template."""
    chat = source.chat or Chat()
    if chat.kind == "none":
        return {}
    values: dict[str, Any] = {name: getattr(source, name) for name in FIELDS}
    return {KEY: json.dumps(values | {"chat": dataclasses.asdict(chat)})}


def checked_id(source: Source, i: Any) -> int:
    """Raises ValueError for what is no id of a token."""
    if type(i) is not int or not 0 <= i < source.config.vocab_size:
        raise ValueError(f"token {i!r:.80}, allowed 0 to {source.config.vocab_size - 1}")
    return i


def checked_chat(values: Mapping[str, Any]) -> Chat:
    """Raises ValueError, TypeError for what is no template."""
    chat = Chat(**values)
    if not all(isinstance(text, str) for text in dataclasses.astuple(chat)):
        raise ValueError("a chat template of other than texts")
    if chat.kind not in KINDS:
        raise ValueError(f"chat template {chat.kind!r:.80}, allowed {', '.join(KINDS)}")
    for text in dataclasses.astuple(chat):
        text.encode()
    return chat


def with_told(source: Source, metadata: Mapping[str, Any]) -> Source:
    """The source with what metadata says of texts, if they do. Raises BadFileError."""
    if KEY not in metadata:
        return source
    try:
        values = parse_json(metadata[KEY])
        changes = {name: values[name] for name in FIELDS}
        if values["bos"] != -1:
            checked_id(source, values["bos"])
        if not isinstance(values["stops"], list):
            raise ValueError("stops that are no list")
        for name in ("add_bos", "add_eos"):
            if not isinstance(values[name], bool):
                raise ValueError(f"{name} = {values[name]!r:.80}, allowed true and false")
        changes["stops"] = tuple(checked_id(source, i) for i in values["stops"])
        changes["chat"] = checked_chat(values["chat"])
    except (ValueError, KeyError, TypeError) as error:
        reason = printable(error)
        raise BadFileError(f"{source.name}: metadata: texts are not as they were written: {reason}") from None
    return dataclasses.replace(source, **changes)
