"""The Llama in PyTorch: the reference for everything else here, and what train.py trains.

One class covers Llama 2, Code Llama, Llama 3, 3.1, 3.2 and the tiny ones; `Config` holds all that changes the
function. Parameters have Meta's names (layers.0.attention.wq.weight), pairs of RoPE are (2 j, 2 j + 1) as in
Meta's files and ours; Hugging Face rotates halves, which export.py converts.

    model = Llama(Config(dim=288, n_layers=6, n_heads=6))
    logits = model(tokens)                          # (B, T, vocab_size)
    loss_sum, n_targets = model(tokens, targets)    # of the targets that are not IGNORE

Letters in shapes: B sequences, T tokens, D = dim, H = n_heads, K = n_kv_heads, d = head_dim, V = vocab_size.

Left out on purpose: loading and saving (export.py), the optimizers (train.py), sampling (sample.py).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llama.formats.config import Config, RopeScaling, ffn_hidden_dim
from llama.formats.rope import rope_frequencies, rope_magnitude

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    Mask = Tensor | BlockMask | list[int]  # a list: the lengths of documents, row after row

__all__ = ["IGNORE", "Cache", "Config", "Llama", "RopeScaling", "ffn_hidden_dim"]

IGNORE = -1  # a target that does not count

FLEX: dict[str, Callable[..., Any]] = {}  # of flex_attention, once it is needed: importing it takes seconds

# ---------------------------------------------------------------------------------------------------------
# RoPE: rotary position embedding (Su et al., RoFormer, 2021)


@functools.lru_cache(maxsize=16)
def frequencies_on(config: Config, device: torch.device) -> Tensor:
    """The angle of one position for each pair: (d / 2). Kept, because the copy to a GPU waits for it."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.from_numpy(rope_frequencies(config)).to(device, dtype)


def rope_turns(config: Config, positions: Tensor) -> Tensor:
    """Cosine and sine of the angles at positions (..., T), times YaRN's factor: float32 (..., T, d / 2, 2).

    Angles are taken in float64: at position 100,000 a float32 angle is off by a hundredth of a turn.
    """
    frequencies = frequencies_on(config, positions.device)
    angles = positions.to(frequencies.dtype)[..., None] * frequencies
    return (torch.stack((angles.cos(), angles.sin()), dim=-1) * rope_magnitude(config)).float()


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turns the pairs of x (B, T, heads, d), seen as complex numbers, by turns (B or 1, T, d / 2, 2).

    Eager, a complex product is one kernel instead of six; the compiler has no code for complex numbers.
    """
    pairs, turns = x.float().unflatten(-1, (-1, 2)), turns.unsqueeze(-3)
    if torch.compiler.is_compiling():
        (a, b), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
        turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))
    return turned.flatten(-2).type_as(x)


# ---------------------------------------------------------------------------------------------------------
# Documents in one sequence, and the cache


def document_begins(doc_ids: Tensor) -> Tensor:
    """Where a document begins: where the id differs from the one before. Bool (B, T) from doc_ids (B, T)."""
    begins = torch.ones_like(doc_ids, dtype=torch.bool)
    begins[:, 1:] = doc_ids[:, 1:] != doc_ids[:, :-1]
    return begins


def document_positions(doc_ids: Tensor) -> Tensor:
    """Positions that restart where a document begins: (B, T) from doc_ids (B, T)."""
    index = torch.arange(doc_ids.shape[1], device=doc_ids.device).expand_as(doc_ids)
    return index - (index * document_begins(doc_ids)).cummax(dim=1).values


def document_mask(doc_ids: Tensor) -> Tensor:
    """Which token (row) may attend to which (column): its own document, up to itself. Bool (B, 1, T, T)."""
    number = document_begins(doc_ids).cumsum(dim=1)
    return (number[:, :, None] == number[:, None, :]).tril().unsqueeze(1)


def document_lengths(doc_ids: Tensor) -> list[int]:
    """How long each document of doc_ids (B, T) is, row after row; one in two rows is two documents."""
    begins = document_begins(doc_ids).flatten().nonzero().flatten().tolist()
    return [end - begin for begin, end in itertools.pairwise([*begins, doc_ids.numel()])]


def document_blocks(doc_ids: Tensor) -> BlockMask:
    """document_mask for flex_attention, which leaves out the blocks of (T, T) that no token attends to."""
    if not FLEX:
        from torch.nn.attention import flex_attention as flex

        FLEX["mask"] = torch.compile(flex.create_block_mask)  # eager, it makes the whole (B, T, T)
        FLEX["attention"] = torch.compile(flex.flex_attention)  # eager, it makes all scores
    number = document_begins(doc_ids).cumsum(dim=1)

    def attends(b: Tensor, h: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (row >= column) & (number[b, row] == number[b, column])

    batch, length = doc_ids.shape
    return FLEX["mask"](attends, batch, None, length, length, device=doc_ids.device)


class Cache:
    """Keys and values of the tokens so far, (n_layers, B, max_len, K, d) each; the caller makes it."""

    def __init__(
        self,
        config: Config,
        batch: int,
        max_len: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (config.n_layers, batch, max_len, config.n_kv_heads, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.length = 0  # tokens it holds

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds k, v (B, T, K, d) of new tokens to a layer and returns all it holds with them."""
        end = self.length + k.shape[1]
        if end > self.keys.shape[2]:
            raise ValueError(f"{end} tokens do not fit into a cache of {self.keys.shape[2]}")
        self.keys[layer, :, self.length : end] = k
        self.values[layer, :, self.length : end] = v
        return self.keys[layer, :, :end], self.values[layer, :, :end]


