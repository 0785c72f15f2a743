"""How much of each part of the code the tests reach; exit code 1 where that is less than it has to be.

    python tests/covered.py branches build/coverage/*.branches.json    of C, as gcovr --json writes it
    python tests/covered.py lines build/coverage/lines.json            of Python, as coverage json writes it
    ... --missing loader                                               and which are not reached in a part

make branches and make lines measure and run it. Of two builds of C that have other branches in a line, as the
one whose allocations fail has, that one counts in which more of it is reached.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Part:
    """Files that are counted together; the first part that a file fits into has it."""

    name: str
    patterns: tuple[str, ...]
    least: int  # % that must be reached, 0 where it is only shown
    total: int = 0
    reached: int = 0
    missing: list[str] = field(default_factory=list)

    def share(self) -> float:
        return 100 * self.reached / max(1, self.total)


CSRC = "llama/csrc"
LOADER = ("checkpoint*", "model", "adapter", "guard", "rope*")
BRANCHES = [
    Part("loader", tuple(f"{CSRC}/weights/{name}.h" for name in LOADER), 95),
    Part("tokenizers", (f"{CSRC}/text/*",), 95),
    Part("sampler", (f"{CSRC}/sampling/*",), 95),
    Part("options", (f"{CSRC}/program/options.h",), 95),
    Part("packing", (f"{CSRC}/weights/*",), 0),
    Part("generation", (f"{CSRC}/generation/*",), 0),
    Part("program", (f"{CSRC}/program/*",), 0),
    Part("forward, base", ("run.c", f"{CSRC}/base/*"), 0),
]
LINES = [
    Part("llama/formats", ("llama/formats/*",), 90),
    Part("llama/server", ("llama/server/*",), 90),
    Part("llama", ("llama/*",), 90),
    Part("training", ("training/*",), 90),
    Part("model.py", ("model.py",), 90),
    Part("programs", ("*.py",), 90),
]

# What no test can reach, by what its line says, and why. Nothing else is left out.
UNREACHABLE = {
    "t->file.size > UINT32_MAX": "a tokenizer of 4 GB",
    "at < guard.begin[i] || at - guard.begin[i]": "a process that SIGBUS ends writes no counts",
    "sigaction(SIGBUS, &action, &guard.before) != 0": "the kernel takes a right handler",
    "flags, -1, 0) == MAP_FAILED) break": "the kernel has a page of zeros in the place of one that is there",
}


def branches(found: list[dict]) -> Iterator[tuple[str, int, list[bool]]]:
    """File and number of each line with branches, and whether each of them is reached."""
    best: dict[tuple[str, int], list[bool]] = {}
    for file in (file for build in found for file in build["files"]):
        for line in file["lines"]:
            place, reached = (file["file"], line["line_number"]), [b["count"] > 0 for b in line["branches"]]
            if reached and share(reached) >= share(best.get(place, [])):
                best[place] = reached
    yield from ((path, line, reached) for (path, line), reached in sorted(best.items()))


def lines(found: list[dict]) -> Iterator[tuple[str, int, list[bool]]]:
    """The same of each line of code."""
    for name, file in found[0]["files"].items():
        path = Path(name).resolve().relative_to(ROOT).as_posix()
        yield from ((path, line, [True]) for line in file["executed_lines"])
        yield from ((path, line, [False]) for line in file["missing_lines"])


def share(reached: list[bool]) -> float:
    return sum(reached) / len(reached) if reached else -1.0


def counted(parts: list[Part], places: Iterator[tuple[str, int, list[bool]]]) -> None:
    texts = cache(lambda path: (ROOT / path).read_text(encoding="utf-8").splitlines())
    for path, line, reached in places:
        part = next((p for p in parts if any(fnmatch(path, pattern) for pattern in p.patterns)), None)
        text = texts(path)[line - 1].strip()
        if part is None or any(said in text for said in UNREACHABLE):
            continue
        part.total += len(reached)
        part.reached += sum(reached)
        if not all(reached):
            left = [i for i, one in enumerate(reached) if not one] if len(reached) > 1 else ""
            part.missing.append(f"{path}:{line}: {left} {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("of", choices=["branches", "lines"])
    parser.add_argument("json", type=Path, nargs="+")
    parser.add_argument("--missing", metavar="PART", help="list what is not reached in this part")
    options = parser.parse_args()
    parts, read = (BRANCHES, branches) if options.of == "branches" else (LINES, lines)
    counted(parts, read([json.loads(path.read_text(encoding="utf-8")) for path in options.json]))
    print(f"{options.of:16}{'all':>8}{'reached':>9}{'share':>9}{'least':>8}")
    for part in parts:
        least = f"{part.least} %" if part.least else ""
        print(f"{part.name:16}{part.total:8}{part.reached:9}{part.share():7.1f} %{least:>8}")
        if part.name == options.missing:
            print(*part.missing, sep="\n")
    if low := [part.name for part in parts if part.share() < part.least]:
        raise SystemExit(f"error: too little is reached in {', '.join(low)}")


if __name__ == "__main__":
    main()
