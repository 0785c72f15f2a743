"""Builds llama._engine, the C engine as a Python extension.

Run by setup.py (`pip install .`, `python setup.py build_ext --inplace`), never by hand. cffi in API mode
compiles run.c with its main left out; the declarations are cut from the headers that llama/csrc/llama.h
includes and from llama_run.h, so they cannot drift from the code. The limited ABI makes one binary serve
every Python from 3.11 on.

Left out on purpose: -march=native (a wheel must run on the next machine, so the engine picks its kernels when
it starts) and compilers that are neither gcc nor clang.

    CC                the compiler, as for any extension
    LLAMA_SANITIZE    sanitizers to build in, as -fsanitize has them: address,undefined or thread
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "llama" / "csrc"

# -ffp-contract=off: a result must not depend on whether the compiler fuses a product and a sum; kernels that
# want a fused multiply-add name it.
RELEASE = ["-O3", "-ffp-contract=off"]
# Python's own options have -fwrapv, with which no sum overflows.
CHECKED = ["-g1", "-O1", "-fno-omit-frame-pointer", "-fno-wrapv", "-fno-sanitize-recover=undefined"]
CHECKED += ["-ffp-contract=off"]

# (compile, link) arguments, in order of preference. The second pair is for the clang that macOS ships.
OPENMP = [(["-fopenmp"], ["-fopenmp"]), (["-Xpreprocessor", "-fopenmp"], ["-lomp"])]
CALLBACKS = """  // of LlamaHost, in llama/run.py
extern "Python" int llama_python_interrupted(void *user);
extern "Python" int64_t llama_python_converse(void *user, const LlamaModel *model,
                                              const LlamaTokenizer *tokenizer, const LlamaMessage *messages,
                                              size_t n, int32_t *ids, size_t room);
"""
OPENMP_PROGRAM = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


def declarations(path: Path) -> str:
    """The lines of a header between `// cdef begin` and `// cdef end`."""
    begin, end = "// cdef begin\n", "// cdef end\n"
    header = path.read_text(encoding="utf-8")
    if begin not in header or end not in header:
        raise ValueError(f"{path}: the lines {begin!r} and {end!r} are missing")
    return header.split(begin, 1)[1].split(end, 1)[0]


def headers() -> list[Path]:
    """The headers of what Python calls, in the order in which llama.h includes them."""
    included = re.findall(r'^#include "(.*)"', (CSRC / "llama.h").read_text(encoding="utf-8"), re.MULTILINE)
    return [CSRC / name for name in (*included, "program/llama_run.h")]


def compiles(arguments: list[str], program: str) -> bool:
    """Whether the compiler of this build turns program into an executable."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(program, encoding="utf-8")
        command = [*compiler, str(source), "-o", str(source.with_suffix("")), *arguments]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:  # no compiler: the build itself says so, and better
            return False


def openmp_arguments() -> tuple[list[str], list[str]]:
    """The compile and link arguments for OpenMP, both empty where the compiler has none."""
    for compile_args, link_args in OPENMP:
        if compiles([*compile_args, *link_args], OPENMP_PROGRAM):
            return compile_args, link_args
    print("llama: this compiler has no OpenMP: the engine will run on one thread", file=sys.stderr)
    return [], []


def builder() -> FFI:
    """The cffi builder that setup.py asks for. Raises ValueError if a header lost its marks."""
    compile_args, link_args = openmp_arguments()
    names = os.environ.get("LLAMA_SANITIZE")
    sanitize = [f"-fsanitize={names}"] if names else []
    ffi = FFI()
    for header in headers():
        ffi.cdef(declarations(header))
    ffi.cdef(CALLBACKS)
    ffi.set_source(
        "llama._engine",
        '#define LLAMA_LIBRARY\n#include "run.c"\n',
        include_dirs=["."],  # relative to setup.py, where every build runs
        depends=["run.c", *sorted(path.relative_to(ROOT).as_posix() for path in CSRC.rglob("*.h"))],
        extra_compile_args=[*compile_args, *sanitize, *(CHECKED if sanitize else RELEASE)],
        extra_link_args=[*link_args, *sanitize],
        libraries=["m"],
        py_limited_api=True,
    )
    return ffi
