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

import torch
from torch import Tensor
from tqdm import tqdm

from llama.errors import UsageError
from llama.files import check_room
from llama.formats.config import Config
from llama.formats.huggingface import CONFIG, GENERATION, INDEX, rotated_heads, their_name
from llama.formats.source import (
    EMBEDDING,
    Source,
    chunks,
    find,
    is_finite,
    name_problems,
    refuse,
    sum_of_squares,
    tensor_shapes,
)
from llama.formats.tokenizers import Tokenizer

SHARD_BYTES = 5_000_000_000
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CODES = {torch.float32: "F32", torch.bfloat16: "BF16"}
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
    return "bf16" if source.tensors[EMBEDDING].dtype == torch.bfloat16 else "fp32"


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


def pairs_to_halves(weight: Tensor, heads: int) -> Tensor:
    """A matrix whose rows (2 j, 2 j + 1) of each head become (j, j + d / 2)."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def write_tensor(
    file: BinaryIO, source: Source, name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> float:
    """Writes a tensor as transformers has it, and returns the relative error of its rounding."""
    tensor = find(source, name, shape)
    if heads := rotated_heads(name, source.config):
        tensor = pairs_to_halves(tensor, heads)
    exact, total, error = dtype in (tensor.dtype, torch.float32), 0.0, 0.0
    for part in chunks(source, name, tensor, dtype if exact else torch.float32):
        rounded = part.to(dtype)
        if not exact:
            if not is_finite(rounded):
                refuse(source, [f"{name} has values too large for bf16"])
            total += sum_of_squares(part)
            error += sum_of_squares(rounded - part)
        file.write(rounded.view(torch.uint8).numpy().data)
    return math.sqrt(error / total) if total else 0.0


def config_json(config: Config, dtype: str, bos: int, stops: tuple[int, ...]) -> dict[str, Any]:
    """The fields of config.json."""
    scaling = config.rope_scaling
    rope: dict[str, Any] | None = {"rope_type": scaling.kind, "factor": scaling.factor} if scaling else None
    if rope and scaling and scaling.kind == "llama3":
        rope |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
        rope["original_max_position_embeddings"] = scaling.original_max_seq_len
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
        "rope_scaling": rope,
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": str(DTYPES[dtype]).removeprefix("torch."),
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

    dtype: "fp32" or "bf16". tokenizer: its files, by name.
    Raises UsageError, BadFileError for weights that do not fit, OSError.
    """
    check_shape(source.name, source.config)
    shapes, torch_dtype, errors = tensor_shapes(source.config), DTYPES[dtype], {}
    refuse(source, name_problems(source, shapes))
    sizes = {name: math.prod(shape) * torch_dtype.itemsize for name, shape in shapes.items()}
    check_room(folder, sum(sizes.values()))
    shards = plan(sizes, shard_bytes)
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, leave=False, disable=not bar) as progress:
        for shard in shards:
            with (folder / shard.file).open("wb") as file:
                file.write(
                    shard_header({name: shapes[name] for name in shard.names}, sizes, CODES[torch_dtype])
                )
                for name in shard.names:
                    errors[name] = write_tensor(file, source, name, shapes[name], torch_dtype)
                    progress.update(sizes[name])
    if len(shards) > 1:
        places = {their_name(name): shard.file for shard in shards for name in shard.names}
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})
    write_json(folder / CONFIG, config_json(source.config, dtype, source.bos, source.stops))
    write_json(folder / GENERATION, special_ids(source.bos, source.stops))
    for name, data in tokenizer.items():
        (folder / name).write_bytes(data)
    return {name: error for name, error in errors.items() if error}