# ---------------------------------------------------------------------------------------------------------
# The model


@dataclass
class Context:
    """What all layers of one pass share."""

    turns: Tensor
    mask: Mask | None = None  # None: causal
    cache: Cache | None = None


NARROW_HEAD, QUARTERS_FROM = 16, 256
FLEX_HEAD = 16  # the narrowest heads of flex_attention
SHORT_DOCUMENT = 32  # tokens: of shorter ones there are so many that one dense mask costs less


def attend_causally(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of q (B, H, T, d) to k, v (B, K, T, d) up to each position: (B, H, T, d).

    PyTorch's CPU kernel works through 512 keys at a time and drops those of the future afterwards. For narrow
    heads, where that is most of the work, queries go in quarters that leave most of the future out.
    """
    length, grouped = q.shape[2], k.shape[1] != q.shape[1]
    if q.device.type != "cpu" or q.shape[3] > NARROW_HEAD or length < QUARTERS_FROM:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    parts, step = [], -(-length // 4)
    for start in range(0, length, step):
        end = min(start + step, length)
        mask = torch.ones(end - start, end, dtype=torch.bool).tril(start)
        part = (q[:, :, start:end], k[:, :, :end], v[:, :, :end], mask)
        parts.append(F.scaled_dot_product_attention(*part, enable_gqa=grouped))
    return torch.cat(parts, dim=2)


def attend_within(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Causal attention of q (B, H, T, d) to k, v (B, K, T, d) in documents of these lengths: (B, H, T, d).

    Always in float32: PyTorch's CPU kernel takes twice as long for the backward pass in bfloat16.
    """
    rows = (t.transpose(0, 1).flatten(1, 2).float().split(lengths, dim=1) for t in (q, k, v))
    with torch.autocast("cpu", enabled=False):
        parts = [attend_causally(*(t[None] for t in document))[0] for document in zip(*rows, strict=True)]
    whole = torch.cat(parts, dim=1)  # (H, B T, d)
    return whole.to(q.dtype).unflatten(1, (q.shape[0], -1)).transpose(0, 1)


def attend_where(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Attention of q (B, H, T, d) to k, v (B, K, T, d) where a mask allows it: (B, H, T, d)."""
    grouped = k.shape[1] != q.shape[1]
    if isinstance(mask, list):
        return attend_within(q, k, v, mask)
    if isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=grouped)
    return FLEX["attention"](q, k, v, block_mask=mask, enable_gqa=grouped)


class Attention(nn.Module):
    attend: Callable[..., Tensor] = staticmethod(attend_causally)  # or as training/attention.py does

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.wq = nn.Linear(config.dim, q_dim, bias=False)
        self.wk = nn.Linear(config.dim, kv_dim, bias=False)
        self.wv = nn.Linear(config.dim, kv_dim, bias=False)
        self.wo = nn.Linear(q_dim, config.dim, bias=False)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x, and what is returned: (B, T, D)."""
        q, k, v = (w(x).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
        q, k = rotate(q, context.turns), rotate(k, context.turns)  # (B, T, H, d), (B, T, K, d)
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, k, v)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, heads, T, d)
        out = self.attend(q, k, v) if context.mask is None else attend_where(q, k, v, context.mask)
        return self.wo(out.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Dropout(nn.Dropout):
    """nn.Dropout. On CPUs four elements have 16 bits each of one random number, as drawing these takes
    most of the time; p is rounded to 1/65536.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1) or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        dropped = min(round(self.p * 65536), 65535)
        kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - 32768
        return x * kept.to(x.dtype).mul_(65536 / (65536 - dropped))


class RMSNorm(nn.RMSNorm):
    """PyTorch's, whose kernels want a weight of the type of x; FSDP gathers it in that of the products."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Block(nn.Module):
    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), context))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))


