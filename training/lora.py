"""LoRA: matrices that stay as they are, each with a product of two thin ones that is trained instead.

    y = W x + (alpha / rank) B A x

(Hu et al., LoRA, 2021). A starts as PEFT's does and B at 0, so that training begins with the model itself.
Adapters are saved as PEFT has them: llama/formats/adapters.py reads them, and merges.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from llama.errors import UsageError
from llama.files import write_aside, written_aside
from llama.formats import adapters
from llama.formats.adapters import SETTINGS, WEIGHTS, their_names
from llama.formats.config import Config
from llama.formats.huggingface import NAMES, halves_to_pairs, pairs_to_halves, rotated_heads
from model import Llama
from training.few_bits import Nf4Linear
from training.weights import from_torch, to_torch

TARGETS = {  # our names and PEFT's
    name: theirs.rpartition(".")[2]
    for name, theirs in NAMES.items()
    if name.startswith(("attention.", "feed_forward."))
}
A, B, BASE = "lora_a", "lora_b", "base."


@dataclass(frozen=True)
class Lora:
    """How a model is trained by adapters. base: the file or folder of the model."""

    base: str
    rank: int
    alpha: float
    dropout: float
    targets: str


class LoraLinear(nn.Module):
    """A linear layer with an adapter: base of weights (out, in), lora_a (rank, in), lora_b (out, rank)."""

    def __init__(self, base: nn.Linear | Nf4Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_b = nn.Parameter(torch.empty(base.out_features, rank))
        self.scale, self.dropout = alpha / rank, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        added = F.linear(F.linear(self.dropout(x), self.lora_a), self.lora_b)
        return self.base(x) + added * self.scale


def targets_of(text: str) -> list[str]:
    """The matrices of a block that a list such as wq,wv means; "all"; or PEFT's q_proj and so on.

    Raises UsageError.
    """
    spelt = {name.rpartition(".")[2]: name for name in TARGETS} | {theirs: n for n, theirs in TARGETS.items()}
    words = list(TARGETS) if text == "all" else [word.strip() for word in text.split(",")]
    if wrong := [word for word in words if word not in spelt and word not in TARGETS]:
        raise UsageError(f"lora_targets = {wrong[0]!r}, allowed all, {', '.join(spelt)}")
    return [spelt.get(word, word) for word in words]


def add_lora(model: Llama, lora: Lora) -> None:
    """Puts adapters beside the matrices that lora names, and freezes all else. Raises UsageError."""
    model.requires_grad_(False)
    for name in targets_of(lora.targets):
        part, _, leaf = name.rpartition(".")
        for block in model.layers:
            owner = block.get_submodule(part)
            setattr(owner, leaf, LoraLinear(getattr(owner, leaf), lora.rank, lora.alpha, lora.dropout))


def narrow(model: Llama, dtype: torch.dtype) -> None:
    """Stores frozen matrices in dtype. The residual stream stays float32, also where it begins."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.ndim == 2:
            parameter.data = parameter.data.to(dtype)
    if model.tok_embeddings.weight.dtype != torch.float32:
        model.tok_embeddings.register_forward_hook(lambda _module, _tokens, rows: rows.float())


def is_lora(name: str) -> bool:
    """Whether a parameter is one of an adapter."""
    return name.endswith((A, B))


def of_base(name: str) -> str:
    """What a parameter is called where there are no adapters."""
    return name.replace(BASE, "")


def init_lora(name: str, shape: torch.Size) -> Tensor:
    """Fresh values of a parameter of an adapter: PEFT's."""
    if name.endswith(B):
        return torch.zeros(shape)
    return nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5))


# --- Files


def turned(name: str, b: Tensor, config: Config, out: bool) -> Tensor:
    """B of a matrix with the rows in PEFT's order (out), or from there in that of model.py."""
    heads = rotated_heads(name, config)
    if not heads:
        return b
    return to_torch((pairs_to_halves if out else halves_to_pairs)(from_torch(b), heads))


def save_adapter(
    folder: Path, config: Config, weights: Mapping[str, Tensor], lora: Lora, told: Mapping[str, str]
) -> None:
    """Writes an adapter, from the parameters of its layers by name. told: metadata. Raises OSError."""
    tensors: dict[str, Tensor] = {}
    for name in (n.removesuffix(A) + "weight" for n in weights if n.endswith(A)):
        a, b = (weights[name.removesuffix("weight") + part].detach().cpu() for part in (A, B))
        first, second = their_names(name)
        tensors[first], tensors[second] = a.contiguous(), turned(name, b, config, out=True).contiguous()
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": lora.base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with written_aside(folder / WEIGHTS) as scratch:
        save_file(tensors, scratch, {"format": "pt", **told})
    with write_aside(folder / SETTINGS) as file:
        file.write(json.dumps(settings, indent=2).encode() + b"\n")


def load_adapter(folder: Path, config: Config) -> dict[str, Tensor]:
    """The parameters of an adapter's layers by name. Raises BadFileError."""
    found: dict[str, Tensor] = {}
    for name, (a, b) in adapters.open_adapter(folder, config, {}).pairs.items():
        stem = name.removesuffix("weight")
        found[stem + A], found[stem + B] = to_torch(a), to_torch(b)
    return found
