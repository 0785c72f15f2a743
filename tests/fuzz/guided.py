"""Fuzzes what Python reads of strangers, guided by coverage: pip install atheris, then

    make fuzz, or with the folders of tests in PYTHONPATH:
    python tests/fuzz/guided.py gguf -max_total_time=60 build/fuzz/corpus/gguf

The first argument is an entry, all others are libFuzzer's. Whatever bytes a file has, or a chat template, it
is read, or refused by an error of one line. Seeds are the right files of readers.py.

Left out: templates that multiply, count with range or hold large numbers: these are programs, and may compute
for ever.
"""

from __future__ import annotations

import importlib
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["llama", "jinja2"], enable_loader_override=False):
    importlib.import_module("jinja2.ext")  # and with it all of jinja2, which templates import when they come

    import llama.info
    from llama.errors import LlamaError
    from llama.formats import tokenizers
    from llama.formats.models import open_source
    from llama.formats.source import checked_tensors
    from llama.templates import compiled, render

import readers
from hostile_cases import MESSAGES, TEMPLATES

FOLDER = Path(tempfile.mkdtemp(prefix="guided-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
ENDLESS = re.compile(r"\*|range|lipsum|center|indent|wordwrap|\d{4}")


def model(path: Path) -> None:
    try:
        llama.info.text(llama.info.info(str(path)))
    finally:  # one may refuse what the other reads
        for tensor in checked_tensors(open_source(path)).values():
            tensor.floats()


def read(name: str, reads: Callable[[Path], object]) -> Callable[[bytes], None]:
    """An entry that reads a file of that name."""

    def entry(data: bytes) -> None:
        (FOLDER / name).unlink(missing_ok=True)  # the old one may still be mapped
        (FOLDER / name).write_bytes(data)
        reads(FOLDER / name)

    return entry


def config_json(data: bytes) -> None:
    read("config.json", lambda path: model(path.parent))(data)


def template(data: bytes) -> None:
    text = data.decode(errors="replace")
    if not ENDLESS.search(text):
        compiled.cache_clear()
        render(text, MESSAGES, bos_token="<s>")


ENTRIES: dict[str, Callable[[bytes], None]] = {
    "gguf": read("model.gguf", model),
    "safetensors": read("model.safetensors", lambda path: model(path.parent)),
    "config": config_json,
    "pickle": read("model.pt", model),
    "tokenizer_json": read("tokenizer.json", tokenizers.load),
    "template": template,
}


def refused(entry: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """An entry for which an error of one line is right."""

    def one(data: bytes) -> None:
        try:
            entry(data)
        except LlamaError as error:
            if "\n" in str(error):
                raise ValueError(f"more than a line: {error}") from None

    return one


def seeds(name: str) -> list[bytes]:
    """Right inputs of an entry. The files beside its own are left in FOLDER."""
    kinds = {"gguf": "gguf", "safetensors": "huggingface", "config": "huggingface", "pickle": "pytorch"}
    ends = {"gguf": ".gguf", "safetensors": ".safetensors", "config": "config.json", "pickle": ".pt"}
    if name == "template":
        return [text.encode() for text in TEMPLATES]
    with tempfile.TemporaryDirectory() as place:
        if name == "tokenizer_json":
            made = [readers.KINDS[f"tokenizer_{kind}"](Path(place)) for kind in ("gpt2", "llama2", "unigram")]
            return [kind.path.read_bytes() for kind in made]
        kind = readers.KINDS[kinds[name]](Path(place))
        for path in kind.files:
            (FOLDER / path.name).write_bytes(path.read_bytes())
        return [path.read_bytes() for path in kind.files if path.name.endswith(ends[name])]


def main() -> None:
    name, *options = sys.argv[1:]
    corpus = Path(options[-1])
    corpus.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(seeds(name)):
        (corpus / f"seed-{i}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *options], refused(ENTRIES[name]))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
