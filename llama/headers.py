"""What files of other kinds say of themselves: safetensors, PyTorch's .pth, folders of Hugging Face and Meta.

Only headers are read, so that a model larger than the memory takes a moment, by the readers of llama.formats,
and as far as a folder is whole: what is missing is for export.py to refuse.

Left out on purpose: the weights themselves (export.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama.errors import BadFileError
from llama.formats.files import is_file_name, parse_json
from llama.formats.header import Tensor, printable
from llama.formats.kinds import TORCH, WEIGHTS, is_text, start_of, whole
from llama.formats.pickles import read_pickle
from llama.formats.safetensors import read_header


@dataclass
class Weights:
    """What a file or a folder holds. config: as it is there, {} for none. notes: what was not read."""

    kind: str
    tensors: list[Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises BadFileError."""
    text = whole(path)
    try:
        data = parse_json(text)
    except ValueError as error:
        raise BadFileError(f"{path}: is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise BadFileError(f"{path}: found {type(data).__name__}, allowed is an object")
    return data


# --- One file


def named(tree: Any, prefix: str, seen: set[int]) -> Iterator[Tensor]:
    """The tensors of a dict, also in dicts inside it, with the names joined by dots.

    seen: the dicts passed. Raises ValueError for one that is met twice: there may be no end of it.
    """
    if id(tree) in seen:
        raise ValueError
    seen.add(id(tree))
    for key, value in tree.items():
        if isinstance(value, Tensor):
            yield Tensor(printable(f"{prefix}{key}"), value.type, value.shape, value.bytes)
        elif isinstance(value, dict):
            yield from named(value, f"{prefix}{key}.", seen)


def torch_zip(path: Path) -> tuple[list[Tensor], dict[str, Any], list[str]]:
    """The tensors of a .pth, model_args of one by llama2.c, and what is not shown. Raises BadFileError."""
    tree = read_pickle(path)
    if not isinstance(tree, dict):
        raise BadFileError(f"{path}: holds {type(tree).__name__}, allowed is a dict of tensors")
    model, config, rest = tree, {}, []
    if isinstance(tree.get("model"), dict):
        model, config = tree["model"], tree.get("model_args")
        rest = sorted(printable(key) for key in tree if key not in ("model", "model_args"))
    try:
        tensors = list(named(model, "", set()))
    except (ValueError, RecursionError):
        raise BadFileError(f"{path}: its dicts hold each other, or one dict twice") from None
    notes = [f"not shown: {', '.join(rest)}"] if rest else []
    return tensors, config if isinstance(config, dict) else {}, notes


# --- Folders

# Where Meta cuts a matrix in pieces: rows of these, columns of wo and w2; norms are in every piece.
CUT_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
CUT_COLUMNS = ("wo", "w2")


def joined(pieces: list[Tensor], dim: int) -> Tensor:
    """A tensor of Meta from its pieces. Embeddings are cut in rows (Llama 3) or columns (Llama 2)."""
    first = pieces[0]
    part = next((word for word in first.name.split(".") if word in (*CUT_ROWS, *CUT_COLUMNS)), "")
    if len(first.shape) != 2 or not (part or first.name.startswith("tok_embeddings")):
        return first
    rows, cols = first.shape
    by_rows = part in CUT_ROWS or (not part and cols == dim)
    shape = (rows * len(pieces), cols) if by_rows else (rows, cols * len(pieces))
    return Tensor(first.name, first.type, shape, sum(piece.bytes for piece in pieces))


def meta_folder(folder: Path) -> Weights:
    """A folder of Meta: params.json and consolidated.*.pth. Raises BadFileError."""
    config, files = read_json(folder / "params.json"), sorted(folder.glob("consolidated.*.pth"))
    if not files:
        return Weights("Meta", [], config, [], ["there is no consolidated.*.pth: only params.json is shown"])
    pieces: dict[str, list[Tensor]] = {}
    for file in files:
        for tensor in torch_zip(file)[0]:
            pieces.setdefault(tensor.name, []).append(tensor)
    dim = config.get("dim", 0)
    return Weights("Meta", [joined(parts, dim) for parts in pieces.values()], config, files)


def shards(index: Path) -> list[Path]:
    """The files that an index names. Raises BadFileError."""
    names = read_json(index).get("weight_map")
    files = list(names.values()) if isinstance(names, dict) else []
    if not files or not all(is_file_name(file) and is_text(file) for file in files):
        raise BadFileError(f"{index}: weight_map is no object of names")
    return [index.parent / file for file in sorted(set(files))]


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a Hugging Face folder, or one of ours. Raises BadFileError."""
    if name := next((name for name in WEIGHTS if (folder / name).exists()), None):
        return shards(folder / name) if name.endswith(".json") else [folder / name]
    for patterns in (("*.safetensors",), ("pytorch_model*.bin",), ("*.pth", "*.pt")):
        if files := sorted(file for pattern in patterns for file in folder.glob(pattern)):
            return files
    raise BadFileError(f"{folder}: holds no safetensors, no consolidated.*.pth and no pytorch_model*.bin")


def one_file(path: Path) -> Weights:
    """A .safetensors or a .pth. Raises BadFileError."""
    if start_of(path).startswith(TORCH):
        tensors, config, notes = torch_zip(path)
        return Weights("PyTorch", tensors, config, [path], notes)
    header = read_header(path)
    tensors = [tensor for tensor, _ in header.tensors.values()]
    config: Any = header.metadata.get("config", "{}")  # where train.py puts it
    try:
        config = parse_json(config) if isinstance(config, str) else {}
    except ValueError:
        raise BadFileError(f"{path}: the config of its metadata is not JSON") from None
    return Weights("safetensors", tensors, config if isinstance(config, dict) else {}, [path])


def read(path: Path) -> Weights:
    """What a folder, a .safetensors or a .pth holds. Raises BadFileError."""
    if path.is_dir() and (path / "params.json").exists():
        return meta_folder(path)
    files = weight_files(path) if path.is_dir() else [path]
    parts = [one_file(file) for file in files]
    folder = path if path.is_dir() else path.parent
    result = Weights(parts[0].kind, [], parts[0].config, files)
    result.tensors = [tensor for part in parts for tensor in part.tensors]
    result.notes = [note for part in parts for note in part.notes]
    if not result.config and (folder / "config.json").exists():
        result.config = read_json(folder / "config.json")
        result.kind = f"Hugging Face, {result.kind}"
    elif not result.config and (folder / "params.json").exists():
        result.config = read_json(folder / "params.json")
    return result


# --- Configurations under the names of LlamaConfig

HUGGING_FACE = {
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_seq_len",
    "tie_word_embeddings": "tied",
    "rms_norm_eps": "norm_eps",
    "rope_theta": "rope_theta",
}
OURS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "max_seq_len")
FIELDS = (*OURS, "tied", "norm_eps", "rope_theta", "rope_scaling")


def hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a Hugging Face folder; newer ones keep RoPE in rope_parameters."""
    found = {ours: config[theirs] for theirs, ours in HUGGING_FACE.items() if config.get(theirs) is not None}
    window, longest = config.get("sliding_window", 4096), found.get("max_seq_len")
    if config.get("model_type") == "mistral" and isinstance(window, int) and isinstance(longest, int):
        found["max_seq_len"] = min(longest, window)  # up to there it is a Llama, and export.py takes it so
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        rope = {}
    if "rope_theta" in rope:
        found["rope_theta"] = rope["rope_theta"]
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        names += ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
        found["rope_scaling"] = {"kind": kind} | {name: rope[name] for name in names if name in rope}
        if "original_max_position_embeddings" in rope:
            found["rope_scaling"]["original_max_seq_len"] = rope["original_max_position_embeddings"]
    return found


def shape_of(tensors: Iterable[Tensor], *endings: str) -> tuple[int, ...]:
    """The shape of the first tensor whose name ends so, (0, 0) if there is none."""
    return next((t.shape for t in tensors if t.name.endswith(endings) and len(t.shape) == 2), (0, 0))


def configuration(weights: Weights) -> dict[str, Any]:
    """Fields under the names of LlamaConfig, those that are known; what no config says, the shapes may."""
    config = weights.config
    found = hugging_face(config) if "hidden_size" in config else {k: config[k] for k in FIELDS if k in config}
    if config.get("use_scaled_rope"):
        found["rope_scaling"] = {"kind": "llama3"}  # Meta's file does not say its factors
    embedding = shape_of(weights.tensors, "tok_embeddings.weight", "embed_tokens.weight")
    w1 = shape_of(weights.tensors, "feed_forward.w1.weight", "mlp.gate_proj.weight")
    for name, value in (("vocab_size", embedding[0]), ("dim", embedding[1]), ("hidden_dim", w1[0])):
        known = found.get(name)
        if value and not (isinstance(known, int) and known > 0):  # Meta's vocab_size may be -1
            found[name] = value
    output = shape_of(weights.tensors, "output.weight", "lm_head.weight")
    found.setdefault("tied", bool(embedding[0]) and not output[0])
    dim, n_heads = found.get("dim"), found.get("n_heads")
    if isinstance(dim, int) and isinstance(n_heads, int) and n_heads > 0:
        found["n_kv_heads"] = found.get("n_kv_heads") or n_heads
        found["head_dim"] = found.get("head_dim") or dim // n_heads
    return {name: found[name] for name in FIELDS if name in found}


# --- Tokenizers

LLAMA3_KIND, LLAMA3_SPECIAL = "Llama 3 BPE", 256  # the number of tokens that follow those in its file


def tokenizer(folder: Path) -> dict[str, Any] | None:
    """The tokenizer of a folder: its file, kind and number of tokens. Raises BadFileError."""
    model, data = folder / "tokenizer.model", folder / "tokenizer.json"
    if model.exists():
        return tokenizer_model(model)
    if not data.exists():
        return None
    fields = read_json(data)
    core, added = fields.get("model"), fields.get("added_tokens")
    core = core if isinstance(core, dict) and isinstance(core.get("vocab"), dict) else {"vocab": {}}
    kind = f"{printable(core.get('type', 'unknown'))} of Hugging Face"
    added = added if isinstance(added, list) else []
    names = {str(token.get("content")) for token in added if isinstance(token, dict)}
    return {"file": data.name, "kind": kind, "vocab_size": len(core["vocab"].keys() | names)}


def tokenizer_model(path: Path) -> dict[str, Any]:
    """A tokenizer.model, of sentencepiece or of Llama 3: a line for each token of text, base64 and rank."""
    data = whole(path)
    if data[:1] != b"\n":
        n = len(data.splitlines()) + LLAMA3_SPECIAL
        return {"file": path.name, "kind": LLAMA3_KIND, "vocab_size": n}
    from llama.formats.sentencepiece_model import opened  # most files are told without the library

    if (sp := opened(data)) is None:
        raise BadFileError(f"{path}: is not a sentencepiece model")
    sizes = {"vocab_size": sp.vocab_size(), "bos": sp.bos_id(), "eos": sp.eos_id()}
    return {"file": path.name, "kind": "sentencepiece BPE", **sizes}
