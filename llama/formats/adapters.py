"""LoRA adapters in PEFT's format: adapter_config.json with adapter_model.safetensors or .bin, read, merged.

A matrix W (out, in) with an adapter is W + scale B A, of A (r, in) and B (out, r) (Hu et al., LoRA, 2021);
scale is lora_alpha / r, of use_rslora lora_alpha / sqrt(r). Rows of B are those of W, so of wq and wk they
change places as huggingface.py says. Merged rows are made when they are asked for, in float32. What PEFT
saves of a model besides, its embedding and classifier, has to be what the model has.

Left out on purpose, and refused by name: adapters of embeddings, DoRA and other variants, biases, whole
modules beside, and adapters that begin with a change of W, which is not in their files.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llama.errors import BadFileError, UsageError
from llama.formats.config import Config
from llama.formats.files import Fields, read_json
from llama.formats.huggingface import halves_to_pairs, open_weights, rotated_heads, their_name
from llama.formats.mapped import SafetensorsFile
from llama.formats.source import CLASSIFIER, EMBEDDING, Source, refuse, tensor_shapes
from llama.formats.tensor import NUMPY, Tensor, are_equal, to_floats
from llama.formats.texts import with_told

WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"  # the first counts, as in PEFT
SETTINGS = "adapter_config.json"
MAX_RANK = 4096  # as adapter.h has it
PREFIX = "base_model.model."
PLAIN = {  # settings that change the sum, with what they must be; null is as good as not there
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None,),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "megatron_config": (None,),
    "layer_replication": (None,),
    "bias": ("none",),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "modules_to_save": ([],),
    "target_parameters": ([],),
    "trainable_token_indices": ([], {}),
    "layers_pattern": ([], "", "layers", ["layers"]),
}
# Of init_lora_weights, which leave W as it is.
STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")
USUAL_TARGETS = {"q_proj", "v_proj"}  # of a Llama and a Mistral, where an adapter says none
BASE = "base_model_name_or_path"


@dataclass(frozen=True)
class Adapter:
    """What is added to matrices. base: the model that it was trained on.

    pairs: A (r, in) and B (out, r), by the names of model.py. metadata: the strings stored with them.
    """

    name: str
    base: str
    scale: float
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    metadata: Mapping[str, str] = field(default_factory=dict)


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


def check_start(settings: Fields) -> None:
    """Raises BadFileError for an adapter that is to be added to other weights than those of its model."""
    start = settings.values.get("init_lora_weights")
    if start is None or start in STARTS:
        return
    allowed = " and ".join(json.dumps(start) for start in STARTS)
    found = f"init_lora_weights = {start!r:.40}, allowed {allowed}"
    hint = "save_pretrained of PEFT converts others, by its path_initial_model_for_weight_conversion"
    raise BadFileError(f"{settings.path}: {found}: {hint}")


def scale_of(settings: Fields) -> float:
    """What B A is multiplied by. Raises BadFileError for an adapter that is more than that."""
    settings.one_of("peft_type", ("LORA",))
    for name, allowed in PLAIN.items():
        if settings.values.get(name) is not None:
            settings.one_of(name, allowed)
    check_start(settings)
    rank, alpha = settings.integer("r"), settings.number("lora_alpha")
    if not 1 <= rank <= MAX_RANK:
        raise BadFileError(f"{settings.path}: r = {rank}, allowed 1 to {MAX_RANK}")
    return alpha / (math.sqrt(rank) if settings.flag("use_rslora", False) else rank)


# --- Which modules an adapter is of. PEFT leaves all others out, also those that its file has.


def modules_of(settings: Fields, name: str) -> set[str] | None:
    """The ends of names of modules that a field lists, None for one that is not there, and for a pattern.

    Patterns are not looked at: that of a stranger may take for ever. Raises BadFileError.
    """
    value = settings.values.get(name)
    if value is None or isinstance(value, str):
        return None
    if not (isinstance(value, list) and all(isinstance(end, str) for end in value)):
        raise BadFileError(f"{settings.path}: {name} = {value!r:.40}, allowed lists of names, and patterns")
    return set(value)


def layers_of(settings: Fields) -> set[int]:
    """The layers that an adapter is of, none for all. Raises BadFileError."""
    value = settings.values.get("layers_to_transform")
    layers = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(layer) is int for layer in layers):
        raise BadFileError(f"{settings.path}: layers_to_transform = {value!r:.40}, allowed numbers of layers")
    return set(layers)


def left_out(settings: Fields, names: Iterable[str]) -> list[str]:
    """Which of these matrices PEFT would leave out of the adapter, a line each. Raises BadFileError."""
    told = settings.values.get("target_modules") is not None
    targets = modules_of(settings, "target_modules") if told else USUAL_TARGETS
    excluded, layers = modules_of(settings, "exclude_modules") or set(), layers_of(settings)
    problems = []
    for name in names:
        parts = their_name(name).removesuffix(".weight").split(".")
        ends = [".".join(parts[i:]) for i in range(len(parts))]  # from the whole name down to q_proj
        numbers = [int(part) for part in parts if part.isdigit()]  # that of the layer
        if not excluded.isdisjoint(ends):
            problems.append(f"adapter of {name} is left out by exclude_modules")
        elif targets is not None and targets.isdisjoint(ends):
            problems.append(f"adapter of {name} is left out by target_modules")
        elif layers and layers.isdisjoint(numbers) and ends[0] not in (targets or ()):
            problems.append(f"adapter of {name} is left out by layers_to_transform")
    return problems


def check_patterns(settings: Fields, names: Iterable[str]) -> None:
    """Raises BadFileError where a matrix may have a rank or a scale of its own.

    PEFT passes over names of which the adapter has none. Patterns are not looked at, as above.
    """
    ends = {their_name(name).removesuffix(".weight").rpartition(".")[2] for name in names}
    for setting in ("rank_pattern", "alpha_pattern"):
        for name in settings.object(setting).values:
            if name in ends or not re.fullmatch(r"\w+", name):
                allowed = "allowed names of modules that have no adapter"
                raise BadFileError(f"{settings.path}: {setting} has {name!r:.80}, {allowed}")


# --- Reading


def open_file(folder: Path) -> Mapping[str, Tensor]:
    """The tensors of an adapter by PEFT's names. Raises BadFileError, OSError."""
    path = next((folder / name for name in (WEIGHTS, PICKLE) if (folder / name).exists()), None)
    if path is None:
        raise BadFileError(f"{folder}: has none of {WEIGHTS}, {PICKLE}")
    if not (tensors := open_weights(path)):
        raise BadFileError(f"{path}: holds no tensor, allowed A and B of one matrix or more")
    return tensors


