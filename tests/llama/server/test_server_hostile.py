"""Whatever a client sends or leaves out: a proper answer in time, and the server goes on."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest
from serving import serving

from llama import Llama
from llama.formats import tokenizers
from llama.server import limits

GOOD = {"prompt": "abc", "max_tokens": 8, "temperature": 0}
ENDLESS = {"prompt": "abc", "max_tokens": 2000, "ignore_eos": True, "stream": True}


@pytest.fixture(autouse=True)
def goes_on(server):
    """The server gives the same answer before and after."""
    before = server.post("/v1/completions", GOOD).json["choices"]
    yield
    assert server.post("/v1/completions", GOOD).json["choices"] == before
    assert server.get("/health").status == 200


def assert_refused(answer, *statuses: int) -> None:
    """An error in OpenAI's shape, that is the client's."""
    assert answer.status in (statuses or range(400, 500)), (answer.status, answer.body[:500])
    assert set(answer.json) == {"error"}
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert answer.json["error"]["message"]
    assert answer.headers["content-type"] == "application/json"


def deep(depth: int) -> bytes:
    return b'{"prompt": ' + b"[" * depth + b"]" * depth + b"}"


BODIES = {
    "empty": b"",
    "no JSON": b"{",
    "not an object": b"[1, 2]",
    "null": b"null",
    "a number": b"1e999",
    "deep": deep(500),
    "very deep": deep(200_000),
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "a lone surrogate": b'{"prompt": "\\ud800"}',
    "a huge number": b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "infinity": b'{"prompt": "a", "temperature": 1e400}',
    "a NUL": b'{"prompt": "a", "stop": "\\u0000"}',
    "a padded id": b'{"prompt": "a", "logit_bias": {"' + b"0" * 5000 + b'5": 1}}',
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/completion", "/v1/embeddings"])
def test_bodies_that_are_none(server, path, name):
    assert_refused(server.post(path, BODIES[name]))


WRONG = [
    {"prompt": 1},
    {"prompt": []},
    {"prompt": [[]]},
    {"prompt": {}},
    {"prompt": [1, "a"]},
    {"prompt": [1.5]},
    {"prompt": [True]},
    {"prompt": [-1]},
    {"prompt": [10**9]},
    {"prompt": [2**70]},
    {"prompt": [5] * 200},
    {"prompt": "abc " * 100},
    {"prompt": ["a"] * 1000},
    {"max_tokens": -2},
    {"max_tokens": "10"},
    {"max_tokens": 1.5},
    {"max_tokens": True},
    {"temperature": -0.1},
    {"temperature": "hot"},
    {"temperature": 1e300},
    {"top_p": 1.1},
    {"top_k": -2},
    {"min_p": 2},
    {"repeat_penalty": 0},
    {"presence_penalty": 3},
    {"frequency_penalty": -3},
    {"seed": "x"},
    {"seed": 2**64},
    {"n": 0},
    {"n": 10**6},
    {"n": 100, "prompt": ["a", "b"]},
    {"best_of": 3},
    {"logprobs": -1},
    {"logprobs": 1000},
    {"logprobs": True},
    {"stop": 1},
    {"stop": ["a"] * 100},
    {"stop": ""},
    {"stop": [None]},
    {"logit_bias": []},
    {"logit_bias": {"a": 1}},
    {"logit_bias": {"-1": 1}},
    {"logit_bias": {"99999999999999999999": 1}},
    {"logit_bias": {"²": 1}},
    {"logit_bias": {"5": "x"}},
    {"stream": "yes"},
    {"stream_options": 1},
    {"suffix": "x"},
    {"no_such_field": 1},
    {"model": 5},
]


@pytest.mark.parametrize("fields", WRONG, ids=str)
@pytest.mark.parametrize("stream", [False, True])
def test_fields_that_can_not_be(server, fields, stream):
    assert_refused(server.post("/v1/completions", {"prompt": "a", "stream": stream} | fields), 400)


CHATS = [
    {"messages": []},
    {"messages": "hello"},
    {"messages": [1]},
    {"messages": [{"role": "nobody", "content": "x"}]},
    {"messages": [{"role": "user", "content": 5}]},
    {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
    {"messages": [{"content": "x"}]},
    {"top_logprobs": 5},
    {"response_format": {"type": "yaml"}},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "blah"}}}},
    {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}},
        }
    },
    {"max_tokens": 0},
]


@pytest.mark.parametrize("fields", CHATS, ids=str)
def test_chats_that_can_not_be(server, fields):
    messages = {"messages": [{"role": "user", "content": "abc"}]}
    assert_refused(server.post("/v1/chat/completions", messages | fields), 400)


USER = {"role": "user", "content": "abc"}
TOLD = [  # what is wrong with a completion: its name, and what is said
    ({"temperature": 101}, "temperature", "temperature = 101, allowed up to 100"),
    ({"temperature": "x" * 1000}, "temperature", "temperature = 'xxx"),
    ({"n": True}, "n", "n = True, allowed a whole number"),
    ({"foo": 1}, "foo", "foo = 1: there is no such field"),
    ({"stop": ["a", 1]}, "stop", "stop = ['a', 1], allowed are a text, and a list of texts"),
    ({"stop": ["a\0"]}, "stop", "stop: a string has a NUL character, allowed are all others"),
    ({"stop": "\ud83d"}, "stop", "stop: has a lone surrogate, allowed is what UTF-8 can hold"),
    ({"prompt": "\ud83d"}, "prompt", "prompt: has a lone surrogate, allowed is what UTF-8 can hold"),
    ({"logit_bias": {"\u0663": 1}}, "logit_bias", "logit_bias: token '\u0663', allowed 0 to "),
    ({"logit_bias": {"01": 1, "1": 2}}, "logit_bias", "logit_bias: token '01', allowed 0 to "),
    ({"logit_bias": {"5": "x"}}, "logit_bias", "logit_bias.5 = 'x', allowed a number"),
    ({"logit_bias": {"5": 1e39}}, "logit_bias", "logit_bias.5 = 1e+39, allowed up to 3e+38"),
    ({"stream_options": {}}, "stream_options", "stream_options: goes with stream = true"),
    ({"suffix": "x"}, "suffix", "the tokenizer has no "),
]


@pytest.mark.parametrize(("fields", "name", "message"), TOLD, ids=str)
def test_what_is_wrong_is_told_with_what_was_found_and_what_is_allowed(server, fields, name, message):
    answer = server.post("/v1/completions", {"prompt": "a"} | fields)
    assert_refused(answer, 400)
    assert answer.json["error"]["param"] == name
    assert answer.json["error"]["message"].startswith(message)
    assert len(answer.json["error"]["message"]) < 150


MESSAGES = [
    ({"conent": "x"}, "messages.0.conent = 'x': there is no such field"),
    ({}, "messages.0: content is missing, allowed are a text, and a list of parts"),
    ({"content": None}, "messages.0: content is missing, allowed are a text, and a list of parts"),
    ({"content": []}, "messages.0.content = [], allowed 1 item at least"),
    ({"content": 5}, "messages.0.content = 5, allowed a text"),
    ({"content": [5]}, "messages.0.content.0 = 5, allowed an object"),
    ({"content": [{"type": "text", "txt": "Hi"}]}, "messages.0.content.0.txt = 'Hi': there is no such field"),
    ({"content": [{"type": "text"}]}, "messages.0.content.0.text: is missing"),
    ({"content": [{"text": "Hi"}]}, "messages.0.content.0.type: is missing"),
    ({"content": "x", "refusal": "no"}, "messages.0.refusal = 'no': there is no such field"),
]


@pytest.mark.parametrize(("fields", "message"), MESSAGES, ids=str)
def test_a_field_of_a_message_that_can_not_be_is_named(server, fields, message):
    for path in ("/v1/chat/completions", "/apply-template"):
        answer = server.post(path, {"messages": [{"role": "user"} | fields]})
        assert_refused(answer, 400)
        assert answer.json["error"]["message"] == message
        assert answer.json["error"]["param"] == "messages"


def test_an_answer_may_be_sent_back_as_clients_keep_it(server):
    """With the fields that OpenAI's client and others add, which say nothing."""
    nothing = dict.fromkeys(("refusal", "audio", "function_call", "tool_calls", "provider_specific_fields"))
    rest = nothing | {"annotations": [], "name": "b", "reasoning_content": "so"}
    plain = [USER, {"role": "assistant", "content": "b"}, USER]
    kept = [USER, plain[1] | rest, {"role": "user", "content": [{"type": "text", "text": "abc"}]}]
    body = {"max_tokens": 5, "temperature": 0}
    answers = [server.post("/v1/chat/completions", body | {"messages": told}) for told in (plain, kept)]
    assert answers[0].status == 200
    assert answers[0].json["choices"] == answers[1].json["choices"]


