"""Runs every case of hostile_cases.py: each has the outcome that it must have, or this ends with 1.

    make hostile

By ./run; by ./run with the address and undefined-behaviour sanitizers, whose mapped files end where an object
of the heap does (HOSTILE_RUN names that binary); by the package, in this process; and all bodies and bytes of
test_server_hostile.py by a server, which has to be there in the end and to say what it said before.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hostile_cases
from helpers import RUN, finish
from hostile_cases import RUNS, Case

import llama.info
import llama.run
from llama.errors import LlamaError, one_line
from llama.formats.models import open_source
from llama.formats.source import checked_tensors
from llama.templates import render

TIMEOUT = 20  # seconds
Outcome = tuple[int, str]  # an exit code, and what was said of errors


# --- Who runs a case


def written(case: Case, folder: Path) -> list[str]:
    """Makes the files of a case in a folder made anew. Returns its line."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in case.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return [part.replace("@", str(folder)) for part in case.line]


def native(binary: Path) -> Callable[[list[str]], Outcome]:
    def run(line: list[str]) -> Outcome:
        result = finish([binary, *line], input=b"", capture_output=True, timeout=TIMEOUT)
        return result.returncode, os.fsdecode(result.stderr)

    return run


@contextlib.contextmanager
def quiet() -> Iterator[Path]:
    """Descriptors 1 and 2 lead into files of a folder."""
    kept = [os.dup(number) for number in (1, 2)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            for number in (1, 2):
                with Path(folder, str(number)).open("wb") as file:
                    os.dup2(file.fileno(), number)
            yield Path(folder)
        finally:
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)


def package(line: list[str]) -> Outcome:
    """python -m llama.run, in this process."""
    with quiet() as outputs:
        code = llama.run.main(line)
        return code, os.fsdecode((outputs / "2").read_bytes())


def readers(line: list[str]) -> Outcome:
    """What export.py and cria info read of a model, of which either may refuse it."""
    path, said = Path(line[0]), io.StringIO()
    try:
        for tensor in checked_tensors(open_source(path)).values():
            tensor.floats()
        llama.info.text(llama.info.info(str(path)))
    except LlamaError as error:
        print("error:", one_line(error), file=said)
        return error.code, said.getvalue()
    return RUNS, ""


# --- Outcomes


def wrong(case: Case, outcome: Outcome) -> str | None:
    """What is not as a case has it. None: nothing."""
    code, said = outcome
    if code != case.code:
        return f"exit code {code}, not {case.code}: {said[-500:]}"
    lines = said.splitlines()
    if case.code == RUNS:
        return f"is an error: {said[-500:]}" if any(line.startswith("error:") for line in lines) else None
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"not an error of one line: {said[-1000:]}"
    if not lines[0].isprintable():
        return f"a line that does not print: {lines[0]!a}"
    return None if re.search(case.words, lines[0]) else f"not {case.words!r}: {lines[0][:500]}"


def run_cases(group: str, names: list[str] | None = None) -> Iterator[str]:
    """What is wrong with the cases of a group. names: of RUNNERS."""
    with tempfile.TemporaryDirectory() as outer:
        for case in hostile_cases.cases(group, Path(outer, "made")):
            line = written(case, Path(outer, "case"))
            for name in ["readers"] if case.readers else names or list(RUNNERS):
                start = time.monotonic()
                try:
                    found = wrong(case, RUNNERS.get(name, readers)(line))
                except Exception as error:  # whatever it is: that is what is looked for
                    found = f"{type(error).__name__}: {error}"
                if time.monotonic() - start > TIMEOUT:
                    found = f"took {time.monotonic() - start:.0f} s"
                COUNTED[group, name] = COUNTED.get((group, name), 0) + 1
                if found:
                    yield f"{group}, {name}: {case.name}: {found}"


def run_templates() -> Iterator[str]:
    """What is wrong with what chat templates come to."""
    for template, expected in hostile_cases.TEMPLATES.items():
        try:
            found: str | None = render(template, hostile_cases.MESSAGES)
        except LlamaError:
            found = None
        except BaseException as error:
            found = f"{type(error).__name__}: {error}"
        COUNTED["templates", "package"] = COUNTED.get(("templates", "package"), 0) + 1
        if found != expected:
            yield f"template {template[:80]!r}: {found!r:.200}, not {expected!r:.80}"


def run_server() -> Iterator[str]:
    """What is wrong with what a server answers to bodies and bytes that are none."""
    import test_server_hostile as server_cases
    from serving import Client, write_model

    from bench.server import started

    endpoints = ("/v1/completions", "/v1/chat/completions", "/completion", "/v1/embeddings")
    with tempfile.TemporaryDirectory() as folder:
        model = str(write_model(Path(folder)))
        with started(model, ["--threads", "1"]) as (url, pid):
            server = Client(int(url.rpartition(":")[2]))
            before = server.post("/v1/completions", server_cases.GOOD).json["choices"]
            asked = [(path, body) for path in endpoints for body in server_cases.BODIES.values()]
            asked += [("/v1/completions", {"prompt": "a"} | fields) for fields in server_cases.WRONG]
            for path, body in asked:
                answer = server.post(path, body)
                COUNTED["requests", "server"] = COUNTED.get(("requests", "server"), 0) + 1
                if not 400 <= answer.status < 500 or "error" not in answer.json:
                    yield f"server: {path} {body!r:.100}: {answer.status} {answer.body[:200]!r}"
            if server.post("/v1/completions", server_cases.GOOD).json["choices"] != before:
                yield "server: another answer than before"
            os.kill(pid, 0)


COUNTED: dict[tuple[str, str], int] = {}
RUNNERS: dict[str, Callable[[list[str]], Outcome]] = {"run": native(RUN), "package": package}


def main() -> int:
    if guarded := os.environ.get("HOSTILE_RUN"):
        RUNNERS["sanitized"] = native(Path(guarded).absolute())
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["CRIA_CACHE"] = cache
        groups = (run_cases(group) for group in hostile_cases.GROUPS)
        found = [*itertools.chain.from_iterable(groups), *run_templates(), *run_server()]
    for what in found:
        print(what)
    for (group, name), count in COUNTED.items():
        print(f"{count} {group}, by {name}")
    print(f"{sum(COUNTED.values())} hostile cases, {len(found)} with another outcome than they must have")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
