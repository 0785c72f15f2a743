"""A model to read from: a configuration, and tensors that are read when asked for.

A reader of a format is a function that returns a Source, a writer one that takes it. A few million values are
in memory at a time, and the input is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama.errors import BadFileError
from llama.formats.chat_templates import Chat
from llama.formats.config import Config, RopeScaling
from llama.formats.tensor import NUMPY, Tensor, are_equal, is_finite, to_floats
from llama.formats.vocabulary import Vocabulary

EMBEDDING, CLASSIFIER = "tok_embeddings.weight", "output.weight"
CHUNK_VALUES = 1 << 20  # converted at once: bounds the memory
PROBLEMS_SHOWN = 5
LIMITS = {  # the engine's, llama/csrc/weights/checkpoint.h
    "dim": 1 << 17,
    "hidden_dim": 1 << 20,
    "n_layers": 4096,
    "n_heads": 4096,
    "head_dim": 4096,
    "vocab_size": 1 << 24,
    "max_seq_len": 1 << 24,
}
SMALLEST, LARGEST = 1e-30, 1e30  # of numbers that are not whole: a file has them in fp32


@dataclass(frozen=True)
class Source:
    """A model to read: tensors under the names of model.py, which the mapping reads when asked for one.

    name: what messages call it. The rest is what the files say besides the weights. bos: the id that begins
    a text, -1 if they don't say. stops: the ids that end one. add_bos: whether its tokenizer puts bos in
    front, None if they don't say: it does where there is one. add_eos: whether it puts EOS behind. chat: the
    template; None: that of the tokenizer's family. vocabulary: reads the tokenizer that is in the same file,
    None if there is none. longest: positions up to which the model is a Llama, None for any number. bound:
    what is of that length. notes: what its user should know, a line each.
    """

    name: str
    config: Config
    tensors: Mapping[str, Tensor]
    bos: int = -1
    stops: tuple[int, ...] = ()
    add_bos: bool | None = None
    add_eos: bool = False
    chat: Chat | None = Chat()  # noqa: RUF009
    vocabulary: Callable[[], Vocabulary | None] = lambda: None
    longest: int | None = None
    bound: str = "sliding window"
    notes: tuple[str, ...] = ()


def floats_of(config: Config) -> dict[str, float]:
    """The numbers of a configuration that are not whole, by what messages call them."""
    found = {"norm_eps": config.norm_eps, "rope_theta": config.rope_theta}
    if scaling := config.rope_scaling:
        names = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
        names += ("attention_factor",) if scaling.attention_factor else ()  # 0: the usual one
        found |= {f"rope_scaling {name}": getattr(scaling, name) for name in names}
    return found


def checked_config(name: str, **fields: Any) -> Config:
    """A configuration within what the engine runs; rope_scaling may be a dict.

    Raises BadFileError with name.
    """
    try:
        config = Config.from_dict(fields)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadFileError(f"{name}: {error}") from None
    for field in ("n_kv_heads", "head_dim", "hidden_dim"):
        if fields.get(field) == 0:  # for which Config has the usual value
            raise BadFileError(f"{name}: {field} = 0, allowed 1 or more")
    for field, limit in LIMITS.items():
        if getattr(config, field) > limit:
            raise BadFileError(f"{name}: {field} = {getattr(config, field)}, allowed up to {limit}")
    scaling = config.rope_scaling or RopeScaling()
    if scaling.kind != "linear" and not 1 <= scaling.original_max_seq_len <= LIMITS["max_seq_len"]:
        found = f"rope_scaling original_max_seq_len = {scaling.original_max_seq_len}"
        raise BadFileError(f"{name}: {found}, allowed 1 to {LIMITS['max_seq_len']}")
    for field, value in floats_of(config).items():
        if not SMALLEST <= value <= LARGEST:
            raise BadFileError(f"{name}: {field} = {value}, allowed {SMALLEST} to {LARGEST}")
    return config


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all weights, as model.py has them; a tied output.weight is not among them."""
    dim, hidden = config.dim, config.hidden_dim
    q_dim, kv_dim = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    layer = {
        "attention.wq": (q_dim, dim),
        "attention.wk": (kv_dim, dim),
        "attention.wv": (kv_dim, dim),
        "attention.wo": (dim, q_dim),
        "feed_forward.w1": (hidden, dim),
        "feed_forward.w2": (dim, hidden),
        "feed_forward.w3": (hidden, dim),
        "attention_norm": (dim,),
        "ffn_norm": (dim,),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, dim)}
    for i in range(config.n_layers):
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    shapes["norm.weight"] = (dim,)
    return shapes if config.tied else shapes | {CLASSIFIER: (config.vocab_size, dim)}


