"""A server in this process, on a port of its own, and requests to it without a library."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import checkpoints
import uvicorn
from checkpoints import Shape
from helpers import write_ranked

from llama import Llama
from llama.server import limits
from llama.server.app import create_app
from llama.server.engine import Engine
from llama.server.service import Service

PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), " ", *"abcdefghij"]
SHAPE = Shape(dim=32, hidden_dim=64, n_heads=4, n_kv_heads=2, vocab_size=len(PIECES), max_seq_len=96)
SLOW = replace(SHAPE, dim=256, hidden_dim=512, n_layers=4, max_seq_len=2048)  # slow enough to be left
ALIAS = "tiny"


def write_model(folder: Path, shape: Shape = SHAPE) -> Path:
    """A random model that writes bytes and a few letters."""
    checkpoints.write(folder / "model.bin", shape)
    write_ranked(folder / "tokenizer.bin", PIECES)
    return folder / "model.bin"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Those of a stream, without what ends it."""
        lines = [line.removeprefix("data: ") for line in self.body.decode().split("\n\n") if line]
        return [json.loads(line) for line in lines if line != "[DONE]"]


@dataclass
class Client:
    """Who asks the server at a port of this machine."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """A request. body: bytes as they are, all else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        typed = {"Content-Type": "application/json"} if data is not None else {}
        try:
            connection.request(method, path, data, typed | headers)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        return self.ask("POST", path, body, **headers)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@dataclass
class Server(Client):
    """A server that runs in this process, and who asks it."""

    engine: Engine


@contextmanager
def serving(
    llama: Llama,
    parallel: int = 4,
    queue: int = 64,
    keys: Sequence[str] = (),
    hosts: Sequence[str] = limits.LOCAL_NAMES,
    origins: Sequence[str] = (),
    slot_folder: Path | None = None,
    draft: str | Llama | None = None,
    **batch: Any,
) -> Iterator[Server]:
    """A server of a model, until the end of the block."""
    engine = Engine(llama, parallel, queue, {"threads": 1} | batch, draft)
    service = Service(engine, ALIAS, bool(keys), slot_folder and str(slot_folder))
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(service, keys, hosts, origins)
    server = uvicorn.Server(limits.config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.01)
        yield Server(listener.getsockname()[1], engine)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
