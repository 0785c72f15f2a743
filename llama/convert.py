"""Any Llama in, several formats out: from a file or folder of a model to what runs it.

    python export.py out/last model.bin                            # a checkpoint of train.py as fp32, v0
    python export.py Llama-3.1-8B-Instruct model.bin --dtype int8  # Meta's or Hugging Face's folder as v3
    python export.py out/last folder                               # for transformers
    python export.py out/last model.gguf                           # for llama.cpp
    python export.py model.bin --meta-llama Llama-2-7b             # llama2.c's words for it

formats/ has a module for each kind of file. What is read is read tensor by tensor and never executed; what is
written appears under its name once it is whole and on the disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from llama.adapters import find as find_adapter
from llama.command import Parser, name_type, one_line, path_type, print_notes, run_command, started_as
from llama.errors import UsageError
from llama.formats import llama2c
from llama.formats.adapter_file import SUFFIX, write_adapter
from llama.formats.adapters import base_of, is_adapter, merged, open_adapter, split
from llama.formats.chat_templates import BUILT_IN
from llama.formats.config import RopeScaling
from llama.formats.export import Report, export_bin, export_folder, export_gguf, export_v3
from llama.formats.huggingface import open_huggingface
from llama.formats.meta import open_meta
from llama.formats.models import open_source
from llama.formats.source import Source
from llama.formats.text import with_text, with_text_files
from llama.formats.texts import told
from llama.formats.v3 import extras_of
from llama.hub import find


def changed(source: Source, options: argparse.Namespace) -> Source:
    """The source, with what the command line says about its configuration. Raises UsageError."""
    config: dict[str, Any] = {}
    if options.max_seq_len is not None:
        if options.max_seq_len > (longest := source.longest or options.max_seq_len):
            found = f"max_seq_len = {options.max_seq_len}"
            raise UsageError(f"{found}, allowed up to {longest}, the model's {source.bound}")
        config["max_seq_len"] = options.max_seq_len
        source = dataclasses.replace(source, notes=tuple(n for n in source.notes if "max_seq_len" not in n))
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

  {name} out/last model.bin                            fp32, version 0, as llama2.c reads it
  {name} out/last model.bin --version 3                fp32, with the tokenizer inside
  {name} out/last model.bin --dtype int8               version 3, a quarter of the size
  {name} out/last model.bin --dtype int4               an eighth; embedding and classifier as int8
  {name} out/last model.bin --dtype int8 --version 2   as llama2.c's runq reads it
  {name} Llama-3.1-8B-Instruct model.bin --dtype int8  from Meta's folder or Hugging Face's
  {name} stories15M.bin small.bin --dtype int8         any version, and tokenizer.bin beside it
  {name} stories.gguf model.bin --dtype int4           from llama.cpp's files, with their tokenizer
  {name} out/last folder                               for transformers, vLLM and their like
  {name} out/last model.gguf --dtype int8              for llama.cpp: F32, BF16, Q8_0, Q4_0
  {name} out/lora/last model.bin --dtype int8          a checkpoint of LoRA, merged into its model
  {name} model.bin poet.lora.bin --lora out/lora/last  the adapter alone, for ./run model.bin --lora
  {name} TinyLlama/TinyLlama-1.1B-Chat-v1.0 model.bin --dtype int4    by its name on the hub

As llama2.c has it, what is written comes first:

  {name} llama2_7b.bin --meta-llama Llama-2-7b         or --hf DIR, or --checkpoint FILE
  {name} llama2_7b.bin --meta-llama Llama-2-7b --version 2
  {name} stories15M.bin --checkpoint stories15M.pt     a checkpoint of llama2.c or the tinyllamas
  {name} folder --checkpoint out/last --version -1     for transformers; --dtype fp16 halves it

  ./run model.bin                                                what it is for"""

OPENERS = {"checkpoint": open_source, "meta_llama": open_meta, "hf": open_huggingface}  # llama2.c's options
VERSIONS = {  # of OUT.bin, the usual one first
    "fp32": (0, 1, 3),
    "bf16": (3,),
    "fp16": (),
    "int8": (3, 2),
    "int4": (3,),
}
FOLDER_DTYPES = ("fp32", "bf16", "fp16")
FOLDER_VERSION = -1  # llama2.c's number for it
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
    size = f"{report.bytes:,} bytes"
    lines = [f"{one_line(report.path)}: {report.format}, {report.dtype}{groups}, {size}, {speed}"]
    lines += [f"error of the rounding, relative rms: {error:.3%} {name}" for name, error in worst]
    return "\n".join(lines + [f"dropped: {field}" for field in report.dropped])


