"""Mutants are what they say: each changes what a small program does, and none does while none is chosen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from c_sites import sites_of
from python_sites import woven as python_woven
from sites import woven

HERE = Path(__file__).resolve().parent
PROGRAM = """#include <stdio.h>
static const int table[] = {1, 2, 3}; // 4 < 5 is no code, nor is "6 < 7"
typedef struct { int a, b; } Pair;
static int chosen(int a, int b, int *c) {
    int found = a & 1 ? table[2] : 0;
    if (a < b && (b == 3 || *c != 4)) found += 10;
    else *c += b - 1;
    for (int i = 0; i < a; i++) {
        if (i == 2) continue;
        found += (Pair){.a = 100, .b = i}.a;
    }
    switch (b) {
    case 1: return found;
    default: break;
    }
    return found + *c;
}
int main(void) {
    for (int a = 0; a < 4; a++)
        for (int b = 0; b < 5; b++) {
            int c = a + 2;
            printf("%d %d %d\\n", chosen(a, b, &c), c, a & b);
        }
    return 0;
}
"""
CHANGES = [
    "a & 1 is negated",
    "1 becomes 1 + 1",
    "2 becomes 2 + 1",
    "0 becomes 0 + 1",
    "a < b && (b == 3 || *c != 4) is negated",
    "< becomes <= in a < b",
    "&& becomes || in a < b && (b == 3 || *c != 4)",
    "== becomes != in b == 3",
    "|| becomes && in b == 3 || *c != 4",
    "found += 10 is dropped",
    "*c += b - 1 is dropped",
    "continue is dropped",
    "100 becomes 100 + 1",
]


def outputs(program: list[str | Path], count: int) -> list[str]:
    """What a program writes without a mutant, and with each."""

    def output(mutant: int) -> str:
        environment = os.environ | {"MUTANT": str(mutant), "PYTHONPATH": str(HERE)}
        return subprocess.run(
            program, env=environment, capture_output=True, text=True, check=False, timeout=10
        ).stdout

    return [output(mutant) for mutant in range(-1, count)]


def test_each_change_of_c_is_another_program(tmp_path):
    sites = sites_of("a.c", PROGRAM)
    for name, text in (("plain", PROGRAM), ("woven", woven(PROGRAM, sites, 0))):
        (tmp_path / f"{name}.c").write_text(text)
        command = ["gcc", "-w", "-include", HERE / "mutant_switch.h", f"{name}.c", "-o", name]
        subprocess.run(command, cwd=tmp_path, check=True)
    found = [site.mutant for site in sites if site.mutant.line < 17]
    assert {*CHANGES} <= {mutant.change for mutant in found}
    assert not any(
        "table[] =" in mutant.change or re.search(r"[4-7] becomes .* in", mutant.change) for mutant in found
    )
    plain, same, *others = [
        *outputs([tmp_path / "plain"], 0),
        *outputs([tmp_path / "woven"], len(found)),
    ]
    assert plain == same
    alike = [str(mutant) for mutant, other in zip(found, others, strict=True) if other == plain]
    assert alike == ["a.c:14: break is dropped"]  # nothing comes after it


PYTHON = '''"""Words."""
from __future__ import annotations


def chosen(a: int, b: int = 3) -> list[int]:
    """Not 4."""
    found = [i for i in range(a) if i != 2]
    if a < b and b == 3 or not found:
        found.append(10)
    for i in found:
        if i == 1:
            continue
        b += i
    return found if 0 <= b < 5 else [b]


print([chosen(a, b) for a in range(5) for b in range(5)])
'''


def test_each_change_of_python_is_another_program(tmp_path):
    text, mutants = python_woven("a.py", PYTHON, 0)
    (tmp_path / "plain.py").write_text(PYTHON)
    (tmp_path / "woven.py").write_text(text)
    changes = {mutant.change for mutant in mutants}
    assert {
        "a < b becomes a <= b",
        "continue is dropped",
        "b += i is dropped",
        "10 becomes 10 + 1",
    } <= changes
    assert not any("becomes 3 + 1" in str(m) and m.line == 5 for m in mutants)  # a default
    plain, same, *others = [
        *outputs([sys.executable, tmp_path / "plain.py"], 0),
        *outputs([sys.executable, tmp_path / "woven.py"], len(mutants)),
    ]
    assert plain == same
    assert [str(m) for m, other in zip(mutants, others, strict=True) if other == plain] == []


@pytest.mark.parametrize("of", ["a < b", "(x)->a != b[1] + 2", "(uint8_t)a == 'b'", "f(a, g(b)) >= c & d"])
def test_operands_end_where_they_do_in_c(of):
    (site,) = [s for s in sites_of("a.c", f"int f() {{ return {of}; }}") if " in " in s.mutant.change]
    assert site.mutant.change.endswith(f" in {of.partition(' & ')[0]}")
