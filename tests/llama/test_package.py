"""The Python package: what it imports, its names and errors, its processes, the wheel it becomes.

    python -m pytest tests/test_package.py                 all
    python -m pytest tests/test_package.py -m "not slow"   without building a wheel

Left out on purpose: what its objects do (test_engine.py) and its command line (test_run.py).
"""

import inspect
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import HANGS, ROOT, environment, finish
from tiny_models import write_chain

import llama


def python(*arguments, cwd, **options):
    """Runs Python in a folder, with the path of this process. tmp_path: a folder where the package is not."""
    return finish(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        **options,
    )


# --- import and types


def test_import_brings_in_neither_numpy_nor_torch(tmp_path):
    code = (
        "import sys, llama, llama.run; print(sorted({'numpy', 'torch', 'sentencepiece'} & set(sys.modules)))"
    )
    result = python("-c", code, cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("[]\n", "")


def test_a_run_brings_in_neither_numpy_nor_torch(noise, tmp_path):
    code = (
        "import sys; from llama.run import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'numpy', 'torch', 'sentencepiece'} & set(sys.modules)))"
    )
    result = python("-c", code, str(noise / "v0.bin"), "-n", "8", cwd=tmp_path)
    assert result.stdout.splitlines()[-1] == "0 []", result.stderr


WITHOUT_THE_ENGINE = """
import sys
sys.modules["llama._engine"] = None  # as where it is not built: importing it is an ImportError
import llama, llama.formats.config, training.step
print(sorted(set(llama.__all__) - set(dir(llama))), issubclass(llama.UsageError, ValueError))
try:
    llama.Llama
except ImportError as error:
    print(type(error).__name__)
"""


def test_what_trains_does_without_the_engine():
    result = python("-c", WITHOUT_THE_ENGINE, cwd=ROOT)
    assert (result.stdout, result.stderr) == ("[] True\nModuleNotFoundError\n", "")


def test_a_checkout_without_the_engine_says_that_it_hides_an_installed_one(tmp_path):
    shutil.copytree(ROOT / "llama", tmp_path / "llama", ignore=shutil.ignore_patterns("*.so", "*.pyd"))
    result = python("-m", "llama.run", cwd=tmp_path)
    assert result.stderr.splitlines()[-1].startswith("ImportError: the engine is not built in this folder")


def test_the_engine_is_loaded_when_one_of_its_classes_is_named(tmp_path):
    code = (
        "import sys, llama; print('llama._engine' in sys.modules, hasattr(llama, 'nothing'));"
        "from llama import Llama, Tokenizer; from llama import engine;"
        "print('llama._engine' in sys.modules, Llama is engine.Llama is llama.Llama)"
    )
    result = python("-c", code, cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("False False\nTrue True\n", "")


def test_package_is_marked_as_typed():
    assert Path(llama.__file__).with_name("py.typed").exists()


def test_all_names_exist():
    assert all(hasattr(llama, name) for name in llama.__all__)


# --- errors


def test_errors_are_also_the_builtin_ones():
    assert issubclass(llama.UsageError, ValueError)
    assert issubclass(llama.ClosedError, llama.UsageError)
    assert issubclass(llama.BadFileError, OSError)
    assert issubclass(llama.ResourceError, MemoryError)
    assert issubclass(llama.CancelledError, InterruptedError)
    errors = [
        value for value in vars(llama).values() if inspect.isclass(value) and issubclass(value, Exception)
    ]
    assert len(errors) == 6
    assert all(issubclass(error, llama.LlamaError) for error in errors)


# --- processes

INTERRUPTED = """
import sys, llama
model = llama.Llama(sys.argv[1])
try:
    print("ready", flush=True)
    while True:
        "".join(model.generate("x"))
except KeyboardInterrupt:
    print("".join(model.generate("x", max_tokens=3)), flush=True)
"""


def interrupt(arguments, folder, ready, stdin=None):
    """Interrupts Python after its first `ready` bytes; returns the code, the rest and stderr."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.read(ready)
        time.sleep(0.2)  # or it would be the first step that is interrupted
        process.send_signal(signal.SIGINT)
        try:
            out, err = process.communicate(timeout=HANGS)
        finally:
            process.kill()  # or the end of the block would wait for it
        return process.returncode, out, err


@pytest.fixture(scope="module")
def long_model(tmp_path_factory):
    return write_chain(tmp_path_factory.mktemp("long"), [" x"], {"<s>": " x"}, context=50_000)


FORK = """
import os, sys, llama
model = llama.Llama(sys.argv[1], threads=2)
text = "".join(model.generate("a", max_tokens=9, seed=1))
child = os.fork()
if child == 0:
    os._exit("".join(model.generate("a", max_tokens=9, seed=1)) != text)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_writes_the_same_text(noise, tmp_path):
    result = python("-W", "ignore", "-c", FORK, str(noise / "v0.bin"), cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("0\n", "")


FORK_WHILE_BUSY = """
import os, sys, threading, llama
model, begun = llama.Llama(sys.argv[1], threads=2), threading.Event()
def work():
    begun.set()
    model.score([1] * 50_000)
thread = threading.Thread(target=work)
thread.start()
begun.wait()
while not model._lock.locked() and thread.is_alive():
    pass
child = os.fork()
if child == 0:
    try:
        model.score([1, 1])
    except llama.ClosedError:
        model.close()
        os._exit(len(llama.Llama(sys.argv[1], threads=2).score([1, 1])) != 1)
    os._exit(2)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
thread.join()
print(len(model.score([1, 1])))
"""


def test_a_forked_child_does_not_wait_for_a_thread_of_its_parent(long_model):
    result = python("-W", "ignore", "-c", FORK_WHILE_BUSY, str(long_model), cwd=long_model.parent)
    assert (result.stdout, result.stderr) == ("0\n1\n", "")


def test_ctrl_c_stops_a_text_and_the_model_goes_on(long_model):
    arguments = ["-c", INTERRUPTED, str(long_model)]
    assert interrupt(arguments, long_model.parent, len("ready\n")) == (0, b" x x x\n", b"")


def test_ctrl_c_stops_the_command_line(long_model):
    arguments = ["-m", "llama.run", str(long_model), "-n", "0", "--samples", "1000000"]
    code, _, err = interrupt(arguments, long_model.parent, 1)
    assert (code, err) == (130, b"")


def test_ctrl_c_stops_a_chat_that_waits_for_a_line(long_model):
    reader, writer = os.pipe()  # that nobody writes to
    try:
        arguments = ["-m", "llama.run", str(long_model), "-m", "chat", "-y", ""]
        code, out, err = interrupt(arguments, long_model.parent, len("User: "), stdin=reader)
    finally:
        os.close(reader)
        os.close(writer)
    assert (code, out, err) == (130, b"", b"")


# --- the wheel


@pytest.mark.slow
def test_wheel_from_the_sdist_works_in_a_fresh_environment(noise, tmp_path):
    compiler = tmp_path / "compiler"  # that does not optimise: what is packed does not depend on it
    compiler.write_text(f'#!/bin/sh\nexec {os.environ.get("CC", "cc")} "$@" -O0\n')
    compiler.chmod(0o755)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    with_it = os.environ | {"CC": str(compiler)}
    result = subprocess.run(build, env=with_it, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"cria-{llama.__version__}-cp311-abi3-")

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    interpreter = tmp_path / "venv" / "bin" / "python"
    site = Path(
        subprocess.run(
            [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    # The dependencies come from the environment of the tests: no network. Its .pth files are not read.
    (site / "dependencies.pth").write_text(f"{Path(pytest.__file__).parent.parent}\n", encoding="utf-8")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        site,
        wheel,
    ]
    subprocess.run(install, check=True)

    code = (
        "import llama, sys; print(llama.__file__); print(llama.Llama(sys.argv[1]).config.dim); llama.Llama()"
    )
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [interpreter, "-c", code, str(noise / "v0.bin")],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.splitlines() == [str(site / "llama" / "__init__.py"), "64"], result.stderr
    assert (site / "llama" / "page" / "index.html").exists()
    assert not list(site.glob("llama/csrc")), "only the package is installed"
