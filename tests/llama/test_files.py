"""llama.files: what a program writes aside is gone however it ends, except by SIGKILL."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import environment, finish

from llama import files

WAITS = """
import sys
from pathlib import Path
from llama import files
with getattr(files, sys.argv[1])(*map(Path, sys.argv[2:])) as aside:
    print(aside, flush=True)
    sys.stdin.read()
"""
WRITERS = {
    "written_aside": ["out.bin"],
    "written_aside_folder": ["out"],
    "temporary_folder": [],
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_signal_leaves_nothing_and_is_the_exit_code(tmp_path, writer, number):
    command = [sys.executable, "-c", WAITS, writer, *WRITERS[writer]]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    env = environment(TMPDIR=str(tmp_path))
    with subprocess.Popen(command, cwd=tmp_path, env=env, **options) as program:
        aside = Path(program.stdout.readline().decode().strip())
        assert aside.parent == tmp_path
        assert aside.exists()
        program.send_signal(number)
        said = program.communicate()
    assert (program.returncode, said) == (128 + number, (b"", b""))
    assert list(tmp_path.iterdir()) == []


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    """As nohup starts a program."""
    code = "import os, signal; from llama import files\nwith files.temporary_folder():\n"
    code += "    os.kill(os.getpid(), signal.SIGHUP); print('goes on')"
    ignoring = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", sys.executable, "-c", code]
    result = finish(ignoring, cwd=tmp_path, env=environment(), capture_output=True)
    assert (result.returncode, result.stdout) == (0, b"goes on\n")


def test_handlers_are_as_before(tmp_path):
    def own(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, own)
    try:
        with files.written_aside(tmp_path / "a"):
            assert signal.getsignal(signal.SIGTERM) is own
            assert signal.getsignal(signal.SIGHUP) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_any_thread_may_write(tmp_path):
    def write() -> None:
        with files.write_aside(tmp_path / "a") as file:
            file.write(b"whole")

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert (tmp_path / "a").read_bytes() == b"whole"
