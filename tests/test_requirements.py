"""tests/requirements.lock is of what requirements-dev.txt and -models.txt ask for; make lock writes it."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
from helpers import ROOT
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HASHES = r"(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
ENTRY = re.compile(rf"^([a-z0-9.-]+)==([^ ]+)(?: ; ([^\\]+))? \\\n{HASHES}", re.MULTILINE)
LOCK = (ROOT / "tests" / "requirements.lock").read_text()
LOCKED = ENTRY.findall(LOCK)  # name, version, marker
UNLOCKED = {"torch"}  # whose builds for CPUs and GPUs have one version, and other files


def asked_for(name: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def needed(requirements: list[Requirement]) -> set[str]:
    """The names of what requirements install here, with all that it needs itself; not behind UNLOCKED."""
    extras: dict[str, set[str]] = {}
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        seen = extras.setdefault(name, set())
        new = {"", *requirement.extras} - seen
        seen |= new
        for more in map(Requirement, importlib.metadata.requires(name) or ()):
            here = more.marker is None or any(more.marker.evaluate({"extra": extra}) for extra in new)
            if new and here and canonicalize_name(more.name) not in UNLOCKED:
                waiting.append(more)
    return set(extras)


def test_the_lock_is_names_versions_and_hashes():
    assert ENTRY.sub("", LOCK) == ""
    assert len(LOCKED) > 100


@pytest.mark.parametrize("name", ["requirements-dev.txt", "requirements-models.txt"])
def test_what_is_asked_for_is_locked(name):
    for requirement in asked_for(name):
        key = canonicalize_name(requirement.name)
        versions = [version for found, version, _ in LOCKED if found == key]
        assert bool(versions) == (key not in UNLOCKED), f"{requirement}: {versions}"
        for version in versions:  # one, or one for each range of Python
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: {version}"


def test_all_that_is_needed_is_locked_and_nothing_else():
    here = {name for name, _, marker in LOCKED if not marker or Marker(marker).evaluate()}
    dev = [r for r in asked_for("requirements-dev.txt") if canonicalize_name(r.name) not in UNLOCKED]
    alone = {canonicalize_name(r.name) for r in asked_for("requirements-models.txt")}
    assert here == needed(dev) | alone
