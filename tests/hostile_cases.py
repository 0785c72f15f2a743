"""Hostile files, options, texts and templates, each with the outcome that it must have.

hostile.py runs all of them, test_hostile.py some. They are made, not stored: tiny right files
(fuzz/seeds.py), cut, with fields that lie. What a field is called in an error is written here by hand.

Left out: what is random (make fuzz), requests to the server (tests/llama/server/test_server_hostile.py).
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fuzz import seeds
from tiny_models import write_noise

RUNS, USAGE, FILE = 0, 2, 3  # exit codes
FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
EXTREMES = (0, -1, -(2**31), 2**31 - 1)
SIZES = "bytes|cut off|tensor|vocab_size"  # what a file is said to be too short by


@dataclass(frozen=True)
class Case:
    """A command line, and what must come of it. files: by name, made in a folder of its own; line: options,
    where @ stands for that folder. words: a pattern of the error; readers: for those in Python alone.
    """

    name: str
    files: Mapping[str, bytes]
    line: tuple[str, ...]
    code: int
    words: str = ""
    readers: bool = field(default=False)


def cuts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """A file that ends too early: within and behind its header, in the midst, before its last byte."""
    for at in sorted({1, 7, 27, 28, 255, 256, 300, len(data) // 2, len(data) - 1}):
        if at < len(data):
            yield at, data[:at]


def patched(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + struct.pack("<i", value) + data[at + 4 :]


def new(folder: Path) -> Path:
    """An empty folder in another."""
    return Path(tempfile.mkdtemp(dir=folder))


# --- What ./run maps


def of_checkpoints(folder: Path) -> Iterator[Case]:
    """Models of v0 to v3: cut, longer, with dimensions that can't be."""
    for name, data in seeds.models(new(folder)).items():
        first = 0 if name == "v0" else 8
        line = ("@/model.bin", "-t", "0", "-n", "3", "-z", "@/tokenizer.bin")
        files = {"tokenizer.bin": right_tokenizer(folder)}
        for at, short in cuts(data):
            yield Case(f"{name} cut at {at}", files | {"model.bin": short}, line, FILE, r"model\.bin: ")
        for (i, of), value in ((pair, v) for pair in enumerate(FIELDS) for v in EXTREMES):
            lies = patched(data, first + 4 * i, value)
            words = rf"model\.bin: .*({of}|{SIZES}|checksum)"
            if of == "vocab_size" and name == "v0":
                words = rf"model\.bin: .*({of}|{SIZES}|dim)"
            yield Case(f"{name} {of} = {value}", files | {"model.bin": lies}, line, FILE, words)


def right_tokenizer(folder: Path) -> bytes:
    """Of the vocabulary of seeds.SMALL."""
    pieces = [(text, 0.0) for text in ("<unk>", "<s>", "</s>", "a", "b")]
    records = (struct.pack("<fi", score, len(text)) + text.encode() for text, score in pieces)
    return struct.pack("<I", 5) + b"".join(records)


def of_tokenizers(folder: Path) -> Iterator[Case]:
    """Tokenizers of every kind beside a model: cut, with lengths and counts that lie."""
    model = (write_noise(new(folder)) / "v0.bin").read_bytes()
    line = ("@/model.bin", "-t", "0", "-n", "3", "-z", "@/tok.bin", "-i", "a b", "-n", "0")
    for name, data in seeds.tokenizers(folder / "seed.bin").items():
        if name == "llama2c":
            yield Case("tokenizer llama2c right", {"model.bin": model, "tok.bin": data}, line, RUNS)
        for at, short in cuts(data):
            yield Case(
                f"tokenizer {name} cut at {at}", {"model.bin": model, "tok.bin": short}, line, FILE, "tok"
            )
        for at, value in ((at, v) for at in (4, 8, 12, 16, 20, 24) for v in EXTREMES[1:]):
            if name == "llama2c" and at != 8:
                continue  # scores and text: any will do
            lies = {"model.bin": model, "tok.bin": patched(data, at, value)}
            yield Case(f"tokenizer {name} at {at} = {value}", lies, line, FILE, r"tok\.bin: ")


