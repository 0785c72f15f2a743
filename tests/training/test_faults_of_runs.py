"""What a run keeps beside its checkpoints when the disk refuses: whole or as it was; the error names it."""

from __future__ import annotations

import csv
import errno
from pathlib import Path
from typing import NoReturn

import pytest
from matplotlib.figure import Figure

from llama.errors import BadFileError
from training.checkpoints import CHECKSUMS, listed, point, sha256, verify
from training.options import Options
from training.report import COLUMNS, Report


def refuse(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_the_log_of_a_run_that_goes_on_is_not_lost(tmp_path, monkeypatch):
    Report(tmp_path, Options(), 0).add(1, loss=2.0)
    log = (tmp_path / "log.csv").read_bytes()
    monkeypatch.setattr(csv.DictWriter, "writerows", refuse)
    with pytest.raises(OSError) as found:
        Report(tmp_path, Options(), 2)
    assert found.value.filename == str(tmp_path / "log.csv")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [log]


def test_a_row_that_finds_no_room_names_the_log(tmp_path, monkeypatch):
    report = Report(tmp_path, Options(), 0)
    monkeypatch.setattr(csv.DictWriter, "writerow", refuse)
    with pytest.raises(OSError) as found:
        report.add(1, loss=2.0)
    assert found.value.filename == str(tmp_path / "log.csv")


@pytest.mark.parametrize("name", ["log.csv", "loss.png"])
def test_a_log_that_can_not_be_read_or_a_plot_that_finds_no_room_is_named(tmp_path, monkeypatch, name):
    report = Report(tmp_path, Options(), 0)
    report.add(1, loss=2.0)
    monkeypatch.setattr(csv, "DictReader", refuse)
    monkeypatch.setattr(Figure, "savefig", refuse)
    with pytest.raises(OSError) as found:
        Report(tmp_path, Options(), 2) if name == "log.csv" else report.plot()
    assert found.value.filename == str(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda log: log.replace(b",", b";"), "row 1 is not one of a run: it has other columns"),
        (lambda log: log + b"2,5\n" + log.splitlines()[1], "row 2 is not one of a run: it is not whole"),
        (lambda log: log.replace(b"\n1,", b"\n1.0,"), "row 1 is not one of a run: invalid literal"),
        (lambda log: log.replace(b",2.0,", b",much,"), "row 1 is not one of a run: could not convert"),
        (lambda log: log.replace(b"step", b"\xff"), "row 1 is not one of a run: 'utf-8' codec"),
    ],
)
def test_a_log_that_something_else_has_written_is_refused_and_kept(tmp_path, damage, reason):
    Report(tmp_path, Options(), 0).add(1, loss=2.0)
    path = tmp_path / "log.csv"
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(BadFileError, match=reason):
        Report(tmp_path, Options(), 2)
    assert path.read_bytes() == damaged


def test_a_row_that_was_cut_off_is_left_out(tmp_path):
    Report(tmp_path, Options(), 0).add(1, loss=2.0)
    with (tmp_path / "log.csv").open("a") as file:
        file.write("2,5")
    assert [row["loss"] for row in Report(tmp_path, Options(), 3).rows] == ["2.0"]
    assert (tmp_path / "log.csv").read_text().splitlines()[1:] == ["1,,2.0" + "," * (len(COLUMNS) - 3)]


def test_a_link_that_can_not_be_moved_stays_as_it_was(tmp_path, monkeypatch):
    point(tmp_path / "last", "step-1")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError) as found:
        point(tmp_path / "last", "step-2")
    assert found.value.filename == str(tmp_path / "last")
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
    assert (tmp_path / "last").readlink() == Path("step-1")


def test_a_list_of_checksums_that_was_damaged_is_no_list(tmp_path):
    """Without a line of it, the file of that line would be believed."""
    (tmp_path / "state").mkdir()
    names = ("state/__0_0.distcp", "state.pt")
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    text = listed({name: sha256(tmp_path / name) for name in names})
    (tmp_path / CHECKSUMS).write_text(text)
    verify(tmp_path)
    first = text.index("\n") + 1
    for damaged in ("", text[:-1], text[:first], text[first:], text.replace("\n", "\v", 1)):
        (tmp_path / CHECKSUMS).write_text(damaged)
        with pytest.raises(BadFileError, match=f"{CHECKSUMS}: is not what was written"):
            verify(tmp_path)