def settle(options: argparse.Namespace, parser: Parser) -> None:
    """Fills in format, version and dtype, and ends the program where options contradict each other."""
    if options.out.name.endswith(SUFFIX):
        options.format = "adapter"
        if options.version is not None or options.dtype is not None:
            parser.error(f"--version and --dtype are for models, OUT = {options.out}")
    elif options.version == FOLDER_VERSION or options.out.suffix not in (".bin", ".gguf"):
        options.format = "folder"
        if options.version not in (None, FOLDER_VERSION) or options.dtype not in (None, *FOLDER_DTYPES):
            parser.error(f"--version, int8 and int4 are for files, OUT = {options.out}")
    elif options.out.suffix == ".gguf":
        options.format = "gguf"
        if options.version is not None:
            parser.error(f"--version is for OUT.bin, OUT = {options.out}")
    else:
        options.dtype = options.dtype or ("int8" if options.version == 2 else "fp32")
        if not VERSIONS[options.dtype]:
            parser.error(f"--dtype = {options.dtype}, allowed fp32, bf16, int8 and int4 for OUT.bin")
        options.said = options.version is not None or options.force  # what is to be written
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


def settle_paths(options: argparse.Namespace, parser: Parser) -> None:
    """Tells MODEL OUT from llama2.c's OUT --hf MODEL, and ends the program where it is neither."""
    named = [kind for kind in OPENERS if getattr(options, kind) is not None]
    if len(options.paths) + len(named) != 2:
        parser.error("allowed MODEL OUT, or OUT and one of --checkpoint, --meta-llama and --hf")
    options.opener = open_source
    if named:
        options.opener = OPENERS[named[0]]
        options.paths.insert(0, getattr(options, named[0]))
    options.source, options.out = options.paths


