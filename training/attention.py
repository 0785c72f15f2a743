"""Causal attention for training in bfloat16 on CPUs that multiply it.

PyTorch's CPU kernel works in float32 inside, and takes longer for the backward pass of bfloat16 than for that
of float32. Here attention is written out, softmax(q k^T / sqrt(d)) v, in blocks whose scores fit the cache:
products take the processor's bfloat16, no query meets a key beyond its block, and the backward pass makes
scores again instead of keeping them (Dao et al., FlashAttention, 2022).

Scores and probabilities are rounded to bfloat16, as q, k and v are before: gradients of trained models are as
near to those of float32 as with the kernel, and nearer where they are small, as its own come from an output
that was rounded. What scores lose grows with them; of scores in the tens gradients are ten times as far from
the formula's as with the kernel (docs/log.md).

B sequences, T tokens, H = n_heads, K = n_kv_heads, d = head_dim, N = B H.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from model import Llama, attend_causally

BLOCK = (64, 256)  # the fewest and the most queries of a block: a quarter of the text
SCORES = 1 << 21  # of a block: 4 MB


def blocks(rows: int, length: int) -> Iterator[tuple[slice, slice, slice]]:
    """Rows, queries and the keys up to them, block by block."""
    step = min(max(length // 4, BLOCK[0]), BLOCK[1])
    together = max(1, SCORES // (step * length))
    for row in range(0, rows, together):
        for start in range(0, length, step):
            yield slice(row, row + together), slice(start, start + step), slice(0, start + step)


def scaled(a: Tensor, b: Tensor, d: int) -> Tensor:
    """a b / sqrt(d), rounded once. a (n, t, s), b (n, s, u)."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=d**-0.5)


def probabilities(q: Tensor, k: Tensor) -> Tensor:
    """Of queries q (n, t, d), the last of the keys k (n, s, d): softmax(q k^T / sqrt(d)), (n, t, s)."""
    scores, length = scaled(q, k.transpose(1, 2), q.shape[2]), q.shape[1]
    future = torch.full((length, length), -math.inf, dtype=q.dtype).triu(1)
    scores[:, :, -length:] += future
    return scores.softmax(dim=-1)


# Operators of their own, as the compiler's code for what is in them is slower.
@torch.library.custom_op("cria::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q, k, v (N, T, d): (N, T, d)."""
    out = torch.empty_like(q)
    for row, query, keys in blocks(*q.shape[:2]):
        out[row, query] = probabilities(q[row, query], k[row, keys]) @ v[row, keys]
    return out


@torch.library.custom_op("cria::attend_backward", mutates_args=())
def attend_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k, v from that of what attend returns; all (N, T, d)."""
    grad_q = torch.empty_like(q)
    exact = torch.promote_types(q.dtype, torch.float32)  # of sums over blocks
    grad_k, grad_v = (torch.zeros_like(t, dtype=exact) for t in (k, v))
    for row, query, keys in blocks(*q.shape[:2]):
        p = probabilities(q[row, query], k[row, keys])
        grad_v[row, keys] += p.transpose(1, 2) @ grad[row, query]
        grad_p = grad[row, query] @ v[row, keys].transpose(1, 2)
        grad_scores = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
        grad_q[row, query] = scaled(grad_scores, k[row, keys], q.shape[2])
        grad_k[row, keys] += scaled(grad_scores.transpose(1, 2), q[row, query], q.shape[2])
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


attend.register_fake(lambda q, k, v: torch.empty_like(q))
attend_backward.register_fake(lambda grad, q, k, v: tuple(torch.empty_like(t) for t in (q, k, v)))
attend.register_autograd(
    lambda ctx, grad: attend_backward(grad, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


ATTEND = torch.ops.cria.attend.default  # as who looks at the operators of a pass sees it


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q (B, H, T, d) to k, v (B, K, T, d) up to each position: (B, H, T, d).

    Short texts and other types go to attend_causally.
    """
    if q.dtype != torch.bfloat16 or q.shape[2] < 2 * BLOCK[0]:
        return attend_causally(q, k, v)
    with torch.autocast("cpu", enabled=False):
        if (groups := q.shape[1] // k.shape[1]) > 1:
            k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
        return attend(*(t.flatten(0, 1) for t in (q, k, v))).view(q.shape)


def use_blocks(model: Llama) -> None:
    """Has the model attend in blocks."""
    for block in model.layers:
        block.attention.attend = attend_in_blocks
