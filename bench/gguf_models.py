"""The random models of models.py as GGUF files, which llama.cpp reads. Needs `pip install gguf`.

Matrices get the type that comes nearest to ours, norms stay fp32.
"""

from __future__ import annotations

from pathlib import Path

from bench.models import RandomWeights, write_tokenizer
from bench.shapes import TYPES, Shape
from llama.formats import gguf
from llama.formats.config import Config
from llama.formats.source import Source
from llama.formats.vocabulary import read_llama2c


def write_gguf(folder: Path, shape: Shape, kind: str) -> Path:
    """A random model with the weights of write_bin, in a file of its own."""
    config, path, tokenizer = Config(**shape), folder / f"{kind}.gguf", folder / "tokenizer.bin"
    write_tokenizer(tokenizer, config.vocab_size)
    vocabulary = read_llama2c(tokenizer, tokenizer.read_bytes())
    dtype = TYPES[kind].dtype
    gguf.write_gguf(path, Source("random weights", config, RandomWeights(config)), dtype, dtype, vocabulary)
    return path
