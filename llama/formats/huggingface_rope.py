"""RoPE in a config.json: what transformers 5 calls rope_parameters and 4 calls rope_scaling, both ways.

Left out on purpose: longrope, which has a list of factors for each of two lengths. "dynamic" is read as no
scaling up to max_position_embeddings, which is what it is; it changes with the length of the text behind it.
"""

from __future__ import annotations

from typing import Any

from llama.errors import BadFileError
from llama.formats.config import Config, RopeScaling
from llama.formats.files import LARGEST, Fields
from llama.formats.rope import usual_magnitude

TYPES = ("default", "linear", "llama3", "yarn", "dynamic")
ORIGINAL = "original_max_position_embeddings"
USUAL = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", ORIGINAL)
KNOWN = {  # what may be said; "finetuned" changes nothing, nor does it in the code that it comes from
    "yarn": (
        *(*USUAL, "finetuned", "beta_fast", "beta_slow"),
        *("attention_factor", "mscale", "mscale_all_dim", "truncate"),
    ),
    "dynamic": USUAL,
}


def rope_of(config: Fields) -> Fields:
    """The object about RoPE, empty where there is none. As transformers has it, an empty one says nothing."""
    return config.object("rope_scaling" if config.values.get("rope_scaling") else "rope_parameters")


def type_of(config: Fields) -> str:
    """Which of TYPES it is. Raises BadFileError for another, and for null, which is none to transformers."""
    rope = rope_of(config)
    name = next((name for name in ("rope_type", "type") if name in rope.values), None)
    return rope.one_of(name, TYPES) if name else "default"


def check_known(rope: Fields, kind: str) -> None:
    """Raises BadFileError for a field that transformers would pass over, and other programs would not."""
    for name, value in rope.values.items():
        if value is not None and name not in KNOWN.get(kind, rope.values):
            allowed = ", ".join(KNOWN[kind])
            raise BadFileError(f"{rope.path}: {name} = {value!r:.40}, allowed with {kind} are {allowed}")


def read_rope(config: Fields, context: int) -> dict[str, Any]:
    """rope_theta and rope_scaling of a Config, from the fields of transformers 4 or 5.

    Raises BadFileError.
    """
    rope, kind = rope_of(config), type_of(config)
    check_known(rope, kind)
    for fields in (config, rope):
        fields.one_of("partial_rotary_factor", (1,), 1)
    theta = rope.number("rope_theta", config.number("rope_theta", 10000.0))
    scaling: dict[str, Any] | None = None
    if kind == "linear":
        scaling = {"kind": kind, "factor": rope.number("factor")}
    elif kind == "dynamic":
        rope.number("factor")  # which counts from the end of the context on
    elif kind in ("llama3", "yarn"):
        original = config.integer(ORIGINAL, rope.integer(ORIGINAL, context))  # one outside counts first
        scaling = {"kind": kind, "original_max_seq_len": original}
        scaling |= read_llama3(rope) if kind == "llama3" else read_yarn(rope, context, original)
    return {"rope_theta": theta, "rope_scaling": scaling}


def read_llama3(rope: Fields) -> dict[str, float]:
    return {name: rope.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor")}


def read_yarn(rope: Fields, context: int, original: int) -> dict[str, Any]:
    """The fields of a RopeScaling. null in place of a factor: the one that gives the context.

    Raises BadFileError.
    """
    if context > LARGEST:  # too large to divide
        found = f"max_position_embeddings = {context!r:.40}"
        raise BadFileError(f"{rope.path}: {found}, allowed finite numbers")
    ratio = context / original if "factor" in rope.values and original > 0 else None
    factor = rope.number("factor", ratio)
    return {
        "factor": factor,
        "beta_fast": rope.number("beta_fast", 32.0) or 32.0,  # as transformers has it, 0 says nothing
        "beta_slow": rope.number("beta_slow", 1.0) or 1.0,
        "attention_factor": read_attention_factor(rope, factor),
        "truncate": rope.flag("truncate", True),
    }


def read_attention_factor(rope: Fields, factor: float) -> float:
    """As it is said, or by DeepSeek's two numbers, of which one alone says nothing; 0: the usual one."""
    if rope.values.get("attention_factor") is not None:
        if (said := rope.number("attention_factor")) <= 0:
            raise BadFileError(f"{rope.path}: attention_factor = {said}, allowed more than 0")
        return said
    above, below = (rope.number(name, 0.0) for name in ("mscale", "mscale_all_dim"))
    if not (above and below) or factor <= 1:
        return 0.0
    logarithm = usual_magnitude(factor) - 1
    return (above * logarithm + 1) / (below * logarithm + 1)


def notes_of(config: Config) -> tuple[str, ...]:
    """What a user should know of a model whose two contexts say another factor than it says."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "yarn":
        return ()
    ratio = config.max_seq_len / scaling.original_max_seq_len
    if ratio in (1, scaling.factor):
        return ()
    found = f"rope_scaling factor = {scaling.factor:g}, max_seq_len = {config.max_seq_len} is {ratio:g} times"
    return (f"{found} {scaling.original_max_seq_len}: some of transformers 4 scale by that",)


def rope_json(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The object of a config.json, as both versions of transformers read it."""
    if scaling is None:
        return None
    rope: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        rope |= {name: getattr(scaling, name) for name in ("low_freq_factor", "high_freq_factor")}
    if scaling.kind == "yarn":
        rope |= {name: getattr(scaling, name) for name in ("beta_fast", "beta_slow")}
        rope |= {"attention_factor": scaling.attention_factor} if scaling.attention_factor else {}
        rope |= {} if scaling.truncate else {"truncate": False}
    return rope if scaling.kind == "linear" else rope | {ORIGINAL: scaling.original_max_seq_len}
