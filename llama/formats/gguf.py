"""GGUF files, llama.cpp's: models of its architecture "llama", out of and into them.

Weights lie in them as in model.py: the rows of wq and wk are in Meta's order there too. gguf_rope.py is about
what stretches RoPE, gguf_vocabulary.py about the tokenizer in a file.

Left out on purpose: experts.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llama.errors import BadFileError, UsageError
from llama.files import check_room, written_aside
from llama.formats import gguf_vocabulary as vocabularies
from llama.formats import tiles
from llama.formats.chat_templates import Chat, template_text
from llama.formats.config import Config
from llama.formats.gguf_file import GgufFile, tensor_bytes
from llama.formats.gguf_header import ALIGNMENT, BLOCKS
from llama.formats.gguf_rope import FACTORS, add_scaling, check_scaling, read_scaling
from llama.formats.pipeline import Flusher, Stage, pipeline, processors
from llama.formats.rope import rope_factors
from llama.formats.source import (
    CLASSIFIER,
    EMBEDDING,
    Source,
    checked_config,
    name_problems,
    refuse,
    tensor_shapes,
)
from llama.formats.strips import Strip, read, strips
from llama.formats.tensor import Tensor, is_finite, to_bf16, to_floats
from llama.formats.tiles import Errors
from llama.formats.vocabulary import Vocabulary
from llama.progress import Bar

NAMES = {  # ours and the file's, of tensors that are in no layer, then of those in a layer
    EMBEDDING: "token_embd.weight",
    "norm.weight": "output_norm.weight",
    CLASSIFIER: "output.weight",
    "attention_norm": "attn_norm",
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "ffn_norm": "ffn_norm",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
}


def gguf_name(name: str) -> str:
    """For layers.3.attention.wq.weight it is blk.3.attn_q.weight."""
    if name in NAMES:
        return NAMES[name]
    _, layer, part = name.removesuffix(".weight").split(".", 2)
    return f"blk.{layer}.{NAMES[part]}.weight"


def gguf_names(config: Config) -> dict[str, str]:
    """The file's names of tensors by ours."""
    return {name: gguf_name(name) for name in tensor_shapes(config)}


# --- Reading

FLOATS = ("fp32", "fp16", "bf16")  # of norms
ONLY = {  # what a file may say of things that model.py does not have
    "general.type": ("model",),
    "general.architecture": ("llama",),
    "llama.expert_count": (0,),
    "llama.attention.causal": (True,),
}


def same_number(file: GgufFile, key: str, layers: int, default: int | None = None) -> int:
    """A whole number that all layers have; a file may list it for each. Raises BadFileError."""
    if not isinstance(file.get(key), list):
        return file.one(key, int, default)
    found = file.many(key, int, layers)
    if len(set(found)) != 1 or not abs(found[0]) < 2**31:
        raise file.wrong(key, "one whole number for all layers")
    return found[0]


