"""What a command line calls a model, to the files that the engine opens.

stories15M.bin                             a file of the engine's, as it is
SmolLM2-135M-Instruct.Q4_1.gguf            a file or folder of another format: converted once (llama.cache)
stories15M                                 one of the tinyllamas, downloaded once (llama.hub)
TinyLlama/TinyLlama-1.1B-Chat-v1.0         a repository of the Hugging Face hub
hf:owner/name@revision                     the same; hf:owner/name/file.gguf for one of its files
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

from llama.cache import DTYPE, DTYPES, converted, converted_for_now, is_foreign, note
from llama.hub import Files, find


@contextmanager
def opened(
    model: str | bytes | os.PathLike[str],
    tokenizer: str | None = None,
    dtype: str = DTYPE,
    cache: bool = True,
) -> Iterator[Files]:
    """The files of a model of any name, good until the end of the block.

    dtype: of one that has to be converted. cache: False: convert it for this block alone.
    Raises UsageError, BadFileError, ResourceError, OSError.
    """
    files = find(os.fspath(model), tokenizer)
    if not is_foreign(files.model):
        yield files
        return
    if cache:
        yield Files(os.fspath(converted(files.model, dtype, note)), files.tokenizer)
        return
    with converted_for_now(files.model, dtype, note) as path:
        yield Files(os.fspath(path), files.tokenizer)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--dtype and --no-cache, for a program that opens a model."""
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPE, help="of a model to convert (%(default)s)")
    parser.add_argument("--no-cache", action="store_true", help="convert it for this run alone")
