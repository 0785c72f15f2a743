"""What is mutated, and the tests that can see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    sources: tuple[str, ...]  # patterns of paths
    tests: tuple[str, ...]
    without: tuple[str, ...] = ()  # names of files that are tables, or are measured elsewhere


CSRC = "llama/csrc"


def headers(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{CSRC}/{folder}/{name}.h" for name in names)


def engine_tests(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/csrc/test_{name}.py" for name in names)


GROUPS = {
    "loader": Group(
        headers("weights", "checkpoint*", "model", "adapter", "guard", "rope*"),
        engine_tests("checkpoint", "v3", "v3_fields", "adapter", "guard", "file_kinds"),
    ),
    "tokenizer": Group(
        headers("text", "*"),
        (
            *engine_tests("tokenizer*", "vocabulary", "unigram", "stream", "chat", "infill"),
            *(f"tests/llama/formats/test_{name}.py" for name in ("special_tokens", "split_patterns")),
        ),
        ("unicode.h", "deepseek.h", "words.h"),
    ),
    "sampler": Group(
        headers("sampling", "*"), (*engine_tests("sampler", "score"), "tests/llama/test_perplexity.py")
    ),
    "options": Group(headers("program", "options"), engine_tests("options")),
    "cache": Group(
        headers("kernels", "pages", "sequence", "saved"),
        engine_tests("kv_cache", "sequence"),
    ),
    "windows": Group(
        ("training/windows.py", "training/packing.py", "training/batches.py"),
        (
            "tests/training/test_windows.py",
            "tests/training/test_packing.py",
            "tests/training/test_dataset.py",
        ),
    ),
    "formats": Group(
        tuple(f"llama/formats/{x}.py" for x in ("gguf_header", "safetensors", "pickles", "llama2c", "v3")),
        ("tests/llama/formats/*.py", "tests/llama/test_gguf_header.py"),
    ),
}
