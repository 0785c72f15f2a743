"""What all tests share."""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers import TEXTS
from hypothesis import HealthCheck, settings
from references import HAS_LLAMA_CPP
from tiny_models import write_noise

from llama.formats import tokenizers
from training.tokenizers import train as train_tokenizer


def pytest_configure() -> None:
    """Ctrl-C interrupts, here and in programs that are started: the background job of a shell ignores it.

    PyTorch has one thread, here and there: what is tiny takes longer with several, most of all where others
    use the machine too. No example of hypothesis is too slow, on whatever machine, nor is a last step under
    torchrun.
    """
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "280")  # seconds
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("no clock")


# --- What is compared with llama.cpp is left out where that is not installed, which is said once


LEFT_OUT = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    others = [] if HAS_LLAMA_CPP else [item for item in items if item.get_closest_marker("llama_cpp")]
    config.stash[LEFT_OUT] = len(others)
    items[:] = [item for item in items if item not in others]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if count := config.stash.get(LEFT_OUT, 0):
        reason = "llama-cpp-python is not installed (it compiles for long)"
        terminalreporter.write_line(f"LEFT OUT [{count}] comparisons with llama.cpp: {reason}")


# --- A model


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory) -> Iterator[Path]:
    """Where models of other formats are kept, also by programs that are started: not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRIA_CACHE", str(path := tmp_path_factory.mktemp("cache")))
        yield path


@pytest.fixture(scope="session")
def noise(tmp_path_factory) -> Path:
    """A folder with a random model of versions 0, 1 and 2, their tokenizer, and files to read as prompts."""
    return write_noise(tmp_path_factory.mktemp("noise"))


# --- Small tokenizers of three kinds


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> tokenizers.Tokenizer:
    return train_tokenizer(TEXTS * 3, 330, tmp_path_factory.mktemp("tokenizer") / "tok.model")


@pytest.fixture(scope="session")
def llama3(tmp_path_factory) -> tokenizers.Tokenizer:
    """A tokenizer in Llama 3's form: the 256 bytes, some merges, 256 special tokens."""
    merges = [b"th", b"he", b" t", b"the", b" the", b"ll", b"llo", b"hello", b"  ", b"12", b"\xc3\xb9"]
    path = tmp_path_factory.mktemp("llama3") / "tokenizer.model"
    tokens = [bytes([byte]) for byte in range(256)] + merges
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens)))
    return tokenizers.load(path)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory) -> tokenizers.Tokenizer:
    """As SmolLM's."""
    hf = pytest.importorskip("tokenizers")
    p = hf.pre_tokenizers
    tokenizer = hf.Tokenizer(hf.models.BPE())
    digits = p.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = p.Sequence([digits, p.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = hf.decoders.ByteLevel()
    options = {"initial_alphabet": p.ByteLevel.alphabet(), "show_progress": False}
    names = ["<|endoftext|>", "<|im_start|>"]
    tokenizer.train_from_iterator(
        TEXTS * 3, hf.trainers.BpeTrainer(vocab_size=300, special_tokens=names, **options)
    )
    path = tmp_path_factory.mktemp("gpt2") / "tokenizer.json"
    tokenizer.save(str(path))
    return tokenizers.load(path)
