"""python -m llama.info: all about a model's file: shape, tensors, tokenizer, and the memory that it takes.

    python -m llama.info stories15M.bin
    python -m llama.info model.bin --tensors --check        each tensor, and its checksum (v3)
    python -m llama.info Llama-3.1-8B -c 8192                a folder of Meta or Hugging Face
    python -m llama.info out/last/model.safetensors --json

Reads the .bin files that the engine runs (v0 to v3), and of what export.py turns into them, the headers: a
.safetensors, a .pth, a .gguf, a folder of Hugging Face, Meta or train.py. Weights are mapped, and shared by
processes; the cache is that of one sequence with -c positions. ./run --info says the same of a .bin in short.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llama import headers, hub
from llama._engine import ffi, lib
from llama.bench import aligned
from llama.command import Parser, name_type, run_command, started_as
from llama.config import model_config
from llama.errors import BadFileError, UsageError
from llama.formats import gguf_header
from llama.formats.chat_templates import KINDS, TEMPLATE_FILES
from llama.formats.header import Tensor, printable
from llama.formats.kinds import TORCH, is_of_folder, refuse_alone, start_of
from llama.native import KV, SHIPPED, call, model_open, struct
from llama.pack import packed_bytes
from llama.tokenizer import Tokenizer

ROPE_SCALING = (None, "linear", "llama3", "yarn")  # LLAMA_ROPE_PLAIN ...
TYPES = ("fp32", "bf16", "int8", "int4")  # that export.py writes
KEY_BLOCK = 16  # positions of the cache come in blocks (kernels.h)
LAYER = "(layers|blk)"  # before a number; blk in GGUF
NO_WEIGHTS = (
    "rotary_emb.inv_freq",
    "rope.freqs",
    "rope_freqs.weight",
)  # tables that some files hold beside the weights


@dataclass
class Memory:
    """Bytes that a run takes. None: not known without the engine, or without the whole configuration."""

    context: int | None
    weights: int
    cache: int | None  # with keys and values in fp32, which is the default
    cache_half: int | None  # in fp16 or bf16
    scratch: int | None
    weights_as: dict[str, int]  # of a v3 file of each type


@dataclass
class Info:
    """What there is to say of a model. config: under the names of LlamaConfig, as far as it is known."""

    path: str
    kind: str
    type: str  # of the matrices of the layers
    bytes: int
    parameters: int
    config: dict[str, Any]
    tokenizer: dict[str, Any] | None
    template: str
    stops: list[int]
    tensors: list[Tensor]
    memory: Memory
    checksums: str = "not compared"
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# --- Sizes


def bytes_as(tensor: Tensor, kind: str) -> int:
    """Bytes of a tensor in a v3 file whose layers have a type; the ends of an int4 file are int8."""
    if len(tensor.shape) != 2:
        return 4 * tensor.values
    is_end = not re.search(r"\b(layers|blk)\.", tensor.name)
    return packed_bytes("int8" if kind == "int4" and is_end else kind, *tensor.shape)


def weights_of(tensors: Iterable[Tensor], tied: bool) -> list[Tensor]:
    """The tensors that are weights of the model: a tied file may hold the classifier a second time."""
    found = [tensor for tensor in tensors if not tensor.name.endswith(NO_WEIGHTS)]
    ends = [tensor for tensor in found if tensor.name.endswith(("output.weight", "lm_head.weight"))]
    both = len(ends) == 1 and any("embed" in tensor.name for tensor in found)
    return [tensor for tensor in found if not (tied and both and tensor is ends[0])]


def weights_as(tensors: Sequence[Tensor]) -> dict[str, int]:
    """Bytes of the weights in a v3 file of each type."""
    return {kind: sum(bytes_as(tensor, kind) for tensor in tensors) for kind in TYPES}


# --- A file that the engine runs


def engine_tensors(model: Any) -> list[Tensor]:
    """The tensors of a C model, in the order of a v3 file."""
    found = []
    for i in range(lib.llama_n_tensors(model)):
        tensor = lib.llama_tensor(model, i)
        name, kind = (ffi.string(text).decode() for text in (tensor.name, lib.llama_type_name(tensor.type)))
        shape = (tensor.cols,) if name.endswith("norm") else (tensor.rows, tensor.cols)
        full = name if tensor.layer < 0 else f"layers.{tensor.layer}.{name}"
        found.append(Tensor(full, kind, shape, tensor.bytes))
    return found


def single(value: float) -> float:
    """A C float without the digits that it does not have."""
    return float(f"{value:.7g}")


def engine_config(model: Any) -> dict[str, Any]:
    """The configuration of a C model, with the scaling of RoPE."""
    config, c = asdict(model_config(model)), lib.llama_config(model)
    kind, scaling = ROPE_SCALING[c.rope_scaling], None
    if kind:
        scaling = {"kind": kind, "factor": single(c.rope_factor)}
    if kind == "llama3":
        scaling["low_freq_factor"] = single(c.rope_low_freq_factor)
        scaling["high_freq_factor"] = single(c.rope_high_freq_factor)
    if kind == "yarn":
        scaling["beta_fast"], scaling["beta_slow"] = single(c.rope_beta_fast), single(c.rope_beta_slow)
        if c.rope_attention_factor:
            scaling["attention_factor"] = single(c.rope_attention_factor)
        scaling["truncate"] = bool(c.rope_truncate)
    if kind in ("llama3", "yarn"):
        scaling["original_max_seq_len"] = c.rope_original_max_seq_len
    return {name: config[name] for name in headers.OURS} | {
        "tied": config["tied"],
        "group_size": config["group_size"],
        "norm_eps": single(config["norm_eps"]),
        "rope_theta": single(config["rope_theta"]),
        "rope_scaling": scaling,
    }


def engine_tokenizer(model: Any, path: str | None) -> dict[str, Any] | None:
    """The tokenizer of a C model, None where there is none. Raises BadFileError for one that is bad."""
    inside = bool(lib.llama_has_tokenizer(model))
    try:
        tokenizer = Tokenizer.find(path, model)
    except BadFileError:
        if path is not None or inside:
            raise
        return None
    place = "in the file" if inside and path is None else path or "beside the file or here"
    kind = ffi.string(lib.llama_tokenizer_kind(tokenizer.handle)).decode()
    ids = {"vocab_size": tokenizer.vocab_size, "bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    return {"file": place, "kind": kind, **ids}


def compare_checksums(model: Any) -> str:
    """What became of it. Raises BadFileError for the first tensor that is not what was written."""
    if lib.llama_config(model).version < 3:
        return "none in a file of this kind"
    for i in range(lib.llama_n_tensors(model)):
        call(lib.llama_check_tensor, model, i)
    return "all fit"


def measured(model: Any, context: int, kv: str) -> Any:
    """A LlamaMemory: what a context of so many positions takes. kv: type of keys and values."""
    size = ffi.new("LlamaMemory *")
    options = struct("LlamaContextOptions", context=context, kv=KV.index(kv))
    call(lib.llama_context_measure, model, options, size)
    return size


def of_engine(path: str, tokenizer: str | None, context: int, check: bool) -> Info:
    """A .bin file. Raises BadFileError, UsageError."""
    model = model_open(path)
    c, config, tensors = lib.llama_config(model), engine_config(model), engine_tensors(model)
    size, half = measured(model, context, "fp32"), measured(model, context, "fp16")
    return Info(
        path,
        f"v{c.version}",
        ffi.string(lib.llama_type_name(c.weight_type)).decode(),
        Path(path).stat().st_size,
        lib.llama_parameters(model),
        config,
        engine_tokenizer(model, tokenizer),
        KINDS[c.chat_template],
        list(c.stops)[: c.n_stops],
        tensors,
        Memory(size.context, size.weights, size.cache, half.cache, size.scratch, weights_as(tensors)),
        compare_checksums(model) if check else "not compared",
    )


# --- What export.py reads


def is_foreign(path: Path) -> bool:
    """Whether a path is a folder, a file of PyTorch or a safetensors file, none of which the engine opens."""
    start = start_of(path)
    is_file = start.startswith(TORCH) or start[8:10] == b'{"' or path.suffix == ".safetensors"
    return is_file or path.is_dir()


def cache_bytes(config: dict[str, Any], context: int, each: int) -> int | None:
    """Bytes of the keys and values of one sequence, None where the configuration does not say it. each: of a
    single number.
    """
    sizes = [config.get(name) for name in ("n_layers", "n_kv_heads", "head_dim")]
    if not context or not all(isinstance(size, int) and 0 < size < 1 << 32 for size in sizes):
        return None
    layers, heads, width = sizes
    return 2 * each * layers * heads * width * -(-context // KEY_BLOCK) * KEY_BLOCK


def positions(context: int, config: dict[str, Any]) -> int:
    """Positions that are asked for, 0: those of the model, as far as it says so. Raises UsageError."""
    longest = config.get("max_seq_len")
    longest = longest if isinstance(longest, int) and 0 < longest < 1 << 32 else 0
    if longest and context > longest:
        raise UsageError(f"--context = {context}, allowed 1 to {longest}, the model's max_seq_len")
    return context or longest


def most_frequent(tensors: Iterable[Tensor]) -> str:
    """The type of most matrices."""
    matrices = [tensor.type for tensor in tensors if len(tensor.shape) == 2]
    return max(set(matrices), key=matrices.count, default="no weights")


def folder_extras(folder: Path) -> tuple[str, list[int]]:
    """The chat template and the ids that end a text, of a folder of Hugging Face."""
    said = [
        headers.read_json(folder / name)
        for name in ("generation_config.json", "config.json")
        if (folder / name).exists()
    ]
    stops = next((config["eos_token_id"] for config in said if config.get("eos_token_id") is not None), [])
    settings = folder / "tokenizer_config.json"
    template = any((folder / name).exists() for name in TEMPLATE_FILES) or (
        settings.exists() and bool(headers.read_json(settings).get("chat_template"))
    )
    return "of Hugging Face" if template else "none", stops if isinstance(stops, list) else [stops]


def meta_template(tokenizer: dict[str, Any] | None) -> str:
    """The chat template of a folder of Meta, which does not say it: that of its tokenizer's family."""
    if tokenizer is None:
        return "none"
    family = "llama3" if tokenizer["kind"] == headers.LLAMA3_KIND else "llama2"
    return f"{family}, as the tokenizer is of that family"