SCHEMA = {"schema": {"type": "string"}}
GOES = "json_schema goes with the type json_schema, and it with no other"
FORMATS = [
    ({}, "response_format.type: is missing"),
    ({"json_schema": SCHEMA}, "response_format.type: is missing"),
    ({"type": "text", "json_schema": SCHEMA}, f"response_format: type = 'text', allowed: {GOES}"),
    (
        {"type": "json_object", "json_schema": SCHEMA},
        f"response_format: type = 'json_object', allowed: {GOES}",
    ),
    ({"type": "json_schema"}, f"response_format: type = 'json_schema', allowed: {GOES}"),
    ({"type": "json_schema", "json_schema": {}}, "response_format.json_schema.schema: is missing"),
    (
        {"type": "json_schema", "json_schema": {"schema": {"type": "string", "pattern": "(("}}},
        "json_schema: regex parse error: unclosed group",
    ),
]


@pytest.mark.parametrize(("form", "message"), FORMATS, ids=str)
def test_a_format_that_promises_nothing_is_refused(server, form, message):
    answer = server.post("/v1/chat/completions", {"messages": [USER], "response_format": form})
    assert_refused(answer, 400)
    assert answer.json["error"]["param"] == "response_format"
    assert answer.json["error"]["message"] == message


@pytest.mark.parametrize(
    ("fields", "name", "message"),
    [
        ({"json_schema": 5}, "json_schema", "json_schema = 5, allowed are an object, true and false"),
        ({"json_schema": {"type": "x"}}, "json_schema", "json_schema: Invalid type: x"),
        (
            {"logit_bias": [[5, 1], [5, 2]]},
            "logit_bias",
            "logit_bias: has a token twice, allowed is each once",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_in_a_request_of_llamacpp_is_told_so_too(server, fields, name, message):
    answer = server.post("/completion", {"prompt": "a"} | fields)
    assert_refused(answer, 400)
    assert (answer.json["error"]["param"], answer.json["error"]["message"]) == (name, message)


UNSUPPORTED = [
    {"messages": [USER, {"role": "assistant", "content": "a", "function_call": {"name": "x"}}]},
    {"messages": [USER, {"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}]},
    {"messages": [USER, {"role": "assistant", "content": "a", "audio": {"id": "x"}}]},
    {"messages": [{"role": "tool", "content": "x", "tool_call_id": "y"}]},
    {"tools": [{"type": "function", "function": {"name": "x"}}]},
    {"tool_choice": "required"},
    {"modalities": ["audio"]},
    {"messages": [{"role": "tool", "content": "x"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
]


@pytest.mark.parametrize("fields", UNSUPPORTED, ids=str)
def test_what_is_not_here_is_a_clear_501(server, fields):
    messages = {"messages": [{"role": "user", "content": "abc"}]}
    assert_refused(server.post("/v1/chat/completions", messages | fields), 501)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/images/generations", "/v1/audio/speech"])
def test_endpoints_that_are_not_here(server, path):
    assert_refused(server.post(path, {}), 501)


@pytest.mark.parametrize("text", [1, [], [10**9], "abc " * 100, ["a"] * 200])
def test_the_field_that_is_wrong_is_named(server, text):
    for path, field in (("completions", "prompt"), ("embeddings", "input")):
        answer = server.post(f"/v1/{path}", {field: text})
        assert_refused(answer, 400)
        assert answer.json["error"]["param"] == field


def test_paths_and_methods(server):
    assert_refused(server.get("/nothing"), 404)
    assert_refused(server.get("/v1/completions"), 405)
    assert_refused(server.ask("DELETE", "/v1/models"), 405)
    assert_refused(server.get("/../../etc/passwd"), 404)
    assert_refused(server.get("/v1/models/other"), 404)


def test_another_type_of_body_is_refused(server):
    """A page of somebody else's may send forms and plain text without asking a browser's leave."""
    body = json.dumps(GOOD).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = server.post("/v1/completions", body, **{"Content-Type": kind})
        assert_refused(answer, 415)
        assert answer.json["error"]["message"] == f"Content-Type = '{kind}', allowed application/json"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"prompt": "\xff"}', "the body is not UTF-8: byte 12"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "the body has a number of more than 4300 digits"),
        (deep(200_000), "the body is nested too deeply"),
        (b"{", "the body is not JSON: Expecting property name enclosed in double quotes"),
        (b"[1]", "the body = [1], allowed an object"),
    ],
)
def test_why_a_body_is_not_read_is_said(server, body, reason):
    answer = server.post("/v1/completions", body)
    assert_refused(answer, 400)
    assert answer.json["error"]["message"] == reason


def test_a_body_that_is_compressed_is_refused(server):
    good = json.dumps(GOOD).encode()
    answer = server.post("/v1/completions", gzip.compress(good), **{"Content-Encoding": "gzip"})
    assert_refused(answer, 415)
    assert answer.json["error"]["message"] == "Content-Encoding = 'gzip', allowed identity"
    assert server.post("/v1/completions", good, **{"Content-Encoding": "Identity"}).status == 200


def test_random_bytes(server):
    rng = random.Random(1)
    good = json.dumps(GOOD | {"stop": ["x"], "logit_bias": {"5": 1}}).encode()
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        answer = server.post("/v1/completions", bytes(data))
        if answer.status != 200:
            assert_refused(answer)


# --- Sizes and times


def test_a_body_that_is_too_large(server):
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    )
    assert raw(server, head % (limits.BODY_BYTES + 1)).startswith(b"HTTP/1.1 413 ")
    assert raw(server, head % 10**15).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_say_how_large_it_is(server):
    with server.connect() as client:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(limits.BODY_BYTES // 65536 + 2):
                client.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        except OSError:
            return  # it was closed while we wrote
        assert b" 413 " in client.recv(4096).split(b"\r\n")[0]


def read(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    found = bytearray()
    try:
        while part := client.recv(65536):
            found += part
    except OSError:
        pass
    return bytes(found)


def raw(server, data: bytes) -> bytes:
    """What comes back for bytes, until the server closes."""
    with server.connect() as client:
        client.sendall(data)
        return read(client)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,  # TLS
        b"\r\n\r\n\x00\x00\x00",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (limits.HEADER_BYTES + 1) + b"\r\n\r\n",
        b"GET /" + b"x" * (limits.HEADER_BYTES + 1) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 20000 + b"\r\n",
    ],
)
def test_bytes_that_are_no_http(server, data):
    answer = raw(server, data)
    assert answer[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]


@pytest.fixture
def impatient(tiny, monkeypatch):
    """A server that waits a second at most, for a few connections."""
    for name in ("HEADER_SECONDS", "BODY_SECONDS", "SEND_SECONDS"):
        monkeypatch.setattr(limits, name, 1)
    monkeypatch.setattr(limits, "CONNECTIONS", 20)
    with Llama(tiny.path, threads=1) as llama, serving(llama) as server:
        yield server


START = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
HEAD = START + b"Content-Length: 50\r\n\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"POST /v1/comp",
        HEAD[:-2],
        HEAD,
        HEAD + b"{",
    ],
)
def test_a_client_that_stops_halfway_is_told_so(impatient, data):
    start = time.monotonic()
    answer = raw(impatient, data)
    assert 0.5 < time.monotonic() - start < 5
    assert b"HTTP/1.1 408 " in answer


def test_a_flood_of_idle_connections_passes(impatient):
    clients = [impatient.connect() for _ in range(60)]
    time.sleep(2)  # those that got in have been idle for too long
    assert impatient.post("/v1/completions", GOOD).status == 200
    for client in clients:
        client.close()


def test_a_client_that_does_not_read_is_left(impatient):
    body = {"prompt": "abc", "max_tokens": 90, "n": 128, "logprobs": 20, "ignore_eos": True, "stream": True}
    with impatient.connect() as client:
        client.sendall(request(body))
        while not impatient.engine.running:
            time.sleep(0.01)
        until_idle(impatient)
        time.sleep(2)
        assert b"[DONE]" not in read(client)  # what it has not been sent it will not get
    assert impatient.post("/v1/completions", GOOD).status == 200


# --- Clients that leave


def until_idle(server) -> None:
    for _ in range(500):
        engine = server.engine
        if not engine.running and not len(engine.waiting) and not len(engine.chores):
            return
        time.sleep(0.01)
    raise AssertionError("texts are written for nobody")


def request(body: dict) -> bytes:
    data = json.dumps(body).encode()
    return START + b"Content-Length: %d\r\n\r\n" % len(data) + data


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_text(slow, stream):
    before = slow.engine.totals["cancelled"]
    for i in range(1, 11):
        with slow.connect() as client:
            client.sendall(request(ENDLESS | {"stream": stream, "n": 30}))
            if stream:
                assert client.recv(100)
            while not slow.engine.running:
                time.sleep(0.01)
        until_idle(slow)
        assert slow.engine.totals["cancelled"] >= before + i


@pytest.mark.parametrize("path", ["completions", "embeddings"])
def test_a_client_that_leaves_ends_what_is_read_for_it(slow, path):
    body = {"input": [[5] * 90] * 100}
    if path == "completions":
        body = {"prompt": body["input"], "echo": True, "logprobs": 0, "max_tokens": 0}
    with slow.connect() as client:
        client.sendall(request(body).replace(b"completions", path.encode()))
        while not len(slow.engine.chores):
            time.sleep(0.01)
    start = time.monotonic()
    until_idle(slow)
    assert time.monotonic() - start < 1


def test_clients_that_leave_in_every_phase(slow):
    data, rng = request(ENDLESS), random.Random(1)
    for _ in range(100):
        with slow.connect() as client:
            client.sendall(data[: rng.randint(0, len(data)) if rng.random() < 0.5 else None])
            time.sleep(rng.random() * 0.05)
    until_idle(slow)


def test_a_full_queue_says_when_to_come_back(slow_path):
    with Llama(slow_path, threads=1) as llama, serving(llama, parallel=1, queue=2) as server:
        clients = [server.connect() for _ in range(8)]
        for client in clients:
            client.sendall(request(ENDLESS | {"n": 20}))
        while not len(server.engine.waiting):
            time.sleep(0.01)
        answers = [server.post("/v1/completions", GOOD) for _ in range(3)]
        for client in clients:
            client.close()
        for answer in answers:
            assert_refused(answer, 429)
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        until_idle(server)
        assert server.post("/v1/completions", GOOD).status == 200


def test_a_very_long_prompt_does_not_hold_up_short_ones(slow_path):
    """4 tokens of prompts a step: that of one client takes 475 steps, those of the other a few each."""
    with Llama(slow_path, threads=1) as llama, serving(llama, parallel=2, prefill=4) as server:
        with server.connect() as client:
            client.sendall(request({"prompt": list(range(3, 253)) * 7 + [5] * 150, "max_tokens": 1}))
            while not server.engine.running:
                time.sleep(0.01)
            for _ in range(5):
                assert server.post("/v1/completions", GOOD).status == 200
            ended = server.engine.totals["requests"]
            assert client.recv(4096)
        assert (ended, server.engine.totals["requests"]) == (5, 6)


# --- Strangers


def test_keys(tiny):
    with Llama(tiny.path, threads=1) as llama, serving(llama, keys=["sesame", "ä"]) as server:
        assert_refused(server.post("/v1/completions", GOOD), 401)
        for wrong in ("Bearer x", "Bearer ", "sesame", "Basic sesame", "Bearer sesam", "Bearer sesame2"):
            assert_refused(server.post("/v1/completions", GOOD, Authorization=wrong), 401)
        assert server.post("/v1/completions", GOOD, Authorization="Bearer sesame").status == 200
        assert server.get("/health").status == 200
        for path in ("/metrics", "/slots", "/props", "/v1/models", "/openapi.json"):
            assert_refused(server.get(path), 401)


def test_a_name_that_is_not_ours_is_refused(server):
    """So a page whose name comes to mean this machine can't ask."""
    for name in ("evil.example", "localhost.evil.example", "evil.example:80", ""):
        assert_refused(server.get("/v1/models", Host=name), 403)
    for name in ("localhost", "127.0.0.1:5", "[::1]:80", "LOCALHOST"):
        assert server.get("/v1/models", Host=name).status == 200


def test_a_page_does_nothing_without_json(server):
    """What it may send without asking a browser's leave, also where an endpoint needs no body."""
    erase, page = "/slots/0?action=erase", {"Origin": "https://evil.example"}
    assert_refused(server.post(erase, **page), 415)
    assert_refused(server.post(erase, b"", **page | {"Content-Type": "text/plain"}), 415)
    assert server.post(erase).status == 200
    assert server.post(erase, {}, **page).status == 200  # a browser has asked for leave before


def test_other_pages_may_not_ask_unless_allowed(server, tiny):
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in server.ask("OPTIONS", "/v1/completions", **asked).headers
    with Llama(tiny.path, threads=1) as llama, serving(llama, origins=["https://a.example"]) as open_to_one:
        allowed = open_to_one.ask("OPTIONS", "/v1/completions", **asked)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        other = open_to_one.ask("OPTIONS", "/v1/completions", **asked | {"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


# --- How packets are sent


def test_a_packet_does_not_wait_for_the_one_before_it(tiny, monkeypatch):
    seen, made = [], limits.Connection.connection_made

    def connection_made(self, transport):
        made(self, transport)
        seen.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(limits.Connection, "connection_made", connection_made)
    with Llama(tiny.path, threads=1) as llama, serving(llama) as server:
        assert server.get("/health").status == 200
    assert seen == [1]


# --- The end


def test_it_ends_in_time_whatever_clients_do(slow_path, monkeypatch):
    monkeypatch.setattr(limits, "SHUTDOWN_SECONDS", 1)
    with Llama(slow_path, threads=1) as llama:
        with serving(llama) as server:
            clients = [server.connect() for _ in range(12)]
            for i, client in enumerate(clients):
                client.sendall([b"", HEAD, HEAD + b"{", request(ENDLESS | {"n": 100})][i % 4])
            threading.Event().wait(0.2)
            start = time.monotonic()
        assert time.monotonic() - start < 5
        for client in clients:
            client.close()


def test_answers_that_are_cut_off_say_so(slow_path, monkeypatch):
    monkeypatch.setattr(limits, "SHUTDOWN_SECONDS", 0.1)
    with Llama(slow_path, threads=1) as llama:
        with serving(llama) as server:
            clients = [server.connect() for _ in range(2)]
            for client, stream in zip(clients, (False, True), strict=True):
                client.sendall(request(ENDLESS | {"n": 2, "stream": stream}))
            begun = clients[1].recv(1)
            while server.engine.running < 4:
                time.sleep(0.01)
        whole, stream = read(clients[0]), begun + read(clients[1])
        for client in clients:
            client.close()
    assert whole.startswith(b"HTTP/1.1 503 ")
    assert json.loads(whole.partition(b"\r\n\r\n")[2])["error"]["message"] == "the server ends"
    assert json.loads(stream.rpartition(b"data: ")[2].partition(b"\n\n")[0])["error"]["code"] == "unavailable"
    assert stream.endswith(b"0\r\n\r\n")  # the end of a body


@pytest.fixture
def copy(slow_path, tmp_path) -> Path:
    """A model to be damaged."""
    for name in ("model.bin", "tokenizer.bin"):
        shutil.copy(slow_path.with_name(name), tmp_path)
    return tmp_path / "model.bin"


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(5000)


def test_a_file_that_shrinks_is_an_error(copy):
    with Llama(copy, threads=1) as llama, serving(llama) as server:
        assert server.post("/v1/completions", GOOD).status == 200
        truncate(copy)
        answer = server.post("/v1/completions", GOOD)
        assert answer.status == 503
        assert "has shrunk" in answer.json["error"]["message"]
        assert server.get("/health").status == 503


def test_a_tokenizer_that_shrinks_changes_nothing(copy):
    """Its form of ours is mapped."""
    tokenizer = copy.with_name("tokenizer.bin")
    tokenizer.write_bytes(tokenizers.load(tokenizer).vocabulary.indexed)
    with Llama(copy, threads=1) as llama, serving(llama) as server:
        before = server.post("/v1/completions", GOOD).json["choices"]
        tokenizer.write_bytes(b"")
        assert server.post("/v1/completions", GOOD).json["choices"] == before


def test_a_file_that_shrinks_ends_the_texts_being_written(copy):
    with Llama(copy, threads=1) as llama, serving(llama) as server, server.connect() as client:
        client.sendall(request(ENDLESS | {"n": 128}))
        assert client.recv(4096)
        truncate(copy)
        client.settimeout(3)  # it stays open for more requests
        assert b"has shrunk" in read(client)


def test_a_file_with_a_new_one_in_its_place_is_served_on(copy):
    with Llama(copy, threads=1) as llama, serving(llama) as server:
        before = server.post("/v1/completions", GOOD).json["choices"]
        (copy.parent / "new.bin").write_bytes(b"short")
        (copy.parent / "new.bin").replace(copy)
        assert server.post("/v1/completions", GOOD).json["choices"] == before
