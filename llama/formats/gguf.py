"""GGUF files, llama.cpp's: models of its architecture "llama", through the gguf library.

Weights lie in them as in model.py: the rows of wq and wk are in Meta's order there too. What stretches RoPE
for Llama 3.1 and 3.2 is a tensor, rope_freqs.weight, of what the frequencies are divided by.
gguf_vocabulary.py is about the tokenizer in a file.

Left out on purpose: files in several parts (llama.cpp's gguf-split joins them), experts, YaRN.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from llama.errors import BadFileError, UsageError
from llama.files import check_room, written_aside
from llama.formats import gguf_vocabulary as vocabularies
from llama.formats import tiles
from llama.formats.chat_templates import Chat, template_text
from llama.formats.config import Config, RopeScaling
from llama.formats.gguf_file import GgufFile, Type, gguf, tensor_bytes
from llama.formats.source import CLASSIFIER, EMBEDDING, Source, name_problems, refuse, take, tensor_shapes
from llama.formats.tiles import CHUNK_VALUES, Errors
from llama.formats.vocabulary import Vocabulary
from model import rope_frequencies

ROPE_FACTORS = "rope_freqs.weight"
FLOATS = {Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}


def gguf_names(config: Config) -> dict[str, str]:
    """The file's names of tensors by ours: layers.3.attention.wq.weight is blk.3.attn_q.weight."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.n_layers)
    return {name: names.get_name(name, (".weight",)) for name in tensor_shapes(config)}


def rope_factors(config: Config) -> Tensor:
    """What rope_scaling divides the frequencies of RoPE by: float32 (head_dim / 2)."""
    return (rope_frequencies(replace(config, rope_scaling=None)) / rope_frequencies(config)).float()


# --- Reading

READABLE = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
READABLE += ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
ONLY = {  # what a file may say of things that model.py does not have
    "general.architecture": ("llama",),
    "split.count": (0, 1),
    "llama.expert_count": (0,),
    "llama.rope.scaling.type": ("none", "linear"),
    "llama.rope.scaling.attn_factor": (1.0,),
}


def read_values(file: GgufFile, name: str) -> Tensor:
    """A tensor: floats of any size as they lie in the file, what is quantised as float32."""
    data, kind = file.bytes_of(name), file.tensors[name].kind
    if kind in FLOATS:
        return torch.from_numpy(data).view(FLOATS[kind])
    with np.errstate(all="ignore"):  # who takes the values finds what is not finite
        return torch.from_numpy(gguf.quants.dequantize(data, kind))


