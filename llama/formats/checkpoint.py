"""Our checkpoints: a folder with model.safetensors, or that file.

It holds the weights under the names of model.py, without output.weight where it is tied, and Config.to_dict()
as JSON in the metadata under "config"; of a model that chats, its template and the ids that end its texts
too (texts.py).
"""

from __future__ import annotations

import os
from pathlib import Path

from llama.errors import BadFileError
from llama.formats.config import Config
from llama.formats.files import parse_json
from llama.formats.mapped import SafetensorsFile
from llama.formats.source import Source, checked_config
from llama.formats.texts import with_told

StrPath = str | os.PathLike[str]
WEIGHTS = "model.safetensors"


def open_checkpoint(path: StrPath) -> Source:
    """Our own checkpoint, a folder or its model.safetensors. Raises BadFileError."""
    path = Path(path, WEIGHTS) if Path(path).is_dir() else Path(path)
    file = SafetensorsFile(path)
    if "config" not in file.metadata:
        raise BadFileError(f"{path}: metadata has no config, so it is not a checkpoint of train.py")
    try:
        config = checked_config(f"{path}: config", **parse_json(file.metadata["config"]))
    except BadFileError:
        raise
    except (ValueError, TypeError) as error:
        raise BadFileError(f"{path}: config: {error}") from None
    return with_told(Source(str(path), config, file), file.metadata)


def read_config(path: StrPath) -> Config:
    """The configuration of a checkpoint, a folder or file. Raises BadFileError."""
    return open_checkpoint(path).config
