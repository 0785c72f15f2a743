"""Minutes of good, bad and vanishing clients against a server: what it takes stays, and what it says too.

    python -m bench.load                      ten minutes, of the model that ships
    python -m bench.load --seconds 60
    python -m bench.load SmolLM2-135M-Instruct.Q4_1.gguf --options "--context 1024"

Six clients at once, each in turn one of these, by chance: an ordinary request, whose answer must be what it
was when nobody else asked; another one, of any length; random bytes, as a body and in the place of HTTP;
fields that can not be; a client that leaves anywhere in its request or its answer. The table says once in a
while how much memory the server has and how many descriptors and threads. It ends with 1 if a good answer
differed or did not come, one had a status of 5xx, the server ended, memory was 5 % over that of half-time
(before, the cache is touched, page by page; not where it lasts less than a minute), or descriptors grew.
Linux, for /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import shlex
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report import heading, line
from bench.server import started
from llama.command import run_command
from llama.errors import ResourceError

CLIENTS = 6
ROWS = 10  # of the table
GROWTH = 1.05  # of memory, in the second half
SETTLED_SECONDS = 60  # by the half of which caches are full
QUIET_SECONDS = 3  # after which what clients left behind must be gone
GOOD = [
    (
        "/v1/completions",
        {"prompt": "abc def", "max_tokens": 20, "temperature": 0, "logprobs": 2, "echo": True},
    ),
    ("/v1/completions", {"prompt": "Once upon", "max_tokens": 40, "seed": 3, "n": 3}),
    ("/v1/embeddings", {"input": ["a fox", "a hare"]}),
]
BAD = [
    {"prompt": "abc", "max_tokens": -1},
    {"prompt": [10**9]},
    {"prompt": {"a": 1}},
    {"prompt": "abc", "temperature": "hot"},
    {"prompt": "abc", "stop": [""]},
    {"prompt": "abc", "unknown": 1},
    {"prompt": "abc " * 100_000},
]
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
NO_HTTP = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    HEAD + b"X: y\r\n" * 20_000 + b"\r\n",
    HEAD + b"Content-Length: -5\r\n\r\n",
    HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
    HEAD + b"Content-Length: 1000000000000\r\n\r\n{",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nx\r\n",
]


@dataclass
class Load:
    """What clients do to a server. codes: how often each status came, or an error of the connection."""

    port: int
    end: float
    expected: list[Any] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, data: bytes | None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def good(self, which: int) -> Any:
        """What a good request is answered, without what may differ. A full queue answers nothing."""
        path, body = GOOD[which]
        status, answer = self.ask("POST", path, json.dumps(body).encode())
        self.codes[str(status)] += 1
        if status == 429:
            return None
        told = json.loads(answer)
        return told.get("choices") or told.get("data") or answer.decode()

    def check(self, which: int) -> None:
        try:
            found = self.good(which)
        except OSError as error:
            found = repr(error)
        if found is not None and found != self.expected[which]:
            self.wrong.append(f"{GOOD[which]}: {found}")

    def other(self, rng: random.Random) -> None:
        """A request of any length."""
        body = {"prompt": "x " * rng.randint(1, 60), "max_tokens": rng.randint(1, 60), "n": rng.randint(1, 4)}
        data = json.dumps(body | {"stream": rng.random() < 0.5}).encode()
        self.codes[str(self.ask("POST", "/v1/completions", data)[0])] += 1

    def bad(self, rng: random.Random) -> None:
        data = rng.randbytes(200) if rng.random() < 0.5 else json.dumps(rng.choice(BAD)).encode()
        status, answer = self.ask("POST", "/v1/completions", data)
        self.codes[str(status)] += 1
        if not 400 <= status < 500:
            self.wrong.append(f"{data[:100]!r}: {status} {answer[:200]!r}")

    def no_http(self, rng: random.Random) -> None:
        """Bytes that are no request: they are refused, closed upon, or more is waited for."""
        data = rng.randbytes(300) + b"\r\n\r\n" if rng.random() < 0.2 else rng.choice(NO_HTTP)
        answer = b""
        place, seconds = ("127.0.0.1", self.port), 1
        with contextlib.suppress(OSError), socket.create_connection(place, seconds) as client:
            client.sendall(data)
            answer = client.recv(100)
        self.codes["no HTTP"] += 1
        if answer and not answer.startswith(b"HTTP/1.1 4"):
            self.wrong.append(f"{data[:100]!r}: {answer!r}")

    def leave(self, rng: random.Random) -> None:
        """Begins a request, or an answer, and goes."""
        data = json.dumps({"prompt": "abc", "max_tokens": 90, "n": 8, "stream": rng.random() < 0.5}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(data) + data
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as client:
            client.sendall(request[: rng.randint(0, len(request)) if rng.random() < 0.5 else None])
            time.sleep(0.05 * rng.random())
        self.codes["left"] += 1

    def client(self, seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < self.end:
            try:
                match rng.randrange(9):
                    case 0 | 1 | 2:
                        self.check(rng.randrange(len(GOOD)))
                    case 3 | 4:
                        self.other(rng)
                    case 5:
                        self.bad(rng)
                    case 6:
                        self.leave(rng)
                    case 7:
                        self.no_http(rng)
                    case _:
                        page = rng.choice(["/metrics", "/slots", "/props", "/", "/nothing"])
                        self.codes[str(self.ask("GET", page, None)[0])] += 1
            except OSError as error:
                self.codes[type(error).__name__] += 1


def state(pid: int) -> tuple[float, int, int]:
    """A process's memory in MB, its descriptors and threads. Raises ResourceError where it has ended."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    if pages == 0:
        raise ResourceError("the server has ended")
    count = [sum(1 for _ in Path(f"/proc/{pid}/{kind}").iterdir()) for kind in ("fd", "task")]
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, *count