def read_rope_scaling(file: GgufFile, config: Config) -> RopeScaling | None:
    """How RoPE is stretched, from what the file says and its tensor of factors. config: without it."""
    factor = file.one("llama.rope.scaling.factor", float, file.one("llama.rope.scale_linear", float, 1.0))
    linear = factor not in (0, 1) and file.get("llama.rope.scaling.type") != "none"
    if factor < 0:
        raise BadFileError(f"{file.path}: RoPE is scaled by {factor}, allowed more than 0")
    if ROPE_FACTORS not in file.tensors:
        return RopeScaling("linear", factor) if linear else None
    if not linear and file.tensors[ROPE_FACTORS].shape == (config.head_dim // 2,):
        found = read_values(file, ROPE_FACTORS).float()
        original = file.one("llama.rope.scaling.original_context_length", int, 8192)
        # The factor is the largest value, unless even the slowest pair is not stretched in full.
        for guess in filter(lambda guess: guess > 0, (found.max().item(), 8.0, 32.0)):
            scaling = RopeScaling("llama3", guess, original_max_seq_len=original)
            if torch.allclose(found, rope_factors(replace(config, rope_scaling=scaling)), rtol=1e-4):
                return scaling
    raise BadFileError(f"{file.path}: {ROPE_FACTORS} stretches RoPE, allowed as Llama 3.1 and 3.2 do it")


def read_config(file: GgufFile) -> Config:
    """The configuration of a model. Raises BadFileError."""
    for key, allowed in ONLY.items():
        if file.get(key, allowed[0]) not in allowed:
            raise file.wrong(key, " and ".join(map(repr, allowed)))
    if "token_embd.weight" not in file.tensors:
        raise BadFileError(f"{file.path}: token_embd.weight is missing")
    dim = file.one("llama.embedding_length", int)
    n_heads = file.one("llama.attention.head_count", int)
    head_dim = file.one("llama.attention.key_length", int, dim // max(1, n_heads))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if file.one(key, int, head_dim) != head_dim:
            raise file.wrong(key, f"head_dim = {head_dim}")
    if file.one("llama.block_count", int) > len(file.tensors):  # before so many layers are thought of
        raise file.wrong("llama.block_count", f"{len(file.tensors)}, the number of tensors, at most")
    fields = {
        "dim": dim,
        "n_layers": file.one("llama.block_count", int),
        "n_heads": n_heads,
        "n_kv_heads": file.one("llama.attention.head_count_kv", int, n_heads),
        "head_dim": head_dim,
        "hidden_dim": file.one("llama.feed_forward_length", int),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "max_seq_len": file.one("llama.context_length", int),
        "norm_eps": file.one("llama.attention.layer_norm_rms_epsilon", float),
        "rope_theta": file.one("llama.rope.freq_base", float, 10000.0),
        "tied": "output.weight" not in file.tensors,
    }
    try:
        config = Config(**fields)
    except ValueError as error:
        raise BadFileError(f"{file.path}: {error}") from None
    return replace(config, rope_scaling=read_rope_scaling(file, config))


def tensor_problems(file: GgufFile, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """What is wrong with the tensors of a file. shapes: allowed, under the file's names."""
    for name, shape in shapes.items():
        if name not in file.tensors:
            yield f"{name} is missing"
            continue
        found = file.tensors[name]
        if found.shape != shape:
            yield f"{name} has the shape {found.shape}, allowed {shape}"
        elif found.kind.name not in READABLE:
            yield f"{name} has the type {found.kind.name}, allowed {', '.join(READABLE)}"
    others = file.tensors.keys() - shapes.keys() - {ROPE_FACTORS}
    yield from (f"{name} is unexpected" for name in sorted(others))


class GgufTensors(Mapping[str, Tensor]):
    """The tensors of a file under our names, mapped; quantised ones become float32 when they are taken."""

    def __init__(self, file: GgufFile, names: dict[str, str]) -> None:
        self._file, self._names = file, names

    def __getitem__(self, name: str) -> Tensor:
        values = read_values(self._file, self._names[name])
        if not all(map(math.isfinite, values.aminmax())):
            raise BadFileError(f"{self._file.path}: {self._names[name]} has values that are not finite")
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_gguf(path: Path) -> Source:
    """The model in a GGUF file. Raises BadFileError, OSError."""
    file = GgufFile(path)
    config = read_config(file)
    try:
        names, shapes = gguf_names(config), tensor_shapes(config)
    except RuntimeError as error:  # larger than any memory
        raise BadFileError(f"{path}: {error}") from None
    problems = list(tensor_problems(file, {names[name]: shape for name, shape in shapes.items()}))
    source = Source(
        str(path),
        config,
        GgufTensors(file, names),
        bos=vocabularies.find_ends(file)[0],
        stops=vocabularies.find_stops(file),
        add_bos=vocabularies.find_add_bos(file),
        add_eos=file.one(vocabularies.Keys.ADD_EOS, bool, False),
        chat=vocabularies.find_chat(file),
        vocabulary=cache(lambda: vocabularies.find_vocabulary(file)),
    )
    refuse(source, problems)
    return source


# --- Writing

TYPES = {"fp32": Type.F32, "fp16": Type.F16, "bf16": Type.BF16, "int8": Type.Q8_0, "int4": Type.Q4_0}
PACKED = {Type.Q8_0: "int8", Type.Q4_0: "int4"}  # as tiles.py has them
ALIGN = gguf.GGUF_DEFAULT_ALIGNMENT
FILE_TYPES = {
    "fp32": gguf.LlamaFileType.ALL_F32,
    "fp16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "int8": gguf.LlamaFileType.MOSTLY_Q8_0,
    "int4": gguf.LlamaFileType.MOSTLY_Q4_0,
}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its name here and in the file, its shape and type."""

    name: str
    file_name: str
    shape: tuple[int, ...]
    kind: Type

    @property
    def bytes(self) -> int:
        return tensor_bytes(self.shape, self.kind)

    @property
    def aligned_bytes(self) -> int:
        return -(-self.bytes // ALIGN) * ALIGN


def chosen_type(name: str, shape: tuple[int, ...], dtype: str, ends_dtype: str) -> Type:
    """The type of a tensor. As llama.cpp has it, rows that are not whole blocks of it are F16."""
    if len(shape) == 1:
        return Type.F32
    kind = TYPES[ends_dtype if name in (EMBEDDING, CLASSIFIER) else dtype]
    return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Type.F16


def plan(config: Config, dtype: str, ends_dtype: str) -> list[Entry]:
    """The tensors of a file, in its order."""
    names, entries = gguf_names(config), []
    if config.rope_scaling and config.rope_scaling.kind == "llama3":
        entries.append(Entry(ROPE_FACTORS, ROPE_FACTORS, (config.head_dim // 2,), Type.F32))
    for name, shape in tensor_shapes(config).items():
        entries.append(Entry(name, names[name], shape, chosen_type(name, shape, dtype, ends_dtype)))
    return entries


def add_config(writer: gguf.GGUFWriter, config: Config) -> None:
    """What llama.cpp must know of a model's shape."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if scaling := config.rope_scaling:
        if scaling.kind == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(scaling.factor)
        else:  # the rest is in ROPE_FACTORS
            writer.add_rope_scaling_orig_ctx_len(scaling.original_max_seq_len)


def add_model(writer: gguf.GGUFWriter, name: str, dtype: str) -> None:
    """What a file says of itself."""
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def write_head(path: Path, writer: gguf.GGUFWriter, entries: list[Entry]) -> None:
    """Writes all that comes before the data of the tensors."""
    for entry in entries:
        size = (np.dtype(np.float32), entry.bytes)
        writer.add_tensor_info(entry.file_name, entry.shape, *size, raw_dtype=entry.kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def sum_of_squares(values: Tensor) -> float:
    """In float64, of float32, without a copy."""
    return torch.linalg.vector_norm(values, dtype=torch.float64).item() ** 2


def packed(part: Tensor, kind: Type, errors: Errors) -> np.ndarray:
    """Rows of whole groups as Q8_0 or Q4_0, with the scales that a v3 file has.

    A block is a half-precision scale and 32 weights: signed bytes, or 16 bytes with the weights 0 to 15 in
    their low halves and 16 to 31 in the high ones, 8 for 0. Raises ValueError for values that are not finite
    or too large.
    """
    dtype, (rows, cols) = PACKED[kind], part.shape
    data = np.frombuffer(b"".join(tiles.pack(part, dtype, errors)), np.uint8)
    scales, weights = tiles.group_parts(data, dtype, rows, cols)
    if kind == Type.Q8_0:
        weights = weights ^ 128
    else:
        weights = weights[:, :, :16] | weights[:, :, 16:] << 4
    halves = np.ascontiguousarray(scales)[:, :, None].view(np.uint8)  # (rows, groups, 2)
    return np.concatenate((halves, weights), 2)


def converted(part: Tensor, kind: Type, errors: Errors) -> np.ndarray:
    """Rows as floats of a type, by the library. What is not finite shows in the errors."""
    with np.errstate(all="ignore"):
        data = gguf.quants.quantize(part.numpy(), kind)
        values = torch.from_numpy(gguf.quants.dequantize(data, kind))
    errors.total += sum_of_squares(part)
    errors.error += sum_of_squares(values - part)
    return data


def write_tensor(file: BinaryIO, weight: Tensor, kind: Type) -> float:
    """Writes a tensor, piece by piece, and returns its relative error, NaN if kind can't hold it."""
    errors, rows = Errors(), weight.view(-1, weight.shape[-1])
    write = packed if kind in PACKED else converted
    for part in rows.split(max(1, CHUNK_VALUES // (tiles.ROWS * rows.shape[1])) * tiles.ROWS):
        try:
            file.write(write(part, kind, errors).data.cast("B"))
        except ValueError:
            return math.nan
    file.write(bytes(-file.tell() % ALIGN))
    return errors.relative if math.isfinite(errors.error + errors.total) else math.nan


def values_of(source: Source, entry: Entry) -> Tensor:
    """What a tensor of the file is to hold, float32."""
    if entry.name == ROPE_FACTORS:
        return rope_factors(source.config)
    return take(source, entry.name, entry.shape)


def write_tensors(file: BinaryIO, source: Source, entries: list[Entry], bar: bool) -> dict[str, float]:
    """Writes the data of all tensors, one in memory at a time, and returns the relative errors."""
    errors = {}
    file.write(bytes(-file.tell() % ALIGN))
    total = sum(entry.aligned_bytes for entry in entries)
    with tqdm(total=total, unit="B", unit_scale=True, leave=False, disable=not bar) as progress:
        for entry in entries:
            error = errors[entry.name] = write_tensor(file, values_of(source, entry), entry.kind)
            if math.isnan(error):
                what = f"not finite, or too large for {entry.kind.name}"
                refuse(source, [f"{entry.name} has values that are {what}"])
            progress.update(entry.aligned_bytes)
    return {entry.name: errors[entry.name] for entry in entries if entry.kind != Type.F32}


def checked_vocabulary(source: Source, vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary, with BOS and EOS as the source has them.

    Raises BadFileError where GGUF can't hold it.
    """
    eos = source.stops[0] if source.stops and vocabulary.eos < 0 else vocabulary.eos
    vocabulary = replace(vocabulary, bos=source.bos if source.bos >= 0 else vocabulary.bos, eos=eos)
    others = vocabularies.other_stops(vocabulary, source.stops)
    if len(vocabulary) != source.config.vocab_size:
        found = f"has {len(vocabulary)} tokens, the model's vocab_size = {source.config.vocab_size}"
        refuse(source, [f"the tokenizer {found}"])
    if problem := vocabularies.problem_of(vocabulary):
        refuse(source, [f"GGUF can't hold the tokenizer: {problem}"])
    if len(others) > 2:
        refuse(source, [f"ids that end a text = {others}, allowed are two besides EOS and Llama 3's"])
    return vocabulary


def write_gguf(
    path: Path,
    source: Source,
    dtype: str = "int8",
    ends_dtype: str | None = None,
    vocabulary: Vocabulary | None = None,
    *,
    progress: bool = False,
) -> dict[str, float]:
    """Writes a model as a GGUF file that llama.cpp runs, and returns the relative errors of what was rounded.

    dtype: of the matrices of the layers: "fp32", "fp16", "bf16", "int8" (Q8_0) or "int4" (Q4_0); F16 where
    rows are not whole blocks. ends_dtype: of embedding and classifier; None: int8 for int4, else dtype.
    vocabulary: None for a model that knows no text; where texts begin and end and the template of chats are
    the source's. progress: show a bar on standard error.
    Raises UsageError, BadFileError (weights or vocabulary do not fit), OSError; an old file then stays.
    """
    ends_dtype = ends_dtype or ("int8" if dtype == "int4" else dtype)
    if unknown := {dtype, ends_dtype} - set(TYPES):
        raise UsageError(f"dtype = {unknown.pop()}, allowed {', '.join(TYPES)}")
    config = source.config
    refuse(source, name_problems(source, tensor_shapes(config)))
    entries = plan(config, dtype, ends_dtype)
    writer = gguf.GGUFWriter(None, "llama")
    add_model(writer, path.stem, dtype)
    add_config(writer, config)
    if vocabulary:
        checked = checked_vocabulary(source, vocabulary)
        template = template_text(source.chat or Chat())
        begins = checked.bos >= 0 and source.add_bos is not False
        vocabularies.add_vocabulary(writer, checked, template, source.stops, begins, source.add_eos)
    else:
        writer.add_tokenizer_model("no_vocab")
    with written_aside(path) as scratch:
        check_room(path, sum(entry.aligned_bytes for entry in entries))
        write_head(scratch, writer, entries)
        with scratch.open("ab") as file:
            return write_tensors(file, source, entries, progress)