class Classifier(nn.Linear):
    """From the normalised residual stream to logits, or to the loss, which never has all logits at once."""

    weight_as: Callable[[Tensor], Tensor] = nn.Identity()  # training/qat.py rounds it

    def forward(
        self,
        x: Tensor,
        targets: Tensor | None = None,
        counts: Tensor | None = None,
        body: SoftmaxLoss | None = None,
    ) -> Tensor:
        """Logits (..., V) of x (..., D); with targets (R, N) the sums (R) of the losses of x (R, N, D).

        counts (R, N): what each target counts. body: softmax_loss, or what stands in its place.
        """
        weight = self.weight_as(self.weight)
        if hasattr(weight, "to_local"):  # of ranks that share blocks (training/tensor_parallel.py)
            weight = weight.to_local()
        if targets is None:
            return F.linear(x, weight)
        rows = zip(x, targets, counts, strict=True)
        return torch.stack(
            [cross_entropy_sum(row, weight, *goal, body or softmax_loss) for row, *goal in rows]
        )


class Llama(nn.Module):
    """A Llama of the given shape, with fresh weights.

    On the meta device (`with torch.device("meta")`) nothing is allocated: call to_empty, then init_weights or
    load_state_dict. There are no buffers.
    """

    run_block: Callable[..., Tensor] = staticmethod(nn.Module.__call__)  # or as training/recomputing.py does

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.compiled = False
        self.softmax_loss: SoftmaxLoss = softmax_loss
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = Classifier(config.dim, config.vocab_size, bias=False)
        if config.tied:
            self.output.weight = self.tok_embeddings.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draws all weights anew."""
        for name, parameter in self.named_parameters():
            self.init_weight(name, parameter)

    def init_weight(self, name: str, weight: Tensor) -> Tensor:
        """Draws one weight anew, in place: normal with deviation 0.02; norms 1.

        The two matrices that add to the residual stream, wo and w2, are smaller by sqrt(2 n_layers), so that
        its variance does not grow with depth (Radford et al., GPT-2, 2019).
        """
        if name.endswith("norm.weight"):
            return weight.fill_(1.0)
        if name.endswith(("wo.weight", "w2.weight")):
            return weight.normal_(0.0, 0.02 / math.sqrt(2 * self.config.n_layers))
        return weight.normal_(0.0, 0.02)

    def compile(self, *arguments: Any, **options: Any) -> None:
        """torch.compile of each block and of the loss, in place of the whole model.

        All blocks share one compilation, gradients of a block are ready for DDP before the pass is over, and
        FSDP can gather a block at a time.
        """
        for block in self.layers:
            block.compile(*arguments, **options)
        self.compiled = True
        self.softmax_loss = torch.compile(softmax_loss, *arguments, **options)

    def hidden(self, tokens: Tensor, doc_ids: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """The normalised residual stream after the last block, (B, T, D)."""
        context = self._context(tokens, doc_ids, cache)
        x = self.dropout(self.tok_embeddings(tokens))
        for block in self.layers:
            x = self.run_block(block, x, context)
        if cache is not None:
            cache.length += tokens.shape[1]
        return self.norm(x)

    def logits(self, x: Tensor) -> Tensor:
        """The logits (..., V) of the residual stream x (..., D), normalised."""
        return self.output(x)

    def _document_mask(self, doc_ids: Tensor) -> Mask:
        """Who may attend to whom, in the form that costs least here."""
        # flex_attention has no backward pass on CPUs, and no kernels for narrower heads.
        if doc_ids.device.type == "cuda" and self.config.head_dim >= FLEX_HEAD:
            return document_blocks(doc_ids)
        if doc_ids.device.type == "cpu" and not self.compiled:  # code would be compiled for all lengths
            lengths = document_lengths(doc_ids)
            if len(lengths) * SHORT_DOCUMENT <= doc_ids.numel():
                return lengths
        return document_mask(doc_ids)

    def _context(self, tokens: Tensor, doc_ids: Tensor | None, cache: Cache | None) -> Context:
        length, device = tokens.shape[1], tokens.device
        if doc_ids is not None:
            if cache is not None:
                raise ValueError("doc_ids and cache can't be given together")
            turns = rope_turns(self.config, document_positions(doc_ids))
            return Context(turns, self._document_mask(doc_ids))
        start = cache.length if cache is not None else 0
        turns = rope_turns(self.config, torch.arange(start, start + length, device=device).unsqueeze(0))
        mask = None
        if start > 0:  # a square causal mask would be aligned to the wrong end
            mask = torch.ones(length, start + length, dtype=torch.bool, device=device).tril(start)
        return Context(turns, mask, cache)

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        doc_ids: Tensor | None = None,
        weights: Tensor | None = None,
        cache: Cache | None = None,
        each: bool = False,
    ) -> Any:
        """Logits (B, T, V) of tokens (B, T); with targets (B, T) the summed loss and their number.

        doc_ids (B, T): tokens attend within their document only, and its positions begin at 0.
        weights (B, T): what each target counts in both sums, instead of 1.
        cache: the tokens go on from what it holds, and are added to it.
        each: the sums of every row, (B) instead of ().
        Targets equal to IGNORE do not count.
        """
        x = self.hidden(tokens, doc_ids, cache)
        if targets is None:
            return self.logits(x)
        counts = (targets != IGNORE).float()
        counts = counts if weights is None else counts * weights
        if not each:
            x, targets, counts = x.flatten(0, 1)[None], targets.flatten()[None], counts.flatten()[None]
        sums = self.output(x, targets, counts, self.softmax_loss)
        return (sums, counts.sum(dim=1)) if each else (sums.sum(), counts.sum())  # no view: FSDP warns of one


# ---------------------------------------------------------------------------------------------------------
# The loss. Logits of a whole batch are the largest tensor of a small model by far (2048 tokens x 32,000 x 4
# bytes = 262 MB, several times over in the backward pass), so they are made, used and dropped a chunk at a
# time; the gradients are computed right there.

CHUNK_VALUES = 1 << 24  # logits alive at once: the gradient of the classifier is added up once for each chunk
CHUNK_VALUES_GPU = 1 << 27  # more of them, so that starting kernels costs nothing


SoftmaxLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def softmax_loss(logits: Tensor, goal: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of logits (n, V), their targets (n), and what each counts (n), 0 for one that is IGNORE:

    the sum of -log softmax(logits)[target]; its gradient (n, V) in the type of the logits, but for targets,
    where it is the softmax; the gradient at the targets (n). float32 logits are overwritten.
    """
    exact = torch.promote_types(logits.dtype, torch.float32)  # of sums, also where products are bfloat16
    values = logits.to(exact)
    values -= values.amax(dim=1, keepdim=True)
    counts = counts.to(exact)
    picked = values.gather(1, goal.clamp(min=0)[:, None]).squeeze(1)
    sums = values.exp_().sum(dim=1)
    total = ((sums.log() - picked) * counts).sum()
    scale = counts / sums
    values *= scale[:, None]
    return total, values.to(logits.dtype), picked.exp() * scale - counts


