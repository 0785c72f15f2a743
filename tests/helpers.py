"""What several test files build their inputs with, and how they run the two programs."""

import os
import re
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"  # stored sample files
RUN = Path(os.environ.get("RUN_BINARY", ROOT / "run")).absolute()
PROGRAMS = {"native": [str(RUN)], "python": [sys.executable, "-m", "llama.run"]}
each_program = pytest.mark.parametrize("program", PROGRAMS)

# --- Tokenizers

PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), " ", *"abcdefghij"]


def write_pieces(path: Path, pieces: list[tuple[str, float]]) -> Path:
    """Writes pieces and their scores as a tokenizer.bin."""
    records = (struct.pack("<fi", score, len(piece.encode())) + piece.encode() for piece, score in pieces)
    path.write_bytes(struct.pack("<I", max(len(piece.encode()) for piece, _ in pieces)) + b"".join(records))
    return path


def write_ranked(path: Path, pieces: list[str]) -> Path:
    """Writes pieces as a tokenizer.bin that prefers earlier ones."""
    return write_pieces(path, [(piece, -float(i)) for i, piece in enumerate(pieces)])


def write_tokenizer(path: Path, sp: SentencePieceProcessor) -> Path:
    """Writes the vocabulary of sp as a tokenizer.bin."""
    special = {sp.bos_id(): "\n<s>\n", sp.eos_id(): "\n</s>\n"}
    pieces = [special.get(i, sp.id_to_piece(i)).replace("▁", " ") for i in range(sp.vocab_size())]
    return write_pieces(path, [(piece, sp.get_score(i)) for i, piece in enumerate(pieces)])


# --- Programs that may hang. Seconds by the clock depend on what else a machine does: there are many of them


HANGS = 600  # seconds by the clock after which a program is ended
SPINS = 300  # seconds of CPU time after which it is


def finish(line: Sequence[str | bytes | Path], **options: Any) -> subprocess.CompletedProcess:
    """subprocess.run of what may hang, which raises TimeoutExpired, or spin, which gives a code below 0."""
    limited = [b"sh", b"-c", b'ulimit -t "$0" && exec "$@"', b"%d" % SPINS, *map(os.fsencode, line)]
    return subprocess.run(limited, **{"timeout": HANGS, "check": False} | options)


# --- What a call costs, in CPU time, beside what another costs on the same machine


def cpu_of(call: Callable[[], object]) -> float:
    """Seconds of CPU time that this process spends in a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def assert_linear(work: Callable[[int], object], n: int) -> None:
    """work(n) costs at most 64 times work(n / 16): four times what is linear, a quarter of a square."""
    part = min(cpu_of(lambda: work(n // 16)) for _ in range(3))
    costs = (cpu_of(lambda: work(n)) for _ in range(3))  # the caches of a shared machine may be cold
    assert any(cost < 4 * 16 * part for cost in costs)


# --- ./run and python -m llama.run


def command(program: str, *arguments: str | bytes | Path) -> list[bytes]:
    """The command line of a program, "native" or "python"."""
    return [os.fsencode(part) for part in (*PROGRAMS[program], *arguments)]


def environment(**changes: str) -> dict[str, str]:
    """The environment of this process with changes. Python finds the modules there that it finds here."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)} | changes


def uncounted() -> dict[str, str]:
    """The environment of this process, for a program that may not write what make lines has it write."""
    return {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}


def run(
    program: str, *arguments: str | bytes | Path, cwd: Path, stdin: bytes = b"", **changes: str
) -> subprocess.CompletedProcess:
    """Runs a program in a folder, as finish does. changes: of its environment."""
    if program == "native" and not RUN.exists():
        raise FileNotFoundError(
            f"{RUN} is missing: build it with make runfast, or name another in RUN_BINARY"
        )
    return finish(
        command(program, *arguments),
        input=stdin,
        cwd=cwd,
        env=environment(**changes),
        capture_output=True,
    )


def without_times(stderr: bytes) -> bytes:
    """The same lines with every number that a clock measured replaced by #."""
    return re.sub(rb"[\d.]+(?:inf)?(?= (?:tokens/s|ms|GB/s))", b"#", stderr)


def assert_refused(result: subprocess.CompletedProcess, code: int, message: str | None = None) -> None:
    """One line on stderr that begins with `error: ` (and goes on with message), and the exit code."""
    assert result.returncode == code, (result.returncode, result.stderr)
    assert result.stderr.startswith(b"error: "), result.stderr
    assert result.stderr.endswith(b"\n"), result.stderr
    assert result.stderr.count(b"\n") == 1, result.stderr
    if message is not None:
        assert os.fsdecode(result.stderr) == f"error: {message}\n"


def both(model: Path, *options: str | bytes | Path, stdin: bytes = b"") -> subprocess.CompletedProcess:
    """What both programs do, which must be the same."""
    native, python = (run(p, model.name, *options, cwd=model.parent, stdin=stdin) for p in PROGRAMS)
    assert native.stdout == python.stdout
    assert without_times(native.stderr) == without_times(python.stderr)
    assert native.returncode == python.returncode
    return native


def cpu_seconds() -> float:
    """What the programs run so far have used."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@cache
def cpu_of_a_start() -> float:
    """What llama.run takes to import all that it may need, numpy included, and to refuse."""
    before = cpu_seconds()
    run("python", "llama/models/stories.bin", "--lora", "no such adapter", cwd=ROOT)
    return cpu_seconds() - before


def assert_bad_file(program: str, model: Path, message: str, *options: str | Path) -> None:
    """Exit code 3, the message as the only line on stderr, nothing on stdout, before any work is done."""
    limit, before = 10 * cpu_of_a_start(), cpu_seconds()
    result = run(program, model, "-t", "0", *options, cwd=model.parent)
    assert_refused(result, 3, message)
    assert result.stdout == b""
    assert cpu_seconds() - before < limit


def assert_bad_bytes(program: str, path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    assert_bad_file(program, path, f"{path}: {message}")


# what small tokenizers are trained on
TEXTS = [
    "Once upon a time, there was a little girl.\nShe  loved to play",
    "def f(x):\n\treturn 12",
    "Où? 世界 \U0001f600",
]
