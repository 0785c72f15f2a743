"""The model that a run begins with: fresh, or of any format that is read, with its tokenizer and template."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from llama.errors import BadFileError, UsageError
from llama.formats.adapters import base_name, is_adapter
from llama.formats.checkpoint import open_checkpoint, read_config
from llama.formats.source import Source, checked_tensors
from llama.formats.texts import told
from model import Config, Llama
from training import parallel
from training.attention import use_blocks
from training.context import stretched
from training.few_bits import add_nf4, pack
from training.freezing import freeze
from training.lora import Lora, add_lora, init_lora, is_lora, narrow, of_base
from training.named import open_named
from training.options import Options
from training.parallel import Ranks
from training.qat import add_qat
from training.recomputing import recompute
from training.shards import check_tokens, read_meta
from training.weights import to_torch

MAY_CHANGE = ("dropout", "max_seq_len")  # of a model between two parts of a run
OF_ROPE = ("rope_theta", "rope_scaling")  # as well, where a run begins


# --- The model to start from


def start_of(options: Options, resumed: Path | None) -> str | None:
    """The model that weights come from, None for none: a fresh model, or a checkpoint of all of one.

    A checkpoint of adapters goes on beside the model that they were begun on.
    """
    if resumed:
        return base_name(resumed) if is_adapter(resumed) else None
    return None if options.init_from == "scratch" else options.init_from


def check_length(options: Options, source: Source) -> None:
    """Raises UsageError for a context beyond that in which a model is a Llama, with nothing said of RoPE."""
    longest = source.longest or options.max_seq_len
    if options.max_seq_len > longest and not (options.rope_theta or options.rope_scaling):
        found = f"max_seq_len = {options.max_seq_len}, allowed up to {longest}, the model's {source.bound}"
        raise UsageError(f"{found}, without rope_theta or rope_scaling")


def open_for(options: Options, name: str, vocab_size: int) -> Source:
    """A model with the tokens of the data. Raises BadFileError."""
    source, vocabulary = open_named(name)
    if vocabulary and (Path(options.data) / "meta.json").exists():
        check_tokens(name, vocabulary, Path(options.data))
    if source.config.vocab_size < vocab_size or (not vocabulary and source.config.vocab_size != vocab_size):
        found = f"vocab_size = {source.config.vocab_size}, the data has {vocab_size}"
        raise BadFileError(f"{name}: {found}")
    return source


def source_of(options: Options, name: str, vocab_size: int) -> Source:
    """The model to start from, as options change it.

    Raises BadFileError where it is not for the data, UsageError.
    """
    source = open_for(options, name, vocab_size)
    check_length(options, source)
    changes = {name: getattr(options, name) for name in MAY_CHANGE}
    config = dataclasses.replace(source.config, **changes)
    return dataclasses.replace(source, config=stretched(options, config, source.config))


def check_said(options: Options, said: Mapping[str, str]) -> None:
    """Raises UsageError for a shape that is said, where the model to start from has another.

    said: what names the place where an option is said, by the option.
    """
    if options.init_from in ("scratch", "resume"):
        return
    config = open_named(options.init_from)[0].config.to_dict()
    for name in said.keys() & config.keys() - {"vocab_size", *MAY_CHANGE, *OF_ROPE}:
        value = getattr(options, name)
        follows = name in ("n_kv_heads", "hidden_dim") and value == 0  # from the others
        if value != config[name] and not follows:
            found = f"{said[name]}{name} = {value}, {options.init_from} has {config[name]}"
            raise UsageError(f"{found}: leave it out, the shape is that of the model")


def take_shape(options: Options, folder: Path, said: Collection[str]) -> None:
    """Gives a run that goes on the shape of its checkpoint, where nobody has said another: that of a model to
    start from is said nowhere. Raises BadFileError.
    """
    kept = {*said, "vocab_size", *MAY_CHANGE, *OF_ROPE}
    for name, value in read_config(folder).to_dict().items():
        if name in Options.__dataclass_fields__ and name not in kept:
            setattr(options, name, value)


def lora_of(options: Options, start: str | None) -> Lora | None:
    """The adapters to train, None for none. Raises UsageError without a model that they could be of."""
    if not options.lora_rank:
        return None
    if start is None:
        raise UsageError(f"lora_rank = {options.lora_rank}, allowed 0 without --init_from a model")
    return Lora(start, options.lora_rank, options.lora_alpha, options.lora_dropout, options.lora_targets)


def config_of(options: Options, source: Source | None, resumed: Path | None, vocab_size: int) -> Config:
    """The shape of the model of a run. Raises UsageError, BadFileError."""
    if source:
        return source.config
    known = read_config(resumed) if resumed else None
    return stretched(options, options.model_config(vocab_size), known)


def make_model(options: Options, ranks: Ranks, config: Config, lora: Lora | None) -> Llama:
    """The model of a run, on the meta device: a rank of FSDP never holds all of it. Raises UsageError."""
    if lora and ranks.cut.tensor > 1:
        raise UsageError(f"lora_rank = {lora.rank}, allowed 0 with tensor_parallel = {ranks.cut.tensor}")
    with torch.device("meta"):
        model = Llama(config)
        if options.checkpointing:
            recompute(model, options.checkpointing_keeps)
        if options.qlora:
            add_nf4(model, parallel.DTYPES[options.dtype])
        if lora:
            add_lora(model, lora)
        if options.qat:
            add_qat(model, options.qat)
    on_cpu = ranks.device.type == "cpu"
    if on_cpu and options.dtype == "bfloat16" and not parallel.is_emulated("bfloat16", ranks.device):
        use_blocks(model)
    freeze(model, options.train, options.freeze)
    if lora:
        narrow(model, parallel.DTYPES[options.dtype])
    return model


def fill_weights(model: Llama, source: Source | None) -> None:
    """The weights of a source, or fresh ones: the same, whatever the ranks. Raises BadFileError."""
    tensors = checked_tensors(source) if source else {}

    def value_of(name: str, shape: torch.Size) -> torch.Tensor:
        if is_lora(name):
            return init_lora(name, shape)
        name = of_base(name)
        return to_torch(tensors[name]) if source else model.init_weight(name, torch.empty(shape))

    parallel.fill(model, value_of)
    pack(model, value_of)


def told_of(options: Options, source: Source | None, resumed: Path | None) -> Mapping[str, str]:
    """What checkpoints say of texts: as the data does, else the model. Raises BadFileError."""
    meta = Path(options.data) / "meta.json"
    if meta.exists() and (texts := read_meta(meta.parent)["texts"]):
        return texts
    if resumed and not source:
        source = open_checkpoint(resumed)
    return told(source) if source else {}
