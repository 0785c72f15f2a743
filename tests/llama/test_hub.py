"""Names of models: from a server on loopback that speaks the hub's protocol, by huggingface_hub itself."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import checkpoints
import pytest
from helpers import PIECES, ROOT, assert_refused, environment, finish, write_ranked, write_tokenizer
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

import llama
from llama import bench, convert, hub, info, perplexity
from llama.engine import SHIPPED
from llama.formats.chat_templates import TEMPLATES

pytest.importorskip("huggingface_hub")

SHAPE = checkpoints.Shape(dim=16, hidden_dim=24, n_layers=1, n_heads=2, n_kv_heads=1, vocab_size=len(PIECES))
COMMIT = "c" * 40
HOME = "owner/tiny"

# --- A hub


@dataclass
class Hub:
    """What a server holds, what it was asked for, and how it misbehaves."""

    files: dict[tuple[str, str], bytes] = field(default_factory=dict)  # of (repository, file)
    requests: list[str] = field(default_factory=list)
    gated: bool = False
    cut: int = 0  # answers that break off in the middle
    lie: int = 0  # bytes that a file is said to be longer than it is
    address: str = ""

    def asked(self, method: str) -> list[str]:
        return [request for request in self.requests if request.startswith(method)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments):
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.answer(status, b"", X_Error_Code=code, X_Error_Message=f"{code}: no")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        if self.path.startswith("/api/models/"):
            repository, _, revision = self.path[len("/api/models/") :].partition("/revision/")
            self.describe(repository, revision.partition("?")[0])
        else:
            repository, _, rest = self.path[1:].partition("/resolve/")
            revision, _, file = rest.partition("/")
            self.give(repository, revision, file)

    def missing(self, repository: str, revision: str) -> bool:
        if not any(repository == known for known, _ in self.hub.files):
            self.refuse(401, "RepoNotFound")
        elif len(revision) != 40 and revision not in ("", "main", "v2"):
            self.refuse(404, "RevisionNotFound")
        else:
            return False
        return True

    def describe(self, repository: str, revision: str) -> None:
        if self.missing(repository, revision):
            return
        names = [{"rfilename": file} for known, file in self.hub.files if known == repository]
        data = {"id": repository, "sha": COMMIT, "siblings": names, "tags": [], "private": False}
        self.answer(200, json.dumps(data).encode(), Content_Type="application/json")

    def give(self, repository: str, revision: str, file: str) -> None:
        if self.missing(repository, revision):
            return
        data = self.hub.files.get((repository, file))
        if self.hub.gated:
            self.refuse(403, "GatedRepo")
        elif data is None:
            self.refuse(404, "EntryNotFound")
        elif self.command == "HEAD":
            size = str(len(data) + self.hub.lie)
            commit = revision if len(revision) == 40 else COMMIT
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.answer(200, b"", Content_Length=size, ETag=etag, X_Repo_Commit=commit)
        else:
            self.send_file(data)

    def send_file(self, data: bytes) -> None:
        start = int(self.headers.get("Range", "bytes=0-")[len("bytes=") :].partition("-")[0])
        rest = data[start:]
        if self.hub.cut > 0:
            self.hub.cut -= 1
            self.answer(200 if start == 0 else 206, rest[: len(rest) // 2], Content_Length=str(len(rest)))
            self.close_connection = True
        elif start:
            extent = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.answer(206, rest, Content_Range=extent)
        else:
            self.answer(200, data)


@pytest.fixture
def server():
    found = Hub()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Here", (Handler,), {"hub": found}))
    found.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    yield found
    http.shutdown()
    thread.join()
    http.server_close()


def run(module: str, *arguments: str, server: Hub, cwd: Path, **changes: str):
    """Runs a program of the package, with a cache of its own in a folder."""
    known = {
        name: value
        for name, value in environment().items()
        if not name.lower().endswith(("_proxy", "_token"))
    }
    hub_home = {"HF_ENDPOINT": server.address, "HF_HOME": str(cwd / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", module, *arguments]
    return finish(
        command,
        cwd=cwd,
        env=known | hub_home | changes,
        capture_output=True,
    )


def get(name: str, server: Hub, cwd: Path, **changes: str) -> list[Path]:
    """The files of a name, the model and, where there is one, the tokenizer."""
    result = run("llama.hub", name, server=server, cwd=cwd, **changes)
    assert (result.returncode, result.stderr) == (0, b"")
    return [Path(line) for line in result.stdout.decode().splitlines()]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("hub") / "model.bin"
    checkpoints.write(path, SHAPE)
    return path.read_bytes()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("hub") / "tokenizer.bin"
    return write_ranked(path, PIECES).read_bytes()


@pytest.fixture(scope="module")
def sentencepiece() -> bytes:
    """A tokenizer.model with as many tokens as the model."""
    out, text = io.BytesIO(), iter(["abc abd bad dab cab", "abba caba dada baba"])
    options = {"vocab_size": len(PIECES), "byte_fallback": True, "minloglevel": 2}
    kind = {"model_type": "bpe", "normalization_rule_name": "identity"}
    SentencePieceTrainer.train(sentence_iterator=text, model_writer=out, **options, **kind)
    return out.getvalue()


def stories(server: Hub, model: bytes, tokenizer: bytes, sentencepiece: bytes = b"") -> None:
    """The repositories of the four stories."""
    repository, _ = hub.TINYLLAMAS
    server.files[repository, "stories260K/stories260K.bin"] = model
    server.files[repository, "stories260K/tok512.bin"] = tokenizer
    server.files[repository, "stories15M.bin"] = model
    server.files[hub.LLAMA2_TOKENIZER.repository, "tokenizer.model"] = sentencepiece


# --- The four stories


def test_a_story_is_downloaded_once_with_its_tokenizer(server, tmp_path, model, tokenizer):
    stories(server, model, tokenizer)
    paths = get("stories260K", server, tmp_path)
    assert [path.read_bytes() for path in paths] == [model, tokenizer]
    files = ["stories260K/stories260K.bin", "stories260K/tok512.bin"]
    wanted = [f"GET /karpathy/tinyllamas/resolve/{hub.TINYLLAMAS[1]}/{file}" for file in files]
    assert server.asked("GET") == wanted
    server.requests.clear()
    assert get("stories260K", server, tmp_path) == paths
    assert get("stories260K", server, tmp_path, HF_HUB_OFFLINE="1") == paths
    assert server.requests == []


def test_the_others_have_the_tokenizer_of_llama_2(server, tmp_path, model, tokenizer, sentencepiece):
    stories(server, model, tokenizer, sentencepiece)
    result = run("llama.run", "stories15M", "-t", "0", "-n", "20", "-i", "a cab", server=server, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (tmp_path / "local.bin").write_bytes(model)
    write_tokenizer(tmp_path / "mine.bin", SentencePieceProcessor(model_proto=sentencepiece))
    with llama.Llama(tmp_path / "local.bin", tmp_path / "mine.bin") as reference:
        text = "".join(
            reference.generate("a cab", temperature=0, max_tokens=20 - len(reference.encode("a cab")) + 1)
        )
    assert result.stdout.decode() == f"a cab{text}\n"
    made, server.requests = get("stories15M", server, tmp_path)[1], []
    assert made.read_bytes() == (tmp_path / "mine.bin").read_bytes()
    assert run("llama.info", "stories15M", server=server, cwd=tmp_path).returncode == 0
    assert server.requests == []


def test_a_file_of_that_name_comes_first(server, tmp_path, model, tokenizer):
    (tmp_path / "stories15M").write_bytes(model)
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer)
    result = run("llama.run", "stories15M", "-t", "0", "-n", "5", server=server, cwd=tmp_path)
    assert (result.returncode, server.requests) == (0, [])


def test_an_own_tokenizer_comes_first(server, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "download", lambda name: hub.Files("model.bin", "theirs.bin"))
    monkeypatch.chdir(tmp_path)
    assert hub.find("stories15M") == ("model.bin", "theirs.bin")
    assert hub.find(b"stories15M", b"mine.bin") == ("model.bin", "mine.bin")
    assert hub.find("stories15M.bin") == ("stories15M.bin", None)


# --- Repositories


def test_the_only_model_of_a_repository_is_taken(server, tmp_path, model, tokenizer):
    others = ["pytorch_model.bin", "tokenizer.bin", "tok99.bin", "README.md", "sub/training_args.bin"]
    others += ["openvino/openvino_model.bin", "optimizer.bin", "ggml-model-f16.bin"]
    for file in others:
        server.files[HOME, file] = b"something else"
    server.files[HOME, "sub/tiny.bin"] = model
    server.files[HOME, f"tok{len(PIECES)}.bin"] = tokenizer
    paths = get(f"hf:{HOME}", server, tmp_path)
    assert [path.read_bytes() for path in paths] == [model, tokenizer]
    assert len([request for request in server.asked("GET") if "/resolve/main/" in request]) == 2


def test_a_file_and_a_revision_can_be_named(server, tmp_path, model, tokenizer):
    for folder in ("one", "two"):
        server.files[HOME, f"{folder}/tiny.bin"] = model
    server.files[HOME, "two/tokenizer.bin"] = tokenizer
    paths = get(f"hf:{HOME}/two/tiny.bin@v2", server, tmp_path)
    assert [path.read_bytes() for path in paths] == [model, tokenizer]
    assert f"GET /{HOME}/resolve/v2/two/tokenizer.bin" in server.requests
    result = run("llama.hub", f"hf:{HOME}", server=server, cwd=tmp_path)
    message = f"hf:{HOME}: has one/tiny.bin, two/tiny.bin: name one, as hf:{HOME}/one/tiny.bin"
    assert_refused(result, 3, message)


def test_a_v3_file_needs_no_tokenizer(server, tmp_path, tokenizer):
    server.files[HOME, "model.bin"] = llama.native.SHIPPED.read_bytes()
    server.files[HOME, "tokenizer.bin"] = tokenizer
    assert len(get(f"hf:{HOME}", server, tmp_path)) == 1
    result = run(
        "llama.run", f"hf:{HOME}", "-t", "0", "-n", "5", server=server, cwd=tmp_path, HF_HUB_OFFLINE="1"
    )
    assert (result.returncode, result.stdout[:4]) == (0, b"Once")


def test_a_tokenizer_model_of_a_repository_is_turned_into_a_bin(server, tmp_path, model, sentencepiece):
    server.files[HOME, "tiny.bin"] = model
    server.files[HOME, "tokenizer.model"] = sentencepiece
    made = get(f"hf:{HOME}", server, tmp_path)[1]
    assert llama.Tokenizer(made).vocab_size == len(PIECES)
    server.files[HOME, "tokenizer.model"] = b"no model"
    (tmp_path / "other").mkdir()
    result = run("llama.hub", f"hf:{HOME}", server=server, cwd=tmp_path / "other")
    assert_refused(result, 3)
    assert b"is not a sentencepiece model" in result.stderr


def test_a_repository_without_a_model_is_refused(server, tmp_path):
    server.files[HOME, "README.md"] = b"nothing"
    server.files[HOME, "model.safetensors"] = b"weights without a config.json"
    result = run("llama.run", f"hf:{HOME}", server=server, cwd=tmp_path)
    message = "holds no .bin, no .gguf and no folder of Hugging Face or Meta"
    assert_refused(result, 3, f"hf:{HOME}: {message}")


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        (
            [
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "x/model.safetensors",
                "pytorch_model.bin",
            ],
            3,
        ),
        (["config.json", "pytorch_model.bin", "tokenizer.model", "README.md"], 3),
        (["params.json", "consolidated.00.pth", "consolidated.01.pth", "tokenizer.model"], 4),
        (["params.json", "config.json", "model.safetensors", "consolidated.safetensors"], 3),
        (
            [
                "config.json",
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.fp16-00001-of-00001.safetensors",
                "original/consolidated.00.pth",
                "onnx/model.onnx",
                "optimizer.bin",
                "pytorch_model-00001-of-00002.bin",
            ],
            4,
        ),
        (
            [
                "config.json",
                "model.safetensors.index.json",
                "model.safetensors",
                "model-00001-of-00001.safetensors",
            ],
            3,
        ),
        (
            [
                "config.json",
                "pytorch_model.bin",
                "pytorch_model.bin.index.json",
                "pytorch_model-00001-of-00001.bin",
            ],
            3,
        ),
        (["config.json", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"], 3),
        (
            [
                "config.json",
                "model.safetensors",
                "additional_chat_templates/default.jinja",
                "additional_chat_templates/rag.jinja",
            ],
            3,
        ),
        (["model.safetensors", "README.md"], 0),
        (["config.json", "README.md"], 0),
    ],
)
def test_a_folder_is_its_config_one_kind_of_weights_and_its_tokenizer(files, taken):
    assert sorted(hub.folder_files(files)) == sorted(files[:taken])


def test_a_chat_by_the_name_of_a_folder_is_downloaded_converted_and_answered(server, tmp_path):
    assert convert.main([str(SHIPPED), str(tmp_path / "folder")]) == 0
    (tmp_path / "folder" / "chat_template.jinja").write_text(TEMPLATES["llama2"])
    for path in (tmp_path / "folder").iterdir():
        server.files[HOME, path.name] = path.read_bytes()
    options, kept = ("chat", HOME, "-t", "0", "-n", "60", "-i", "Hi!"), str(tmp_path / "kept")
    first, second = (run("llama.cli", *options, server=server, cwd=tmp_path, CRIA_CACHE=kept) for _ in "12")
    assert first.returncode == second.returncode == 0, first.stderr
    assert b"converting" in first.stderr
    assert b"converting" not in second.stderr
    assert b"Fetching" not in first.stderr + second.stderr
    assert first.stdout == second.stdout
    assert b"Assistant: " in first.stdout


def test_one_gguf_file_of_a_repository_is_taken_and_several_are_named(server, tmp_path):
    server.files[HOME, "a.Q8_0.gguf"] = b"GGUF"
    assert get(HOME, server, tmp_path)[0].name == "a.Q8_0.gguf"
    server.files[HOME, "a.Q4_0.gguf"] = b"GGUF!"
    message = f"{HOME}: has a.Q8_0.gguf, a.Q4_0.gguf: name one, as hf:{HOME}/a.Q8_0.gguf"
    assert_refused(run("llama.hub", HOME, server=server, cwd=tmp_path), 3, message)
    assert get(f"hf:{HOME}/a.Q4_0.gguf", server, tmp_path)[0].read_bytes() == b"GGUF!"


def test_a_split_gguf_file_comes_with_all_of_its_parts(server, tmp_path):
    for part in range(1, 4):
        server.files[HOME, f"q/a-0000{part}-of-00003.gguf"] = b"GGUF%d" % part
    (first,) = get(HOME, server, tmp_path)
    assert [path.read_bytes()[4:] for path in sorted(first.parent.iterdir())] == [b"1", b"2", b"3"]
    assert first.name == "a-00001-of-00003.gguf"


def test_a_quantisation_names_a_gguf_file(server, tmp_path):
    server.files[HOME, "config.json"] = server.files[HOME, "model.safetensors"] = b"{}"
    names = ["a.Q8_0.gguf", "a.Q4_K_S.gguf", "a.Q4_K_M.gguf", "mmproj-a-Q5_0.gguf"]
    names += [f"bf16/a-bf16-0000{part}-of-00002.gguf" for part in (1, 2)]
    for name in names:
        server.files[HOME, name] = name.encode()
    assert get(f"{HOME}:q4_k_m", server, tmp_path)[0].read_bytes() == b"a.Q4_K_M.gguf"
    assert get(f"hf:{HOME}:Q8_0@v2", server, tmp_path)[0].read_bytes() == b"a.Q8_0.gguf"
    (first,) = get(f"hf.co/{HOME}:BF16", server, tmp_path)
    assert len(list(first.parent.iterdir())) == 2
    there = f"{', '.join(names[:3])}, {names[4]}"
    for quant in ("Q4_K", "Q5_0"):
        message = f"{HOME}:{quant}: has no .gguf with {quant} in its name, allowed {there}"
        assert_refused(run("llama.hub", f"{HOME}:{quant}", server=server, cwd=tmp_path), 3, message)
    server.files[HOME, "b.Q8_0.gguf"] = b"another"
    message = f"{HOME}:Q8_0: has a.Q8_0.gguf, b.Q8_0.gguf: name one, as hf:{HOME}/a.Q8_0.gguf"
    assert_refused(run("llama.hub", f"{HOME}:Q8_0", server=server, cwd=tmp_path), 3, message)


@pytest.mark.parametrize(
    ("name", "repository", "revision", "file"),
    [
        ("hf:owner/name", "owner/name", "main", ""),
        ("hf:owner/name@v2", "owner/name", "v2", ""),
        ("hf:owner/name@refs/pr/1", "owner/name", "refs/pr/1", ""),
        ("hf:owner/name@v2/a.gguf", "owner/name", "v2", "a.gguf"),
        ("hf:owner/name@refs/pr/1/sub/a.bin", "owner/name", "refs/pr/1", "sub/a.bin"),
        ("hf:owner/name/a.bin", "owner/name", "main", "a.bin"),
        ("hf:owner/name/sub/a.gguf@x/y", "owner/name", "x/y", "sub/a.gguf"),
        ("https://huggingface.co/owner/name", "owner/name", "main", ""),
        ("https://huggingface.co/owner/name/", "owner/name", "main", ""),
        ("https://huggingface.co/owner/name/tree/v2", "owner/name", "v2", ""),
        ("https://hf.co/owner/name/blob/main/sub/a.gguf", "owner/name", "main", "sub/a.gguf"),
        (
            "https://huggingface.co/owner/name/resolve/refs%2Fpr%2F1/a.gguf?download=true",
            "owner/name",
            "refs/pr/1",
            "a.gguf",
        ),
        ("http://localhost:1/owner/name", "owner/name", "main", ""),
    ],
)
def test_a_place_has_many_names(monkeypatch, name, repository, revision, file):
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:1")
    assert hub.is_name(name)
    assert hub.parse(name) == hub.Place(name, repository, revision, file)


@pytest.mark.parametrize(
    "name",
    [
        *("hf:name", "hf:owner/name/config.json", "hf:owner/name:", "hf:owner/name:Q8_0/a.gguf", "hf:"),
        *("hf:owner/name@", "https://example.org/owner/name", "https://huggingface.co/owner"),
        "https://huggingface.co/owner/name/blob/main/model.safetensors",
    ],
)
def test_another_name_is_told_what_is_allowed(name):
    with pytest.raises(llama.UsageError, match=f"^{re.escape(name)}: allowed hf:owner/name, with "):
        hub.parse(name)


def test_the_address_of_a_file_is_its_name(server, tmp_path, model):
    server.files[HOME, "sub/tiny.bin"] = model
    address = f"{server.address}/{HOME}/resolve/v2/sub/tiny.bin?download=true"
    assert get(address, server, tmp_path)[0].read_bytes() == model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stories15M", True),
        ("owner/name:Q4_K_M", True),
        ("hf:owner/name", True),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", True),
        ("owner/name@v2", True),
        ("out/model.bin", False),
        ("folder/name", False),  # the folder is there
        ("./name", False),
        ("/root/name", False),
        ("a/b/c", False),
        ("name", False),
    ],
)
def test_a_name_of_the_hub_is_told_from_a_path(tmp_path, monkeypatch, name, expected):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    assert hub.is_name(name) == expected


# --- What can go wrong


def test_what_is_not_there_is_one_line(server, tmp_path, model):
    server.files[HOME, "tiny.bin"] = model
    for name, message in (
        ("hf:owner/none", f"{server.address}/owner/none is not there, or private: then run hf auth login"),
        (f"hf:{HOME}@v3", f"{server.address}/{HOME} has no revision v3"),
        (f"hf:{HOME}/none.bin", f"{server.address}/{HOME} has no file none.bin"),
    ):
        assert_refused(run("llama.run", name, server=server, cwd=tmp_path), 3, f"{name}: {message}")


def test_a_gated_repository_says_where_to_ask(server, tmp_path, model):
    server.files[HOME, "tiny.bin"], server.gated = model, True
    message = f"hf:{HOME}: is gated: ask for access at {server.address}/{HOME}, then run hf auth login"
    assert_refused(run("llama.hub", f"hf:{HOME}", server=server, cwd=tmp_path), 3, message)


def test_a_connection_that_breaks_is_taken_up_again(server, tmp_path, tokenizer):
    large = bytes(range(256)) * 100_000  # more than the pieces that huggingface_hub writes
    stories(server, large, tokenizer)
    server.cut = 1
    assert get("stories260K", server, tmp_path)[0].read_bytes() == large
    first, second, _ = server.asked("GET")
    start = int(second.removeprefix(f"{first} bytes=").removesuffix("-"))
    assert 0 < start <= len(large) // 2


def test_a_file_that_is_not_as_long_as_was_said_is_refused(server, tmp_path, model, tokenizer):
    stories(server, model, tokenizer)
    server.lie = 1
    result = run("llama.run", "stories260K", server=server, cwd=tmp_path)
    assert_refused(result, 3)
    sizes = f"file should be of size {len(model) + 1} but has size {len(model)}"
    assert sizes.encode() in result.stderr
    assert not [
        path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 1000
    ]
    server.lie = 0
    assert get("stories260K", server, tmp_path)[0].read_bytes() == model


def test_without_a_network_only_what_is_in_the_cache_runs(server, tmp_path, model, tokenizer):
    stories(server, model, tokenizer)
    offline = {"server": server, "cwd": tmp_path, "HF_HUB_OFFLINE": "1"}
    for name in ("stories260K", f"hf:{HOME}"):
        result = run("llama.run", name, **offline)
        assert_refused(result, 3)
        start = f"error: {name}: is not in the cache, and {server.address} does not give it: "
        assert result.stderr.decode().startswith(start)
    assert server.requests == []
    server.files[HOME, "tiny.bin"], server.files[HOME, "tokenizer.bin"] = model, tokenizer
    paths = get(f"hf:{HOME}", server, tmp_path)
    server.requests.clear()
    assert get(f"hf:{HOME}", server, tmp_path, HF_HUB_OFFLINE="1") == paths
    assert server.requests == []


def test_a_hub_that_is_not_there_is_one_line(tmp_path):
    nobody = Hub(address="http://127.0.0.1:9")
    result = run("llama.run", f"hf:{HOME}", server=nobody, cwd=tmp_path)
    assert_refused(result, 3)
    assert (
        f"error: hf:{HOME}: is not in the cache, and {nobody.address} does not give it: ".encode()
        in result.stderr
    )


def test_without_huggingface_hub_the_line_to_install_it_is_said(server, tmp_path):
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError('not installed')")
    for module in ("llama.run", "llama.hub"):
        result = run(module, "stories15M", server=server, cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
        assert_refused(result, 3, "stories15M: to download it: pip install huggingface_hub")


def test_a_full_disk_is_a_lack_of_resources():
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert isinstance(hub.explained(error, hub.LLAMA2_TOKENIZER), llama.ResourceError)


# --- Names


@pytest.mark.parametrize(
    "name", ["hf:", "hf:a", "hf:a/", "hf:/b", "hf:a/b@", "hf:a/b/c.txt", "stories7B", "a.bin"]
)
def test_any_other_name_is_refused(name):
    with pytest.raises(llama.UsageError, match="allowed"):
        hub.download(name)


def test_every_command_line_takes_names(tmp_path, monkeypatch, capsys, model, tokenizer):
    files = hub.Files(str(tmp_path / "model.bin"), str(tmp_path / "named.bin"))
    Path(files.model).write_bytes(model)
    Path(files.tokenizer).write_bytes(tokenizer)
    (tmp_path / "text.txt").write_text("abc")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "download", lambda name: files)
    perplexity.main(["stories15M", "text.txt"])
    assert "1 document, " in capsys.readouterr().out
    info.main(["stories15M"])
    assert f"{files.tokenizer}: " in capsys.readouterr().out
    bench.main(
        ["stories15M", "-r", "1", "-n", "2", "-p", "1", "-j", "1", "--sequences", "1", "--prefill", "2"]
    )
    assert capsys.readouterr().out.startswith(f"{files.model}: v0")


def test_a_path_imports_nothing_that_downloads(tmp_path, model, tokenizer):
    (tmp_path / "model.bin").write_bytes(model)
    (tmp_path / "tokenizer.bin").write_bytes(tokenizer)
    code = "import sys; from llama import run; run.main(['model.bin', '-n', '2']); print(sys.modules.keys())"
    result = finish(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("llama.hub", "huggingface_hub", "httpx", "sentencepiece", "argparse", "numpy"):
        assert f"'{name}'" not in result.stdout
