"""Any Llama in, several formats out: from a file or folder of a model to what runs it.

    python export.py out/last model.bin                            # a checkpoint of train.py as fp32, v0
    python export.py Llama-3.1-8B-Instruct model.bin --dtype int8  # Meta's or Hugging Face's folder as v3
    python export.py out/last folder                               # for transformers
    python export.py out/last model.gguf                           # for llama.cpp

formats/ has a module for each kind of file. What is read is read tensor by tensor and never executed; what is
written appears under its name once it is whole and on the disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from formats import huggingface_writer, llama2c, tiles, v3
from formats.checkpoint import WEIGHTS, StrPath, load_model, open_checkpoint, read_config, save_weights
from formats.huggingface import CONFIG, is_huggingface, open_huggingface
from formats.huggingface_writer import SHARD_BYTES, usual_dtype
from formats.meta import PARAMS, is_meta, open_meta
from formats.source import Source
from formats.text import with_text, with_text_files
from formats.v3 import MAX_STOPS, TEMPLATES, Extras
from formats.vocabulary import Vocabulary
from model import Config, RopeScaling
from training.command import (
    BadInput,
    Parser,
    UsageError,
    run_command,
    written_aside,
    written_aside_folder,
)

__all__ = [
    "BadInput",
    "Extras",
    "Report",
    "UsageError",
    "export_bin",
    "export_folder",
    "export_gguf",
    "export_v3",
    "load_model",
    "open_source",
    "read_config",
    "save_weights",
]

# --- Reading


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does, or at least says in its name that it should."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF" or path.suffix == ".gguf"


def open_source(path: Path) -> Source:
    """A model in any format that is read, told by content. Raises BadInput, OSError.

    A folder of Hugging Face or Meta, a GGUF file, a checkpoint of train.py (a folder or its
    model.safetensors), or a .bin file of any version.
    """
    if is_huggingface(path):
        return open_huggingface(path)
    if is_meta(path):
        return open_meta(path)
    if is_gguf(path):
        from formats.gguf import open_gguf  # needs a library that nothing else does

        return open_gguf(path)
    if path.is_file() and path.suffix == ".bin":
        return v3.open_bin(path) if v3.is_v3(path) else llama2c.open_bin(path)
    if path.is_dir() and not (path / WEIGHTS).exists():
        kinds = f"{CONFIG} (Hugging Face), {PARAMS} (Meta), {WEIGHTS} (train.py)"
        raise BadInput(f"{path}: is no folder of a model, allowed is one with {kinds}")
    return open_checkpoint(path)


# --- Writing


@dataclass(frozen=True)
class Report:
    """What an export came to."""

    path: Path
    format: str
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
    return Report(path, f"v{version}", dtype, size, group_size, worst_first(errors), dropped)


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
    if extras and len(extras.stops) > MAX_STOPS:
        raise BadInput(f"{name}: has {len(extras.stops)} stop ids, allowed {MAX_STOPS}")
    with written_aside(path) as scratch:
        with scratch.open("wb") as file:
            errors = v3.write_bin(file, source, dtype, ends_dtype, extras or Extras(), progress)
        size = scratch.stat().st_size
    group_size = tiles.GROUP if {dtype, ends_dtype} & {"int8", "int4"} else 0
    return Report(path, "v3", dtype, size, group_size, worst_first(errors))


def export_folder(
    path: StrPath,
    source: Source,
    dtype: str | None = None,
    tokenizer: Mapping[str, bytes] | None = None,
    shard_bytes: int = SHARD_BYTES,
    *,
    progress: bool = False,
) -> Report:
    """Writes a model as a Hugging Face folder, which transformers loads.

    dtype: "fp32" or "bf16", of all tensors; None: bf16 if the source has it, else fp32. tokenizer: the
    files to put beside, by name. shard_bytes: the most that a file of tensors holds, unless one is larger.
    Raises UsageError (the folder exists, transformers can't hold the shape), BadInput, OSError; there is
    nothing left then.
    """
    path, dtype = Path(path), dtype or usual_dtype(source)
    with written_aside_folder(path) as scratch:
        errors = huggingface_writer.write_folder(
            scratch, source, dtype, tokenizer or {}, shard_bytes, progress
        )
        size = sum(file.stat().st_size for file in scratch.iterdir())
    return Report(path, "Hugging Face", dtype, size, errors=worst_first(errors))


def export_gguf(
    path: StrPath,
    source: Source,
    dtype: str | None = None,
    ends_dtype: str | None = None,
    vocabulary: Vocabulary | None = None,
    *,
    progress: bool = False,
) -> Report:
    """Writes a model as a GGUF file, which llama.cpp runs.

    dtype: of the matrices of the layers: "fp32", "bf16", "int8" (Q8_0) or "int4" (Q4_0); None: bf16 if the
    source has it, else fp32. ends_dtype: as in export_v3. vocabulary: None for a file without a tokenizer.
    Raises UsageError, BadInput (the weights do not fit, GGUF can't hold the tokenizer, the gguf library is
    missing), OSError; an old file is then as it was.
    """
    from formats.gguf import write_gguf

    path, dtype = Path(path), dtype or usual_dtype(source)
    errors = write_gguf(path, source, dtype, ends_dtype, vocabulary, progress=progress)
    group_size = tiles.GROUP if {dtype, ends_dtype} & {"int8", "int4"} else 0
    return Report(path, "GGUF", dtype, path.stat().st_size, group_size, worst_first(errors))


# --- The program


def changed(source: Source, options: argparse.Namespace) -> Source:
    """The source, with what the command line says about its configuration. Raises UsageError."""
    config: dict[str, Any] = {}
    if options.max_seq_len is not None:
        if options.max_seq_len > (longest := source.longest or options.max_seq_len):
            found = f"max_seq_len = {options.max_seq_len}"
            raise UsageError(f"{found}, allowed up to {longest}, the model's sliding window")
        config["max_seq_len"] = options.max_seq_len
    if options.rope_theta is not None:
        config["rope_theta"] = options.rope_theta
    try:
        if options.rope_factor is not None:
            scaling = source.config.rope_scaling or RopeScaling()
            config["rope_scaling"] = dataclasses.replace(scaling, factor=options.rope_factor)
        return dataclasses.replace(source, config=dataclasses.replace(source.config, **config))
    except ValueError as error:
        raise UsageError(str(error)) from None


HELP = """Write a model as a file for the engine or llama.cpp, or as a folder for transformers.

  python export.py out/last model.bin                            fp32, version 0, as llama2.c reads it
  python export.py out/last model.bin --version 3                fp32, with the tokenizer inside
  python export.py out/last model.bin --dtype int8               version 3, a quarter of the size
  python export.py out/last model.bin --dtype int4               an eighth; embedding and classifier as int8
  python export.py out/last model.bin --dtype int8 --version 2   as llama2.c's runq reads it
  python export.py Llama-3.1-8B-Instruct model.bin --dtype int8  from Meta's folder or Hugging Face's
  python export.py stories15M.bin small.bin --dtype int8         any version, and tokenizer.bin beside it
  python export.py stories.gguf model.bin --dtype int4           from llama.cpp's files, with their tokenizer
  python export.py out/last folder                               for transformers, vLLM and their like
  python export.py out/last model.gguf --dtype int8              for llama.cpp: F32, BF16, Q8_0, Q4_0
  ./run model.bin                                                what it is for"""

VERSIONS = {"fp32": (0, 1, 3), "bf16": (3,), "int8": (3, 2), "int4": (3,)}  # the first is the usual one
FOLDER_DTYPES = ("fp32", "bf16")
FOR = {
    "ends_dtype": ("v3", "gguf"),
    "template": ("v3", "gguf"),
    "tokenizer": ("v3", "gguf", "folder"),
    "group_size": ("v2",),
}
WRITTEN = {"gguf": "OUT.gguf", "folder": "folder", "v2": "--version 2", "v3": "--version 3"}
WORST_SHOWN = 3  # tensors with the largest errors


def describe(report: Report, seconds: float) -> str:
    """A report as lines of text."""
    groups = f" in groups of {report.group_size}" if report.group_size else ""
    worst = [(name, error) for name, error in report.errors.items() if error > 0][:WORST_SHOWN]
    speed = f"{seconds:.1f} s, {report.bytes / seconds / 1e6:,.0f} MB/s"
    lines = [f"{report.path}: {report.format}, {report.dtype}{groups}, {report.bytes:,} bytes, {speed}"]
    lines += [f"error of the rounding, relative rms: {error:.3%} {name}" for name, error in worst]
    return "\n".join(lines + [f"dropped: {field}" for field in report.dropped])


def settle(options: argparse.Namespace, parser: Parser) -> None:
    """Fills in format, version and dtype, and ends the program where options contradict each other."""
    if options.out.suffix == ".gguf":
        options.format = "gguf"
        if options.version is not None:
            parser.error(f"--version is for OUT.bin, OUT = {options.out}")
    elif options.out.suffix != ".bin":
        options.format = "folder"
        if options.version is not None or options.dtype not in (None, *FOLDER_DTYPES):
            parser.error(f"--version and other types than fp32 and bf16 are for files, OUT = {options.out}")
    else:
        options.dtype = options.dtype or ("int8" if options.version == 2 else "fp32")
        if options.version is None:
            options.version = VERSIONS[options.dtype][0]
        if options.version not in VERSIONS[options.dtype]:
            allowed = " and ".join(kind for kind, versions in VERSIONS.items() if options.version in versions)
            parser.error(f"--dtype = {options.dtype}, allowed {allowed} with --version {options.version}")
        options.format = f"v{options.version}"
    for name, formats in FOR.items():
        if getattr(options, name) is not None and options.format not in formats:
            wanted = " and ".join(WRITTEN[form] for form in formats)
            parser.error(f"--{name.replace('_', '-')} is for {wanted}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of a command line, with format, version and type settled."""
    parser = Parser(description=HELP)
    source = "a folder (train.py's, Hugging Face's, Meta's), a model.safetensors of train.py, .gguf, .bin"
    parser.add_argument("source", type=Path, metavar="MODEL", help=source)
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="OUT.bin, OUT.gguf, or else a new folder for transformers"
    )
    group = parser.add_argument_group("what is written")
    group.add_argument("--version", type=int, choices=(0, 1, 2, 3), help="of OUT.bin (0 for fp32, else 3)")
    group.add_argument(
        "--dtype",
        choices=VERSIONS,
        help="of the weights (OUT.bin: fp32, int8 for version 2; else as in MODEL, bf16 or fp32)",
    )
    group.add_argument("--ends-dtype", choices=VERSIONS, help="of embedding and classifier")
    group.add_argument("--group-size", type=int, metavar="N", help="weights with one scale in v2 (64)")
    group.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="to put into it (that in or beside MODEL)"
    )
    group.add_argument("--template", choices=TEMPLATES, help="of chats (what MODEL says)")
    group.add_argument("--force", action="store_true", help="drop what the format can't hold")
    group = parser.add_argument_group("what MODEL does not say, or says wrong")
    group.add_argument("--max-seq-len", type=int, metavar="N", help="its context")
    group.add_argument("--rope-theta", type=float, metavar="X", help="RoPE's base (1e6 for Code Llama)")
    group.add_argument(
        "--rope-factor", type=float, metavar="X", help="of Llama 3.1's RoPE scaling (8; 3.2: 32)"
    )
    options = parser.parse_args(arguments)
    settle(options, parser)
    return options


