"""Any model in, told by content: the one door to the readers of this package."""

from __future__ import annotations

from pathlib import Path

from llama.errors import BadFileError
from llama.formats import llama2c, v3
from llama.formats.checkpoint import WEIGHTS, open_checkpoint
from llama.formats.huggingface import CONFIG, is_huggingface, open_huggingface
from llama.formats.meta import PARAMS, is_meta, open_meta
from llama.formats.source import Source


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does, or at least says in its name that it should."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF" or path.suffix == ".gguf"


def open_source(path: Path) -> Source:
    """A model in any format that is read, told by content. Raises BadFileError, OSError.

    A folder of Hugging Face or Meta, a GGUF file, a checkpoint of train.py (a folder or its
    model.safetensors), or a .bin file of any version.
    """
    if is_huggingface(path):
        return open_huggingface(path)
    if is_meta(path):
        return open_meta(path)
    if is_gguf(path):
        from llama.formats.gguf import open_gguf  # needs a library that nothing else does

        return open_gguf(path)
    if path.is_file() and path.suffix == ".bin":
        return v3.open_bin(path) if v3.is_v3(path) else llama2c.open_bin(path)
    if path.is_dir() and not (path / WEIGHTS).exists():
        kinds = f"{CONFIG} (Hugging Face), {PARAMS} (Meta), {WEIGHTS} (train.py)"
        raise BadFileError(f"{path}: is no folder of a model, allowed is one with {kinds}")
    return open_checkpoint(path)