def add_written_options(parser: argparse.ArgumentParser) -> None:
    """What OUT is to be, for a program that writes a model."""
    group = parser.add_argument_group("what is written")
    versions = (FOLDER_VERSION, 0, 1, 2, 3)
    version = "of OUT.bin (0 for fp32 where it can hold the model, else 3); -1: a folder for transformers"
    group.add_argument("--version", type=int, choices=versions, help=version)
    group.add_argument(
        "--dtype",
        choices=VERSIONS,
        help="of the weights (OUT.bin: fp32, int8 for version 2; else as in MODEL, bf16 or fp32)",
    )
    group.add_argument("--ends-dtype", choices=VERSIONS, help="of embedding and classifier")
    group.add_argument("--group-size", type=int, metavar="N", help="weights with one scale in v2 (64)")
    group.add_argument(
        "--tokenizer", type=path_type, metavar="FILE", help="to put into it (that in or beside MODEL)"
    )
    group.add_argument("--template", choices=("none", *BUILT_IN), help="of chats (what MODEL says)")
    group.add_argument("--force", action="store_true", help="drop what the format can't hold")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of a command line, with paths, format, version and type settled."""
    name = started_as("convert")
    usage = f"{name} [options] MODEL OUT\n       {name} [options] OUT --meta-llama MODEL"
    parser = Parser(description=HELP.format(name=name), usage=usage)
    model = (
        "a folder (train.py's, Hugging Face's, Meta's), a model.safetensors of train.py, .gguf, .bin, name"
    )
    out = "OUT.bin, OUT.gguf, or else a new folder for transformers"
    parser.add_argument(
        "paths", type=path_type, nargs="*", metavar="MODEL OUT", help=f"MODEL: {model}; OUT: {out}"
    )
    group = parser.add_argument_group("MODEL as llama2.c has it, instead of the first path")
    sources = group.add_mutually_exclusive_group()
    sources.add_argument("--checkpoint", type=path_type, metavar="FILE", help="whatever MODEL may be")
    sources.add_argument("--meta-llama", type=path_type, metavar="DIR", help="Meta's folder")
    sources.add_argument(
        "--hf", type=path_type, metavar="DIR", help="Hugging Face's folder, or its name on the hub"
    )
    add_written_options(parser)
    group = parser.add_argument_group("what is changed")
    lora = "add an adapter of PEFT or train.py, times SCALE (1); OUT.lora.bin: write it alone"
    group.add_argument("--lora", type=name_type, metavar="FOLDER[:SCALE]", help=lora)
    group = parser.add_argument_group("what MODEL does not say, or says wrong")
    group.add_argument("--max-seq-len", type=int, metavar="N", help="its context")
    group.add_argument("--rope-theta", type=float, metavar="X", help="RoPE's base (1e6 for Code Llama)")
    group.add_argument(
        "--rope-factor", type=float, metavar="X", help="of Llama 3.1's RoPE scaling (8; 3.2: 32)"
    )
    options = parser.parse_intermixed_args(arguments)
    settle_paths(options, parser)
    settle(options, parser)
    return options


def beside(path: Path) -> Path:
    """The folder in which the tokenizer of a model is looked for."""
    return path if path.is_dir() else path.parent


def export_to_v3(options: argparse.Namespace, source: Source, progress: bool) -> Report:
    """A v3 file with its tokenizer."""
    source, vocabulary = with_text(source, beside(options.source), options.tokenizer, options.template)
    wanted = (options.dtype, options.ends_dtype, extras_of(source, vocabulary))
    said = {"name": source.name, "progress": progress}
    report = export_v3(options.out, source.config, source.tensors, *wanted, **said)
    print_notes(source.name, source.notes)  # once it is there: an error is one line
    return report


def export_to_gguf(options: argparse.Namespace, source: Source, progress: bool) -> Report:
    """A GGUF file with its tokenizer."""
    source, vocabulary = with_text(source, beside(options.source), options.tokenizer, options.template)
    wanted = (options.dtype, options.ends_dtype, vocabulary)
    report = export_gguf(options.out, source, *wanted, progress=progress)
    print_notes(source.name, source.notes)
    print_notes(options.out, report.notes)
    return report


def export_to_folder(options: argparse.Namespace, source: Source, progress: bool) -> Report:
    """A Hugging Face folder with its tokenizer."""
    source, files = with_text_files(source, beside(options.source), options.tokenizer)
    report = export_folder(options.out, source, options.dtype, files, progress=progress)
    print_notes(source.name, source.notes)
    return report


def export_to_adapter(options: argparse.Namespace) -> Report:
    """An adapter alone, for models of the shape of MODEL, or of the one that it was trained on."""
    if options.lora:
        name, scale = split(options.lora)
        folder, model = find_adapter(name), options.opener(options.source)
    elif is_adapter(options.source):
        folder, scale, model = options.source, 1.0, open_source(base_of(options.source))
    else:
        raise UsageError(f"{options.source}: is no adapter: name one with --lora for {options.out}")
    adapter = open_adapter(folder, model.config, model.tensors)
    size = write_adapter(options.out, adapter, model.config, scale)
    return Report(options.out, "adapter", "fp32", size)


def write(options: argparse.Namespace, source: Source, start: float) -> None:
    """Writes a model as the options say, and prints what it came to. start: when work began."""
    progress = sys.stderr.isatty()
    if options.format == "v0" and not options.said and (llama2c.lost_fields(source.config) or told(source)):
        options.format = "v3"  # which can hold it
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
        print_notes(source.name, source.notes)
    print(describe(report, time.perf_counter() - start))
    if options.format == "v0" and not options.said:
        print("v0 holds no tokenizer: it is a file beside this one, or --version 3 puts it in")
    if source.config.max_seq_len == source.longest:
        print(f"max_seq_len = {source.longest}: its {source.bound}, up to which the model is a Llama")


def export(options: argparse.Namespace) -> None:
    """Does what a command line says."""
    start = time.perf_counter()
    model, tokenizer = find(str(options.source))
    options.source = Path(model)
    options.tokenizer = options.tokenizer or (Path(tokenizer) if tokenizer else None)
    if options.format == "adapter":
        print(describe(export_to_adapter(options), time.perf_counter() - start))
        return
    source = changed(options.opener(options.source), options)
    if options.lora:
        name, scale = split(options.lora)
        source = dataclasses.replace(merged(source, find_adapter(name), scale), name=source.name)
    write(options, source, start)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command line without its program name (None: sys.argv) and returns the exit status."""
    options = parse(arguments)
    return run_command(lambda: export(options))


if __name__ == "__main__":
    sys.exit(main())