def of_headers(path: str, context: int) -> Info:
    """A folder, a .safetensors or a .pth. Raises BadFileError, UsageError."""
    found, folder = headers.read(Path(path)), Path(path) if Path(path).is_dir() else Path(path).parent
    config = headers.configuration(found)
    tensors = weights_of(found.tensors, bool(config.get("tied")))
    size, context = sum(tensor.bytes for tensor in tensors), positions(context, config)
    caches = (cache_bytes(config, context, value) for value in (4, 2))
    tokenizer, (template, stops) = headers.tokenizer(folder), folder_extras(folder)
    if found.kind == "Meta" and template == "none":
        template = meta_template(tokenizer)
    return Info(
        path,
        found.kind,
        most_frequent(tensors),
        sum(file.stat().st_size for file in found.files),
        sum(tensor.values for tensor in tensors),
        config,
        tokenizer,
        template,
        stops,
        found.tensors,
        Memory(context or None, size, *caches, None, weights_as(tensors)),
        "none in a file of this kind",
        found.notes,
    )


def of_gguf(path: str, context: int) -> Info:
    """A GGUF file. Raises BadFileError, UsageError."""
    parts = gguf_header.read(Path(path))
    values, found = parts[0].values, [tensor for part in parts for tensor in part.tensors]
    tensors = [Tensor(printable(tensor.name), tensor.type, tensor.shape, tensor.bytes) for tensor in found]
    config, eos = gguf_header.configuration(values, tensors), values.get("tokenizer.ggml.eos_token_id")
    weights, context = weights_of(tensors, False), positions(context, config)
    size = sum(tensor.bytes for tensor in weights)
    caches = (cache_bytes(config, context, value) for value in (4, 2))
    return Info(
        path,
        f"GGUF, {printable(values.get('general.architecture', 'unknown'))}",
        most_frequent(tensors),
        sum(part.path.stat().st_size for part in parts),
        sum(tensor.values for tensor in weights),
        config,
        gguf_header.tokenizer(values),
        "in the file" if "tokenizer.chat_template" in values else "none",
        [eos] if isinstance(eos, int) else [],
        tensors,
        Memory(context or None, size, *caches, None, weights_as(weights)),
        "none in a file of this kind",
    )


