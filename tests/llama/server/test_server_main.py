"""python -m llama.server: what it refuses, how it starts and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import assert_refused, environment, finish
from serving import PIECES, SLOW, write_model

from llama.errors import UsageError
from llama.native import SHIPPED
from llama.server.__main__ import keys_of, parser

SHORT = {"/v1/completions": {"max_tokens": 1}, "/completion": {"n_predict": 1}}
STREAM = {"prompt": "abc", "max_tokens": 2000, "n": 100, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), SLOW)


def line(*arguments: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        "llama.server",
        *(os.fsdecode(a) if isinstance(a, bytes) else str(a) for a in arguments),
    ]


@contextmanager
def started(*arguments: object) -> Iterator[tuple[subprocess.Popen, int]]:
    """The program once it answers, and its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        line(*arguments, "--port", port), env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        while True:
            assert process.poll() is None, process.stderr.read()
            try:
                assert get(port, "/health").status == 200
                break
            except OSError:
                time.sleep(0.05)
        yield process, port
    finally:
        process.kill()
        process.communicate()


def get(port: int, path: str, body: object = None) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json"}
    connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
    return connection.getresponse()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--draft", "no/such.bin"], 3, "no/such.bin: No such file or directory"),
        (["--draft", SHIPPED], 2, f"the tokenizer has {len(PIECES)} tokens, the model 4096"),
        (["--host", ""], 2, None),
        (["--host", b"a\xffb"], 2, "--host = 'a\\udcffb', allowed an address, or a name that has one"),
        (["--host", "é" * 70], 2, f"--host = '{'é' * 70}', allowed an address, or a name that has one"),
        (["--host", "256.1.1.1", "--api-key", "sesame"], 4, None),
        (["--port", "70000"], 2, "--port = 70000, allowed 0 to 65535"),
        (["--slot-save-path", "no/such"], 3, "no/such: is no folder"),
        (["--api-key", ""], 2, None),
        (["--parallel", "0"], 2, None),
        (["--log-level", "loud"], 2, None),
        (["--context", "100000"], 2, None),
        (["--nothing"], 2, None),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(model, arguments, code, message):
    result = finish(line(model, *arguments), env=environment(), capture_output=True)
    assert_refused(result, code, message)


def test_a_model_that_is_not_there(tmp_path):
    result = finish(line(tmp_path / "none.bin"), env=environment(), capture_output=True)
    assert_refused(result, 3)


def test_a_port_that_is_taken(model):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = finish(line(model, "--port", port), env=environment(), capture_output=True)
    assert_refused(result, 4, f"--host 127.0.0.1 --port {port}: Address already in use")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_where_nobody_waits(model, number):
    with started(model) as (process, _):
        start = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=20) == 0
        assert time.monotonic() - start < 3


def test_it_ends_within_ten_seconds_whatever_clients_do(model):
    with started(model, "--log-level", "error") as (process, port):
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
        clients[0].sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Le")
        streams = [get(port, "/v1/completions", STREAM) for _ in range(3)]
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert time.monotonic() - start < 10
        for open_one in (*clients, *streams):
            open_one.close()


@pytest.mark.parametrize("key", ["", " ", "a b", " a", "a\n", "ä", "\udcff"])
def test_a_key_that_no_request_can_have_is_refused(key, monkeypatch):
    """An empty one, of a variable without a value, everybody would have."""
    monkeypatch.delenv("CRIA_API_KEY", raising=False)
    assert keys_of(parser().parse_args(["--api-key", "sesame"])) == ["sesame"]
    with pytest.raises(UsageError, match="--api-key"):
        keys_of(parser().parse_args(["--api-key", "sesame", "--api-key", key]))


def test_a_file_that_is_not_called_by_utf8_is_served(model, tmp_path):
    name = os.fsencode(tmp_path) + b"/m\xff.bin"
    shutil.copy(model, name)
    shutil.copy(model.with_name("tokenizer.bin"), tmp_path)
    with started(name) as (_, port):
        for path in ("/v1/completions", "/completion"):
            with get(port, path, {"prompt": "a"} | SHORT[path]) as answer:
                assert (answer.status, json.load(answer)["model"]) == (200, "m\ufffd.bin")
        with get(port, "/props") as answer:
            assert json.load(answer)["model_path"] == "m\ufffd.bin"


def test_the_models_name_and_key(model, monkeypatch):
    monkeypatch.setenv("CRIA_API_KEY", "sesame")
    with started(model, "--alias", "mine") as (_, port):
        assert get(port, "/v1/models").status == 401
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/v1/models", headers={"Authorization": "Bearer sesame"})
        assert json.load(connection.getresponse())["data"][0]["id"] == "mine"
        connection.close()
