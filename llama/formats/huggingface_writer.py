"""Writes Hugging Face's folders, which transformers loads: safetensors in shards, configuration, tokenizer.

config.json has the fields of transformers 4 (rope_theta and rope_scaling, not rope_parameters): version 5
and what others wrote for version 4 read both of them. A shard is written by hand, a short header and then
the tensors one after the other, because the safetensors library wants them all in memory at once.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llama.errors import UsageError
from llama.files import check_room
from llama.formats.config import Config
from llama.formats.huggingface import CONFIG, GENERATION, INDEX, pairs_to_halves, rotated_heads, their_name
from llama.formats.huggingface_rope import rope_json
from llama.formats.source import (
    EMBEDDING,
    Source,
    chunks,
    find,
    name_problems,
    refuse,
    row_ranges,
    tensor_shapes,
    unfit,
)
from llama.formats.tensor import NUMPY, Tensor, is_finite, rounded, sum_of_squares, to_floats
from llama.formats.tokenizers import Tokenizer
from llama.progress import Bar

SHARD_BYTES = 5_000_000_000
CODES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
TORCH = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
TOKENIZER_FILES = (  # copied where they are
    *("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "chat_template.json"),
)


@dataclass(frozen=True)
class Shard:
    """A file to be written: its tensors, under our names and in its order."""

    file: str
    names: tuple[str, ...]


def usual_dtype(source: Source) -> str:
    """The type that loses nothing: bf16 where the weights have it, else fp32."""
    return "bf16" if source.tensors[EMBEDDING].dtype == "bf16" else "fp32"


def plan(sizes: dict[str, int], limit: int) -> list[Shard]:
    """The shards for tensors of these bytes: in order, each as full as it may be."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    if len(groups) == 1:
        return [Shard("model.safetensors", tuple(groups[0]))]
    n = len(groups)
    return [Shard(f"model-{i + 1:05d}-of-{n:05d}.safetensors", tuple(g)) for i, g in enumerate(groups)]


def shard_header(shapes: dict[str, tuple[int, ...]], sizes: dict[str, int], code: str) -> bytes:
    """The bytes before the first tensor: their number, then JSON with type, shape and place of each."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes.items():
        entries[their_name(name)] = {"dtype": code, "shape": shape, "data_offsets": [at, at + sizes[name]]}
        at += sizes[name]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def write_as_it_is(file: BinaryIO, source: Source, name: str, tensor: Tensor) -> None:
    """Writes a tensor in the type that it has."""
    for begin, end in row_ranges(tensor.shape):
        part = tensor.rows(begin, end)
        if not is_finite(part, tensor.dtype):
            refuse(source, [f"{name} has {unfit(part, tensor.dtype)}"])
        file.write(np.ascontiguousarray(part).data)


def write_rounded(file: BinaryIO, source: Source, name: str, tensor: Tensor, dtype: str) -> float:
    """Writes a tensor as bf16 or fp16 and returns the relative error of its rounding."""
    total = error = 0.0
    for part in chunks(source, name, tensor):
        short = rounded(part, dtype)
        if not is_finite(short, dtype):
            refuse(source, [f"{name} has values too large for {dtype}"])
        total += sum_of_squares(part)
        error += sum_of_squares(to_floats(short, dtype) - part)
        file.write(short.data)
    return math.sqrt(error / total) if total else 0.0


def write_tensor(file: BinaryIO, source: Source, name: str, shape: tuple[int, ...], dtype: str) -> float:
    """Writes a tensor as transformers has it, and returns the relative error of its rounding."""
    tensor = find(source, name, shape)
    if heads := rotated_heads(name, source.config):
        tensor = pairs_to_halves(tensor, heads)
    if dtype == tensor.dtype:
        write_as_it_is(file, source, name, tensor)
    elif dtype != "fp32":
        return write_rounded(file, source, name, tensor, dtype)
    else:
        for part in chunks(source, name, tensor):
            file.write(part.data)
    return 0.0


def config_json(config: Config, dtype: str, bos: int, stops: tuple[int, ...]) -> dict[str, Any]:
    """The fields of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope_json(config.rope_scaling),
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": TORCH[dtype],
        **special_ids(bos, stops),
    }


def special_ids(bos: int, stops: tuple[int, ...]) -> dict[str, Any]:
    """Ids that begin and end a text, null where they are not known: left out, they would be 1 and 2."""
    eos = stops[0] if len(stops) == 1 else list(stops) or None
    return {"bos_token_id": None if bos < 0 else bos, "eos_token_id": eos}


def tokenizer_config(tokenizer: Tokenizer) -> bytes:
    """What transformers must be told of a tokenizer.model: special tokens, and that texts begin with BOS."""
    names = {i: name for name, i in tokenizer.special.items()}
    if tokenizer.kind == "sentencepiece":
        names = {i: tokenizer.model.id_to_piece(i) for i in (0, tokenizer.bos_id, tokenizer.eos_id) if i >= 0}
    fields = {
        "tokenizer_class": "LlamaTokenizer"
        if tokenizer.kind == "sentencepiece"
        else "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.bos_id >= 0,
        "bos_token": names.get(tokenizer.bos_id),
        "eos_token": names.get(tokenizer.eos_id),
        "unk_token": names.get(0),
        "added_tokens_decoder": {str(i): {"content": names[i], "special": True} for i in sorted(names)},
    }
    return json.dumps(fields, indent=2).encode()


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def check_shape(name: str, config: Config) -> None:
    """Raises UsageError for what transformers refuses."""
    if config.dim % config.n_heads:
        found = f"dim = {config.dim}, n_heads = {config.n_heads}"
        raise UsageError(f"{name}: {found}: transformers can't hold a dim that n_heads does not divide")


def write_folder(
    folder: Path, source: Source, dtype: str, tokenizer: Mapping[str, bytes], shard_bytes: int, bar: bool
) -> dict[str, float]:
    """Writes a model into an empty folder, and returns the relative errors of the tensors that were rounded.

    dtype: "fp32", "bf16" or "fp16". tokenizer: its files, by name.
    Raises UsageError, BadFileError for weights that do not fit, OSError.
    """
    check_shape(source.name, source.config)
    shapes, item, errors = tensor_shapes(source.config), np.dtype(NUMPY[dtype]).itemsize, {}
    refuse(source, name_problems(source, shapes))
    sizes = {name: math.prod(shape) * item for name, shape in shapes.items()}
    check_room(folder, sum(sizes.values()))
    shards = plan(sizes, shard_bytes)
    with Bar("writing", sum(sizes.values()), bar) as progress:
        for shard in shards:
            with (folder / shard.file).open("wb") as file:
                file.write(shard_header({name: shapes[name] for name in shard.names}, sizes, CODES[dtype]))
                for name in shard.names:
                    errors[name] = write_tensor(file, source, name, shapes[name], dtype)
                    progress.update(sizes[name])
    if len(shards) > 1:
        places = {their_name(name): shard.file for shard in shards for name in shard.names}
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})
    write_json(folder / CONFIG, config_json(source.config, dtype, source.bos, source.stops))
    write_json(folder / GENERATION, special_ids(source.bos, source.stops))
    for name, data in tokenizer.items():
        (folder / name).write_bytes(data)
    return {name: error for name, error in errors.items() if error}
