"""From our checkpoints to the .bin files that run.c reads, and the functions that save and load a checkpoint.

    python export.py out/last model.bin                 # fp32, v0
    python export.py out/last model.bin --dtype int8    # int8 in groups, v2

A checkpoint is a folder with model.safetensors, or that file: the weights under the names of model.py,
without output.weight where it is tied, and Config.to_dict() as JSON in the metadata under "config".

A model is a `Source`: a configuration, and tensors that are read when asked for. A reader of another format
is one more function that returns a Source, a writer one more that takes it. One tensor is in memory at a
time, the input is never changed, and a file appears under its name once it is whole and on the disk.

Left out on purpose: the tokenizer (tokenizer.py), optimizers (train.py).
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from model import Config, Llama
from training.command import BadInput, Parser, UsageError, run_command, written_aside

StrPath = str | os.PathLike[str]
WEIGHTS = "model.safetensors"
EMBEDDING, CLASSIFIER = "tok_embeddings.weight", "output.weight"

# --- Sources: named tensors, whatever they are stored in


@dataclass(frozen=True)
class Source:
    """A model to read: tensors under the names of model.py, which the mapping reads when asked for one.

    name: what messages call it.
    """

    name: str
    config: Config
    tensors: Mapping[str, Tensor]


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of a .safetensors file, mapped into memory. metadata: the strings stored with them."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb"):  # the library does not name what is wrong with a folder
                self._file = safe_open(path, framework="pt")
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}") from None
        except SafetensorError as error:
            raise BadInput(f"{path}: is not a whole safetensors file ({error})") from None
        self.metadata: dict[str, str] = self._file.metadata() or {}
        self._names: list[str] = self._file.keys()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_checkpoint(path: StrPath) -> Source:
    """Our own checkpoint, a folder or its model.safetensors. Raises BadInput."""
    path = Path(path, WEIGHTS) if Path(path).is_dir() else Path(path)
    file = SafetensorsFile(path)
    if "config" not in file.metadata:
        raise BadInput(f"{path}: metadata has no config, so it is not a checkpoint of train.py")
    try:
        return Source(str(path), Config.from_dict(json.loads(file.metadata["config"])), file)
    except (ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: config: {error}") from None


def tensor_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The names and shapes of all weights; a tied output.weight is not among them."""
    with torch.device("meta"):  # allocates and draws nothing
        model = Llama(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def tensor_problem(name: str, tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    """What is wrong with a tensor, None if nothing is."""
    if tuple(tensor.shape) != shape:
        return f"{name} has the shape {tuple(tensor.shape)}, allowed {shape}"
    if not tensor.is_floating_point():
        return f"{name} has the type {tensor.dtype}, allowed floating point"
    return None


def name_problems(source: Source, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Tensors that are missing or unexpected. A tied classifier may be there too if it is the embedding."""
    names = set(source.tensors)
    if source.config.tied and {EMBEDDING, CLASSIFIER} <= names:
        embedding, classifier = source.tensors[EMBEDDING], source.tensors[CLASSIFIER]
        if embedding.data_ptr() != classifier.data_ptr() and not torch.equal(embedding, classifier):
            return [f"tied = True, but {CLASSIFIER} differs from {EMBEDDING}"]
        names.remove(CLASSIFIER)
    problems = [f"{name} is missing" for name in shapes if name not in names]
    return problems + [f"{name} is unexpected" for name in sorted(names) if name not in shapes]


def refuse(source: Source, problems: list[str]) -> None:
    """Raises BadInput if there are any problems, with all of them."""
    if problems:
        raise BadInput(f"{source.name}: {'; '.join(problems)}")


def take(source: Source, name: str, shape: tuple[int, ...]) -> Tensor:
    """One tensor of a source, contiguous float32 on the CPU. Raises BadInput if it has another shape."""
    tensor = source.tensors[name].detach()
    if problem := tensor_problem(name, tensor, shape):
        refuse(source, [problem])
    return tensor.to("cpu", torch.float32).contiguous()


# --- Our checkpoints


def checked_tensors(source: Source) -> dict[str, Tensor]:
    """All tensors of a source, as they are. Raises BadInput, which names each that does not fit."""
    shapes = tensor_shapes(source.config)
    problems = name_problems(source, shapes)
    tensors = {name: source.tensors[name] for name in shapes if name in source.tensors}
    found = (tensor_problem(name, tensor, shapes[name]) for name, tensor in tensors.items())
    refuse(source, problems + list(filter(None, found)))
    return tensors


def save_weights(path: Path, config: Config, weights: Mapping[str, Tensor]) -> None:
    """Writes the file of a checkpoint, model.safetensors, from the weights of a model's state_dict().

    Raises BadInput if they do not fit config, OSError if they can't be written; an old file then stays.
    """
    tensors = checked_tensors(Source(str(path), config, weights))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_aside(Path(path)) as scratch:
        try:
            save_file(tensors, scratch, {"config": json.dumps(config.to_dict())})
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from None


def read_config(path: StrPath) -> Config:
    """The configuration of a checkpoint, a folder or file. Raises BadInput."""
    return open_checkpoint(path).config


def load_model(path: StrPath, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Llama:
    """The model of a checkpoint, a folder or file, ready for evaluation.

    dtype None: the one in which the embedding is stored. Raises BadInput, which names every tensor that
    is missing, unexpected or of another shape.
    """
    source = open_checkpoint(path)
    tensors = checked_tensors(source)
    with torch.device("meta"):  # weights that would be drawn only to be replaced
        model = Llama(source.config)
    dtype = dtype or tensors[EMBEDDING].dtype
    # A copy, so that the model does not depend on the mapped file.
    tensors = {name: tensor.to(device, dtype, copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(tensors, strict=False, assign=True)
    if source.config.tied:
        model.output.weight = model.tok_embeddings.weight
    return model.eval()


# --- int8

QUANTISE_MIN = 1e-30  # a group whose largest value is smaller counts as zeros, as in llama/csrc/quant.h
CHUNK_VALUES = 1 << 22  # quantised at once: bounds what is needed besides the tensor


def quantise_groups(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 (n, group_size) and scales (n) that stand for groups (n, group_size).

    Symmetric: scale = max |w| / 127, q = round(w * (1 / scale)), halves to even.
    """
    largest = groups.abs().amax(dim=1)
    scales = torch.where(largest > QUANTISE_MIN, largest / 127, 0.0)
    inverse = torch.where(scales > 0, 1 / scales, 0.0)
    return (groups * inverse[:, None]).round_(), scales


def quantise(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor, float]:
    """int8 values (of weight's shape), float32 scales (values / group_size), and the error that this makes:
    rms of the difference / rms of the weights, NaN if one of them is not finite.
    """
    groups = weight.reshape(-1, group_size)
    values, scales = torch.empty(groups.shape, dtype=torch.int8), torch.empty(len(groups))
    error = total = 0.0
    step = max(1, CHUNK_VALUES // group_size)
    for start in range(0, len(groups), step):
        part = groups[start : start + step]
        q, scale = quantise_groups(part)
        total += part.double().square().sum().item()
        error += (q * scale[:, None] - part).double().square().sum().item()
        values[start : start + step], scales[start : start + step] = q, scale
    return values.view(weight.shape), scales, math.sqrt(error / total) if total else 0.0


# --- .bin files v0, v1 and v2 (the reader is llama/csrc/checkpoint.h)

MAGIC, HEADER_BYTES = 0x616B3432, 256  # of v1 and v2
GROUP_SIZE = 64  # of int8 where it divides dim and hidden_dim
ATTENTION = ("attention.wq", "attention.wk", "attention.wv", "attention.wo")
FEED_FORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
ROPE_TABLES = "rope tables"  # of v0, which readers skip: (max_seq_len, head_dim / 2) twice
HEADER = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
ASSUMED = {"rope_theta": 10000.0, "norm_eps": 1e-5, "rope_scaling": None}  # no header holds them


@dataclass(frozen=True)
class Report:
    """What an export came to."""

    path: Path
    version: int
    bytes: int
    group_size: int  # 0 for fp32
    errors: dict[str, float]  # relative error of each tensor that was quantised, the worst first
    dropped: tuple[str, ...]  # fields of the configuration that the file does not hold


def of_layers(config: Config, *parts: str) -> list[str]:
    """Names: the first part of every layer, then the second part of every layer, and so on."""
    return [f"layers.{layer}.{part}.weight" for part in parts for layer in range(config.n_layers)]


def tensor_order(config: Config, version: int) -> list[str]:
    """The names of the tensors of a .bin file, in its order."""
    if version == 0:
        parts = of_layers(config, "attention_norm", *ATTENTION, "ffn_norm", *FEED_FORWARD)
        names = [EMBEDDING, *parts, "norm.weight", ROPE_TABLES]
    else:
        norms = of_layers(config, "attention_norm", "ffn_norm")
        names = [*norms, "norm.weight", EMBEDDING, *of_layers(config, *ATTENTION, *FEED_FORWARD)]
    return names if config.tied else names + [CLASSIFIER]


def header(config: Config, version: int, group_size: int) -> bytes:
    """The bytes before the first tensor."""
    fields = {name: getattr(config, name) for name in HEADER}
    if version == 0:
        fields["vocab_size"] *= 1 if config.tied else -1
        return struct.pack("<7i", *fields.values())
    data = struct.pack("<Ii7iB", MAGIC, version, *fields.values(), config.tied)
    return (data + (struct.pack("<i", group_size) if version == 2 else b"")).ljust(HEADER_BYTES, b"\0")


def lost_fields(config: Config) -> tuple[str, ...]:
    """What a .bin file of v0, v1 or v2 would lose: readers would take another value."""
    lost = [(name, assumed) for name, assumed in ASSUMED.items() if getattr(config, name) != assumed]
    return tuple(f"{name} = {getattr(config, name)} (readers take {assumed})" for name, assumed in lost)


def check_format(path: Path, config: Config, version: int, force: bool) -> None:
    """Raises UsageError if the version can't hold the model; force lets go of what is not in its header."""
    if version not in (0, 1, 2):
        raise UsageError(f"version = {version}, allowed 0, 1 and 2")
    if config.head_dim * config.n_heads != config.dim:
        found = f"head_dim = {config.head_dim}, n_heads = {config.n_heads}, dim = {config.dim}"
        raise UsageError(f"{path}: {found}: v{version} can't hold a head_dim other than dim / n_heads")
    if (lost := lost_fields(config)) and not force:
        raise UsageError(f"{path}: v{version} can't hold {', '.join(lost)}; --force writes it without")


def fitting_group_size(config: Config, group_size: int | None) -> int:
    """group_size if it divides every row, for None the largest of 64, 32, 16 ... that does."""
    if group_size is None:
        return math.gcd(GROUP_SIZE, config.dim, config.hidden_dim)
    if group_size < 1 or config.dim % group_size or config.hidden_dim % group_size:
        allowed = f"divisors of dim = {config.dim} and hidden_dim = {config.hidden_dim}"
        raise UsageError(f"group_size = {group_size}, allowed {allowed}")
    return group_size


def write_floats(file: BinaryIO, values: Tensor) -> None:
    file.write(values.numpy().astype("<f4", copy=False).data)


def write_quantised(file: BinaryIO, weight: Tensor, group_size: int) -> float:
    """Writes the int8 values of a weight, then its scales, and returns the relative error."""
    values, scales, error = quantise(weight, group_size)
    file.write(values.numpy().data)
    write_floats(file, scales)
    return error


def write_bin(file: BinaryIO, source: Source, version: int, group_size: int, bar: bool) -> dict[str, float]:
    """Writes a .bin file, tensor by tensor, and returns the relative errors of those that it quantised."""
    config, errors = source.config, {}
    shapes = tensor_shapes(config)
    refuse(source, name_problems(source, shapes))
    file.write(header(config, version, group_size))
    for name in tqdm(tensor_order(config, version), unit="tensor", leave=False, disable=not bar):
        if name == ROPE_TABLES:
            file.write(bytes(4 * config.max_seq_len * config.head_dim))
        elif version == 2 and len(shapes[name]) == 2:
            errors[name] = write_quantised(file, take(source, name, shapes[name]), group_size)
            if math.isnan(errors[name]):
                refuse(source, [f"{name} has values that are not finite, which int8 can't hold"])
        else:
            write_floats(file, take(source, name, shapes[name]))
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def export_bin(
    path: StrPath,
    config: Config,
    weights: Mapping[str, Tensor],
    version: int = 0,
    group_size: int | None = None,
    force: bool = False,
    *,
    name: str = "weights",
    progress: bool = False,
) -> Report:
    """Writes a model as a .bin file that run.c and llama2.c read: version 0 and 1 fp32, 2 int8 in groups.

    weights: under the names of model.py, also a lazy mapping: each is taken once, and let go before the next.
    group_size: of int8. None: the largest of 64, 32, 16 ... that divides dim and hidden_dim.
    force: write the file without the fields of config that it can't hold (Report.dropped).
    name: what messages call the weights. progress: show a bar on standard error.
    Raises UsageError, BadInput (the weights do not fit config), OSError; an old file is then as it was.
    """
    path = Path(path)
    check_format(path, config, version, force)
    group_size = fitting_group_size(config, group_size) if version == 2 else 0
    with written_aside(path) as scratch:
        with scratch.open("wb") as file:
            errors = write_bin(file, Source(name, config, weights), version, group_size, progress)
        size = scratch.stat().st_size
    return Report(path, version, size, group_size, errors, lost_fields(config))


# --- The program

HELP = """Write a checkpoint of train.py as a .bin file for ./run, python -m llama.run and llama2.c.

  python export.py out/last model.bin                 fp32, version 0
  python export.py out/last model.bin --version 1     fp32, version 1
  python export.py out/last model.bin --dtype int8    int8 in groups, version 2, about a quarter of the size
  ./run model.bin -z out/last/tokenizer.bin           what it is for"""

TYPES = {0: "fp32", 1: "fp32", 2: "int8"}  # of the weights, by version
WORST_SHOWN = 3  # tensors with the largest errors


def describe(report: Report, seconds: float) -> str:
    """A report as lines of text."""
    groups = f" in groups of {report.group_size}" if report.group_size else ""
    kind = f"v{report.version}, {TYPES[report.version]}{groups}"
    worst = list(report.errors.items())[:WORST_SHOWN]
    lines = [f"{report.path}: {kind}, {report.bytes:,} bytes, {seconds:.1f} s"]
    lines += [f"error of the quantisation, relative rms: {error:.3%} {name}" for name, error in worst]
    return "\n".join(lines + [f"dropped: {field}" for field in report.dropped])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of a command line, with the version and its type settled."""
    parser = Parser(description=HELP)
    parser.add_argument("checkpoint", type=Path, help="a folder with model.safetensors, or that file")
    parser.add_argument("out", type=Path, metavar="OUT.bin", help="the file to write")
    parser.add_argument("--version", type=int, choices=TYPES, help="of the format (0; 2 for int8)")
    parser.add_argument("--dtype", choices=("fp32", "int8"), help="of the weights (that of the version)")
    parser.add_argument("--group-size", type=int, metavar="N", help="weights that share a scale (64 or less)")
    parser.add_argument("--force", action="store_true", help="drop what the format can't hold")
    options = parser.parse_args(arguments)
    if options.version is None:
        options.version = 2 if options.dtype == "int8" else 0
    kind = TYPES[options.version]
    if options.dtype not in (None, kind):
        parser.error(f"--dtype = {options.dtype}, allowed {kind} with --version {options.version}")
    if options.group_size is not None and kind != "int8":
        parser.error("--group-size is for --version 2")
    return options


def export(options: argparse.Namespace) -> None:
    """Does what a command line says."""
    start = time.perf_counter()
    source = open_checkpoint(options.checkpoint)
    if options.out.exists() and options.out.samefile(source.name):
        raise UsageError(f"{options.out}: is the checkpoint itself")
    model, wanted = (source.config, source.tensors), (options.version, options.group_size, options.force)
    report = export_bin(options.out, *model, *wanted, name=source.name, progress=sys.stderr.isatty())
    print(describe(report, time.perf_counter() - start))


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line without its program name (None: sys.argv) and returns the exit status."""
    options = parse(arguments)
    return run_command(lambda: export(options))


if __name__ == "__main__":
    sys.exit(main())
