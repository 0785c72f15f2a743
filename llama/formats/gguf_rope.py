"""How RoPE is stretched in a GGUF file, both ways.

For Llama 3.1 and 3.2 a tensor, rope_freqs.weight, holds what the frequencies are divided by. YaRN is in keys,
of which llama.cpp reads three for a llama: frequencies blend between 32 turns and 1, and the magnitude is
attn_factor times the usual one, where transformers says the whole of it.
"""

from __future__ import annotations

from typing import Any

from llama.errors import BadFileError, UsageError
from llama.formats.config import Config, RopeScaling
from llama.formats.gguf_file import GgufFile
from llama.formats.rope import find_scaling, usual_magnitude
from llama.formats.tensor import NUMPY

FACTORS = "rope_freqs.weight"
PREFIX = "llama.rope.scaling."
TYPES = ("none", "linear", "yarn")
FIXED = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}  # as llama.cpp has it for every llama
ONLY = {  # keys that llama.cpp reads for other models alone: they must say what it does without them
    f"{PREFIX}yarn_beta_fast": (FIXED["beta_fast"],),
    f"{PREFIX}yarn_beta_slow": (FIXED["beta_slow"],),
    f"{PREFIX}yarn_ext_factor": (1.0, -1.0),  # -1: what the type says
    f"{PREFIX}yarn_attn_factor": (1.0,),
    f"{PREFIX}yarn_log_multiplier": (0.0,),
}


# --- Reading


def read_scaling(file: GgufFile, config: Config) -> RopeScaling | None:
    """How RoPE is stretched. config: without it. Raises BadFileError."""
    kind, factor = read_kind(file)
    if FACTORS not in file.tensors:
        return None if kind == "none" else read_numbers(file, config, kind, factor)
    shape, dtype = file.tensors[FACTORS].shape, file.tensors[FACTORS].type
    if kind == "none" and shape == (config.head_dim // 2,) and dtype in NUMPY:
        factors = file.tensor(FACTORS).floats()
        original = file.one(f"{PREFIX}original_context_length", int, 8192)
        try:
            return find_scaling(factors, config, original)
        except ValueError:
            pass  # the one line below
    raise BadFileError(f"{file.path}: {FACTORS} stretches RoPE, allowed as Llama 3 does it")


def read_kind(file: GgufFile) -> tuple[str, float]:
    """One of TYPES, and by what the frequencies are divided. A factor of 0 is as good as 1."""
    kind = file.one(f"{PREFIX}type", str, "linear")
    factor = file.one(f"{PREFIX}factor", float, file.one("llama.rope.scale_linear", float, 1.0)) or 1.0
    if kind not in TYPES:
        raise file.wrong(f"{PREFIX}type", " and ".join(map(repr, TYPES)))
    if factor < 0:
        raise BadFileError(f"{file.path}: RoPE is scaled by {factor}, allowed more than 0")
    if kind != "yarn" and file.get(f"{PREFIX}attn_factor", 1.0) != 1:
        raise file.wrong(f"{PREFIX}attn_factor", "1.0 without YaRN")
    return "none" if kind == "linear" and factor == 1 else kind, factor


def read_numbers(file: GgufFile, config: Config, kind: str, factor: float) -> RopeScaling:
    """A scaling that is all in keys. Raises BadFileError."""
    if kind == "linear":
        return RopeScaling(kind, factor)
    for key, allowed in ONLY.items():
        if file.get(key, allowed[0]) not in allowed:
            raise file.wrong(key, f"{allowed[0]}, as llama.cpp has it for a llama")
    magnitude, whole = file.one(f"{PREFIX}attn_factor", float, 1.0), 0.0
    if magnitude <= 0:
        raise file.wrong(f"{PREFIX}attn_factor", "more than 0")
    if magnitude != 1 and factor >= 1:
        whole = float(f"{magnitude * usual_magnitude(factor):.7g}")  # as it was meant: fp32 has seven digits
    original = file.one(f"{PREFIX}original_context_length", int, 0) or config.max_seq_len
    try:
        return RopeScaling(kind, factor, original_max_seq_len=original, attention_factor=whole)
    except ValueError as error:
        raise BadFileError(f"{file.path}: {error}") from None


# --- Writing


def check_scaling(name: str, scaling: RopeScaling | None) -> None:
    """Raises UsageError for what llama.cpp has no key for."""
    if scaling is None or scaling.kind != "yarn":
        return
    for field, allowed in FIXED.items():
        if (found := getattr(scaling, field)) != allowed:
            raise UsageError(f"{name}: rope_scaling {field} = {found}, allowed {allowed} in a GGUF file")


def add_scaling(writer: Any, scaling: RopeScaling) -> None:
    """The keys of a scaling that check_scaling let through; of llama3 the rest is in FACTORS."""
    if scaling.kind != "llama3":
        writer.add_string(f"{PREFIX}type", scaling.kind)
        writer.add_rope_scaling_factor(scaling.factor)
    if scaling.kind != "linear":
        writer.add_rope_scaling_orig_ctx_len(scaling.original_max_seq_len)
    if scaling.attention_factor:
        writer.add_rope_scaling_attn_factors(scaling.attention_factor / usual_magnitude(scaling.factor))
