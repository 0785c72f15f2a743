"""Hugging Face's folders: config.json with safetensors, one file or shards with an index, or older .bin.

transformers rotates the halves of a head where Meta and model.py rotate pairs, so the rows of wq and wk
change places. huggingface_writer.py is the way back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llama.errors import BadFileError
from llama.files import named
from llama.formats.chat_templates import TEMPLATE_FILES, Chat
from llama.formats.config import Config
from llama.formats.files import Fields, is_file_name, read_json
from llama.formats.header import printable
from llama.formats.huggingface_rope import notes_of, read_rope, type_of
from llama.formats.kinds import CONFIG, WEIGHTS, checked_start, is_text
from llama.formats.mapped import SafetensorsFile, open_pickle, unwrapped
from llama.formats.source import (
    CLASSIFIER,
    EMBEDDING,
    Source,
    checked_config,
    refuse,
    tensor_problem,
    tensor_shapes,
)
from llama.formats.tensor import Tensor
from llama.formats.text_ends import put_around

GENERATION, INDEX = "generation_config.json", "model.safetensors.index.json"
NORM = "norm.weight"
IGNORED = ".rotary_emb.inv_freq"  # in old files; it follows from the configuration
NAMES = {  # ours and theirs, of tensors that are in no layer, then of those in a layer
    EMBEDDING: "model.embed_tokens.weight",
    NORM: "model.norm.weight",
    CLASSIFIER: "lm_head.weight",
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
DEFAULTS = {"llama": (2048, 0), "mistral": (131072, 8)}  # context, and heads of keys and values (0: all)
ARCHITECTURES = (  # as transformers writes them, as it did in 2023, and of a model without its classifier
    *("LlamaForCausalLM", "MistralForCausalLM"),
    *("LLaMAForCausalLM", "LlamaModel", "MistralModel"),
)


def is_huggingface(folder: Path) -> bool:
    return (folder / CONFIG).exists()


# --- The configuration


def check_kind(config: Fields) -> None:
    """Raises BadFileError for what is not a Llama in all but name."""
    config.one_of("model_type", tuple(DEFAULTS))
    config.one_of("architectures", ([], *([name] for name in ARCHITECTURES)), [])
    config.one_of("hidden_act", ("silu", "swish"), "silu")
    for bias in ("attention_bias", "mlp_bias"):
        config.one_of(bias, (False,), False)
    if (found := config.values.get("quantization_config")) is not None:
        method = found.get("quant_method") if isinstance(found, dict) else found
        raise BadFileError(
            f"{config.path}: quantization_config = {method}, allowed none: no quantised weights"
        )


def window_of(config: Fields) -> int | None:
    """How many positions back a Mistral's attention reaches, None for all. Up to there it is a Llama's."""
    if config.values["model_type"] != "mistral" or config.values.get("sliding_window", 0) is None:
        return None
    return config.integer("sliding_window", 4096)


def bounds_of(config: Fields, context: int) -> dict[str, Any]:
    """Up to how many positions the model is a Llama, and what bounds them: longest and bound of a Source."""
    window = window_of(config)
    if type_of(config) == "dynamic" and context != window:
        return {"longest": context, "bound": "context before RoPE is scaled dynamically"}
    return {"longest": window}


def read_config(config: Fields) -> Config:
    """The configuration that a config.json stands for. Raises BadFileError."""
    check_kind(config)
    usual_context, usual_kv_heads = DEFAULTS[config.values["model_type"]]
    context = config.integer("max_position_embeddings", usual_context)
    dim, n_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    return checked_config(
        str(config.path),
        dim=dim,
        n_layers=config.integer("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=config.integer("num_key_value_heads", usual_kv_heads or n_heads),
        head_dim=config.integer("head_dim", dim // max(1, n_heads)),
        hidden_dim=config.integer("intermediate_size"),
        vocab_size=config.integer("vocab_size"),
        max_seq_len=min(context, window_of(config) or context),
        norm_eps=config.number("rms_norm_eps", 1e-6),
        tied=config.flag("tie_word_embeddings", False),
        **read_rope(config, context),
    )


# --- Where texts end, and chats


def token_ids(fields: Fields, name: str, vocab_size: int) -> tuple[int, ...]:
    """The ids of a field that holds one, a list of them, or none: null, or -1. Raises BadFileError."""
    value = fields.values.get(name)
    ids = value if isinstance(value, list) else [] if value in (None, -1) else [value]
    for i in ids:
        if not (type(i) is int and 0 <= i < vocab_size):
            raise BadFileError(f"{fields.path}: {name} = {value!r}, allowed 0 to {vocab_size - 1}")
    return tuple(ids)


TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"


def named_default(said: Fields) -> str:
    """The template itself, or of several that have names the one called default; "" for none.

    Raises BadFileError.
    """
    templates: Any = said.values.get("chat_template")
    if isinstance(templates, list):
        entries = [entry if isinstance(entry, dict) else {} for entry in templates]
        pairs = [(entry.get("name"), entry.get("template")) for entry in entries]
        fits = all(isinstance(part, str) for pair in pairs for part in pair)
        templates = dict(pairs) if fits else templates
    text = templates.get("default") if isinstance(templates, dict) else templates
    if not isinstance(text, str | None):
        found = f"chat_template = {said.values['chat_template']!r:.40}"
        raise BadFileError(f"{said.path}: {found}, allowed text, and templates by name")
    return (text or "").encode(errors="replace").decode()


def read_chat(folder: Path) -> Chat:
    """The chat template of a folder: beside the configuration, or in that of its tokenizer. An empty file is
    none, as in transformers, and takes the place of one in the configuration.

    Raises BadFileError.
    """
    for path in (folder / name for name in TEMPLATE_FILES if (folder / name).exists()):
        checked_start(path)
        with named(path):
            text = path.read_text(encoding="utf-8", errors="replace")
        return Chat("other", text) if text else Chat()
    for name in (SETTINGS, "chat_template.json"):
        if (path := folder / name).exists() and (text := named_default(read_json(path))):
            return Chat("other", text)
    return Chat()


def read_adds(folder: Path) -> tuple[bool | None, bool]:
    """Whether a folder's tokenizer begins a text with BOS, None if it does not say, and ends it with EOS.

    In transformers 5 a tokenizer.json says so by itself, beside another file tokenizer_config.json does.
    """
    if (folder / TOKENIZER).exists():
        begin, end = put_around(folder / TOKENIZER, read_json(folder / TOKENIZER).values)
        return bool(begin), bool(end)
    said = read_json(folder / SETTINGS).values if (folder / SETTINGS).exists() else {}
    begins = said.get("add_bos_token")
    return begins if isinstance(begins, bool) else None, said.get("add_eos_token") is True


# --- The tensors


def ordered(weight: Tensor, order: np.ndarray) -> Tensor:
    """A matrix whose row i is row order[i] of another."""
    if len(order) != len(weight):  # which whoever checks the shape says
        return weight

    def rows(begin: int, end: int) -> np.ndarray:
        """Of the rows that are taken the first and the last are near, so the file is read in order."""
        places = order[begin:end]
        first, last = int(places.min()), int(places.max()) + 1
        return weight.rows(first, last)[places - first]

    return Tensor(weight.dtype, weight.shape, rows)


def halves_to_pairs(weight: Tensor, heads: int) -> Tensor:
    """A matrix whose rows (j, j + d / 2) of each head become (2 j, 2 j + 1)."""
    return ordered(weight, np.arange(len(weight)).reshape(heads, 2, -1).transpose(0, 2, 1).reshape(-1))


def pairs_to_halves(weight: Tensor, heads: int) -> Tensor:
    """A matrix whose rows (2 j, 2 j + 1) of each head become (j, j + d / 2)."""
    return ordered(weight, np.arange(len(weight)).reshape(heads, -1, 2).transpose(0, 2, 1).reshape(-1))


def rotated_heads(name: str, config: Config) -> int:
    """The heads of a tensor that RoPE turns, 0 for all others."""
    part = name.split(".", 2)[-1]
    return {"attention.wq.weight": config.n_heads, "attention.wk.weight": config.n_kv_heads}.get(part, 0)


def their_name(name: str) -> str:
    """For layers.3.attention.wq.weight it is model.layers.3.self_attn.q_proj.weight."""
    if name in NAMES:
        return NAMES[name]
    _, layer, part = name.removesuffix(".weight").split(".", 2)
    return f"model.layers.{layer}.{NAMES[part]}.weight"


def shard_names(folder: Path, index: Fields) -> dict[str, str]:
    """The file of each tensor that an index names. Raises BadFileError."""
    names = index.object("weight_map").values
    if not names:
        raise BadFileError(f"{index.path}: weight_map names no tensor, allowed is the file of each")
    for tensor, file in names.items():
        if not (is_file_name(file) and is_text(file)):
            found = f"{printable(tensor)} is in {file!r:.200}"
            raise BadFileError(f"{index.path}: {found}, allowed files of the folder")
    return {unwrapped(tensor): file for tensor, file in names.items()}


def open_weights(path: Path) -> Mapping[str, Tensor]:
    return SafetensorsFile(path) if path.suffix == ".safetensors" else open_pickle(path)


def open_shards(folder: Path) -> dict[str, Mapping[str, Tensor]]:
    """The open file of each tensor of a folder. Raises BadFileError, OSError."""
    name = next((name for name in WEIGHTS if (folder / name).exists()), None)
    if name is None:
        raise BadFileError(f"{folder}: has none of {', '.join(WEIGHTS)}")
    promised = shard_names(folder, read_json(folder / name)) if name.endswith(".json") else {}
    places: dict[str, str] = {}
    files = {file: open_weights(folder / file) for file in sorted(set(promised.values()) or {name})}
    for file, tensors in files.items():
        for tensor in tensors:
            if tensor in places:
                raise BadFileError(f"{folder / file}: {printable(tensor)} is in {places[tensor]} too")
            places[tensor] = file
    for tensor, file in promised.items():
        if tensor not in files[file]:
            found = f"{printable(tensor)} is missing"
            raise BadFileError(f"{folder / file}: {found}, {name} says it is there")
    return {tensor: files[file] for tensor, file in places.items()}


class FolderTensors(Mapping[str, Tensor]):
    """The tensors of a folder, under the names and with the order of rows of model.py."""

    def __init__(self, files: dict[str, Mapping[str, Tensor]], names: dict[str, str], config: Config) -> None:
        self._files, self._names, self._config = files, names, config

    def as_it_is(self, name: str) -> Tensor:
        theirs = self._names[name]
        return self._files[theirs][theirs]

    def __getitem__(self, name: str) -> Tensor:
        heads, tensor = rotated_heads(name, self._config), self.as_it_is(name)
        return halves_to_pairs(tensor, heads) if heads else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def match_names(files: Mapping[str, Any], config: Config) -> tuple[dict[str, str], list[str]]:
    """Our names and theirs, and what is wrong with theirs. A tied model has one of two tensors, or both.

    What AutoModel saves has no model. in front of its names, as it is that part of the whole.
    """
    found = {name for name in files if not name.endswith(IGNORED)}
    names = {name: their_name(name) for name in tensor_shapes(config)}
    if NAMES[NORM] not in found:
        bare = {name: theirs.removeprefix("model.") for name, theirs in names.items()}
        names = bare if bare[NORM] in found else names
    if config.tied and NAMES[CLASSIFIER] in found:
        names[CLASSIFIER if names[EMBEDDING] in found else EMBEDDING] = NAMES[CLASSIFIER]
    unexpected = [printable(name) for name in sorted(found.difference(names.values()))]
    problems = [f"{name} is a bias, which a Llama has not" for name in unexpected if name.endswith(".bias")]
    problems += [f"{name} is missing" for name in names.values() if name not in found]
    problems += [f"{name} is unexpected" for name in unexpected if not name.endswith(".bias")]
    return names, problems


def open_huggingface(folder: Path) -> Source:
    """A model of transformers. Raises BadFileError, OSError."""
    fields = read_json(folder / CONFIG)
    config, files = read_config(fields), open_shards(folder)
    names, problems = match_names(files, config)
    tensors = FolderTensors(files, names, config)
    texts = [read_json(folder / GENERATION)] if (folder / GENERATION).exists() else []
    ids = [token_ids(said, "eos_token_id", config.vocab_size) for said in [*texts, fields]]
    bos = token_ids(fields, "bos_token_id", config.vocab_size)
    add_bos, add_eos = read_adds(folder)
    source = Source(
        str(folder),
        config,
        tensors,
        bos=bos[0] if bos else -1,
        stops=next(filter(None, ids), ()),
        add_bos=add_bos,
        add_eos=add_eos,
        chat=read_chat(folder),
        **bounds_of(fields, config.max_seq_len),
        notes=notes_of(config),
    )
    refuse(source, problems)
    shapes = tensor_shapes(config)
    found = (tensor_problem(names[name], tensors.as_it_is(name), shapes[name]) for name in shapes)
    refuse(source, list(filter(None, found)))
    return source
