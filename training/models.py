"""The model that a run begins with: fresh, or of any format that is read, with its tokenizer and template."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from llama.errors import BadFileError, UsageError
from llama.formats import tokenizers
from llama.formats.adapters import base_of, is_adapter
from llama.formats.checkpoint import open_checkpoint
from llama.formats.source import Source, checked_tensors
from llama.formats.texts import told
from llama.formats.vocabulary import Vocabulary
from model import Llama
from training import parallel
from training.freezing import freeze
from training.lora import Lora, add_lora, init_lora, is_lora, narrow
from training.named import open_named
from training.options import Options
from training.parallel import Ranks
from training.shards import read_meta
from training.weights import to_torch

MAY_CHANGE = ("dropout", "max_seq_len")  # of a model between two parts of a run


# --- The model to start from


def start_of(options: Options, resumed: Path | None) -> str | None:
    """The model that weights come from, None for none: a fresh model, or a checkpoint of all of one.

    A checkpoint of adapters goes on beside the model that they were begun on.
    """
    if resumed:
        return str(base_of(resumed)) if is_adapter(resumed) else None
    return None if options.init_from == "scratch" else options.init_from


def check_tokens(name: str, vocabulary: Vocabulary, folder: Path) -> None:
    """Raises BadFileError where a model has other tokens than a folder of data was made with."""
    theirs, ours = vocabulary.unpadded.pieces, tokenizers.load(folder).vocabulary.unpadded.pieces
    for i, (found, wanted) in enumerate(zip(theirs, ours, strict=False)):
        if found != wanted:
            raise BadFileError(f"{name}: token {i} is {found!r}, in {folder} it is {wanted!r}")
    if len(theirs) != len(ours):
        raise BadFileError(f"{name}: has {len(theirs)} tokens, {folder} has {len(ours)}")


def source_of(options: Options, name: str, vocab_size: int) -> Source:
    """The model to start from. Raises BadFileError where it is not for the data."""
    source, vocabulary = open_named(name)
    if vocabulary and (Path(options.data) / "meta.json").exists():
        check_tokens(name, vocabulary, Path(options.data))
    if source.config.vocab_size < vocab_size or (not vocabulary and source.config.vocab_size != vocab_size):
        found = f"vocab_size = {source.config.vocab_size}, the data has {vocab_size}"
        raise BadFileError(f"{name}: {found}")
    changes = {name: getattr(options, name) for name in MAY_CHANGE}
    return dataclasses.replace(source, config=dataclasses.replace(source.config, **changes))


def check_said(options: Options, said: Iterable[str]) -> None:
    """Raises UsageError for a shape that is said, where the model to start from has another."""
    if options.init_from in ("scratch", "resume"):
        return
    config = open_named(options.init_from)[0].config.to_dict()
    for name in config.keys() & set(said) - {"vocab_size", *MAY_CHANGE}:
        if getattr(options, name) not in (0, config[name]):  # 0: whatever follows from the others
            found = f"{name} = {getattr(options, name)}, {options.init_from} has {config[name]}"
            raise UsageError(f"{found}: leave it out, the shape is that of the model")


def lora_of(options: Options, start: str | None) -> Lora | None:
    """The adapters to train, None for none. Raises UsageError without a model that they could be of."""
    if not options.lora_rank:
        return None
    if start is None:
        raise UsageError(f"lora_rank = {options.lora_rank}, allowed 0 without --init_from a model")
    return Lora(start, options.lora_rank, options.lora_alpha, options.lora_dropout, options.lora_targets)


def make_model(
    options: Options, ranks: Ranks, source: Source | None, vocab_size: int, lora: Lora | None
) -> Llama:
    """The model of a run, on the meta device: a rank of FSDP never holds all of it. Raises UsageError."""
    with torch.device("meta"):
        model = Llama(source.config if source else options.model_config(vocab_size), options.checkpointing)
        if lora:
            add_lora(model, lora)
    freeze(model, options.train, options.freeze)
    if lora and ranks.kind != "fsdp":  # whose groups are of one type, and cut
        narrow(model, parallel.DTYPES[options.dtype])
    return model


def fill_weights(model: Llama, source: Source | None) -> None:
    """The weights of a source, or fresh ones: the same, whatever the ranks. Raises BadFileError."""
    tensors = checked_tensors(source) if source else {}

    def value_of(name: str, shape: torch.Size) -> torch.Tensor:
        if is_lora(name):
            return init_lora(name, shape)
        return to_torch(tensors[name]) if source else model.init_weight(name, torch.empty(shape))

    parallel.fill(model, value_of)


def told_of(options: Options, source: Source | None, resumed: Path | None) -> Mapping[str, str]:
    """What checkpoints say of texts: as the data does, else the model. Raises BadFileError."""
    meta = Path(options.data) / "meta.json"
    if meta.exists() and (texts := read_meta(meta.parent)["texts"]):
        return texts
    if resumed and not source:
        source = open_checkpoint(resumed)
    return told(source) if source else {}
