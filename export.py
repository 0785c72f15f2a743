"""From our checkpoints to the .bin files that run.c reads.

    python export.py out/last model.bin                            # fp32, v0, with tokenizer.bin beside it
    python export.py out/last model.bin --dtype int8 --version 3   # one file with all that a run needs

formats/ has a module for each kind of file. A file is written tensor by tensor, and appears under its name
once it is whole and on the disk.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

import tokenizer as tokenizers
from formats import llama2c, tiles, v3
from formats.checkpoint import StrPath, load_model, open_checkpoint, read_config, save_weights
from formats.source import Source
from formats.v3 import Extras
from model import Config
from training.command import BadInput, Parser, UsageError, run_command, written_aside

__all__ = [
    "BadInput",
    "Extras",
    "Report",
    "UsageError",
    "export_bin",
    "export_v3",
    "load_model",
    "read_config",
    "save_weights",
]

# --- Writing


@dataclass(frozen=True)
class Report:
    """What an export came to."""

    path: Path
    version: int
    dtype: str  # of the matrices of the layers
    bytes: int
    group_size: int = 0  # 0 where no weights share a scale
    errors: dict[str, float] = field(default_factory=dict)  # relative error of each tensor that was rounded
    dropped: tuple[str, ...] = ()  # fields of the configuration that the file does not hold


def worst_first(errors: dict[str, float]) -> dict[str, float]:
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
    llama2c.check_format(path, config, version, force)
    group_size = llama2c.fitting_group_size(config, group_size) if version == 2 else 0
    with written_aside(path) as scratch:
        with scratch.open("wb") as file:
            errors = llama2c.write_bin(file, Source(name, config, weights), version, group_size, progress)
        size = scratch.stat().st_size
    dtype, dropped = "int8" if version == 2 else "fp32", llama2c.lost_fields(config)
    return Report(path, version, dtype, size, group_size, worst_first(errors), dropped)


def export_v3(
    path: StrPath,
    config: Config,
    weights: Mapping[str, Tensor],
    dtype: str = "int8",
    ends_dtype: str | None = None,
    extras: Extras | None = None,
    *,
    name: str = "weights",
    progress: bool = False,
) -> Report:
    """Writes a model as a v3 file, which holds its tokenizer too.

    dtype: of the matrices of the layers: "fp32", "bf16", "int8" or "int4". ends_dtype: of the embedding and
    the classifier; None: int8 for int4, else dtype. The rest as in export_bin.
    Raises BadInput (the weights do not fit config, or dtype can't hold them), OSError.
    """
    path, ends_dtype = Path(path), ends_dtype or ("int8" if dtype == "int4" else dtype)
    source = Source(name, config, weights)
    with written_aside(path) as scratch:
        with scratch.open("wb") as file:
            errors = v3.write_bin(file, source, dtype, ends_dtype, extras or Extras(), progress)
        size = scratch.stat().st_size
    group_size = tiles.GROUP if {dtype, ends_dtype} & {"int8", "int4"} else 0
    return Report(path, 3, dtype, size, group_size, worst_first(errors))


# --- The program

HELP = """Write a checkpoint of train.py, or a .bin file of llama2.c, as a .bin file for the engine.

  python export.py out/last model.bin                          fp32, version 0, as llama2.c reads it
  python export.py out/last model.bin --version 3              fp32, with the tokenizer inside
  python export.py out/last model.bin --dtype int8             version 3, a quarter of the size
  python export.py out/last model.bin --dtype int4             an eighth; embedding and classifier as int8
  python export.py out/last model.bin --dtype int8 --version 2 as llama2.c's runq reads it
  python export.py stories15M.bin small.bin --dtype int8       from v0, v1, v2, and tokenizer.bin beside it
  ./run model.bin                                              what it is for"""

VERSIONS = {"fp32": (0, 1, 3), "bf16": (3,), "int8": (3, 2), "int4": (3,)}  # the first is the usual one
WORST_SHOWN = 3  # tensors with the largest errors


def describe(report: Report, seconds: float) -> str:
    """A report as lines of text."""
    groups = f" in groups of {report.group_size}" if report.group_size else ""
    kind = f"v{report.version}, {report.dtype}{groups}"
    worst = list(report.errors.items())[:WORST_SHOWN]
    lines = [f"{report.path}: {kind}, {report.bytes:,} bytes, {seconds:.1f} s"]
    lines += [f"error of the rounding, relative rms: {error:.3%} {name}" for name, error in worst]
    return "\n".join(lines + [f"dropped: {field}" for field in report.dropped])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of a command line, with version and type settled."""
    parser = Parser(description=HELP)
    parser.add_argument("checkpoint", type=Path, help="a folder with model.safetensors, that file, or a .bin")
    parser.add_argument("out", type=Path, metavar="OUT.bin", help="the file to write")
    parser.add_argument("--version", type=int, choices=(0, 1, 2, 3), help="of the file (0 for fp32, else 3)")
    parser.add_argument("--dtype", choices=VERSIONS, help="of the weights (fp32; int8 for version 2)")
    parser.add_argument("--ends-dtype", choices=VERSIONS, help="of embedding and classifier")
    parser.add_argument("--tokenizer", type=Path, help="to put into a v3 file (that beside the checkpoint)")
    parser.add_argument("--group-size", type=int, metavar="N", help="weights with one scale in v2 (64)")
    parser.add_argument("--force", action="store_true", help="drop what the format can't hold")
    options = parser.parse_args(arguments)
    options.dtype = options.dtype or ("int8" if options.version == 2 else "fp32")
    if options.version is None:
        options.version = VERSIONS[options.dtype][0]
    if options.version not in VERSIONS[options.dtype]:
        allowed = " and ".join(kind for kind, versions in VERSIONS.items() if options.version in versions)
        parser.error(f"--dtype = {options.dtype}, allowed {allowed} with --version {options.version}")
    for name, version in (("ends_dtype", 3), ("tokenizer", 3), ("group_size", 2)):
        if getattr(options, name) is not None and options.version != version:
            parser.error(f"--{name.replace('_', '-')} is for --version {version}")
    return options


def open_source(path: Path) -> Source:
    """A checkpoint of train.py or a .bin file. Raises BadInput."""
    return llama2c.open_bin(path) if path.is_file() and path.suffix == ".bin" else open_checkpoint(path)


def tokenizer_bytes(options: argparse.Namespace, source: Source) -> bytes:
    """The tokenizer.bin to put into a file, none where there is none. Raises BadInput."""
    folder = options.checkpoint if options.checkpoint.is_dir() else options.checkpoint.parent
    names = ("tokenizer.bin", f"tok{source.config.vocab_size}.bin", "tokenizer.model")
    beside = (folder / name for name in names)
    path = options.tokenizer or next((path for path in beside if path.exists()), None)
    if path is None:
        return b""
    data = path.read_bytes() if path.suffix == ".bin" else tokenizers.to_bin(tokenizers.load(path))
    if (size := tokenizers.count_bin(path, data)) != source.config.vocab_size:
        raise BadInput(f"{path}: has {size} tokens, the model's vocab_size = {source.config.vocab_size}")
    return data


def export(options: argparse.Namespace) -> None:
    """Does what a command line says."""
    start = time.perf_counter()
    source = open_source(options.checkpoint)
    if options.out.exists() and options.out.samefile(source.name):
        raise UsageError(f"{options.out}: is the checkpoint itself")
    model, said = (source.config, source.tensors), {"name": source.name, "progress": sys.stderr.isatty()}
    if options.version == 3:
        extras = Extras(tokenizer_bytes(options, source))
        report = export_v3(options.out, *model, options.dtype, options.ends_dtype, extras, **said)
    else:
        wanted = (options.version, options.group_size, options.force)
        report = export_bin(options.out, *model, *wanted, **said)
    print(describe(report, time.perf_counter() - start))


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line without its program name (None: sys.argv) and returns the exit status."""
    options = parse(arguments)
    return run_command(lambda: export(options))


if __name__ == "__main__":
    sys.exit(main())
