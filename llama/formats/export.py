"""Models out: a source becomes a .bin, a GGUF file or a Hugging Face folder, each whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llama.files import written_aside, written_aside_folder
from llama.formats import huggingface_writer, llama2c, tiles, v3
from llama.formats.checkpoint import StrPath
from llama.formats.config import Config
from llama.formats.huggingface_writer import SHARD_BYTES, usual_dtype
from llama.formats.source import Source
from llama.formats.tensor import Tensor
from llama.formats.v3 import Extras
from llama.formats.vocabulary import Vocabulary


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
    notes: tuple[str, ...] = ()  # what other programs do otherwise with the file, a line each


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

    weights: under the names of model.py, whose rows are read in parts; training.weights
    has them of PyTorch's.
    group_size: of int8. None: the largest of 64, 32, 16 ... that divides dim and hidden_dim.
    force: write the file without the fields of config that it can't hold (Report.dropped).
    name: what messages call the weights. progress: show a bar on standard error.
    Raises UsageError, BadFileError (the weights do not fit config), OSError; an old file is then as it was.
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
    Raises BadFileError (the weights do not fit config, or dtype can't hold them), OSError.
    """
    path, ends_dtype = Path(path), ends_dtype or ("int8" if dtype == "int4" else dtype)
    source = Source(name, config, weights)
    v3.check_extras(name, extras or Extras())
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

    dtype: "fp32", "bf16" or "fp16", of all tensors; None: bf16 if the source has it, else fp32. tokenizer:
    the files to put beside, by name. shard_bytes: what a file of tensors holds at most, unless one is larger.
    Raises UsageError (the folder exists, transformers can't hold the shape), BadFileError, OSError; there is
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
    Raises UsageError, BadFileError (the weights do not fit, GGUF can't hold the tokenizer, the gguf library
    is missing), OSError; an old file is then as it was.
    """
    from llama.formats.gguf import write_gguf
    from llama.formats.gguf_vocabulary import notes_of

    path, dtype = Path(path), dtype or usual_dtype(source)
    errors = write_gguf(path, source, dtype, ends_dtype, vocabulary, progress=progress)
    group_size = tiles.GROUP if {dtype, ends_dtype} & {"int8", "int4"} else 0
    notes, size = notes_of(vocabulary) if vocabulary else (), path.stat().st_size
    return Report(path, "GGUF", dtype, size, group_size, worst_first(errors), notes=tuple(notes))
