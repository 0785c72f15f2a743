"""Activation checkpointing: blocks compute again in the backward pass what they would have to keep for it
(Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from model import Context, Llama
from training.attention import ATTEND

ATTENTION_OPS = [
    ATTEND,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]
KEPT = {  # operations whose results are kept all the same, by the name of what they are
    "nothing": [],
    "attention": ATTENTION_OPS,
    "products": [torch.ops.aten.mm.default, *ATTENTION_OPS],
}


def run_again(block: nn.Module, x: Tensor, context: Context, keeps: str) -> Tensor:
    """block(x, context), of which the backward pass computes again what it needs, but for KEPT[keeps]."""
    if not torch.is_grad_enabled():
        return block(x, context)
    if not KEPT[keeps]:
        return checkpoint(block, x, context, use_reentrant=False)
    contexts = functools.partial(create_selective_checkpoint_contexts, KEPT[keeps])
    return checkpoint(block, x, context, use_reentrant=False, context_fn=contexts)


def recompute(model: Llama, keeps: str = "nothing") -> Llama:
    """Has a model keep of its blocks what they begin with alone, and what KEPT[keeps] gives."""
    model.run_block = functools.partial(run_again, keeps=keeps)
    return model
