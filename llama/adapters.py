"""What a command line calls an adapter, to the file that the engine runs beside a model.

poet.lora.bin       a file of the engine's, as it is: cria convert MODEL poet.lora.bin --lora FOLDER
out/lora/last       a folder of PEFT or train.py, converted once for the shape of the model (llama.cache)
owner/name          the same, on the Hugging Face hub
poet.lora.bin:0.5   any of them, times 0.5
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama import hub
from llama.cache import LOGGER, Say, kept
from llama.errors import UsageError
from llama.files import temporary_folder
from llama.formats.adapter_file import SHAPE, check_matrices, write_adapter
from llama.formats.adapters import PICKLE, SETTINGS, WEIGHTS, Adapter, open_adapter, split
from llama.formats.config import Config
from llama.formats.models import open_source


def find(name: str) -> Path:
    """The path of an adapter, downloaded where it is a name of the hub. Raises as hub.download."""
    if not name:
        raise UsageError("the name of the adapter is empty")
    if Path(name).exists() or not hub.is_name(name):
        return Path(name)
    place = hub.parse(name)
    files = hub.listed(place)
    weights = PICKLE if PICKLE in files and WEIGHTS not in files else WEIGHTS
    return Path(hub.fetched_folder(place, [SETTINGS, weights]))


def fitting(folder: Path, model: str) -> tuple[Adapter, Config]:
    """The adapter in a folder, which can run beside a model, and the shape of that. Raises BadFileError."""
    source = open_source(Path(model))
    adapter = open_adapter(folder, source.config, source.tensors)
    check_matrices(adapter, source.config)
    return adapter, source.config


def converted(folder: Path, model: str, say: Say = LOGGER.info) -> Path:
    """The file of an adapter for the shape of a model: the one that is kept, or a new one.

    Raises BadFileError (no adapter, or one of another shape), OSError.
    """
    adapter, config = fitting(folder, model)  # also if it is kept: what it copies may be of another model
    shape = "-".join(str(getattr(config, name)) for name in SHAPE)

    def make(path: Path) -> str:
        say(f"converting {folder}, kept as {path}")
        write_adapter(path, adapter, config)
        return "lora"

    return kept(folder, f"lora-{shape}", make)


def engine_file(text: str, model: str, say: Say = LOGGER.info) -> tuple[str, float]:
    """The file and the scale of an adapter for a model, a .bin. Raises BadFileError, UsageError, OSError."""
    name, scale = split(text)
    path = find(name)
    return os.fspath(converted(path, model, say) if path.is_dir() else path), scale


@contextmanager
def opened(text: str, model: str, say: Say, cache: bool = True) -> Iterator[str]:
    """FILE:SCALE of an adapter for a model, a .bin, good until the end of the block.

    cache: False: convert it for this block alone. Raises BadFileError, UsageError, OSError.
    """
    name, scale = split(text)
    path = find(name)
    if cache or not path.is_dir():
        path, scale = engine_file(text, model, say)
        yield f"{path}:{scale!r}"
        return
    with temporary_folder() as aside:
        say(f"converting {path}, for this run")
        write_adapter(aside / "adapter.lora.bin", *fitting(path, model))
        yield f"{aside / 'adapter.lora.bin'}:{scale!r}"
