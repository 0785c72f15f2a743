"""Any model in, told by content: the one door to the readers of this package."""

from __future__ import annotations

from pathlib import Path

from llama.errors import BadFileError
from llama.formats import llama2c, v3
from llama.formats.adapters import base_of, is_adapter, merged
from llama.formats.checkpoint import WEIGHTS, open_checkpoint
from llama.formats.huggingface import is_huggingface, open_huggingface
from llama.formats.kinds import CONFIG, PARAMS, TORCH, checked_start, is_of_folder, kind_of, refuse_alone
from llama.formats.llama2c_checkpoint import open_pytorch
from llama.formats.mapped import SafetensorsFile
from llama.formats.meta import is_meta, open_meta
from llama.formats.source import Source


def open_folder(path: Path) -> Source:
    """A folder of Hugging Face, Meta or train.py, or an adapter, merged. Raises BadFileError, OSError."""
    if is_huggingface(path):
        return open_huggingface(path)
    if is_meta(path):
        return open_meta(path)
    if is_adapter(path):
        return merged(open_source(base_of(path)), path)
    if not (path / WEIGHTS).exists():
        kinds = f"{CONFIG} (Hugging Face), {PARAMS} (Meta), {WEIGHTS} (train.py)"
        raise BadFileError(f"{path}: is no folder of a model, allowed is one with {kinds}")
    return open_checkpoint(path)


def is_shard(path: Path) -> bool:
    """Whether a file has the name of train.py's weights, but is another program's: it holds no shape."""
    return path.name == WEIGHTS and "config" not in SafetensorsFile(path).metadata


def open_bin(path: Path, start: bytes) -> Source:
    """A .bin file of any version. Raises BadFileError, which says what a file of another kind is."""
    if v3.is_v3(path):
        return v3.open_bin(path)
    try:
        return llama2c.open_bin(path)
    except BadFileError:
        if kind := kind_of(start):  # looked at last: v0 has no magic, and may begin with any number
            raise BadFileError(f"{path}: is {kind}, which is no model") from None
        raise


def open_source(path: Path) -> Source:
    """A model in any format that is read, told by content. Raises BadFileError, OSError.

    A folder of Hugging Face or Meta, one of an adapter whose model is on this machine, a GGUF file, a
    checkpoint of train.py (a folder or its model.safetensors) or of llama2.c (.pt), or a .bin file of any
    version.
    """
    if path.is_dir():
        return open_folder(path)
    start = checked_start(path)
    if is_of_folder(path, start) or is_shard(path):
        refuse_alone(path)
    if start[:4] == b"GGUF" or path.suffix == ".gguf":
        from llama.formats.gguf import open_gguf  # of no use to the other formats

        return open_gguf(path)
    if start.startswith(TORCH) or path.suffix in (".pt", ".pth"):
        return open_pytorch(path)
    if path.suffix == ".safetensors" or kind_of(start) == "a safetensors file":
        return open_checkpoint(path)
    return open_bin(path, start)
