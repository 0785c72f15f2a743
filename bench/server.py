"""How fast a server answers many at once, beside another one, in turns.

    python -m bench.server                                        one of the model that ships, started for it
    llama-server -m SmolLM2.gguf --port 8081 -c 20480 -np 16 -t 2 &
    python -m bench.server SmolLM2.gguf --options "--context 1280 --kv fp16" --peer http://127.0.0.1:8081

At 1, 4, 8 and 16 streams of /v1/completions, each with a prompt of its own: tokens per second in all, and
time to the first token. Then 8 long prompts at once, with nothing in common and with all but the last tokens
in common, and how much faster the second is. Prompts are random ids below 500, and in turn for each server
the same ones. A peer is any server with OpenAI's API that is running already,
and has its turn in each round. All are asked by this process, which takes its share of the machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bench.report import OURS, cell, heading, line
from llama.command import run_command
from llama.errors import ResourceError

STREAMS = (1, 4, 8, 16)
PROMPT = 20  # tokens of each stream's
SECONDS_TO_START = 120


@dataclass
class Stream:
    """What a stream took, in seconds: until its first token, and between two."""

    first: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0


def ask(url: str, prompt: list[int], tokens: int) -> Stream:
    """Reads a stream of /v1/completions. Raises ResourceError where it is refused."""
    place, found = urlsplit(url), Stream()
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=600)
    body = {"model": "", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    last = time.perf_counter()
    data = json.dumps(body | {"stream": True, "ignore_eos": True})
    connection.request("POST", "/v1/completions", data, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise ResourceError(f"{url}: {answer.status} {answer.read()[:300]!r}")
    for text in answer:
        if text.startswith(b"data: {"):
            now = time.perf_counter()
            found.gaps.append(now - last)
            last = now
    connection.close()
    found.first, found.tokens = found.gaps.pop(0), tokens
    return found


def round_of(url: str, prompts: Sequence[list[int]], tokens: int) -> tuple[float, list[Stream]]:
    """All prompts at once: seconds in all, and the streams."""
    start = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        streams = list(pool.map(lambda prompt: ask(url, prompt, tokens), prompts))
    return time.perf_counter() - start, streams


def some_ids(rng: random.Random, n: int) -> list[int]:
    """Ids that any vocabulary has, and that are no special tokens."""
    return [rng.randrange(300, 500) for _ in range(n)]


@contextmanager
def started(model: str | None, options: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The address of a server of ours, and its process. Raises ResourceError.

    options: more of its command line.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    line = [sys.executable, "-m", "llama.server", *filter(None, [model]), *options]
    line += ["--parallel", str(max(STREAMS)), "--port", str(port), "--log-level", "error"]
    process = subprocess.Popen(line)
    try:
        for _ in range(10 * SECONDS_TO_START):
            if process.poll() is not None:
                raise ResourceError("the server does not start")
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@dataclass
class Found:
    """What a server showed with some number of streams, one entry for each round."""

    speeds: list[float] = field(default_factory=list)  # tokens per second in all
    firsts: list[float] = field(default_factory=list)  # ms to the first token; one for each stream


def pairs(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """How many times theirs ours is: the median over rounds, in which the machine was equally busy."""
    return f"{statistics.median(a / b for a, b in zip(ours, theirs, strict=True)):.2f}"


def measure_streams(urls: dict[str, str], rounds: int, tokens: int) -> dict[tuple[int, str], Found]:
    """By number of streams and server. Each round has all of them."""
    rng = random.Random()
    found = {(n, name): Found() for n in STREAMS for name in urls}
    for i in range(rounds):
        for n in STREAMS:
            prompts = [some_ids(rng, PROMPT) for _ in range(n)]
            for name, url in urls.items():
                seconds, streams = round_of(url, prompts, tokens)
                found[n, name].speeds.append(sum(stream.tokens for stream in streams) / seconds)
                found[n, name].firsts += [1000 * stream.first for stream in streams]
        print(f"round {i + 1} of {rounds}", file=sys.stderr)
    return found


def streams_table(found: dict[tuple[int, str], Found]) -> str:
    """Tokens per second and time to the first token, by number of streams."""
    titles = ["streams", "server", "tokens/s in all", f"{OURS} is times", "times one stream"]
    rows = [heading([*titles, "first token, ms: p50", "p95"])]
    for (n, name), one in found.items():
        ranked = sorted(one.firsts)
        p95 = ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))]
        cells = [str(n), name, cell(one.speeds), pairs(found[n, OURS].speeds, one.speeds)]
        cells += [pairs(one.speeds, found[STREAMS[0], name].speeds)]
        rows.append(line([*cells, f"{statistics.median(ranked):.0f}", f"{p95:.0f}"]))
    return "\n".join(rows)


def shared_table(urls: dict[str, str], rounds: int, length: int) -> str:
    """Seconds for 8 long prompts, with and without a common beginning."""
    rng = random.Random()
    took: dict[tuple[str, bool], list[float]] = {
        (name, shared): [] for name in urls for shared in (False, True)
    }
    for _ in range(rounds):
        for (name, shared), found in took.items():
            head = some_ids(rng, length)
            heads = [head if shared else some_ids(rng, length) for _ in range(8)]
            found.append(round_of(urls[name], [begun + some_ids(rng, 4) for begun in heads], 4)[0])
    titles = [f"8 prompts of {length} tokens", "apart, s", "shared, s", "times"]
    rows = [
        [name, cell(took[name, False]), cell(took[name, True]), pairs(took[name, False], took[name, True])]
        for name in urls
    ]
    return "\n".join([heading(titles), *map(line, rows)])


def main(arguments: list[str]) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("bench.server", description=__doc__, formatter_class=form)
    parser.add_argument("model", nargs="?", help="of ours (the one that ships)")
    parser.add_argument("--options", default="", help="of our server's command line, in one string")
    parser.add_argument("--peer", action="append", default=[], metavar="URL", help="a server that is running")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help="of each stream (%(default)s)")
    parser.add_argument(
        "--shared", type=int, default=1000, help="tokens of the long prompts; 0: none (%(default)s)"
    )
    options = parser.parse_args(arguments)
    with started(options.model, shlex.split(options.options)) as (url, _):
        urls = {OURS: url} | {urlsplit(peer).netloc: peer for peer in options.peer}
        print(streams_table(measure_streams(urls, options.rounds, options.tokens)), flush=True)
        if options.shared:
            print("\n" + shared_table(urls, options.rounds, options.shared))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
