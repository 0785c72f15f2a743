"""Which package may import which: docs/design.md draws it, and here it is held to."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

PACKAGES = ("llama", "training", "bench")
PROGRAMS = [path.stem for path in ROOT.glob("*.py") if path.stem not in ("model", "setup")]
ALLOWED = {  # of what is ours; anything may import itself
    "llama": set(),
    "model": {"llama"},
    "training": {"llama", "model"},
    "bench": {"llama", "model", "training"},
    **{program: {"llama", "model", "training"} for program in PROGRAMS},
}
HEAVY = {"torch", "transformers", "safetensors"}  # never of llama, which pip installs without them
POSIX = {"fcntl", "resource", "termios", "pwd", "grp"}


def imported(node: ast.AST) -> Iterator[str]:
    """The packages that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (name.name.partition(".")[0] for name in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        yield node.module.partition(".")[0]


def modules(room: str) -> list[Path]:
    return [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", ALLOWED)
def test_arrows_run_down(room):
    ours = {*PACKAGES, "model", "tests", *PROGRAMS}
    for path in modules(room):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in imported(node):
                assert name not in ours - {room} - ALLOWED[room], f"{path.relative_to(ROOT)} imports {name}"


def test_the_package_needs_no_torch():
    for path in modules("llama"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not HEAVY & set(imported(node)), path.relative_to(ROOT)


@pytest.mark.parametrize("room", ["llama", "training", "model", *PROGRAMS])
def test_nothing_is_imported_that_only_posix_has(room):
    for path in modules(room):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            assert not POSIX & set(imported(node)), path.relative_to(ROOT)