def of_adapters(folder: Path) -> Iterator[Case]:
    model, data = seeds.models(new(folder))["fp32"], seeds.adapter(folder / "adapter.lora.bin")
    files = {"model.bin": model, "tokenizer.bin": right_tokenizer(folder)}
    line = ("@/model.bin", "-t", "0", "-n", "3", "-z", "@/tokenizer.bin", "--lora", "@/a.lora.bin")
    yield Case("adapter right", files | {"a.lora.bin": data}, line, RUNS)
    for at, short in cuts(data):
        yield Case(f"adapter cut at {at}", files | {"a.lora.bin": short}, line, FILE, r"a\.lora\.bin: ")
    for at, value in ((at, value) for at in range(0, 48, 4) for value in EXTREMES):
        lies = files | {"a.lora.bin": patched(data, at, value)}
        if lies["a.lora.bin"] == data:
            continue
        yield Case(f"adapter at {at} = {value}", lies, line, FILE, r"a\.lora\.bin: ")


# --- Options and texts

OPTIONS = {  # a command line behind the model, and what is said of it
    "-n -1": "--steps = -1, allowed",
    "-n 99999999999999999999": "--steps = 99999999999999999999, allowed",
    "-n 1.5": "--steps = 1.5, allowed",
    "-n": "steps needs a value",
    "-t nan": "--temperature = nan, allowed",
    "-t -0.1": "--temperature = -0.1, allowed",
    "-t inf": "--temperature = inf, allowed",
    "-p 1.1": "--top-p = 1.1, allowed",
    "-p 0x": "--top-p = 0x, allowed",
    "-s -1": "--seed = -1, allowed",
    "-s 18446744073709551616": "--seed = 18446744073709551616, allowed",
    "-j 0": "--threads = 0, allowed",
    "-j 100000": "--threads = 100000, allowed",
    "-c 0": "--context = 0, allowed",
    "-c 2147483647": "context|memory",
    "--kv int3": "kv",
    "--dtype fp8": "dtype",
    "--min-p 2": "--min-p = 2, allowed",
    "--top-k -1": "--top-k = -1, allowed",
    "--repeat-penalty 0": "--repeat-penalty = 0, allowed",
    "--presence-penalty nan": "--presence-penalty = nan, allowed",
    "--samples 0": "--samples = 0, allowed",
    "--rope-theta 0": "--rope-theta = 0, allowed",
    "--template none": "template",
    "-m nothing": "mode",
    "--nothing": "--nothing",
    "-\x1b[31m": "option",
    "--steps=": "--steps = , allowed",
    "-f /nowhere": "/nowhere: No such file or directory",
    "-f @": "directory",
    "-z /nowhere": "/nowhere: No such file or directory",
    "--lora /nowhere.lora.bin": "/nowhere.lora.bin: No such file or directory",
}
TEXTS = {
    "nothing": b"",
    "NUL": b"a\0b",
    "not UTF-8": b"\xff\xfe\xc0\x80\xed\xa0\x80\xf5",
    "half a character": "é日".encode()[:-1],
    "special tokens": b"<s></s><unk><|im_start|>[INST]",
    "noncharacters": "\ufdd0\uffff\U0010ffff".encode(),
    "escapes": b"\x1b[2J\x1b]0;x\x07\\x00\\",
    "byte order marks": b"\xef\xbb\xbf" * 20,
    "spaces": b" " * 200,
    "carriage returns": b"\r\n\r\r\n" * 30,
}


def of_options(folder: Path) -> Iterator[Case]:
    noise = write_noise(new(folder))
    files = {name: (noise / name).read_bytes() for name in ("v1.bin", "tokenizer.bin")}
    for option, words in OPTIONS.items():
        said = option.split(" ") if not option.startswith("-\x1b") else [option]
        code = FILE if "/nowhere" in option or option == "-f @" else USAGE
        where = ("@/v1.bin", *(() if "-z" in said else ("-z", "@/tokenizer.bin")))
        yield Case(f"option {option!a}", files, (*where, *said), code, words)
    for name, text in TEXTS.items():
        line = ("@/v1.bin", "-z", "@/tokenizer.bin", "-t", "0", "-n", "0", "-f", "@/text")
        yield Case(f"text {name}", files | {"text": text}, line, RUNS)
    for name, text in (("long", b"the tin " * 20_000), ("one word", b"a" * 100_000)):
        line = ("@/v1.bin", "-z", "@/tokenizer.bin", "-t", "0", "-f", "@/text")
        yield Case(f"text {name}", files | {"text": text}, line, USAGE, "prompt.*tokens|context")


