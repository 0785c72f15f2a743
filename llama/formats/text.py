"""What belongs to a model besides its weights: its tokenizer, where texts begin and end, its template.

It is in the model's own file, in others beside it, or given.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama.errors import BadFileError
from llama.formats import tokenizers
from llama.formats import vocabulary as tokens
from llama.formats.chat_templates import TEMPLATE_FILES, Chat, end_of_turn, missing, recognised, template_text
from llama.formats.huggingface import is_huggingface, read_adds
from llama.formats.huggingface_writer import TOKENIZER_FILES, tokenizer_config
from llama.formats.kinds import whole
from llama.formats.source import Source
from llama.formats.tokenizer_json_writer import write_tokenizer
from llama.formats.vocabulary import Vocabulary

BESIDE = ("tokenizer.bin", "tok{}.bin", "tokenizer.model", "tokenizer.json")  # {}: vocab_size
COPIED = ("tokenizer.model", "tokenizer.json")  # transformers reads them as they are
OF_SENTENCEPIECE = ("legacy", "sp_model_kwargs", "add_prefix_space", "spaces_between_special_tokens")
NO_BOS = "a text is said to begin with BOS, of which there is none: it begins with itself"
SPECIAL_STOPS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")  # of Llama 3


def read_tokenizer(path: Path, vocab_size: int, padded: bool) -> tokenizers.Tokenizer:
    """A tokenizer of any kind that the engine can have. padded: it may have fewer tokens.

    Raises BadFileError.
    """
    known = tokenizers.load(path, vocab_size)
    if known.vocab_size > vocab_size or (known.vocab_size < vocab_size and not padded):
        raise BadFileError(f"{path}: has {known.vocab_size} tokens, the model's vocab_size = {vocab_size}")
    tokenizers.to_bin(known)
    return known


def tokenizer_of(given: Path | None, folder: Path, vocab_size: int) -> tokenizers.Tokenizer | None:
    """The tokenizer to put into a file: the one given, or the first in a folder that fits, None for none.

    The embedding of a Hugging Face folder may have more rows than its tokenizer has tokens. Raises
    BadFileError if those that are there do not fit.
    """
    beside = (folder / name.format(vocab_size) for name in BESIDE)
    padded, fitting, problem = given is None and is_huggingface(folder), [], None
    for path in [given] if given else filter(Path.exists, beside):
        try:
            fitting.append(read_tokenizer(path, vocab_size, padded))
        except BadFileError as error:
            problem = problem or error
    best = tokenizers.preferred(fitting)
    if problem and (best is None or best.vocab_size < vocab_size):  # which may name what the best does not
        raise problem
    return best


def vocabulary_in(source: Source) -> Vocabulary | None:
    """The tokenizer in the file of a model itself, None if it has none. Raises BadFileError."""
    vocabulary = source.vocabulary()
    if vocabulary and len(vocabulary) != source.config.vocab_size:
        found = f"has {len(vocabulary)} tokens, the model's vocab_size = {source.config.vocab_size}"
        raise BadFileError(f"{source.name}: {found}")
    return vocabulary


def completed(source: Source, special: Mapping[str, int], bos: int, eos: int) -> Source:
    """The source, with what its files do not say and its tokenizer does: where texts begin and end."""
    has_bos = bos >= 0 or source.bos >= 0
    notes = (*source.notes, NO_BOS) if source.add_bos and not has_bos else source.notes
    stops = tuple(special[name] for name in SPECIAL_STOPS if name in special)
    family = Chat("llama3" if "<|start_header_id|>" in special else "llama2")
    return dataclasses.replace(
        source,
        bos=source.bos if source.bos >= 0 else bos,
        stops=source.stops or stops or ((eos,) if eos >= 0 else ()),
        add_bos=has_bos and source.add_bos is not False,
        notes=notes,
        chat=source.chat or family,
    )


def with_known_chat(source: Source, vocabulary: Vocabulary, template: str | None = None) -> Source:
    """The source, with the kind that its chat template turns out to be, or the one given, and with the end of
    its answers among the stops.
    """
    v, types = vocabulary, (tokens.CONTROL, tokens.USER)
    names = {i: v.pieces[i].decode(errors="replace") for i, kind in enumerate(v.types) if kind in types}
    bos, eos = (names.get(token, "") for token in (v.bos if v.bos >= 0 else source.bos, v.eos))
    chat = Chat(template) if template else recognised(source.chat or Chat(), bos, eos, set(names.values()))
    end = end_of_turn(chat.kind)
    ends = [i for i, name in names.items() if name == end and end and i not in (v.eos, *source.stops)]
    return dataclasses.replace(source, chat=chat, stops=(*source.stops, *ends))


def with_text(
    source: Source, folder: Path, given: Path | None = None, template: str | None = None
) -> tuple[Source, Vocabulary | None]:
    """The source with all that is said of texts, and the tokens to put into a file, as many as it has rows.

    folder: where its tokenizer may lie. given: a tokenizer instead of it. template: a kind that is built in,
    or "none", instead of the source's.
    Raises BadFileError.
    """
    vocabulary, size = None if given else vocabulary_in(source), source.config.vocab_size
    if vocabulary is None:
        known = tokenizer_of(given, folder, size)
        vocabulary = known.vocabulary.padded(size) if known else None
    if given and source.add_bos is None:
        source = dataclasses.replace(source, add_bos=read_adds(given.parent)[0])
    if vocabulary:
        source = completed(source, vocabulary.special, vocabulary.bos, vocabulary.eos)
        source = with_known_chat(source, vocabulary, template)
        source = dataclasses.replace(source, notes=(*source.notes, *vocabulary.notes))
    chat = Chat(template) if template else source.chat or Chat()
    unknown = missing(chat)
    notes = (*source.notes, unknown) if unknown else source.notes
    return dataclasses.replace(source, chat=chat, notes=notes), vocabulary


# --- For transformers


def files_to_copy(given: Path | None, folder: Path) -> dict[str, Path]:
    """The files of a tokenizer that transformers reads as they are, by their names there; {} for none."""
    if given:
        name = f"tokenizer{given.suffix}"
        return {name: given} if name in COPIED else {}
    files = {name: folder / name for name in TOKENIZER_FILES if (folder / name).exists()}
    return files if files.keys() & set(COPIED) else {}


def has_template(files: Mapping[str, bytes]) -> bool:
    """Whether files of a tokenizer for transformers hold a chat template."""
    said = (files.get(name, b"{}") for name in ("tokenizer_config.json", "chat_template.json"))
    return "chat_template.jinja" in files or any(b'"chat_template"' in data for data in said)


def rewritten(known: tokenizers.Tokenizer, config: dict[str, Any]) -> dict[str, bytes]:
    """A tokenizer.json, and a configuration that names it, with the ids of a sentencepiece model.

    transformers 5 reads the model itself otherwise: texts that begin with a space, and runs of spaces, get
    other ids. config: the fields of tokenizer_config.json beside it. Nothing where a tokenizer.json can't
    hold the tokenizer: then its reading of the model is the best there is.
    """
    try:
        add_bos = config.get("add_bos_token") is not False
        written = write_tokenizer(str(known.path), known.vocabulary, add_bos=add_bos)
    except BadFileError:
        return {}
    own = json.loads(written["tokenizer_config.json"])
    kept = {
        name: value for name, value in config.items() if name not in OF_SENTENCEPIECE and value is not None
    }
    said = own | kept | {"tokenizer_class": own["tokenizer_class"]}
    return written | {"tokenizer_config.json": json.dumps(said, ensure_ascii=False).encode()}


def with_text_files(
    source: Source, folder: Path, given: Path | None = None
) -> tuple[Source, dict[str, bytes]]:
    """As with_text, the tokenizer as files for transformers: copied if they have that form, else written."""
    files = files_to_copy(given, folder) if given or source.vocabulary() is None else {}
    if not files:
        source, vocabulary = with_text(source, folder, given)
        said = (template_text(source.chat or Chat()), source.add_bos is not False)
        return source, write_tokenizer(source.name, vocabulary, *said) if vocabulary else {}
    path, known = files.get("tokenizer.model") or files["tokenizer.json"], None
    try:
        known = tokenizers.load(path, source.config.vocab_size)
    except BadFileError:
        if given or not source.stops:  # else it is transformers that has to know it
            raise
    else:
        if known.vocab_size > (size := source.config.vocab_size):
            raise BadFileError(f"{path}: has {known.vocab_size} tokens, the model's vocab_size = {size}")
        source = completed(source, known.special, known.bos_id, known.eos_id)
    data = {name: whole(path) for name, path in files.items()}
    if "tokenizer.model" in data and "tokenizer_config.json" not in data:
        data["tokenizer_config.json"] = tokenizer_config(tokenizers.load(files["tokenizer.model"]))
    if source.chat and source.chat.text and ((folder / TEMPLATE_FILES[0]).exists() or not has_template(data)):
        data["chat_template.jinja"] = source.chat.text.encode()
    if "tokenizer.json" not in data and known and known.kind != "llama3":
        data |= rewritten(known, json.loads(data["tokenizer_config.json"]))
    return source, data
