"""LoRA adapters in PEFT's format: adapter_config.json with adapter_model.safetensors, read and merged.

A matrix W (out, in) with an adapter is W + scale B A, of A (r, in) and B (out, r) (Hu et al., LoRA, 2021);
scale is lora_alpha / r, of use_rslora lora_alpha / sqrt(r). Rows of B are those of W, so of wq and wk they
change places as huggingface.py says. Merged rows are made when they are asked for, in float32.

Left out on purpose: adapters of embeddings, DoRA, biases, whole modules beside; they are refused by name.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llama.errors import BadFileError, UsageError
from llama.formats.config import Config
from llama.formats.files import Fields, read_json
from llama.formats.huggingface import halves_to_pairs, rotated_heads, their_name
from llama.formats.mapped import SafetensorsFile
from llama.formats.source import Source, refuse, tensor_shapes
from llama.formats.tensor import NUMPY, Tensor, to_floats
from llama.formats.texts import with_told

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
MAX_RANK = 4096  # as adapter.h has it
PREFIX = "base_model.model."
PLAIN = {  # settings that change the sum, with what they must be
    "use_dora": (False,),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "modules_to_save": ([],),
    "lora_bias": (False,),
}


@dataclass(frozen=True)
class Adapter:
    """What is added to matrices. base: the model that it was trained on.

    pairs: A (r, in) and B (out, r), by the names of model.py.
    """

    name: str
    base: str
    scale: float
    pairs: Mapping[str, tuple[Tensor, Tensor]]


def split(text: str) -> tuple[str, float]:
    """NAME or NAME:SCALE as a name and what the adapter is multiplied by. Raises UsageError."""
    name, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists() or name in ("hf", "https", "http"):
        return text, 1.0
    try:
        return name, float(scale)
    except ValueError:
        raise UsageError(f"lora = {text}, allowed FOLDER or FOLDER:SCALE") from None


def is_adapter(folder: Path) -> bool:
    return (folder / SETTINGS).exists()


def their_names(name: str) -> tuple[str, str]:
    """PEFT's names of A and B of a matrix."""
    stem = PREFIX + their_name(name).removesuffix(".weight")
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def scale_of(settings: Fields) -> float:
    """What B A is multiplied by. Raises BadFileError for an adapter that is more than that."""
    settings.one_of("peft_type", ("LORA",))
    for name, allowed in PLAIN.items():
        if settings.values.get(name) is not None:
            settings.one_of(name, allowed)
    rank, alpha = settings.integer("r"), settings.number("lora_alpha")
    if not 1 <= rank <= MAX_RANK:
        raise BadFileError(f"{settings.path}: r = {rank}, allowed 1 to {MAX_RANK}")
    return alpha / (math.sqrt(rank) if settings.values.get("use_rslora") else rank)


def pair_problem(name: str, pair: tuple[Tensor, Tensor], shape: tuple[int, ...], rank: int) -> str | None:
    """What is wrong with A and B of a matrix of this shape, None if nothing is."""
    a, b = pair
    if a.dtype not in NUMPY or b.dtype not in NUMPY:
        return f"adapter of {name} has the types {a.dtype} and {b.dtype}, allowed floating point"
    rows, columns = shape
    if a.shape != (rank, columns) or b.shape != (rows, rank):
        allowed = f"allowed ({rank}, {columns}) and ({rows}, {rank})"
        return f"adapter of {name} has the shapes {a.shape} and {b.shape}, {allowed}"
    return None


def open_adapter(folder: Path, config: Config) -> Adapter:
    """The adapter in a folder, for a model of this shape. Raises BadFileError, OSError."""
    settings, file = read_json(folder / SETTINGS), SafetensorsFile(folder / WEIGHTS)
    scale, left = scale_of(settings), set(file)
    shapes = {name: shape for name, shape in tensor_shapes(config).items() if len(shape) == 2}
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name in shapes:
        a, b = their_names(name)
        if a in file and b in file:
            heads, left = rotated_heads(name, config), left - {a, b}
            pairs[name] = file[a], halves_to_pairs(file[b], heads) if heads else file[b]
    base = settings.values.get("base_model_name_or_path") or ""
    adapter = Adapter(str(folder), base, scale, pairs)
    problems = [pair_problem(name, pair, shapes[name], settings.integer("r")) for name, pair in pairs.items()]
    problems = [*filter(None, problems), *(f"{name} is unexpected" for name in sorted(left))]
    refuse(Source(adapter.name, config, {}), problems)
    return adapter


# --- Merging


def sum_of(weight: Tensor, pair: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """W + scale B A, in float32."""
    a, b = pair

    def rows(begin: int, end: int) -> np.ndarray:
        added = to_floats(b.rows(begin, end), b.dtype) @ a.floats()
        return to_floats(weight.rows(begin, end), weight.dtype) + np.float32(scale) * added

    return Tensor("fp32", weight.shape, rows)


class Merged(Mapping[str, Tensor]):
    """The tensors of a model with an adapter."""

    def __init__(self, tensors: Mapping[str, Tensor], adapter: Adapter, scale: float) -> None:
        self._tensors, self._adapter, self._scale = tensors, adapter, scale * adapter.scale

    def __getitem__(self, name: str) -> Tensor:
        weight, pair = self._tensors[name], self._adapter.pairs.get(name)
        return weight if pair is None else sum_of(weight, pair, self._scale)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def merged(source: Source, folder: Path, scale: float = 1.0) -> Source:
    """A model with the adapter in a folder, times scale, in it. Raises BadFileError, OSError."""
    adapter = open_adapter(folder, source.config)
    tensors = Merged(source.tensors, adapter, scale)
    said = SafetensorsFile(folder / WEIGHTS).metadata
    return with_told(dataclasses.replace(source, name=str(folder), tensors=tensors), said)


def base_name(folder: Path) -> str:
    """The model that an adapter was trained on: its path, or its name where nothing lies there."""
    name = read_json(folder / SETTINGS).values.get("base_model_name_or_path") or ""
    paths = (path for path in (Path(name), folder / name) if name and path.exists())
    return str(next(paths, name))


def base_of(folder: Path) -> Path:
    """The model that an adapter was trained on. Raises BadFileError where it is not on this machine."""
    if (path := Path(name := base_name(folder))).exists() and name:
        return path
    where = f"base_model_name_or_path = {json.dumps(name)}"
    raise BadFileError(
        f"{folder / SETTINGS}: {where} is not here: name the model, and this folder with --lora"
    )
