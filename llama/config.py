"""The shape of a model, as its file says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llama._engine import ffi, lib


@dataclass(frozen=True)
class Config:
    """The shape of a model, as its file says it (LlamaConfig in llama.h, where each field is explained)."""

    version: int  # of the file format
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_seq_len: int
    tied: bool
    weight_type: str  # of the layers: "fp32", "bf16", "int8" or "int4"
    group_size: int  # 0 where no weights share a scale
    norm_eps: float
    rope_theta: float
    add_bos: bool  # texts begin with BOS


def model_config(model: Any) -> Config:
    """The configuration of a C model."""
    config = lib.llama_config(model)
    fields = {name: getattr(config, name) for name in Config.__dataclass_fields__}
    fields |= {name: bool(fields[name]) for name in ("tied", "add_bos")}
    fields["weight_type"] = ffi.string(lib.llama_type_name(config.weight_type)).decode()
    return Config(**fields)
