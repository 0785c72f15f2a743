"""A model to read from: a configuration, and tensors that are read when asked for.

A reader of a format is a function that returns a Source, a writer one that takes it. One tensor is in memory
at a time, and the input is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llama.errors import BadFileError
from llama.formats.chat_templates import Chat
from llama.formats.config import Config
from llama.formats.vocabulary import Vocabulary
from model import Llama

EMBEDDING, CLASSIFIER = "tok_embeddings.weight", "output.weight"
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CHUNK_VALUES = 1 << 22  # converted at once: bounds the memory beside the tensor
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


@dataclass(frozen=True)
class Source:
    """A model to read: tensors under the names of model.py, which the mapping reads when asked for one.

    name: what messages call it. The rest is what the files say besides the weights. bos: the id that begins
    a text, -1 if they don't say. stops: the ids that end one. add_bos: whether its tokenizer puts bos in
    front, None if they don't say: it does where there is one. add_eos: whether it puts EOS behind. chat: the
    template; None: that of the tokenizer's family. vocabulary: reads the tokenizer that is in the same file,
    None if there is none. longest: positions up to which the model is a Llama, None for any number.
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


def checked_config(name: str, **fields: Any) -> Config:
    """A configuration within what the engine runs; rope_scaling may be a dict.

    Raises BadFileError with name.
    """
    try:
        config = Config.from_dict(fields)
    except (ValueError, TypeError) as error:
        raise BadFileError(f"{name}: {error}") from None
    for field, limit in LIMITS.items():
        if getattr(config, field) > limit:
            raise BadFileError(f"{name}: {field} = {getattr(config, field)}, allowed up to {limit}")
    return config


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all weights; a tied output.weight is not among them."""
    with torch.device("meta"):  # allocates and draws nothing
        model = Llama(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def tensor_problem(name: str, tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    """What is wrong with a tensor, None if nothing is."""
    if tuple(tensor.shape) != shape:
        return f"{name} has the shape {tuple(tensor.shape)}, allowed {shape}"
    if tensor.dtype not in FLOATS:  # 8 bits are quantised: worth nothing without their scales
        return f"{name} has the type {tensor.dtype}, allowed floating point"
    return None


def are_equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same one, or hold the same. Most that do not differ in their first row."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.data_ptr() == b.data_ptr() or (torch.equal(a[:1], b[:1]) and torch.equal(a, b))


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
    """One tensor of a source, as it is, on the CPU. Raises BadFileError if it has another shape."""
    tensor = source.tensors[name].detach()
    if problem := tensor_problem(name, tensor, shape):
        refuse(source, [problem])
    return tensor.cpu()


def take(source: Source, name: str, shape: tuple[int, ...]) -> Tensor:
    """One tensor of a source, contiguous float32 on the CPU. Raises BadFileError if it has another shape."""
    return find(source, name, shape).to(torch.float32).contiguous()


def is_finite(values: Tensor) -> bool:
    """Whether all values are: a sum shows it in one pass, and only one that overflows needs another look."""
    total = values.sum(dtype=torch.float32)
    return bool(total.isfinite()) or bool(values.isfinite().all())


def sum_of_squares(values: Tensor) -> float:
    """Of contiguous float32, in one pass: of the few million values of a chunk it is right to 1e-5."""
    return torch.dot(values.view(-1), values.view(-1)).item()


def chunks(source: Source, name: str, tensor: Tensor, dtype: torch.dtype, rows: int = 1) -> Iterator[Tensor]:
    """A tensor in parts of whole rows, contiguous and of a type, of some CHUNK_VALUES values each.

    rows: each part but the last has a multiple of it. A mapped tensor that has the type is not copied.
    Raises BadFileError for values that are not finite, or not in the type.
    """
    columns = tensor[0].numel()
    for part in tensor.split(max(1, CHUNK_VALUES // (rows * columns)) * rows):
        converted = part.to(dtype).contiguous()
        if not is_finite(converted):
            kind = "values that are not finite" if not is_finite(part) else f"values too large for {dtype}"
            refuse(source, [f"{name} has {kind}"])
        yield converted


def checked_tensors(source: Source) -> dict[str, Tensor]:
    """All tensors of a source, as they are. Raises BadFileError, which names each that does not fit."""
    shapes = tensor_shapes(source.config)
    problems = name_problems(source, shapes)
    tensors = {name: source.tensors[name] for name in shapes if name in source.tensors}
    found = (tensor_problem(name, tensor, shapes[name]) for name, tensor in tensors.items())
    refuse(source, problems + list(filter(None, found)))
    return tensors
