"""What is said of texts in a file of weights of train.py: where they begin and end, the chat template."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from llama.errors import BadFileError
from llama.formats.chat_templates import Chat
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


def with_told(source: Source, metadata: Mapping[str, Any]) -> Source:
    """The source with what metadata says of texts, if they do. Raises BadFileError."""
    if KEY not in metadata:
        return source
    try:
        values = json.loads(metadata[KEY])
        changes = {name: values[name] for name in FIELDS}
        changes |= {"stops": tuple(map(int, values["stops"])), "chat": Chat(**values["chat"])}
    except (ValueError, KeyError, TypeError) as error:
        raise BadFileError(f"{source.name}: metadata: texts are not as they were written: {error}") from None
    return dataclasses.replace(source, **changes)
