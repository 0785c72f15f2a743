"""Quantisation-aware training: forward as a v3 file of int8 or int4 computes, backward straight through.

A model computes what the engine computes of the file that export.py makes of it: matrices are rounded by the
rules of llama/csrc/weights/pack_group.h, what enters their products by those of quant.h, all in groups of 32
with a scale each; embedding and classifier are int8. Gradients pass through as if nothing was rounded (Bengio
et al., Estimating or Propagating Gradients, 2013), to the weights that the optimizer has in float32. So
training settles where rounding costs little, and exporting adds nothing to the loss.

Sums are in another order than the engine's, which once in a thousand groups of int4 gives another of nearly
equal scales. Left out on purpose: adapters, which are merged into weights that were not rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import Llama

GROUP = 32
DIVISORS = (-9.1, -8.8, -8.6, -8.4, -8.2, -8.1, -7.9, -7.7, -7.3, -7.1, -6.8, -6.2)  # PACK_DIVISORS
SMALLEST_HALF = 2.0**-24  # below it a scale is 0
SMALLEST = 1e-30  # of activations: QUANTISE_MIN

# --- Rounding. x: float32 (..., 32), a group in each row; what is returned has its shape


def inverse_of(scale: Tensor) -> Tensor:
    """1 / scale, 0 where it is so small that no half can be the scale."""
    return torch.where(scale.abs() < SMALLEST_HALF, 0.0, 1 / scale)


def rounded_int8(x: Tensor) -> Tensor:
    """Weights: the largest is 127 times a scale, which is a half."""
    scale = (x.abs().amax(-1, keepdim=True) / 127).half().float()
    return (x * inverse_of(scale)).round().clamp(-127, 127) * scale


def rounded_int4(x: Tensor) -> Tensor:
    """Weights: whole numbers q from -8 to 7 times a scale, a half; of several q those of the least error.

    For given q the best scale is sum(q x) / sum(q q), and leaves sum(x x) - sum(q x)^2 / sum(q q).
    """
    inverse = inverse_of(x.gather(-1, x.abs().argmax(-1, keepdim=True)))
    tries = ((x * (inverse * divisor)).round_().clamp_(-8, 7) for divisor in DIVISORS)
    sums = [torch.stack((torch.linalg.vecdot(q, x), torch.linalg.vecdot(q, q))) for q in tries]
    qx, qq = torch.stack(sums, dim=1)  # (12, ...) each
    best = (qx * qx / qq).nan_to_num_().argmax(0, keepdim=True)  # of zeros alone it is 0 / 0
    scale = (qx.gather(0, best) / qq.gather(0, best)).nan_to_num_()[0].half().float()[..., None]
    return (x * inverse_of(scale)).round_().clamp_(-8, 7) * scale


def rounded_activations(x: Tensor) -> Tensor:
    """What enters a product: the largest is 127 times a scale."""
    largest = x.abs().amax(-1, keepdim=True)
    counts = largest > SMALLEST
    inverse = torch.where(counts, 127 / largest, 0.0)
    return (x * inverse).round_().clamp_(-127, 127).mul_(torch.where(counts, largest / 127, 0.0))


ROUNDED = {"int8": rounded_int8, "int4": rounded_int4}


class StraightThrough(torch.autograd.Function):
    """x (..., columns) rounded in groups of columns, the last filled up with zeros; the gradient stays."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
        columns, groups = x.shape[-1], x.float()
        if columns % GROUP:
            groups = F.pad(groups, (0, -columns % GROUP))
        groups = groups.unflatten(-1, (-1, GROUP))
        return rounded(groups).flatten(-2)[..., :columns].to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def weights_in(x: Tensor, dtype: str) -> Tensor:
    """What a file of that type has in the place of weights."""
    return StraightThrough.apply(x, ROUNDED[dtype])


def activations_in(x: Tensor) -> Tensor:
    """What meets weights of int8 and int4 in the place of x."""
    return StraightThrough.apply(x, rounded_activations)


# --- The model. Modules keep the names of the parameters


class Matrix(nn.Module):
    """A product with weights (out, in) of a type. enters: round what enters it; else whoever made it has."""

    def __init__(self, base: nn.Linear, dtype: str, enters: bool) -> None:
        super().__init__()
        self.weight, self.dtype, self.enters = base.weight, dtype, enters

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(activations_in(x) if self.enters else x, weights_in(self.weight, self.dtype))


class Norm(nn.Module):
    """A norm whose output enters products: it is rounded once for all of them."""

    def __init__(self, base: nn.RMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = base.weight, base.eps

    def forward(self, x: Tensor) -> Tensor:
        return activations_in(F.rms_norm(x, self.weight.shape, self.weight, self.eps))


class Embedding(nn.Module):
    """The rows of tokens, in int8."""

    def __init__(self, base: nn.Embedding) -> None:
        super().__init__()
        self.weight = base.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return weights_in(F.embedding(tokens, self.weight), "int8")


def add_qat(model: Llama, dtype: str) -> None:
    """Has the model compute what the engine computes of a v3 file of "int8" or "int4"."""
    for block in model.layers:
        for part, names in ((block.attention, "wq wk wv wo"), (block.feed_forward, "w1 w2 w3")):
            for name in names.split():
                setattr(part, name, Matrix(getattr(part, name), dtype, enters=name in ("wo", "w2")))
        block.attention_norm, block.ffn_norm = Norm(block.attention_norm), Norm(block.ffn_norm)
    model.tok_embeddings, model.norm = Embedding(model.tok_embeddings), Norm(model.norm)
    model.output.weight_as = partial(weights_in, dtype="int8")