def info(path: str, tokenizer: str | None = None, context: int = 0, check: bool = False) -> Info:
    """All about a file or a folder.

    tokenizer: of a .bin, None: the one that belongs to it. context: positions, 0: as many as the model has.
    check: compare checksums. Raises BadFileError, UsageError.
    """
    if start_of(Path(path))[:4] == b"GGUF":
        return of_gguf(path, context)
    if is_foreign(Path(path)):
        return of_headers(path, context)
    if is_of_folder(Path(path), start_of(Path(path))):
        refuse_alone(Path(path))
    return of_engine(path, tokenizer, context, check)


# --- Text


def size_text(size: float) -> str:
    """Bytes with a unit, in powers of 1000."""
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} GB"


def rope_text(config: dict[str, Any]) -> str:
    """RoPE's base and scaling in words."""
    scaling, theta = config.get("rope_scaling"), config.get("rope_theta", 10000.0)
    text = f"theta {theta:.10g}" if isinstance(theta, float) else f"theta {theta}"
    if not isinstance(scaling, dict):
        return text
    names = {"low_freq_factor": "low", "high_freq_factor": "high", "original_max_seq_len": "original context"}
    rest = [f"{names.get(name, name)} {value}" for name, value in scaling.items() if name != "kind"]
    return f"{text}, {scaling.get('kind')} scaling{': ' if rest else ''}{', '.join(rest)}"


