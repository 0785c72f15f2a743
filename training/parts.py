"""A folder of tokens that many machines write: each a part of the input, then one puts them in place.

    python dataset.py pretokenize ... --output data/x --part 3/16     # in data/x/part-03-of-16
    python dataset.py merge data/x

A part is a stretch of the input, by bytes, so that all parts one after another are what one run writes. It
begins and ends between documents. Where in a .parquet file that is can't be seen: such a file is of one part.
"""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.errors import BadFileError, UsageError
from llama.files import copy, lock_folder
from training.shards import SPLITS, read_meta, shard_path, write_meta

TOKENIZER = ("tokenizer.model", "tokenizer.bin")


@dataclass(frozen=True)
class Part:
    """The number-th, from 1, of so many parts of the input."""

    number: int = 1
    of: int = 1

    def span(self, size: int) -> tuple[int, float]:
        """Where it begins and ends in an input of so many bytes. What ends the input is of the last part."""
        end = math.inf if self.number == self.of else size * self.number // self.of
        return size * (self.number - 1) // self.of, end

    @property
    def folder(self) -> str:
        return f"part-{self.number:0{len(str(self.of))}}-of-{self.of}"


WHOLE = Part()


def parse_part(text: str) -> Part:
    """A part such as 3/16. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError(f"part = {text!r}, allowed I/N, I from 1 to N")
    return Part(int(found[1]), int(found[2]))


# --- Putting them together


def parts_in(folder: Path) -> list[Part]:
    """The parts of a folder, all of them, in order. Raises BadFileError if one is missing."""
    named = [re.fullmatch(r"part-(\d+)-of-(\d+)", path.name) for path in folder.glob("part-*")]
    parts = {Part(int(found[1]), int(found[2])) for found in named if found}
    if not parts:
        raise BadFileError(f"{folder}: parts = 0, allowed 1 or more, which --part writes")
    if len(of := {part.of for part in parts}) > 1:
        found = " and of ".join(map(str, sorted(of)))
        raise BadFileError(f"{folder}: holds parts of {found}, allowed one of them")
    whole = [Part(number, max(of)) for number in range(1, max(of) + 1)]
    if missing := [part for part in whole if part not in parts]:
        part = missing[0]
        raise BadFileError(f"{folder / part.folder}: is missing, --part {part.number}/{part.of} writes it")
    return whole


def meta_of(folder: Path) -> dict[str, Any]:
    """meta.json of a part that is finished, without which part it is. Raises BadFileError."""
    meta = read_meta(folder)
    if meta["splits"] is None:
        raise BadFileError(f"{folder}: was not finished; run the same command again")
    return meta | {"source": {name: value for name, value in meta["source"].items() if name != "part"}}


def move_shards(folder: Path, split: str, parts: list[tuple[Path, int]]) -> None:
    """Moves the shards of a split out of parts, folders with so many each. Raises BadFileError, OSError.

    Those that an earlier call moved are in place.
    """
    (folder / split).mkdir(exist_ok=True)
    wanted = [shard_path(part, split, i) for part, count in parts for i in range(count)]
    for number, path in enumerate(wanted):
        place = shard_path(folder, split, number)
        if path.exists():
            path.rename(place)
        elif not place.exists():
            raise BadFileError(f"{path}: is missing")


def same(places: list[Path], metas: list[dict[str, Any]]) -> None:
    """Raises BadFileError for a part of other input, or with other tokens, than the first."""
    for place, meta in zip(places, metas, strict=True):
        for name in ("tokenizer_hash", "source", "texts"):
            if meta[name] != metas[0][name]:
                raise BadFileError(f"{place}: {name} is another than in {places[0]}, allowed the same")


def merge_split(folder: Path, split: str, places: list[Path], metas: list[dict[str, Any]]) -> dict[str, int]:
    """Makes a split of those of the parts, and returns its totals. Raises BadFileError, OSError."""
    totals = [meta["splits"].get(split, {}) for meta in metas]
    if not any(totals):
        raise BadFileError(f"{folder}: {split} documents = 0, allowed 1 or more (--val, --val_every)")
    move_shards(folder, split, [(place, t.get("shards", 0)) for place, t in zip(places, totals, strict=True)])
    return {name: sum(t.get(name, 0) for t in totals) for name in max(totals, key=len)}


def remove_parts(folder: Path) -> None:
    """Removes what is left of parts whose shards were moved. Raises BadFileError for one that has some."""
    for place in folder.glob("part-*"):
        if any(place.rglob("*.tokens")):
            raise BadFileError(f"{place}: holds shards, but {folder} is whole without them")
        shutil.rmtree(place)


def merge(folder: Path) -> dict[str, Any]:
    """Makes one folder of its parts, without copying what they hold, and returns its meta.json.

    It may be stopped and called again. Raises BadFileError, OSError.
    """
    with lock_folder(folder):
        if not (folder / "meta.json").exists():
            places = [folder / part.folder for part in parts_in(folder)]
            metas = [meta_of(place) for place in places]
            same(places, metas)
            splits = {split: merge_split(folder, split, places, metas) for split in SPLITS}
            for name in TOKENIZER:
                copy(places[0] / name, folder / name)
            write_meta(folder, metas[0] | {"splits": splits})
        remove_parts(folder)
        return read_meta(folder)
