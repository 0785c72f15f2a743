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
from llama.formats.adapter_file import SHAPE, write_adapter
from llama.formats.adapters import SETTINGS, WEIGHTS, open_adapter, split
from llama.formats.models import open_source


def find(name: str) -> Path:
    """The path of an adapter, downloaded where it is a name of the hub. Raises as hub.download."""
    if not name:
        raise UsageError("the name of the adapter is empty")
    if Path(name).exists() or not hub.is_name(name):
        return Path(name)
    return Path(hub.fetched_folder(hub.parse(name), [SETTINGS, WEIGHTS]))


def convert(folder: Path, out: Path, model: str) -> str:
    """Writes the adapter in a folder as a file for the shape of a model, and returns what that is called."""
    config = open_source(Path(model)).config
    write_adapter(out, open_adapter(folder, config), config)
    return "lora"


def converted(folder: Path, model: str, say: Say = LOGGER.info) -> Path:
    """The file of an adapter for the shape of a model: the one that is kept, or a new one.

    Raises BadFileError (no adapter, or one of another shape), OSError.
    """
    config = open_source(Path(model)).config
    shape = "-".join(str(getattr(config, name)) for name in SHAPE)

    def make(path: Path) -> str:
        say(f"converting {folder}, kept as {path}")
        return convert(folder, path, model)

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
        convert(path, aside / "adapter.lora.bin", model)
        yield f"{aside / 'adapter.lora.bin'}:{scale!r}"