def tokenizer_text(tokenizer: dict[str, Any] | None) -> str:
    if tokenizer is None:
        return "not found"
    ids = "".join(f", {name} {tokenizer[name]}" for name in ("bos", "eos") if name in tokenizer)
    return f"{tokenizer['file']}: {tokenizer['kind']}, {tokenizer['vocab_size']} tokens{ids}"


def memory_text(memory: Memory) -> Iterator[tuple[str, str]]:
    yield "weights", f"{size_text(memory.weights)}, mapped"
    yield "as v3", ", ".join(f"{kind} {size_text(size)}" for kind, size in memory.weights_as.items())
    if memory.cache is not None:
        half = f", {size_text(memory.cache_half)} with --kv fp16" if memory.cache_half is not None else ""
        yield "cache", f"{size_text(memory.cache)} for {memory.context} positions{half}"
    if memory.scratch is not None:
        yield "scratch", size_text(memory.scratch)


def numbers(found: Collection[int]) -> str:
    """0-5 for 0, 1, 2, 3, 4, 5; with gaps: 0-2,4."""
    known = set(found)
    starts = [n for n in found if n - 1 not in known]
    ends = [n for n in found if n + 1 not in known]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def folded(tensors: Iterable[Tensor]) -> Iterator[tuple[str, Tensor, int]]:
    """Name, an example and the number of tensors that differ in nothing but their layer."""
    groups: dict[tuple[str, str, tuple[int, ...]], list[Tensor]] = {}
    for tensor in tensors:
        name = re.sub(rf"\b{LAYER}\.\d+\.", r"\1.*.", tensor.name, count=1)
        groups.setdefault((name, tensor.type, tensor.shape), []).append(tensor)
    for (name, _, _), group in groups.items():
        found = (re.search(rf"\b{LAYER}\.(\d+)\.", tensor.name) for tensor in group)
        layers = sorted({int(match[2]) for match in found if match})
        yield name.replace("*", numbers(layers)), group[0], len(group)


def tensor_rows(tensors: Sequence[Tensor], fold: bool) -> Iterator[tuple[str, ...]]:
    """The table of tensors; bytes are those of all that a line stands for."""
    yield "tensor", "number", "type", "shape", "bytes"
    for name, tensor, n in folded(tensors) if fold else ((t.name, t, 1) for t in tensors):
        shape = " x ".join(map(str, tensor.shape))
        yield name, str(n), tensor.type, shape, size_text(n * tensor.bytes)


def text(found: Info, fold: bool = True) -> str:
    """The report of a model, in lines. fold: one line for the same tensor of all layers."""
    config = dict(found.config)
    rope = rope_text(config)
    for name in ("rope_theta", "rope_scaling"):
        config.pop(name, None)
    lines = [
        (name, ("no", "yes")[value] if isinstance(value, bool) else str(value))
        for name, value in config.items()
    ]
    lines += [("rope", rope), ("tokenizer", tokenizer_text(found.tokenizer)), ("template", found.template)]
    lines += [("stop ids", ", ".join(map(str, found.stops)) or "eos"), *memory_text(found.memory)]
    lines += [("checksums", found.checksums), *(("note", note) for note in found.notes)]
    size = f"{size_text(found.bytes)}, {found.parameters / 1e6:.1f} M parameters"
    head = f"{found.path}: {found.kind}, {found.type}, {size}"
    table = aligned(list(tensor_rows(found.tensors, fold)))
    facts = (printable(f"{name:<12} {value}") for name, value in lines)
    return "\n".join([printable(head, 5000), "", *facts, "", *table])


# --- The program


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line."""
    parser = Parser(prog=started_as("info"), description=__doc__)
    parser.add_argument("model", nargs="?", default=SHIPPED, help="a file, a folder, or a name of llama.hub")
    parser.add_argument(
        "-z", "--tokenizer", type=name_type, metavar="FILE", help="default: the one that belongs to it"
    )
    parser.add_argument("-c", "--context", type=int, default=0, metavar="N", help="positions (the model's)")
    parser.add_argument("--tensors", action="store_true", help="a line for each, also those of layers")
    parser.add_argument("--check", action="store_true", help="compare the checksums of the tensors")
    parser.add_argument("--json", action="store_true", help="print an object")
    options = parser.parse_args(arguments)
    if options.context < 0:
        raise UsageError(f"--context = {options.context}, allowed 0 or more")
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    path, tokenizer = hub.find(str(options.model), options.tokenizer)
    found = info(path, tokenizer, options.context, options.check)
    print(json.dumps(found.to_dict()) if options.json else text(found, not options.tensors))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
