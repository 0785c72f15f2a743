"""What a run keeps beside its checkpoints when the disk refuses: whole or as it was; the error names it."""

from __future__ import annotations

import csv
import errno
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from matplotlib.figure import Figure

import dataset
import llama.perplexity
from llama.conversation import Conversation
from llama.errors import BadFileError
from llama.hub import write_tokenizer
from training.checkpoints import CHECKSUMS, listed, point, sha256, verify
from training.expecting import part_to_go_on
from training.options import Options
from training.pairs import REFERENCE, load_reference
from training.report import COLUMNS, Report, read_rows
from training.shards import open_shard
from training.text import Format, sample


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


def test_a_plot_that_finds_no_room_leaves_the_old_one(tmp_path, monkeypatch):
    report = Report(tmp_path, Options(), 0)
    report.add(1, loss=2.0)
    report.plot()
    before = (tmp_path / "loss.png").read_bytes()

    def half(_: Figure, path: Path, **__: object) -> NoReturn:
        path.write_bytes(b"half")
        refuse()

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError) as found:
        report.plot()
    assert found.value.filename == str(tmp_path / "loss.png")
    assert {path.name for path in tmp_path.iterdir()} == {"log.csv", "loss.png"}
    assert (tmp_path / "loss.png").read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda log: log.replace(b",", b";"), "column 'step;tokens;loss;.*, allowed are step, tokens, "),
        (lambda log: b"\xef\xbb\xbf" + log, r"column '\\ufeffstep', allowed are step, "),
        (lambda log: log.replace(b"step", b"\xff"), "column '\ufffd', allowed are step, "),
        (lambda log: bytes(700), "no column 'step', allowed is a log"),
        (lambda log: bytes(700) + b"\n", "column .*, allowed"),
        (lambda log: log.replace(b"step,tokens", b"tokens,loss"), "no column 'step', allowed is a log"),
        (lambda log: log.replace(b"\n1,", b"\n1.0,"), "row 1: step = '1.0', allowed are numbers"),
        (lambda log: log.replace(b"\n1,", b"\n,"), "row 1: step = '', allowed are numbers"),
        (lambda log: log.replace(b",2.0,", b',"2.0,'), "row 1: loss = '\"2.0', allowed are numbers"),
        (lambda log: log[:-2] + b",,7\n", "row 1: behind the last column = "),
    ],
)
def test_a_log_that_something_else_has_written_is_refused_and_kept(tmp_path, damage, reason):
    Report(tmp_path, Options(), 0).add(1, loss=2.0)
    path = tmp_path / "log.csv"
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(BadFileError, match=f"^{re.escape(str(path))}: {reason}"):
        Report(tmp_path, Options(), 2)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize(
    "change",
    [
        lambda log: log + b"2,5",  # cut off
        lambda log: log + bytes(4096),
        lambda log: log.replace(b"\r\n", b"\n"),
        lambda log: b"step,tokens,loss\n1,,2.0\n",  # an earlier version's
        lambda log: re.sub(rb",*\r", b"\r", log),
    ],
)
def test_a_log_that_was_cut_off_or_has_fewer_columns_goes_on(tmp_path, change):
    Report(tmp_path, Options(), 0).add(1, loss=2.0)
    path = tmp_path / "log.csv"
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert Report(tmp_path, Options(), 3).rows == [dict.fromkeys(COLUMNS, "") | {"step": "1", "loss": "2.0"}]
    assert path.read_bytes() == before


def test_an_empty_log_has_no_rows(tmp_path):
    (tmp_path / "log.csv").touch()
    assert Report(tmp_path, Options(), 3).rows == []


UNREADABLE = Path("/proc/self/mem")  # opens, and no byte of it can be read


@pytest.mark.skipif(sys.platform != "linux", reason=f"{UNREADABLE} is Linux's")
@pytest.mark.parametrize(
    "reads",
    [
        sha256,
        open_shard,
        read_rows,
        llama.perplexity.read,
        lambda path: list(sample([path], Format(), 100)),
        lambda path: dataset.first_record([path]),
        lambda path: write_tokenizer(path, path),
        lambda path: Conversation(None).load(path),
        lambda path: part_to_go_on(path, {}, None, 1),
    ],
)
def test_a_read_that_fails_names_its_file(tmp_path, reads):
    path = tmp_path / "x.jsonl"
    path.symlink_to(UNREADABLE)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as found:
        reads(path)
    assert str(found.value.filename) == str(path)


def test_what_a_model_said_before_it_was_tuned_is_refused_where_it_is_damaged(tmp_path):
    (tmp_path / REFERENCE).write_bytes(bytes(5))
    with pytest.raises(BadFileError, match=f"{REFERENCE}: is not what was written"):
        load_reference(tmp_path, {})


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
