"""Fuzzes what Python reads of strangers, guided by coverage: pip install atheris, then

    make fuzz, or with the folders of tests in PYTHONPATH:
    python tests/fuzz/guided.py gguf -max_total_time=60 build/fuzz/corpus/gguf

The first argument is an entry, all others are libFuzzer's. Whatever bytes a file has, or a chat template, it
is read, or refused by an error of one line. Seeds are the right files of readers.py. gguf_header and
safetensors_header are bytes of a header alone: zeros are put behind it, as the tensors it speaks of.

Left out: templates that multiply, count with range, hold large numbers or nest operators: these are programs,
and may compute for ever.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["llama", "jinja2"],
    # run, and not counted, as it takes most of the time: what only walks the tree that jinja2's parser made
    exclude=[f"jinja2.{name}" for name in ("compiler", "nodes", "visitor", "optimizer", "idtracking")],
    enable_loader_override=False,
):
    importlib.import_module("jinja2.ext")  # and with it all of jinja2, which templates import when they come

    import llama.info
    from llama.errors import LlamaError
    from llama.formats import gguf_header, tokenizers
    from llama.formats.models import open_source
    from llama.formats.safetensors import read_header
    from llama.formats.source import checked_tensors
    from llama.templates import compiled, render

import gguf
import numpy as np
import readers
from hostile_cases import MESSAGES, TEMPLATES

FOLDER = Path(tempfile.mkdtemp(prefix="guided-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
ROOM = 512  # bytes of tensors behind a header
ENDLESS = re.compile(
    r"\*|range|lipsum|center|indent|wordwrap|\d{4}"
    r"|[-+~]{9}|(?:not\s*){9}|(?:\.\s*\w+\s*){9}"  # for which jinja2 takes the third power of their number
)


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


def gguf_headers(data: bytes) -> None:
    read("header.gguf", lambda path: gguf_header.read(path, whole=True))(data + bytes(ROOM))


def safetensors_header(data: bytes) -> None:
    """The JSON. Its length is made right, or most changes of it would be refused for that."""
    length = len(data).to_bytes(8, "little")
    read("header.safetensors", read_header)(length + data + bytes(ROOM))


def template(data: bytes) -> None:
    text = data.decode(errors="replace")
    if not ENDLESS.search(text):
        compiled.cache_clear()
        render(text, MESSAGES, bos_token="<s>")


ENTRIES: dict[str, Callable[[bytes], None]] = {
    "gguf_header": gguf_headers,
    "safetensors_header": safetensors_header,
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


def gguf_seed(path: Path) -> bytes:
    """The header of a file with values of each kind and two tensors that fill ROOM. path: may be written."""
    file = gguf.GGUFWriter(path, "llama")
    for bits in (8, 16, 32, 64):
        getattr(file, f"add_uint{bits}")(f"uint{bits}", bits)
        getattr(file, f"add_int{bits}")(f"int{bits}", -bits)
    file.add_float32("float32", 0.1)
    file.add_float64("float64", 1e-300)
    file.add_bool("bool", True)
    file.add_string("string", "a é")
    for values in (["<s>", "a", "é"], [1, -2], [0.5, -1.0], [True, False]):
        file.add_array(f"list of {type(values[0]).__name__}", values)
    for name in ("token_embd.weight", "output.weight"):
        file.add_tensor(name, np.zeros((ROOM // 64, 8), np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path.read_bytes()[:-ROOM]


def safetensors_seed() -> bytes:
    half = {"dtype": "F32", "shape": [ROOM // 16, 2]}
    tensors = {"a": half | {"data_offsets": [0, ROOM // 2]}, "b": half | {"data_offsets": [ROOM // 2, ROOM]}}
    return json.dumps({"__metadata__": {"format": "pt"}} | tensors).encode()


def seeds(name: str) -> list[bytes]:
    """Right inputs of an entry. The files beside its own are left in FOLDER."""
    kinds = {"gguf": "gguf", "safetensors": "huggingface", "config": "huggingface", "pickle": "pytorch"}
    ends = {"gguf": ".gguf", "safetensors": ".safetensors", "config": "config.json", "pickle": ".pt"}
    if name == "template":
        return [text.encode() for text in TEMPLATES]
    if name == "safetensors_header":
        return [safetensors_seed()]
    with tempfile.TemporaryDirectory() as place:
        if name == "gguf_header":
            return [gguf_seed(Path(place) / "header.gguf")]
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
