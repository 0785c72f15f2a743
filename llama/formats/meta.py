"""Meta's folders: params.json and consolidated.*.pth, one shard or many; LLaMA 1 to Llama 3.2, Code Llama.

Tensors have the names of model.py. A shard holds a slice of each matrix: rows of wq, wk, wv, w1, w3 and
output, columns of wo and w2; of the embedding columns (Llama 2) or rows (Llama 3). Norms are in every shard.

params.json does not say everything. What is usual for the model's family stands in for the context, and for
the factor of RoPE's scaling; export.py has options for both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama.errors import BadFileError
from llama.formats.config import Config
from llama.formats.files import Fields, read_json
from llama.formats.kinds import PARAMS
from llama.formats.mapped import open_pickle
from llama.formats.source import (
    CLASSIFIER,
    EMBEDDING,
    Source,
    checked_config,
    name_problems,
    refuse,
    tensor_problem,
    tensor_shapes,
)
from llama.formats.tensor import Tensor, are_equal

ROPE_TABLE = "rope.freqs"  # in Llama 2's shards; it follows from the configuration
BY_COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")
FIRST_WQ, FIRST_W1 = "layers.0.attention.wq.weight", "layers.0.feed_forward.w1.weight"
KNOWN = {  # what params.json may say; the last line says nothing that the shapes don't
    *("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "max_seq_len", "norm_eps"),
    *("rope_theta", "use_scaled_rope", "rope_scaling_factor"),
    *("hidden_dim", "multiple_of", "ffn_dim_multiplier", "max_batch_size", "model_parallel_size"),
}
CONTEXTS = {  # by rope_theta
    10000.0: (4096, "Llama 2"),
    500000.0: (8192, "Llama 3"),
    1000000.0: (16384, "Code Llama"),
}
SCALED_CONTEXT = (131072, "Llama 3.1")
FIRST_CONTEXT, FIRST_EPS = (2048, "LLaMA 1"), 1e-6
FACTOR, TIED_FACTOR = 8.0, 32.0  # of Llama 3.1, and of Llama 3.2's 1B and 3B: those whose embeddings are tied

Shard = dict[str, Tensor]


def is_meta(folder: Path) -> bool:
    return (folder / PARAMS).exists()


def open_shards(folder: Path) -> list[Shard]:
    """The shards of a folder, in order, all with the same names. Raises BadFileError."""
    paths = sorted(folder.glob("consolidated.*.pth"))
    for n in range(max(1, len(paths))):
        if (expected := folder / f"consolidated.{n:02d}.pth") not in paths:
            raise BadFileError(f"{expected}: is missing")
    shards = [open_pickle(path) for path in paths]
    for path, shard in zip(paths, shards, strict=True):
        if differing := sorted(shard.keys() ^ shards[0].keys()):
            raise BadFileError(f"{path}: {differing[0]} is in one of this and {paths[0].name}, allowed both")
    return shards


def joined_rows(parts: list[Tensor]) -> Tensor:
    """One matrix of slices that lie one below the other."""
    starts = [0, *itertools.accumulate(map(len, parts))]

    def rows(begin: int, end: int) -> np.ndarray:
        places = zip(parts, starts, starts[1:], strict=False)
        inside = [(part, max(begin, at) - at, min(end, to) - at) for part, at, to in places]
        pieces = [part.rows(first, last) for part, first, last in inside if first < last]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    return Tensor(parts[0].dtype, (starts[-1], *parts[0].shape[1:]), rows)


def joined_columns(parts: list[Tensor]) -> Tensor:
    """One matrix of slices that lie side by side."""

    def rows(begin: int, end: int) -> np.ndarray:
        return np.concatenate([part.rows(begin, end) for part in parts], 1)

    return Tensor(parts[0].dtype, (len(parts[0]), sum(part.shape[1] for part in parts)), rows)


class MetaTensors(Mapping[str, Tensor]):
    """The tensors of all shards, put together as rows are taken. folder: for messages. dim: the model's."""

    def __init__(self, folder: Path, shards: list[Shard], names: list[str], dim: int) -> None:
        self._folder, self._shards, self._names, self._dim = folder, shards, names, dim

    def __getitem__(self, name: str) -> Tensor:
        """Raises BadFileError for slices that do not fit."""
        if name not in self._names:
            raise KeyError(name)
        parts = [shard[name] for shard in self._shards]
        if len(parts) == 1 or len(parts[0].shape) != 2:
            return parts[0]
        by_columns = name.endswith(BY_COLUMNS) or (name == EMBEDDING and parts[0].shape[1] != self._dim)
        kept = slice(1) if by_columns else slice(1, None)
        if len({(part.dtype, len(part.shape), part.shape[kept]) for part in parts}) != 1:
            shapes = ", ".join(str(part.shape) for part in parts)
            raise BadFileError(f"{self._folder}: {name} has slices of {shapes}, which do not fit")
        return joined_columns(parts) if by_columns else joined_rows(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def is_tied(shards: list[Shard], scaled: bool) -> bool:
    """Whether the classifier is the embedding: Llama 3.2 has it twice, or leaves it out."""
    if CLASSIFIER not in shards[0]:
        return scaled  # of any other model it is missing
    return all(are_equal(shard[EMBEDDING], shard[CLASSIFIER]) for shard in shards)


def rope_scaling(params: Fields, tied: bool) -> dict[str, Any] | None:
    """Meta's code has the numbers (RopeScaling's defaults), params.json only whether they are used."""
    if not params.flag("use_scaled_rope", False):
        return None
    return {"factor": params.number("rope_scaling_factor", TIED_FACTOR if tied else FACTOR)}


def usual_context(params: Fields, dtype: str) -> tuple[int, str]:
    """The context of a model whose params.json does not say it, and the family that has it.

    LLaMA 1 says as much as Llama 2's smaller models: it is told by its epsilon, which Llama 2's chat models
    share, and its weights in fp16, where all of Llama 2 has bf16.
    """
    if params.flag("use_scaled_rope", False):
        return SCALED_CONTEXT
    theta = params.number("rope_theta", 10000.0)
    plain = theta == 10000.0 and not {"n_kv_heads", "ffn_dim_multiplier"} & params.values.keys()
    if plain and dtype == "fp16" and params.number("norm_eps", 1e-5) == FIRST_EPS:
        return FIRST_CONTEXT
    return CONTEXTS.get(theta, CONTEXTS[10000.0])


def read_config(params: Fields, tied: bool, context: int, vocab_size: int, hidden_dim: int) -> Config:
    """The configuration of params.json, with what only shapes and family say. Raises BadFileError."""
    if unknown := sorted(params.values.keys() - KNOWN):
        raise BadFileError(f"{params.path}: {unknown[0]} is unknown, allowed {', '.join(sorted(KNOWN))}")
    dim, n_heads = params.integer("dim"), params.integer("n_heads")
    said = params.integer("vocab_size", -1)
    return checked_config(
        str(params.path),
        dim=dim,
        n_layers=params.integer("n_layers"),
        n_heads=n_heads,
        n_kv_heads=params.integer("n_kv_heads", n_heads),
        head_dim=params.integer("head_dim", dim // max(1, n_heads)),
        hidden_dim=hidden_dim,
        vocab_size=vocab_size if said == -1 else said,
        max_seq_len=params.integer("max_seq_len", context),
        norm_eps=params.number("norm_eps", 1e-5),
        rope_theta=params.number("rope_theta", 10000.0),
        rope_scaling=rope_scaling(params, tied),
        tied=tied,
    )


def check(folder: Path, config: Config, shards: list[Shard], tensors: MetaTensors) -> None:
    """Raises BadFileError if there are not as many shards as slices ask for, or a tensor does not fit."""
    rows, q_dim = len(shards[0][FIRST_WQ]), config.n_heads * config.head_dim
    if rows and q_dim % rows == 0 and q_dim // rows != len(shards):
        raise BadFileError(f"{folder}: has {len(shards)} shards, its tensors are cut for {q_dim // rows}")
    source, shapes = Source(str(folder), config, tensors), tensor_shapes(config)
    refuse(source, name_problems(source, shapes))
    problems = (tensor_problem(name, tensors[name], shape) for name, shape in shapes.items())
    refuse(source, list(filter(None, problems)))


def open_meta(folder: Path) -> Source:
    """A model in Meta's layout. Raises BadFileError, OSError."""
    params, shards = read_json(folder / PARAMS), open_shards(folder)
    for name in (EMBEDDING, FIRST_WQ, FIRST_W1):
        if name not in shards[0] or len(shards[0][name].shape) != 2:
            raise BadFileError(f"{folder}: {name} is missing, or not a matrix")
    tied = is_tied(shards, params.flag("use_scaled_rope", False))
    names = [name for name in shards[0] if name != ROPE_TABLE and not (tied and name == CLASSIFIER)]
    tensors = MetaTensors(folder, shards, names, params.integer("dim"))
    sizes = (len(tensors[name]) for name in (EMBEDDING, FIRST_W1))
    context, family = usual_context(params, shards[0][FIRST_WQ].dtype)
    config = read_config(params, tied, context, *sizes)
    check(folder, config, shards, tensors)
    assumed = f"max_seq_len = {context}: taken for {family}, {PARAMS} does not say it"
    notes = () if params.values.get("max_seq_len") is not None else (assumed,)
    return Source(str(folder), config, tensors, chat=None, notes=notes)