def copied(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What PEFT may save of a model besides, by the names in its files. Those of a tied one are the same."""
    stems = {name: PREFIX + their_name(name).removesuffix("weight") for name in (EMBEDDING, CLASSIFIER)}
    kinds = ("weight", "base_layer.weight")  # the latter of one that has an adapter
    return {
        stem + kind: model[name if name in model else EMBEDDING]
        for name, stem in stems.items()
        for kind in kinds
        if model
    }


def in_floats(tensor: Tensor) -> Tensor:
    return Tensor("fp32", tensor.shape, lambda begin, end: to_floats(tensor.rows(begin, end), tensor.dtype))


def copy_problem(name: str, copy: Tensor, own: Tensor) -> str | None:
    """What is wrong with what an adapter has of a model, None if nothing is."""
    if copy.dtype in NUMPY and are_equal(in_floats(copy), in_floats(own)):
        return None
    hint = "merge it before the model is rounded"
    return f"{name} differs from the model's, allowed the same to the bit: {hint}"


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


def base_said(settings: Fields) -> str:
    """The model that an adapter says it was trained on, "" where it says none. Raises BadFileError."""
    base = settings.values.get(BASE)
    if not isinstance(base, str | None):
        raise BadFileError(f"{settings.path}: {BASE} = {base!r:.40}, allowed text")
    return base or ""


def open_adapter(folder: Path, config: Config, model: Mapping[str, Tensor]) -> Adapter:
    """The adapter in a folder, for a model of this shape with these tensors.

    model: with none, tensors that are no A and B are refused. Raises BadFileError, OSError.
    """
    settings, file = read_json(folder / SETTINGS), open_file(folder)
    scale, left = scale_of(settings), set(file)
    shapes = {name: shape for name, shape in tensor_shapes(config).items() if len(shape) == 2}
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name in shapes:
        a, b = their_names(name)
        if a in file and b in file:
            heads, left = rotated_heads(name, config), left - {a, b}
            pairs[name] = file[a], halves_to_pairs(file[b], heads) if heads else file[b]
    check_patterns(settings, pairs)
    copies = {name: tensor for name, tensor in copied(model).items() if name in left}
    metadata = file.metadata if isinstance(file, SafetensorsFile) else {}
    adapter = Adapter(str(folder), base_said(settings), scale, pairs, metadata)
    problems = [pair_problem(name, pair, shapes[name], settings.integer("r")) for name, pair in pairs.items()]
    problems = [*filter(None, problems), *(f"{name} is unexpected" for name in sorted(left - set(copies)))]
    problems += [problem for name, own in copies.items() if (problem := copy_problem(name, file[name], own))]
    refuse(Source(adapter.name, config, {}), problems + left_out(settings, pairs))
    return adapter


# --- Merging


def sum_of(weight: Tensor, pair: tuple[Tensor, Tensor], scale: float) -> Tensor:
    """W + scale B A, in float32."""
    a, b = pair

    def rows(begin: int, end: int) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):  # whoever takes the rows refuses them
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
    adapter = open_adapter(folder, source.config, source.tensors)
    tensors = Merged(source.tensors, adapter, scale)
    return with_told(dataclasses.replace(source, name=str(folder), tensors=tensors), adapter.metadata)


def base_name(folder: Path) -> str:
    """The model that an adapter was trained on: its path, or its name where nothing lies there.

    Raises BadFileError.
    """
    name = base_said(read_json(folder / SETTINGS))
    paths = (path for path in (Path(name), folder / name) if name and path.exists())
    return str(next(paths, name))


def base_of(folder: Path) -> Path:
    """The model that an adapter was trained on. Raises BadFileError where it is not on this machine."""
    if (path := Path(name := base_name(folder))).exists() and name:
        return path
    where = f"{BASE} = {json.dumps(name)}"
    raise BadFileError(
        f"{folder / SETTINGS}: {where} is not here: name the model, and this folder with --lora"
    )
