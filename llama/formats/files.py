"""The JSON objects in folders of other programs, whose fields are checked as they are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.errors import BadFileError
from llama.formats.kinds import whole

LARGEST = 1e30  # of a number in a configuration


@dataclass(frozen=True)
class Fields:
    """A JSON object whose fields are checked as they are read. null is as good as not there."""

    path: Path
    values: Mapping[str, Any]

    def _get(self, name: str, default: Any, kinds: tuple[type, ...], allowed: str) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if value is None:
            raise BadFileError(f"{self.path}: has no {name}")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise BadFileError(f"{self.path}: {name} = {value!r:.80}, allowed {allowed}")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """Raises BadFileError, as the next two: of another kind, or missing without a default."""
        return self._get(name, default, (int,), "whole numbers")

    def number(self, name: str, default: float | None = None) -> float:
        value = self._get(name, default, (int, float), "numbers")
        if not abs(value) < LARGEST:  # also what Python's JSON has beyond the standard: NaN, Infinity
            raise BadFileError(f"{self.path}: {name} = {value!r:.80}, allowed finite numbers")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        return self._get(name, default, (bool,), "true and false")

    def object(self, name: str) -> Fields:
        """The fields of an object within, none where it is missing."""
        return Fields(self.path, self._get(name, {}, (dict,), "objects"))

    def one_of(self, name: str, allowed: tuple[Any, ...], default: Any = None) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        if value not in allowed:
            options = " and ".join(json.dumps(option) for option in allowed)
            raise BadFileError(f"{self.path}: {name} = {json.dumps(value)}, allowed {options}")
        return value


def is_file_name(value: Any) -> bool:
    """Whether a value of JSON is a name that a file of the same folder can have."""
    return isinstance(value, str) and value == Path(value).name and "\0" not in value


def parse_json(text: str | bytes) -> Any:
    """json.loads, which raises ValueError also for what is nested deeper than Python reads."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Fields:
    """The fields of a file that holds a JSON object. Raises BadFileError, OSError."""
    data = whole(path)
    try:
        values = parse_json(data)
    except ValueError as error:
        raise BadFileError(f"{path}: is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise BadFileError(f"{path}: holds a {type(values).__name__}, allowed an object")
    return Fields(path, values)