def tensor_problem(name: str, tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    """What is wrong with a tensor, None if nothing is."""
    if tensor.shape != shape:
        return f"{name} has the shape {tensor.shape}, allowed {shape}"
    if tensor.dtype not in NUMPY:  # 8 bits are quantised: worth nothing without their scales
        return f"{name} has the type {tensor.dtype}, allowed floating point"
    return None


def name_problems(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Tensors that are missing or unexpected. A tied classifier may be there too if it is the embedding."""
    names = set(source.tensors)
    if source.config.tied and {EMBEDDING, CLASSIFIER} <= names:
        if not are_equal(source.tensors[EMBEDDING], source.tensors[CLASSIFIER]):
            return [f"tied = True, but {CLASSIFIER} differs from {EMBEDDING}"]
        names.remove(CLASSIFIER)
    problems = [f"{name} is missing" for name in shapes if name not in names]
    return problems + [f"{name} is unexpected" for name in sorted(names) if name not in shapes]


def refuse(source: Source, problems: list[str]) -> None:
    """Raises BadFileError if there are any problems, with the first of them."""
    if not problems:
        return
    more = [f"and {len(problems) - PROBLEMS_SHOWN} more"] if len(problems) > PROBLEMS_SHOWN else []
    raise BadFileError(f"{source.name}: {'; '.join(problems[:PROBLEMS_SHOWN] + more)}")


def find(source: Source, name: str, shape: tuple[int, ...]) -> Tensor:
    """One tensor of a source, as it is. Raises BadFileError if it has another shape."""
    tensor = source.tensors[name]
    if problem := tensor_problem(name, tensor, shape):
        refuse(source, [problem])
    return tensor


def row_ranges(shape: tuple[int, ...], rows: int = 1) -> Iterator[tuple[int, int]]:
    """Begin and end of the parts of a tensor, of some CHUNK_VALUES values each.

    rows: each part but the last has a multiple of it.
    """
    step = max(1, CHUNK_VALUES // (rows * math.prod(shape[1:]))) * rows
    return ((begin, min(begin + step, shape[0])) for begin in range(0, shape[0], step))


def chunks(source: Source, name: str, tensor: Tensor) -> Iterator[np.ndarray]:
    """A tensor as float32, contiguous, in parts of whole rows. Mapped values of that type are not copied.

    Raises BadFileError for values that are not finite, or too large.
    """
    for begin, end in row_ranges(tensor.shape):
        part = tensor.rows(begin, end)
        values = to_floats(part, tensor.dtype)
        if not is_finite(values, "fp32"):
            refuse(source, [f"{name} has {unfit(part, tensor.dtype)}"])
        yield values


def unfit(values: np.ndarray, dtype: str, wanted: str = "fp32") -> str:
    """What is wrong with values that a type does not hold."""
    return f"values too large for {wanted}" if is_finite(values, dtype) else "values that are not finite"


def checked_tensors(source: Source) -> dict[str, Tensor]:
    """All tensors of a source, as they are. Raises BadFileError, which names each that does not fit."""
    shapes = tensor_shapes(source.config)
    problems = name_problems(source, shapes)
    tensors = {name: source.tensors[name] for name in shapes if name in source.tensors}
    found = (tensor_problem(name, tensor, shapes[name]) for name, tensor in tensors.items())
    refuse(source, problems + list(filter(None, found)))
    return tensors
