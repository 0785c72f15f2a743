"""A model by whatever a command line calls it, with its tokenizer and what is said of its texts."""

from __future__ import annotations

from pathlib import Path

from llama.errors import BadFileError
from llama.formats.models import open_source
from llama.formats.source import Source
from llama.formats.text import with_text
from llama.formats.vocabulary import Vocabulary


def open_named(
    name: str, tokenizer: Path | None = None, template: str | None = None
) -> tuple[Source, Vocabulary | None]:
    """A model by its path or its name on the hub, with all that is said of its texts, and its tokenizer.

    tokenizer, template: instead of its own, as in with_text. Raises BadFileError.
    """
    from llama.hub import find  # takes the engine, without which bench.gpu measures training

    model, beside = find(name, None if tokenizer is None else str(tokenizer))
    path = Path(model)
    folder = path if path.is_dir() else path.parent
    return with_text(open_source(path), folder, Path(beside) if beside else None, template)


def open_text(name: str, template: str | None = None) -> tuple[Source, Vocabulary]:
    """The same, of a model that has a tokenizer. Raises BadFileError for another."""
    source, vocabulary = open_named(name, template=template)
    if vocabulary is None:
        raise BadFileError(f"{name}: has no tokenizer, nor is one beside it")
    return source, vocabulary
