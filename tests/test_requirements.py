"""tests/requirements.lock is of what requirements-dev.txt and -models.txt ask for; make lock writes it."""

from __future__ import annotations

import re

import pytest
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HASHES = r"(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
LOCKED = re.compile(rf"^([a-z0-9.-]+)==([^ ]+)(?: ; [^\\]+)? \\\n{HASHES}", re.MULTILINE)
UNLOCKED = {"torch"}  # whose builds for CPUs and GPUs have one version, and other files


def asked_for(name: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def test_the_lock_is_names_versions_and_hashes():
    text = (ROOT / "tests" / "requirements.lock").read_text()
    assert LOCKED.sub("", text) == ""
    assert len(LOCKED.findall(text)) > 100


@pytest.mark.parametrize("name", ["requirements-dev.txt", "requirements-models.txt"])
def test_what_is_asked_for_is_locked(name):
    text = (ROOT / "tests" / "requirements.lock").read_text()
    for requirement in asked_for(name):
        key = canonicalize_name(requirement.name)
        versions = [version for found, version in LOCKED.findall(text) if found == key]
        assert bool(versions) == (key not in UNLOCKED), f"{requirement}: {versions}"
        for version in versions:  # one, or one for each range of Python
            assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: {version}"