class _CrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, counts: Tensor, body: SoftmaxLoss
    ) -> Tensor:
        of_x, of_weight = ctx.needs_input_grad[:2]
        grad_x = torch.empty_like(x) if of_x else None
        exact = torch.promote_types(x.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=exact) if of_weight else None
        total = torch.zeros((), device=x.device, dtype=exact)
        values = CHUNK_VALUES if x.device.type == "cpu" else CHUNK_VALUES_GPU
        chunk = max(1, values // len(weight))
        for start in range(0, len(x), chunk):
            part, goal = x[start : start + chunk], targets[start : start + chunk]
            loss, grad, at_goal = body(part @ weight.T, goal, counts[start : start + chunk])
            total += loss
            if of_x or of_weight:
                grad.scatter_(1, goal.clamp(min=0)[:, None], at_goal[:, None].to(grad.dtype))
            if grad_x is not None:
                torch.mm(grad, weight, out=grad_x[start : start + chunk])
            if grad_weight is not None and exact == weight.dtype:
                grad_weight.addmm_(grad.T, part)
            elif grad_weight is not None:
                grad_weight += grad.T @ part
        ctx.save_for_backward(grad_x, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        whole = (None if saved is None else saved * grad.to(saved.dtype) for saved in ctx.saved_tensors)
        return (*whole, None, None, None)


def cross_entropy_sum(
    x: Tensor, weight: Tensor, targets: Tensor, counts: Tensor, body: SoftmaxLoss = softmax_loss
) -> Tensor:
    """Sum over N tokens of -log softmax(x . weight^T)[target] times what it counts.

    x (N, D), weight (V, D), targets (N), counts (N), 0 where a target is IGNORE.
    body: softmax_loss, or compiled. The loop around it stays eager: compiled, its writes into slices of the
    gradient become copies of all of it.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
    with torch.autocast(kind, enabled=False):
        return _CrossEntropySum.apply(x, weight, targets, counts, body)