def read_config(file: GgufFile) -> Config:
    """The configuration of a model. Raises BadFileError."""
    for key, allowed in ONLY.items():
        if file.get(key, allowed[0]) not in allowed:
            raise file.wrong(key, " and ".join(map(repr, allowed)))
    if "token_embd.weight" not in file.tensors:
        raise BadFileError(f"{file.path}: token_embd.weight is missing")
    dim, n_layers = file.one("llama.embedding_length", int), file.one("llama.block_count", int)
    if n_layers > len(file.tensors):  # before so many layers are thought of
        raise file.wrong("llama.block_count", f"{len(file.tensors)}, the number of tensors, at most")
    n_heads = same_number(file, "llama.attention.head_count", n_layers)
    head_dim = file.one("llama.attention.key_length", int, dim // max(1, n_heads))
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if file.one(key, int, head_dim) != head_dim:
            raise file.wrong(key, f"head_dim = {head_dim}")
    fields = {
        "dim": dim,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": same_number(file, "llama.attention.head_count_kv", n_layers, n_heads),
        "head_dim": head_dim,
        "hidden_dim": same_number(file, "llama.feed_forward_length", n_layers),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "max_seq_len": file.one("llama.context_length", int),
        "norm_eps": file.one("llama.attention.layer_norm_rms_epsilon", float),
        "rope_theta": file.one("llama.rope.freq_base", float, 10000.0),
        "tied": "output.weight" not in file.tensors,
    }
    config = checked_config(str(file.path), **fields)
    return checked_config(str(file.path), **fields, rope_scaling=read_scaling(file, config))


def tensor_problems(file: GgufFile, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """What is wrong with the tensors of a file. shapes: allowed, under the file's names."""
    for name, shape in shapes.items():
        if name not in file.tensors:
            yield f"{name} is missing"
            continue
        found = file.tensors[name]
        if found.shape != shape:
            yield f"{name} has the shape {found.shape}, allowed {shape}"
        elif found.type not in (BLOCKS if len(shape) == 2 else FLOATS):
            allowed = ", ".join(BLOCKS if len(shape) == 2 else FLOATS)
            yield f"{name} has the type {found.type}, allowed {allowed}"
    others = file.tensors.keys() - shapes.keys() - {FACTORS}
    yield from (f"{name} is unexpected" for name in sorted(others))


class GgufTensors(Mapping[str, Tensor]):
    """The tensors of a file under our names, mapped; quantised rows become float32 when they are taken."""

    def __init__(self, file: GgufFile, names: dict[str, str]) -> None:
        self._file, self._names = file, names

    def __getitem__(self, name: str) -> Tensor:
        return self._file.tensor(self._names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def padded_vocabulary(file: GgufFile, size: int) -> Vocabulary | None:
    """The vocabulary of a file, with tokens that no text means for the rows that have none.

    Raises BadFileError.
    """
    found = vocabularies.find_vocabulary(file)
    return found.padded(size) if found and len(found) < size else found


def open_gguf(path: Path) -> Source:
    """The model in a GGUF file. Raises BadFileError, OSError."""
    file = GgufFile(path)
    config = read_config(file)
    names, shapes = gguf_names(config), tensor_shapes(config)
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
        vocabulary=cache(lambda: padded_vocabulary(file, config.vocab_size)),
    )
    refuse(source, problems)
    return source


# --- Writing

TYPES = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "Q8_0", "int4": "Q4_0"}
PACKED = {"Q8_0": "int8", "Q4_0": "int4"}  # as tiles.py has them
FILE_TYPES = {"fp32": 0, "fp16": 1, "bf16": 32, "int8": 7, "int4": 2}  # llama.cpp's llama_ftype
LIBRARY_TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}  # where the library calls them otherwise


