"""Tiny models for the tests of the two programs: one that writes noise, and chains, whose text is known."""

from __future__ import annotations

from pathlib import Path

import checkpoints
import numpy as np
from checkpoints import Shape
from helpers import write_ranked

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = [" ", *"etaoinshrdlu", "th", "he", "the", " t", " the", "an", " a", "in", "é", "日"]
VOCABULARY = SPECIAL + BYTES + PIECES


def write_noise(folder: Path) -> Path:
    """Writes a random model of versions 0, 1 and 2, their tokenizer, and files to read as prompts."""
    shape = Shape(vocab_size=len(VOCABULARY), max_seq_len=256, tied=False)
    for version in (0, 1, 2):
        checkpoints.write(folder / f"v{version}.bin", shape, version)
    write_ranked(folder / "tokenizer.bin", VOCABULARY)
    (folder / "opening.txt").write_bytes(b"the tin\n")
    (folder / "odd.txt").write_bytes(b"a\0b\xff\r\n\n")
    (folder / "empty.txt").touch()
    (folder / "newline.txt").write_bytes(b"\n")
    return folder


def write_chain(folder: Path, words: list[str], successors: dict[str, str], context: int = 64) -> Path:
    """A model and its tokenizer: after a token comes its successor, by default the token itself."""
    names = SPECIAL + words
    size = len(names) + len(names) % 2
    names += [f"unused {i}" for i in range(len(names), size)]
    shape = Shape(size, 1, 1, 1, 1, vocab_size=size, max_seq_len=context, tied=False)
    # Attention and feed-forward add nothing, so the classifier sees the embedding of the newest token alone.
    weights = {name: np.zeros_like(w) for name, w in checkpoints.random_weights(shape).items()}
    weights["tok_embeddings"] = np.eye(size, dtype=np.float32)
    weights["norm"][:] = 1
    for i, name in enumerate(names):
        weights["output"][names.index(successors.get(name, name)), i] = 100
    path = folder / "chain.bin"
    path.write_bytes(checkpoints.v0(shape, weights))
    write_ranked(folder / "tokenizer.bin", names)
    return path
