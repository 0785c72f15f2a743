"""Checkpoints of llama2.c's train.py, such as the tinyllamas' .pt: files of torch.save with model and shape.

{"model": weights by name, "model_args": the shape, "optimizer": ..., "config": ..., "iter_num": ...}, where
names are those of model.py; what a compiled model has before them is taken off. The rest is not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama.errors import BadFileError
from llama.formats.config import Config
from llama.formats.files import Fields
from llama.formats.header import Tensor as Description
from llama.formats.header import printable
from llama.formats.mapped import PickleFile
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

DROPPED = ("freqs_cos", "freqs_sin", "attention.mask")  # tables that follow from the configuration
FIRST_W1 = "layers.0.feed_forward.w1.weight"
KNOWN = {  # arguments; the last line says nothing that the shapes don't, or is for training alone
    *("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len", "norm_eps"),
    *("hidden_dim", "multiple_of", "dropout"),
}


def is_checkpoint(tree: Any) -> bool:
    return isinstance(tree, dict) and {"model", "model_args"} <= tree.keys()


def weights_of(file: PickleFile) -> dict[str, Tensor]:
    """The weights under the names of model.py. Raises BadFileError where the shape can't be told."""
    found = file.tensors(file.tree["model"])
    weights = {name: tensor for name, tensor in found.items() if not name.endswith(DROPPED)}
    for name in (EMBEDDING, FIRST_W1):
        if name not in weights or len(weights[name].shape) != 2:
            found = ", ".join(printable(other, 40) for other in sorted(weights)[:3])
            raise BadFileError(f"{file.path}: model: {name} is missing, or not a matrix, found {found} ...")
    return weights


def read_config(args: Fields, weights: dict[str, Tensor]) -> Config:
    """The configuration of model_args, with llama2.c's defaults. Raises BadFileError."""
    if unknown := sorted(map(printable, args.values.keys() - KNOWN)):
        allowed = ", ".join(sorted(KNOWN))
        raise BadFileError(f"{args.path}: model_args.{unknown[0]} is unknown, allowed {allowed}")
    tied = CLASSIFIER not in weights or are_equal(weights[EMBEDDING], weights[CLASSIFIER])
    n_heads = args.integer("n_heads", 32)
    return checked_config(
        f"{args.path}: model_args",
        dim=args.integer("dim", 4096),
        n_layers=args.integer("n_layers", 32),
        n_heads=n_heads,
        n_kv_heads=args.integer("n_kv_heads", n_heads),
        hidden_dim=len(weights[FIRST_W1]),
        vocab_size=args.integer("vocab_size", 32000),
        max_seq_len=args.integer("max_seq_len", 2048),
        norm_eps=args.number("norm_eps", 1e-5),
        tied=tied,
    )


def open_tree(file: PickleFile) -> Source:
    """The model in a file that is_checkpoint. Raises BadFileError."""
    args = file.tree["model_args"]
    if not isinstance(args, dict) or not all(isinstance(name, str) for name in args):
        raise BadFileError(
            f"{file.path}: model_args is of type {type(args).__name__}, allowed a dict by name"
        )
    weights = weights_of(file)
    source = Source(str(file.path), read_config(Fields(file.path, args), weights), weights)
    shapes = tensor_shapes(source.config)
    refuse(source, name_problems(source, shapes))
    found = (tensor_problem(name, weights[name], shape) for name, shape in shapes.items())
    refuse(source, list(filter(None, found)))
    return source


def described(tree: Any) -> str:
    """What a file of torch.save holds that is no model, in a few words."""
    if isinstance(tree, Description):
        return "a tensor"
    if not isinstance(tree, dict):
        return f"a {type(tree).__name__}"
    if tree and all(isinstance(value, Description) for value in tree.values()):
        return f"{len(tree)} tensors without a configuration"
    keys = sorted(printable(key, 40) for key in tree)
    return f"a dict of {', '.join(keys[:5])}{' and more' if len(keys) > 5 else ''}"


def open_pytorch(path: Path) -> Source:
    """The model in a file of torch.save, a checkpoint of llama2.c. Raises BadFileError for any other."""
    file = PickleFile(path)
    if not is_checkpoint(file.tree):
        allowed = "a checkpoint of llama2.c (model, model_args), or a model's folder"
        raise BadFileError(f"{path}: is a PyTorch file of {described(file.tree)}, allowed {allowed}")
    return open_tree(file)
