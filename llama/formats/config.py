"""The shape of a Llama: all that changes the function, whatever file it came from."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

KINDS = {  # of fields, by their annotation: types, and what messages call them
    "int": (Integral, "whole numbers"),
    "float": (Real, "finite numbers"),
    "bool": (bool, "true and false"),
    "str": (str, "text"),
}
LARGEST = {Integral: 2**63 - 1, Real: sys.float_info.max}


def check_types(values: Any) -> None:
    """Raises ValueError for a field of a dataclass that is of another type than it is annotated with."""
    for field in dataclasses.fields(values):
        value, (kind, allowed) = getattr(values, field.name), KINDS.get(str(field.type), (object, ""))
        fits = isinstance(value, kind) and (kind in (bool, object) or not isinstance(value, bool))
        if not fits or (kind is Real and not abs(value) < math.inf):
            raise ValueError(f"{field.name} = {value!r:.40}, allowed {allowed}")
        if kind in (Integral, Real) and abs(value) > LARGEST[kind]:
            raise ValueError(f"{field.name} = {value!r:.40}, allowed {allowed} up to {LARGEST[kind]}")


SCALINGS = ("linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE's frequencies are stretched for contexts longer than those of the first training.

    kind "linear" divides them all by factor. "llama3" keeps wavelengths shorter than original_max_seq_len /
    high_freq_factor, divides those longer than original_max_seq_len / low_freq_factor, and blends in between
    (Llama 3.1: 8, 1, 4, 8192; Llama 3.2: 32, 1, 4, 8192). "yarn" (Peng et al., YaRN, 2023) keeps pairs up to
    that which turns beta_fast times in the original context, divides those from that which turns beta_slow
    times on, and blends in between, along the pairs; with truncate these two are rounded outwards to whole
    ones. It multiplies queries and keys by attention_factor as well, 0: 0.1 ln(factor) + 1.
    """

    kind: str = "llama3"
    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_seq_len: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0
    truncate: bool = True

    def __post_init__(self) -> None:
        check_types(self)
        if self.kind not in SCALINGS:
            allowed = " and ".join(map(repr, SCALINGS))
            raise ValueError(f"rope_scaling kind = {self.kind!r}, allowed {allowed}")
        if not self.factor > 0:
            raise ValueError(f"rope_scaling factor = {self.factor}, allowed more than 0")
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            found = f"low_freq_factor = {self.low_freq_factor}, high_freq_factor = {self.high_freq_factor}"
            raise ValueError(f"rope_scaling {found}: allowed 0 < low < high")
        if self.kind == "yarn":
            self._check_yarn()

    def _check_yarn(self) -> None:
        if self.factor < 1:
            raise ValueError(f"rope_scaling factor = {self.factor}, allowed 1 or more with YaRN")
        if not 0 < self.beta_slow < self.beta_fast:
            found = f"beta_slow = {self.beta_slow}, beta_fast = {self.beta_fast}"
            raise ValueError(f"rope_scaling {found}: allowed 0 < slow < fast")
        if self.original_max_seq_len < 1 or self.attention_factor < 0:
            found = f"original_max_seq_len = {self.original_max_seq_len}"
            found += f", attention_factor = {self.attention_factor}"
            raise ValueError(f"rope_scaling {found}: allowed a length of 1 or more, no negative factor")

    def ramp(self, head_dim: int, theta: float) -> tuple[float, float]:
        """The pairs of YaRN up to which frequencies are kept, and from which they are divided: fractions.

        Raises ValueError where theta and the original context leave no pair between them.
        """
        if not theta > 1:
            raise ValueError(f"rope_theta = {theta}, allowed more than 1 with YaRN")
        whole = self.original_max_seq_len / (2 * math.pi)  # turns of the first pair
        fast, slow = (
            head_dim * math.log(whole / turns) / (2 * math.log(theta))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            fast, slow = math.floor(fast), math.ceil(slow)
        low, high = max(fast, 0), min(slow, head_dim - 1)
        if low > high:
            found = f"original_max_seq_len = {self.original_max_seq_len}, rope_theta = {theta}"
            raise ValueError(f"rope_scaling {found}: no pair of {head_dim // 2} turns as YaRN needs it")
        return low, high


def check_keys(kind: type, values: Mapping[str, Any]) -> None:
    """Raises ValueError for a key that is no field of the dataclass, with the nearest name."""
    names = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f", did you mean {near[0]!r}?" if near else f", allowed are {', '.join(names)}"
            raise ValueError(f"{kind.__name__} has no field {key!r}{hint}")


@dataclass(frozen=True)
class Config:
    """The shape of a Llama. Raises ValueError for values that do not fit each other.

    0 in hidden_dim, head_dim, n_kv_heads: the usual value (ffn_hidden_dim(dim), dim / n_heads, n_heads).
    """

    dim: int = 288
    n_layers: int = 6
    n_heads: int = 6
    n_kv_heads: int = 0
    head_dim: int = 0
    hidden_dim: int = 0
    vocab_size: int = 32000
    max_seq_len: int = 256
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    tied: bool = True  # the classifier is the token embedding
    dropout: float = 0.0  # of the embedding and of what each block adds, while training

    def __post_init__(self) -> None:
        check_types(self)
        if not isinstance(self.rope_scaling, RopeScaling | None):
            raise ValueError(f"rope_scaling = {self.rope_scaling!r:.40}, allowed an object, or none")
        fill = object.__setattr__  # the way to set a field of a frozen dataclass
        fill(self, "n_kv_heads", self.n_kv_heads or self.n_heads)
        fill(self, "head_dim", self.head_dim or self.dim // max(1, self.n_heads))
        fill(self, "hidden_dim", self.hidden_dim or ffn_hidden_dim(self.dim))
        for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "vocab_size", "max_seq_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}, allowed 1 or more")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads = {self.n_kv_heads} does not divide n_heads = {self.n_heads}")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim}, allowed even numbers")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout}, allowed 0 to 1")
        if not (self.norm_eps > 0 and self.rope_theta > 0):
            raise ValueError(
                f"norm_eps = {self.norm_eps}, rope_theta = {self.rope_theta}: allowed more than 0"
            )
        if self.rope_scaling and self.rope_scaling.kind == "yarn":
            self.rope_scaling.ramp(self.head_dim, self.rope_theta)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """A configuration from a checkpoint's. Raises ValueError for an unknown key."""
        check_keys(cls, values)
        scaling = values.get("rope_scaling")
        if isinstance(scaling, Mapping):
            check_keys(RopeScaling, scaling)
            values = {**values, "rope_scaling": RopeScaling(**scaling)}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def ffn_hidden_dim(dim: int, multiple_of: int = 32, multiplier: float | None = None) -> int:
    """Meta's width of the feed-forward layers: 2/3 of 4 dim, times multiplier, rounded up to multiple_of."""
    hidden = int(2 * 4 * dim / 3)
    if multiplier is not None:
        hidden = int(multiplier * hidden)
    return multiple_of * math.ceil(hidden / multiple_of)