def beside(path: Path) -> Path:
    """The folder in which the tokenizer of a model is looked for."""
    return path if path.is_dir() else path.parent


def export_to_v3(options: argparse.Namespace, source: Source, progress: bool) -> Report:
    """A v3 file with its tokenizer."""
    source, vocabulary = with_text(source, beside(options.source), options.tokenizer, options.template)
    data = vocabulary.indexed if vocabulary else b""
    extras = Extras(data, source.bos, source.stops, source.template or "none")
    wanted = (options.dtype, options.ends_dtype, extras)
    return export_v3(options.out, source.config, source.tensors, *wanted, name=source.name, progress=progress)


def export_to_gguf(options: argparse.Namespace, source: Source, progress: bool) -> Report:
    """A GGUF file with its tokenizer."""
    source, vocabulary = with_text(source, beside(options.source), options.tokenizer, options.template)
    wanted = (options.dtype, options.ends_dtype, vocabulary)
    return export_gguf(options.out, source, *wanted, progress=progress)


def export_to_folder(options: argparse.Namespace, source: Source, progress: bool) -> Report:
    """A Hugging Face folder with its tokenizer."""
    source, files = with_text_files(source, beside(options.source), options.tokenizer)
    return export_folder(options.out, source, options.dtype, files, progress=progress)


def export(options: argparse.Namespace) -> None:
    """Does what a command line says."""
    start, progress = time.perf_counter(), sys.stderr.isatty()
    source = changed(open_source(options.source), options)
    if options.out.exists() and options.out.samefile(source.name):
        raise UsageError(f"{options.out}: is the model itself")
    if options.format == "folder":
        report = export_to_folder(options, source, progress)
    elif options.format == "gguf":
        report = export_to_gguf(options, source, progress)
    elif options.format == "v3":
        report = export_to_v3(options, source, progress)
    else:
        wanted = (options.version, options.group_size, options.force)
        said = {"name": source.name, "progress": progress}
        report = export_bin(options.out, source.config, source.tensors, *wanted, **said)
    print(describe(report, time.perf_counter() - start))
    if source.config.max_seq_len == source.longest:
        print(f"max_seq_len = {source.longest}: its sliding window, up to which the model is a Llama")


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line without its program name (None: sys.argv) and returns the exit status."""
    options = parse(arguments)
    return run_command(lambda: export(options))


if __name__ == "__main__":
    sys.exit(main())
