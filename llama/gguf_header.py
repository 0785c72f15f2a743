"""What a GGUF file, the format of llama.cpp, says of itself: values by key, names and shapes of tensors.

Only the header is read, as llama.headers does it for other files, without the gguf library. Of lists, such as
that of the tokens, only the length is kept. The layout is docs/gguf.md of ggml.

Left out on purpose: the weights themselves (export.py).
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NoReturn

from llama.errors import BadFileError
from llama.headers import Tensor, checked_shape, printable

SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))) | {10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
TYPES = {  # of tensors: name, values and bytes of a block
    0: ("fp32", 1, 4),
    1: ("fp16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("bf16", 1, 2),
}
FIELDS = {  # under the names of LlamaConfig; the architecture's name comes before them
    "embedding_length": "dim",
    "feed_forward_length": "hidden_dim",
    "block_count": "n_layers",
    "attention.head_count": "n_heads",
    "attention.head_count_kv": "n_kv_heads",
    "attention.key_length": "head_dim",
    "vocab_size": "vocab_size",
    "context_length": "max_seq_len",
    "attention.layer_norm_rms_epsilon": "norm_eps",
    "rope.freq_base": "rope_theta",
}


class Cursor:
    """Reads a file from its beginning. Raises BadFileError where it ends."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def fail(self, message: str) -> NoReturn:
        raise BadFileError(f"{self.path}: {message}")

    def skip(self, n: int) -> int:
        """Goes on by n bytes, and returns where they begin."""
        if n > len(self.data) - self.at:
            self.fail(f"has {len(self.data)} bytes, too few for the {n} that begin at byte {self.at}")
        self.at += n
        return self.at - n

    def number(self, form: str) -> Any:
        return struct.unpack_from(f"<{form}", self.data, self.skip(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        n = self.number("Q")
        start = self.skip(n)
        return printable(self.data[start : start + n].decode(errors="replace"))

    def value(self, kind: int) -> Any:
        """A number, a text, or for a list of n values range(n)."""
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            kind, n = self.number("I"), self.number("Q")
            if kind == TEXT:
                for _ in range(n):
                    self.skip(self.number("Q"))
                return range(n)
            if kind in SCALARS:
                self.skip(n * struct.calcsize(SCALARS[kind]))
                return range(n)
        if kind not in SCALARS:
            self.fail(f"has a value of type {kind} at byte {self.at}, allowed 0 to 12, and no list in a list")
        number = self.number(SCALARS[kind])
        return float(f"{number:.7g}") if kind == 6 else number  # without digits that a float does not have

    def tensor(self) -> Tensor:
        name, n = self.text(), self.number("I")
        sizes = [self.number("Q") for _ in range(min(n, 9))][::-1]
        try:
            shape = checked_shape(sizes)
        except ValueError:
            self.fail(f"{name} has a shape that can't be")
        kind = self.number("I")
        self.number("Q")  # where it lies
        type_, block, size = TYPES.get(kind, (f"type {kind}", 1, 0))
        values = Tensor(name, type_, shape, 0).values
        return Tensor(name, type_, shape, values // block * size)


def read(path: Path) -> tuple[dict[str, Any], list[Tensor]]:
    """Values by key (of lists only the length) and the tensors. Raises BadFileError."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BadFileError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    cursor = Cursor(path, data)
    cursor.skip(4)
    version, n_tensors, n_values = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if version not in (2, 3):
        cursor.fail(f"version = {version}, allowed 2 and 3")
    values = {}
    for _ in range(n_values):
        key = cursor.text()
        values[key] = cursor.value(cursor.number("I"))
    tensors = [cursor.tensor() for _ in range(n_tensors)]
    size = sum(tensor.bytes for tensor in tensors)
    if size > len(data) - cursor.at:
        cursor.fail(f"has {len(data)} bytes, too few for its header and {size} bytes of tensors")
    return values, tensors


def configuration(values: dict[str, Any], tensors: list[Tensor]) -> dict[str, Any]:
    """Fields under the names of LlamaConfig, those that are known."""
    model = values.get("general.architecture")
    said = {ours: values.get(f"{model}.{key}") for key, ours in FIELDS.items()}
    found = {name: value for name, value in said.items() if isinstance(value, (int, float))}
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    embedding = shapes.get("token_embd.weight", (0,))
    if embedding[0]:
        found["vocab_size"], found["tied"] = embedding[0], "output.weight" not in shapes
    dim, n_heads = found.get("dim"), found.get("n_heads")
    if isinstance(dim, int) and isinstance(n_heads, int) and n_heads > 0:
        found.setdefault("n_kv_heads", n_heads)
        found.setdefault("head_dim", dim // n_heads)
    kind = values.get(f"{model}.rope.scaling.type", "none")
    if kind != "none":
        found["rope_scaling"] = {"kind": kind, "factor": values.get(f"{model}.rope.scaling.factor")}
    if "rope_freqs.weight" in shapes:
        found["rope_scaling"] = {"kind": "llama3"}  # its factors are a tensor
    return found


def tokenizer(values: dict[str, Any]) -> dict[str, Any] | None:
    """What the file says of its tokenizer, None for nothing."""
    tokens = values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, range):
        return None
    ids = {name: values.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
    kind = f"{values.get('tokenizer.ggml.model', 'unknown')} of llama.cpp"
    found = {"file": "in the file", "kind": kind, "vocab_size": len(tokens)}
    return found | {name: i for name, i in ids.items() if isinstance(i, int)}
