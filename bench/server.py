"""How fast a server answers many at once, beside another one, in turns.

    python -m bench.server                                        one of the model that ships, started for it
    python -m bench.server SmolLM2-135M-Instruct.Q4_1.gguf --context 2048
    llama-server -m SmolLM2.gguf --port 8081 -c 32768 -np 16 &
    python -m bench.server SmolLM2.gguf --peer http://127.0.0.1:8081

At 1, 4, 8 and 16 streams of /v1/completions, each with a prompt of its own: tokens per second in all, and
time to the first token. Then 8 long prompts at once, with nothing in common and with all but the last words
in common, and how much faster the second is. A peer is any server with OpenAI's API that is running already,
and has its turn in each round. All are asked by this process, which takes its share of the machine.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
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

from bench.report import OURS, cell, heading, line, ratio
from llama.command import run_command
from llama.errors import ResourceError

STREAMS = (1, 4, 8, 16)
WORDS = ("fox", "hare", "wood", "sea", "king", "tree", "red", "blue", "star", "moon", "tale", "wind", "bread")
SECONDS_TO_START = 120


@dataclass
class Stream:
    """What a stream took, in seconds: until its first token, and between two."""

    first: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0


def ask(url: str, prompt: str, tokens: int) -> Stream:
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


def round_of(url: str, prompts: Sequence[str], tokens: int) -> tuple[float, list[Stream]]:
    """All prompts at once: seconds in all, and the streams."""
    start = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        streams = list(pool.map(lambda prompt: ask(url, prompt, tokens), prompts))
    return time.perf_counter() - start, streams


def some_words(rng: random.Random, n: int) -> str:
    return " ".join(rng.choices(WORDS, k=n))


@contextmanager
def started(model: str | None, context: int | None) -> Iterator[str]:
    """The address of a server of ours, for a model. Raises ResourceError."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    options = ["--context", str(context)] if context else []
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
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def streams_table(urls: dict[str, str], rounds: int, tokens: int) -> str:
    """Tokens per second and time to the first token, by number of streams."""
    rng, rows = random.Random(1), []
    for n in STREAMS:
        speeds: dict[str, list[float]] = {name: [] for name in urls}
        firsts: dict[str, list[float]] = {name: [] for name in urls}
        for _ in range(rounds):
            for name, url in urls.items():
                seconds, found = round_of(url, [some_words(rng, 20) for _ in range(n)], tokens)
                speeds[name].append(sum(stream.tokens for stream in found) / seconds)
                firsts[name] += [1000 * stream.first for stream in found]
        for name in urls:
            ranked = sorted(firsts[name])
            p95 = ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))]
            cells = [f"{n} streams", name, cell(speeds[name]), ratio(speeds[OURS], speeds[name])]
            rows.append(line([*cells, f"{statistics.median(ranked):.0f}", f"{p95:.0f}"]))
    titles = ["", "server", "tokens/s in all", f"{OURS} is times", "first token, ms: p50", "p95"]
    return "\n".join([heading(titles), *rows])


def shared_table(urls: dict[str, str], rounds: int, words: int) -> str:
    """Seconds for 8 long prompts, with and without a common beginning."""
    rng, rows = random.Random(2), []
    for name, url in urls.items():
        took: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(rounds):
            for shared, found in took.items():
                head = some_words(rng, words)
                heads = [head if shared else some_words(rng, words) for _ in range(8)]
                prompts = [f"{text} and then {i}" for i, text in enumerate(heads)]
                found.append(round_of(url, prompts, 4)[0])
        rows.append(line([name, cell(took[False]), cell(took[True]), ratio(took[False], took[True])]))
    titles = [f"8 prompts of {words} words", "apart, s", "shared, s", "times"]
    return "\n".join([heading(titles), *rows])


def main(arguments: list[str]) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("bench.server", description=__doc__, formatter_class=form)
    parser.add_argument("model", nargs="?", help="of ours (the one that ships)")
    parser.add_argument("--context", type=int, help="positions of each text")
    parser.add_argument("--peer", action="append", default=[], metavar="URL", help="a server that is running")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help="of each stream (%(default)s)")
    parser.add_argument("--words", type=int, default=950, help="of the long prompts; 0: none (%(default)s)")
    options = parser.parse_args(arguments)
    with started(options.model, options.context) as url:
        urls = {OURS: url} | {urlsplit(peer).netloc: peer for peer in options.peer}
        print(streams_table(urls, options.rounds, options.tokens))
        if options.words:
            print("\n" + shared_table(urls, options.rounds, options.words))


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
