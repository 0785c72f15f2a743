"""llama.files: what a program writes aside is gone however it ends, except by SIGKILL."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn

import pytest
from helpers import environment, finish

from llama import files
from llama.errors import UsageError

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


@pytest.fixture(autouse=True)
def hangups_end_programs():
    """Also where the tests were started by nohup, under which they are ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


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


def test_what_can_not_be_synced_is_named(tmp_path, monkeypatch):
    def refuse(_: int) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error") as found:
        files.sync(tmp_path)
    assert found.value.filename == str(tmp_path)
    with pytest.raises(OSError, match="Input/output error") as found, files.written_aside(tmp_path / "x"):
        pass
    assert found.value.filename == str(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_is_the_same_and_what_fails_is_named(tmp_path, monkeypatch):
    source, path, nowhere = tmp_path / "a", tmp_path / "b", tmp_path / "nowhere"
    source.write_bytes(b"abc")
    files.copy(source, path)
    assert path.read_bytes() == b"abc"
    with pytest.raises(FileNotFoundError) as caught:
        files.copy(nowhere, path)
    assert caught.value.filename == str(nowhere)

    def no_room(path: Path, data: bytes) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", no_room)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        files.copy(source, path)
    assert caught.value.filename == str(path)


def test_a_file_keeps_its_mode_and_a_protected_one_its_bytes(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with files.write_aside(path) as file:
        file.write(b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
    monkeypatch.setattr(os, "access", lambda *_: False)  # which is never so for root
    with pytest.raises(PermissionError) as caught, files.write_aside(path) as file:
        file.write(b"lost")
    assert caught.value.filename == str(path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]


def test_only_what_a_program_has_left_over_is_removed(tmp_path):
    theirs, left = tmp_path / ".x.backup.tmp", tmp_path / ".x.123.tmp"
    theirs.touch()
    left.touch()
    with files.write_aside(tmp_path / "x"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"x", theirs.name}


@pytest.mark.parametrize("name", ["n" * 251, "n" * 300])
def test_a_name_that_is_too_long_is_said_as_it_was_given(tmp_path, name):
    said = os.strerror(errno.ENAMETOOLONG)
    with pytest.raises(OSError, match=said) as caught, files.written_aside(tmp_path / name):
        pass
    assert caught.value.filename == str(tmp_path / name)


def test_a_pipe_is_no_place_for_a_file(tmp_path):
    read, write = os.pipe()
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/null"), Path(f"/dev/fd/{write}")):
        with pytest.raises(UsageError, match=f"^{path}: is not a regular file$"), files.written_aside(path):
            pass
    os.close(read)
    os.close(write)


@pytest.mark.skipif(sys.platform != "linux", reason="a file that opens and whose first byte can't be read")
def test_a_read_that_fails_is_named():
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
        files.read(Path("/proc/self/mem"))
    assert caught.value.filename == "/proc/self/mem"
