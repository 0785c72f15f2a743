"""A few of the faults of faults.py, which make faults tries all of."""

from __future__ import annotations

import pytest
from faults import build, faults


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("faults"))


def test_whatever_call_of_the_program_fails_is_one_line(library):
    found = list(faults("run", library))
    for fault in found:
        fault.check()
        assert fault.said.count(b"\n") == 1
    assert {fault.what.split()[1] for fault in found} >= {"open", "mmap", "read", "write"}


@pytest.mark.parametrize("call", ["write", "rename"])
def test_a_file_that_can_not_be_written_stays_as_it_was(library, call):
    for fault in faults("convert v3", library, [call], 1):
        fault.check()
        assert fault.after == fault.before
