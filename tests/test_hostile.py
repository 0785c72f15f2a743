"""A few of the cases of hostile_cases.py, which make hostile runs all of: each comes to what it must."""

from __future__ import annotations

import hostile
import hostile_cases
import pytest


@pytest.mark.parametrize("group", ["options", "adapters", "readers"])
def test_what_is_hostile_comes_to_what_it_must(group):
    assert list(hostile.run_cases(group, ["run"])) == []


def test_templates_of_strangers_come_to_what_they_must():
    assert list(hostile.run_templates()) == []


def test_another_outcome_is_noticed():
    """Or all of this would say nothing."""
    case = hostile_cases.Case("x", {}, (), hostile_cases.FILE, "model")
    assert hostile.wrong(case, (3, "error: model.bin: is empty\n")) is None
    for outcome in [
        (1, ""),
        (3, ""),
        (3, "error: x\n"),
        (3, "error: model\nmore\n"),
        (-11, "error: model\n"),
    ]:
        assert hostile.wrong(case, outcome)
    assert hostile.wrong(case, (3, "error: model \x1b[31m\n"))