# --- What Python reads


class Runs:
    """What ends the process where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules[os.name]._exit, (77,)  # what os has, though coverage puts its own there


def zipped(data: bytes, **more: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {"archive/data.pkl": data, **more}.items():
            archive.writestr(name, content)
    return file.getvalue()


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def tensors(header: Any, length: int | None = None, data: bytes = bytes(64)) -> bytes:
    """A safetensors file, whose header may say another length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def gguf(*parts: tuple[str, Any], magic: bytes = b"GGUF") -> bytes:
    return magic + b"".join(struct.pack(f"<{form}", value) for form, value in parts) + bytes(64)


F32 = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
SAFETENSORS = {
    "nothing": (b"", "has 0 bytes"),
    "no length": (b"\1\2\3", "safetensors"),
    "a header of 2^63 bytes": (tensors({}, 2**63), "header"),
    "a header behind the end": (tensors({}, 10_000), "header"),
    "no JSON": (tensors(b"{\xff}"), "JSON|UTF-8|header"),
    "deep JSON": (tensors(b"[" * 100_000), "JSON|nested|header|deep"),
    "a list": (tensors([1, 2]), "header"),
    "a tensor behind the end": (tensors({"w": F32 | {"data_offsets": [0, 10**12]}}), "w"),
    "a tensor before the beginning": (tensors({"w": F32 | {"data_offsets": [-16, 0]}}), "w"),
    "an unknown type": (
        tensors({"w": F32 | {"dtype": "F7", "data_offsets": [0, 64]}}),
        "one file of a model's folder",
    ),
    "a shape of 2^62": (tensors({"w": F32 | {"shape": [2**31, 2**31]}}), "w"),
    "a negative shape": (tensors({"w": F32 | {"shape": [-2, -2]}}), "w"),
    "a shape of text": (tensors({"w": F32 | {"shape": "ab"}}), "w"),
}
PICKLES = {
    "what runs": (zipped(pickle.dumps(Runs())), r"asks for \w+\._exit, which is not a tensor"),
    "a bare pickle that runs": (pickle.dumps(Runs()), "pickle"),
    "a set": (zipped(b"\x80\x04" + b"\x8f" * 1000 + b"."), "holds a set"),
    "a bytearray of 2^60": (zipped(b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"."), "bytearray"),
    "a memo of 2^31": (zipped(b"\x80\x04r\xff\xff\xff\x7f."), "pickle"),
    "deep": (zipped(b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b"."), "nested too deeply"),
    "cut": (saved({"w": torch.ones(4)})[:-30], "not whole|pickle"),
    "no pickle": (zipped(b"abc"), "pickle"),
    "two pickles": (zipped(b"N.", **{"other/data.pkl": b"N."}), "data.pkl"),
    "no tensors": (saved([1, 2]), "of a list, allowed"),
}
GGUFS = {
    "nothing else": (b"GGUF", "GGUF|ends|cut|byte"),
    "version 99": (gguf(("I", 99), ("Q", 0), ("Q", 0)), "version"),
    "2^63 tensors": (gguf(("I", 3), ("Q", 2**63), ("Q", 0)), "a shape that can't be"),
    "2^63 keys": (gguf(("I", 3), ("Q", 0), ("Q", 2**63)), "too few"),
    "a key of 2^62 bytes": (gguf(("I", 3), ("Q", 0), ("Q", 1), ("Q", 2**62)), "ends|cut|long|bytes"),
    "an array of 2^62": (
        gguf(("I", 3), ("Q", 0), ("Q", 1), ("Q", 1), ("c", b"a"), ("I", 9), ("I", 4), ("Q", 2**62)),
        "ends|cut|long|bytes|array",
    ),
    "arrays in arrays": (
        gguf(("I", 3), ("Q", 0), ("Q", 1), ("Q", 1), ("c", b"a"), *[("I", 9)] * 200, ("Q", 1)),
        "array|nested|type|ends",
    ),
    "an unknown type": (gguf(("I", 3), ("Q", 0), ("Q", 1), ("Q", 1), ("c", b"a"), ("I", 77)), "type|77"),
}
CONFIG = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG |= {"intermediate_size": 8, "vocab_size": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 8}
FOLDERS: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "config.json"),
    "deep JSON": (b"[" * 100_000, "config.json"),
    "a list": (b"[]", "config.json"),
    "another family": (json.dumps(CONFIG | {"model_type": "gpt2"}).encode(), "model_type|gpt2"),
    "code": (
        json.dumps(CONFIG | {"auto_map": {"AutoModel": "evil.Model"}}).encode(),
        "auto_map|tensors|safetensors",
    ),
    "no heads": (json.dumps(CONFIG | {"num_attention_heads": 0}).encode(), "num_attention_heads|n_heads"),
    "2^40 layers": (json.dumps(CONFIG | {"num_hidden_layers": 2**40}).encode(), "n_layers|num_hidden_layers"),
    "a size of text": (json.dumps(CONFIG | {"hidden_size": "8"}).encode(), "hidden_size"),
    "a size that is NaN": (
        json.dumps(CONFIG | {"hidden_size": float("nan")}).encode(),
        "hidden_size|NaN|JSON",
    ),
    "a size of 5000 digits": (b'{"hidden_size": ' + b"9" * 5000 + b"}", "config.json|hidden_size"),
}


