"""What the engine's benchmark is about: shapes of models, types of weights, cases.

Everything here is plain data, so that a process which measures one program loads no other's libraries.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

Shape = dict[str, Any]  # the fields of model.Config

SHAPES: dict[str, Shape] = {
    "260K": {"dim": 64, "n_layers": 5, "n_heads": 8, "n_kv_heads": 4, "hidden_dim": 172, "vocab_size": 512},
    "15M": {"dim": 288, "n_layers": 6, "n_heads": 6, "hidden_dim": 768, "max_seq_len": 256},
    "42M": {"dim": 512, "n_layers": 8, "n_heads": 8, "hidden_dim": 1376, "max_seq_len": 1024},
    "110M": {"dim": 768, "n_layers": 12, "n_heads": 12, "hidden_dim": 2048, "max_seq_len": 1024},
    "1.1B": {"dim": 2048, "n_layers": 22, "n_heads": 32, "n_kv_heads": 4, "hidden_dim": 5632, "tied": False},
    "7B": {"dim": 4096, "n_layers": 32, "n_heads": 32, "hidden_dim": 11008, "tied": False},
    "8B": {
        "dim": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 8,
        "hidden_dim": 14336,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
        "tied": False,
    },
}
SHAPES["8B2"] = SHAPES["8B"] | {"n_layers": 2, "max_seq_len": 33280}  # for long contexts
for _shape in SHAPES.values():  # what most have
    for _name, _value in {"max_seq_len": 512, "vocab_size": 32000, "tied": True}.items():
        _shape.setdefault(_name, _value)
    _shape.setdefault("n_kv_heads", _shape["n_heads"])
USUAL_SHAPES = ("260K", "15M", "42M", "110M", "1.1B")


@dataclass(frozen=True)
class WeightType:
    """A type of weights in our files, and what comes nearest to it elsewhere. None: there is nothing."""

    version: int  # of the file
    dtype: str  # as export.py calls it
    bits: float  # of a weight, scales included
    arithmetic: str  # of machine.c, by which the floor counts
    gguf: str | None  # llama.cpp's type
    torch: str | None = None  # transformers'
    llama2c: tuple[str, str] | None = (
        None  # the option that names llama2.c's program, and the type of its file
    )
    group: int = 1  # weights that share a scale: rows must be whole groups, but not those of v3


TYPES: dict[str, WeightType] = {
    "fp32-v0": WeightType(0, "fp32", 32, "fp32", "F32", "float32", ("llama2c", "fp32-v0")),
    "fp32": WeightType(3, "fp32", 32, "fp32", "F32", "float32", ("llama2c", "fp32-v0")),
    "bf16": WeightType(3, "bf16", 16, "bf16", "BF16", "bfloat16"),
    "int8-v2": WeightType(2, "int8", 9, "int8", "Q8_0", llama2c=("llama2c_int8", "int8-v2"), group=32),
    "int8": WeightType(3, "int8", 9, "int8", "Q8_0", llama2c=("llama2c_int8", "int8-v2"), group=32),
    "int4": WeightType(3, "int4", 5, "int8", "Q4_0", group=32),
}


@dataclass(frozen=True)
class Case:
    """What is measured.

    decode: in each of `sequences`, which hold `prompt` positions, `tokens` more are run one after the other.
    prefill: behind `prompt` positions `tokens` are run at once, and the last one gets logits.
    sample: a token is drawn from logits of a vocabulary of `tokens`.
    deep: the prompt is what the case is about, so its name says it.
    """

    what: str
    tokens: int
    sequences: int = 1
    prompt: int = 0
    deep: bool = False

    @property
    def rows(self) -> int:
        """Tokens that go through the model in one pass."""
        return self.tokens if self.what == "prefill" else self.sequences

    @property
    def name(self) -> str:
        at = f" at {self.prompt}" if self.deep else ""
        if self.what == "decode":
            return ("decode" if self.sequences == 1 else f"decode x{self.sequences}") + at
        return f"{self.what} {self.tokens}{at}"


def layer_weights(shape: Shape) -> int:
    """Weights of all layers' matrices: what each row of a pass is multiplied with."""
    dim, kv_dim = shape["dim"], shape["dim"] // shape["n_heads"] * shape["n_kv_heads"]
    return shape["n_layers"] * (2 * dim * dim + 2 * dim * kv_dim + 3 * dim * shape["hidden_dim"])


def classifier_weights(shape: Shape) -> int:
    """Weights of the matrix that makes logits, which only some rows need."""
    return shape["dim"] * shape["vocab_size"]


def operations(shape: Shape, case: Case) -> int:
    """Products and sums of a pass with the matrices. Attention is not counted: it grows with the text."""
    wanted = 1 if case.what == "prefill" else case.rows  # rows that want logits
    return 2 * (layer_weights(shape) * case.rows + classifier_weights(shape) * wanted)


def parameters(shape: Shape) -> int:
    """All weights but the norms'."""
    return layer_weights(shape) + classifier_weights(shape) * (1 if shape["tied"] else 2)


def whole_groups(shape: Shape, kind: WeightType) -> bool:
    """Whether each row of the model's matrices is whole groups of the type."""
    return shape["dim"] % kind.group == 0 and shape["hidden_dim"] % kind.group == 0


def arbitrary_ids(n: int, vocab_size: int) -> list[int]:
    """n token ids, the same ones every time."""
    return random.Random(1).choices(range(vocab_size), k=n)


def ordinary_logits(n: int) -> list[float]:
    """Logits as those of a trained model: a bell of width 3 and five tokens that stand out."""
    rng = random.Random(1)
    logits = [rng.gauss(0, 3) for _ in range(n)]
    for token in rng.sample(range(n), 5):
        logits[token] = rng.uniform(12, 15)
    return logits
