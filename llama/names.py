"""What a command line calls a model, to the files that the engine opens.

stories15M.bin                             a file of the engine's, as it is
SmolLM2-135M-Instruct.Q4_1.gguf            a file or folder of another format: converted once (llama.cache)
stories15M                                 one of the tinyllamas, downloaded once (llama.hub)
TinyLlama/TinyLlama-1.1B-Chat-v1.0         a repository of the Hugging Face hub
hf:owner/name@revision                     the same; hf:owner/name/file.gguf for one of its files
owner/name:Q4_K_M                          its GGUF file of that quantisation
https://huggingface.co/owner/name          the address of its page, or of a file
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama.cache import (
    DTYPES,
    converted,
    converted_for_now,
    is_slow_to_serve,
    is_to_convert,
    note,
    tokenizer_beside,
)
from llama.command import name_type
from llama.errors import LlamaError
from llama.files import temporary_folder
from llama.formats import tokenizer_kinds
from llama.hub import Files, find


@contextmanager
def tokenizer_bin(path: str | None) -> Iterator[str | None]:
    """A tokenizer as a file that the engine opens, good until the end of the block; None for None.

    Raises BadFileError, OSError.
    """
    if path is None or not tokenizer_kinds.is_foreign(Path(path)):
        yield path
        return
    from llama.formats import tokenizers  # the libraries that read such files

    with temporary_folder() as aside:
        file = aside / "tokenizer.bin"
        tokenizers.export_bin(tokenizers.load(path), file, indexed=True)
        yield os.fspath(file)


@contextmanager
def converted_model(model: str, dtype: str | None, cache: bool) -> Iterator[str]:
    """The .bin of a model that is converted, kept or good until the end of the block. Raises as opened."""
    if cache:
        yield os.fspath(converted(model, dtype, note))
    else:
        with converted_for_now(model, dtype, note) as path:
            yield os.fspath(path)


def fit_to_serve(model: str) -> str:
    """The .bin of a model to serve: of a large v2 the one in tiles, unless the cache refuses it."""
    if not is_slow_to_serve(model):
        return model
    try:
        return os.fspath(converted(model, "int8", note))
    except (LlamaError, OSError) as error:
        note(f"note: {model}: runs as it is, which takes twice as long: {error}")
        return model


@contextmanager
def opened(
    model: str | bytes | os.PathLike[str],
    tokenizer: str | None = None,
    dtype: str | None = None,
    cache: bool = True,
    served: bool = False,
) -> Iterator[Files]:
    """The files of a model of any name, good until the end of the block.

    dtype: of its weights; a model that has others is converted (cache.converted). cache: False: convert it
    for this block alone. served: convert it, too, where that pays when many texts go through it at once.
    Raises UsageError, BadFileError, ResourceError, OSError.
    """
    files = find(os.fspath(model), tokenizer)
    to_convert = is_to_convert(files.model, dtype)
    fit = fit_to_serve(files.model) if served and cache and not to_convert else files.model
    beside = tokenizer_beside(files.model) if to_convert or fit != files.model else None
    with tokenizer_bin(files.tokenizer or beside) as engines:
        if not to_convert:
            yield Files(fit, engines)
            return
        with converted_model(files.model, dtype, cache) as path:
            yield Files(path, engines)


@contextmanager
def opened_adapter(name: str | None, model: str, cache: bool = True) -> Iterator[str | None]:
    """What llama.adapters.opened makes of the name of an adapter; None for None."""
    if name is None:
        yield None
        return
    from llama import adapters  # numpy, which most runs do without

    with adapters.opened(name, model, note, cache) as adapter:
        yield adapter


def add_lora_option(parser: argparse.ArgumentParser) -> None:
    """--lora, for a program that opens a model."""
    said = "an adapter to run beside it, times SCALE (1): .lora.bin, PEFT's folder, or its name on the hub"
    parser.add_argument("--lora", type=name_type, metavar="NAME[:SCALE]", help=said)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--dtype and --no-cache, for a program that opens a model."""
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="a model of another type or format is converted (int8; bf16 a small one)",
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="convert it for this run alone, a v2 to serve not at all"
    )