def library() -> Any:
    """The gguf library, which writes headers. Raises BadFileError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise BadFileError("GGUF files are written by a library: pip install gguf") from None
    return gguf


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: its name here and in the file, its shape and type, and what that costs."""

    name: str
    file_name: str
    shape: tuple[int, ...]
    kind: str
    errors: Errors = field(default_factory=Errors)

    @property
    def bytes(self) -> int:
        return tensor_bytes(self.shape, self.kind)

    @property
    def aligned_bytes(self) -> int:
        return -(-self.bytes // ALIGNMENT) * ALIGNMENT


def chosen_type(name: str, shape: tuple[int, ...], dtype: str, ends_dtype: str) -> str:
    """The type of a tensor. As llama.cpp has it, rows that are not whole blocks of it are fp16."""
    if len(shape) == 1:
        return "fp32"
    kind = TYPES[ends_dtype if name in (EMBEDDING, CLASSIFIER) else dtype]
    return kind if shape[-1] % BLOCKS[kind][0] == 0 else "fp16"


def plan(config: Config, dtype: str, ends_dtype: str) -> list[Entry]:
    """The tensors of a file, in its order."""
    names, entries = gguf_names(config), []
    if config.rope_scaling and config.rope_scaling.kind == "llama3":
        entries.append(Entry(FACTORS, FACTORS, (config.head_dim // 2,), "fp32"))
    for name, shape in tensor_shapes(config).items():
        entries.append(Entry(name, names[name], shape, chosen_type(name, shape, dtype, ends_dtype)))
    return entries


def add_config(writer: Any, config: Config) -> None:
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
    if config.rope_scaling:
        add_scaling(writer, config.rope_scaling)


def add_model(writer: Any, name: str, dtype: str) -> None:
    """What a file says of itself."""
    writer.add_type(library().GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[dtype])
    writer.add_quantization_version(library().GGML_QUANT_VERSION)


def write_head(path: Path, writer: Any, entries: list[Entry]) -> None:
    """Writes all that comes before the data of the tensors."""
    for entry in entries:
        kind = library().GGMLQuantizationType[LIBRARY_TYPES.get(entry.kind, entry.kind)]
        size = (np.dtype(np.float32), entry.bytes)
        writer.add_tensor_info(entry.file_name, entry.shape, *size, raw_dtype=kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def sum_of_squares(values: np.ndarray) -> float:
    """In float64, of float32."""
    return float(np.square(values, dtype=np.float64).sum())


def blocks(strip: Strip[Entry]) -> np.ndarray:
    """Rows of whole groups as Q8_0 or Q4_0, with the scales that a v3 file has.

    A block is a half-precision scale and 32 weights: signed bytes, or 16 bytes with the weights 0 to 15 in
    their low halves and 16 to 31 in the high ones, 8 for 0. Raises ValueError for values that are not finite
    or too large.
    """
    entry, (rows, cols) = strip.entry, strip.values.shape
    data = tiles.pack(strip.values, PACKED[entry.kind], strip.errors, strip.begin)
    scales, weights = tiles.group_parts(data, PACKED[entry.kind], rows, cols)
    if entry.kind == "Q8_0":
        weights = weights ^ 128
    else:
        weights = weights[:, :, :16] | weights[:, :, 16:] << 4
    halves = np.ascontiguousarray(scales)[:, :, None].view(np.uint8)  # (rows, groups, 2)
    return np.concatenate((halves, weights), 2)


def rounded(strip: Strip[Entry]) -> np.ndarray:
    """Rows as floats of a type. Raises ValueError for values that it can't hold."""
    kind, errors = strip.entry.kind, strip.errors
    values = to_floats(strip.values, strip.dtype)
    if kind == "fp32":
        data = values
    else:
        with np.errstate(over="ignore"):
            data = to_bf16(values) if kind == "bf16" else values.astype(np.float16)
    if not is_finite(values, "fp32") or not is_finite(data, kind):
        raise ValueError
    if kind != "fp32":
        errors.total += sum_of_squares(values)
        errors.error += sum_of_squares(to_floats(data, kind) - values)
    return data


def pack(source: Source, strip: Strip[Entry]) -> Strip[Entry]:
    """Makes the bytes of a strip of its values. Raises BadFileError for values that its type can't hold."""
    entry = strip.entry
    try:
        data = blocks(strip) if entry.kind in PACKED else rounded(strip)
    except ValueError:
        problem = f"has values that are not finite, or too large for {entry.kind}"
        refuse(source, [f"{entry.name} {problem}"])
    strip.data, strip.values = data.reshape(-1).view(np.uint8), data[:0]
    return strip


def with_factors(source: Source, entries: list[Entry]) -> Source:
    """The source, in which RoPE's factors are a tensor too, if they are to be written."""
    if all(entry.name != FACTORS for entry in entries):
        return source
    return replace(
        source, tensors=ChainMap({FACTORS: Tensor.of(rope_factors(source.config))}, source.tensors)
    )


def write_tensors(file: BinaryIO, source: Source, entries: list[Entry], bar: bool) -> dict[str, float]:
    """Writes the data of all tensors, a few strips in memory at a time, and returns the relative errors."""
    file.write(bytes(-file.tell() % ALIGNMENT))
    pieces = strips(with_factors(source, entries), ((entry, entry.name, entry.shape) for entry in entries))
    stages = (Stage(read), Stage(partial(pack, source), processors()))
    total = sum(entry.aligned_bytes for entry in entries)
    with (
        Bar("writing", total, bar) as progress,
        closing(pipeline(pieces, *stages)) as finished,
        Flusher(file) as flusher,
    ):
        for strip in finished:
            file.write(strip.data)
            flusher.wrote(len(strip.data))
            strip.entry.errors.add(strip.errors)
            if strip.is_last:
                file.write(bytes(-file.tell() % ALIGNMENT))
            progress.update(len(strip.data))
    return {entry.name: entry.errors.relative for entry in entries if entry.kind != "fp32"}


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
        allowed = "two besides EOS and those that llama.cpp knows by name"
        refuse(source, [f"ids that end a text = {others}, allowed are {allowed}"])
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
    check_scaling(source.name, config.rope_scaling)
    refuse(source, name_problems(source, tensor_shapes(config)))
    entries = plan(config, dtype, ends_dtype)
    writer = library().GGUFWriter(None, "llama")
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
