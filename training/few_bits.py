"""What is held in few bits: matrices that stay as they are in 4, AdamW's moments in 8. By bitsandbytes.

NF4 (Dettmers et al., QLoRA, 2023): a weight is one of 16 numbers, quantiles of a normal distribution, times
the largest of its block of 64. These scales, less their mean, have 8 bits in blocks of 256: 4.127 bits a
weight. Matrices are unpacked for each product, and again in its backward pass, so that none is there in 16
bits for longer. PEFT computes the same with a model that transformers loads in 4 bits, but that the rows of
wq and wk lie in another order there, and so share their scales with others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from model import Llama
from training.options import Options


def library() -> Any:
    """bitsandbytes, which is not everywhere."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # misses a kernel of inference
    import bitsandbytes

    return bitsandbytes


class Nf4Linear(nn.Module):
    """A product with weights (out, in) that are no parameters and in no checkpoint: pack sets them."""

    codes: Tensor  # two weights in a byte
    scales: Any  # bitsandbytes' QuantState

    def __init__(self, base: nn.Linear, dtype: torch.dtype) -> None:
        """dtype: what is multiplied in."""
        super().__init__()
        self.out_features, self.in_features, self.dtype = base.out_features, base.in_features, dtype
        self.library = library()

    def pack(self, weight: Tensor, device: torch.device) -> None:
        self.codes, self.scales = self.library.functional.quantize_4bit(
            weight.to(device, torch.float32), blocksize=64, compress_statistics=True, quant_type="nf4"
        )
        self.scales.dtype = self.dtype

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.absmax.nbytes + self.scales.state2.absmax.nbytes

    def forward(self, x: Tensor) -> Tensor:
        return self.library.matmul_4bit(x.to(self.dtype), self.codes, self.scales)


def packed_matrices(model: nn.Module) -> dict[str, Nf4Linear]:
    """The packed matrices of a model, by the names of their modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Nf4Linear)}


def n_weights(model: nn.Module) -> int:
    """How many weights a model has, those that are packed and no parameters too."""
    packed = sum(m.out_features * m.in_features for m in packed_matrices(model).values())
    return packed + sum(parameter.numel() for parameter in model.parameters())


def add_nf4(model: Llama, dtype: torch.dtype) -> None:
    """Has all matrices of blocks packed, and multiplied in dtype. Their weights are gone."""
    for block in model.layers:
        for part in (block.attention, block.feed_forward):
            for name, base in list(part.named_children()):
                setattr(part, name, Nf4Linear(base, dtype))


def pack(model: Llama, value_of: Callable[[str, torch.Size], Tensor]) -> None:
    """Packs value_of(name, shape) for each matrix, on the model's device: one at a time is whole."""
    for name, module in packed_matrices(model).items():
        shape = torch.Size((module.out_features, module.in_features))
        module.pack(value_of(f"{name}.weight", shape), model.tok_embeddings.weight.device)


def adamw_8bit(parameters: list[nn.Parameter], options: Options) -> Optimizer:
    """AdamW whose moments are 8 bits each (Dettmers et al., 8-bit Optimizers, 2022), of 4096 weights or more.

    On a GPU it waits for the device behind each parameter.
    """
    return library().optim.AdamW8bit(
        parameters,
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        weight_decay=options.weight_decay,
    )