def of_readers(_: Path) -> Iterator[Case]:
    """Files of other formats, which the package reads."""
    kinds: tuple[tuple[str, str, Mapping[str, tuple[bytes, str]]], ...] = (
        ("safetensors", "model.safetensors", SAFETENSORS),
        ("pickle", "model.pt", PICKLES),
        ("gguf", "model.gguf", GGUFS),
        ("folder", "hf/config.json", FOLDERS),
    )
    for kind, name, found in kinds:
        for what, (data, words) in found.items():
            files = {name: data}
            if kind == "folder":
                files["hf/model.safetensors"] = tensors({"w": F32})
            place = "@/" + name.partition("/")[0]
            yield Case(f"{kind}: {what}", files, (place,), FILE, words, readers=True)


# --- Chat templates: what each comes to, None where it has to be refused. What the sandbox hides is nothing

MESSAGES = [{"role": "user", "content": "a <s> b"}]
TEMPLATES: dict[str, str | None] = {
    "{{ messages[0].content }}": "a <s> b",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": None,
    "{{ messages.__class__ }}": "",
    "{{ self.__init__.__globals__ }}": None,
    "{{ cycler.__init__.__globals__.os.system('exit 77') }}": None,
    "{{ lipsum.__globals__ }}": "",
    "{{ joiner.__init__.__globals__['sys'] }}": None,
    "{{ '{0.__class__}'.format(messages) }}": "",
    "{{ ('%c' % 95) * 2 }}": "__",
    "{{ messages.append(1) }}": None,
    "{% set _ = messages[0].update({'role': 'x'}) %}": None,
    "{% for i in range(1000000000) %}{{ i }}{% endfor %}": None,
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": None,
    "{% include '/etc/passwd' %}": None,
    "{% import 'os' as os %}": None,
    "{% extends 'x' %}": None,
    "{{ raise_exception('no') }}": None,
    "{{ 1 / 0 }}": None,
    "{{ nothing.of.it }}": None,
    "{{": None,
    "{% endfor %}": None,
    "{{ messages[0].content | nothing }}": None,
    "{{ strftime_now() }}": None,
    "{{ 2 ** 10 }}": "1024",
    "{{ messages | tojson }}": '[{"role": "user", "content": "a <s> b"}]',
    "(" * 3000 + "{{ 1 }}": "(" * 3000 + "1",
    "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}": None,
}

GROUPS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "checkpoints": of_checkpoints,
    "tokenizers": of_tokenizers,
    "adapters": of_adapters,
    "options": of_options,
    "readers": of_readers,
}


def cases(group: str, folder: Path) -> list[Case]:
    """Those of a group. folder: one for files on the way."""
    folder.mkdir(exist_ok=True)
    return list(GROUPS[group](folder))