def run(port: int, pid: int, seconds: float) -> list[str]:
    """Loads a server and prints the table. Returns what is wrong."""
    load = Load(port, time.monotonic() + seconds)
    load.expected = [load.good(i) for i in range(len(GOOD))]
    clients = [threading.Thread(target=load.client, args=(i,)) for i in range(CLIENTS)]
    before = state(pid)
    for client in clients:
        client.start()
    print(heading(["seconds", "answers", "memory, MB", "descriptors", "threads"]))
    states = []
    for i in range(ROWS):
        time.sleep(seconds / ROWS)
        states.append(state(pid))
        row = [round((i + 1) * seconds / ROWS), load.codes.total(), round(states[-1][0]), *states[-1][1:]]
        print(line(map(str, row)), flush=True)
    for client in clients:
        client.join()
    time.sleep(QUIET_SECONDS)
    after = state(pid)
    print(f"in the end {after[0]:.0f} MB, {after[1]} descriptors ({before[1]} before), {after[2]} threads")
    print(", ".join(f"{count} times {code}" for code, count in sorted(load.codes.items())))
    load.wrong += [f"status {code}" for code in load.codes if code.startswith("5")]
    half = states[ROWS // 2 - 1][0]
    if seconds < SETTLED_SECONDS:
        print(f"memory is not held to anything: it grows for {SETTLED_SECONDS} s")
    elif after[0] > GROWTH * half:
        load.wrong.append(f"memory grew from {half:.0f} to {after[0]:.0f} MB")
    if after[1] > before[1]:
        load.wrong.append(f"descriptors grew from {before[1]} to {after[1]}")
    for i in range(len(GOOD)):
        load.check(i)
    return load.wrong


def main(arguments: list[str]) -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("bench.load", description=__doc__, formatter_class=form)
    parser.add_argument("model", nargs="?", help="(the one that ships)")
    parser.add_argument("--options", default="", help="of the server's command line, in one string")
    parser.add_argument("--seconds", type=float, default=600, help="(%(default)s)")
    options = parser.parse_args(arguments)
    with started(options.model, shlex.split(options.options)) as (url, pid):
        wrong = run(int(url.rpartition(":")[2]), pid, options.seconds)
    for what in wrong[:10]:
        print(what[:1000])
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
