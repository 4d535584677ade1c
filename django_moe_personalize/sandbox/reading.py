"""Reading a hand-edited file: every mistake is collected with its place, none stops the reading."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

NOTE = "//"
"""The member that is a note to the reader of the file and means nothing."""


class WorkspaceError(ValueError):
    """The workspace file has mistakes; ``problems`` holds each as ``place: what is wrong``."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class Problems:
    """The mistakes found so far in the file called ``name``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.found: list[str] = []

    def add(self, place: str, message: str) -> None:
        """Note one mistake at ``place``, a path such as ``experiences[2].key``."""
        self.found.append(f"{self.name}: {place}: {message}" if place else f"{self.name}: {message}")

    def raise_any(self) -> None:
        """Raise WorkspaceError with all mistakes, if there is one."""
        if self.found:
            raise WorkspaceError(self.found)


def member(place: str, name: str) -> str:
    """Return the place of the member ``name`` of the object at ``place``."""
    if not re.fullmatch(r"[\w$-]+", name):
        return f"{place}[{shown(name)}]"
    return f"{place}.{name}" if place else name


def shown(value: object) -> str:
    """Return ``value`` as the file would write it, shortened: for messages."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``, did you mean "x"?`` with the closest of ``names``, or the valid ones when none is close."""
    valid = sorted(names)
    close = difflib.get_close_matches(name, valid, n=1) or [n for n in valid if n.lower() == name.lower()]
    if close:
        return f', did you mean "{close[0]}"?'
    return f" (valid: {', '.join(valid) or 'none'})"


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite JSON number; a boolean is not one."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class Section:
    """One object of the file, read member by member.

    Data that is no object and members not among ``fields`` are mistakes, noted at once.
    """

    def __init__(self, data: object, place: str, problems: Problems, *, fields: Collection[str]) -> None:
        self.place = place
        self.problems = problems
        self.data = read_object(data, place, problems)
        for name in self.data:
            if name not in fields:
                problems.add(member(place, name), f"unknown field{nearest(name, fields)}")

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def at(self, name: str) -> str:
        """Return the place of the member ``name``."""
        return member(self.place, name)

    def wrong(self, name: str, message: str) -> None:
        """Note that the member ``name`` is not what it must be."""
        self.problems.add(self.at(name), f"{message}, not {shown(self.data[name])}")

    def text(self, name: str, default: str | None = None) -> str:
        """Return a non-empty string; without ``default`` its absence is a mistake."""
        if name not in self.data:
            if default is None:
                self.problems.add(self.place, f'"{name}" is missing')
            return default or ""
        value = self.data[name]
        if not isinstance(value, str) or not value:
            self.wrong(name, "must be a string that is not empty")
            return ""
        return value

    def choice(self, name: str, choices: Collection[str], default: str) -> str:
        """Return one of ``choices``."""
        value = self.data.get(name, default)
        if not isinstance(value, str) or value not in choices:
            self.problems.add(self.at(name), f"unknown value {shown(value)}{nearest(str(value), choices)}")
            return default
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean, ``False`` when absent."""
        value = self.data.get(name, False)
        if not isinstance(value, bool):
            self.wrong(name, "must be true or false")
        return value is True

    def percent(self, name: str) -> float:
        """Return a number from 0 to 100, 0 when absent."""
        value = self.data.get(name, 0)
        if not is_number(value) or not 0 <= value <= 100:
            self.wrong(name, "must be a number from 0 to 100")
            return 0.0
        return float(value)

    def weight(self, name: str) -> float:
        """Return a number above 0, 1 when absent."""
        value = self.data.get(name, 1)
        if not is_number(value) or value <= 0:
            self.wrong(name, "must be a number above 0")
            return 1.0
        return float(value)

    def texts(self, name: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return an array of strings."""
        return read_texts(self.data[name], self.at(name), self.problems) if name in self.data else default

    def members(self, name: str) -> Iterator[tuple[str, str, Any]]:
        """Yield (name, place, value) of each member of an object."""
        place = self.at(name)
        for key, value in read_object(self.data.get(name, {}), place, self.problems).items():
            yield key, member(place, key), value

    def items(self, name: str) -> Iterator[tuple[str, Any]]:
        """Yield (place, value) of each entry of an array."""
        value = self.data.get(name, [])
        if not isinstance(value, list):
            self.wrong(name, "must be an array")
            return
        for index, entry in enumerate(value):
            yield f"{self.at(name)}[{index}]", entry


def read_object(data: object, place: str, problems: Problems) -> Mapping[str, Any]:
    """Return an object without its notes; anything else is a mistake and reads as empty."""
    if not isinstance(data, Mapping):
        problems.add(place, f"must be an object, not {shown(data)}")
        return {}
    return {name: value for name, value in data.items() if name != NOTE}


def read_texts(data: object, place: str, problems: Problems) -> tuple[str, ...]:
    """Return an array of strings; anything else is a mistake and reads as empty."""
    if not isinstance(data, list) or not all(isinstance(entry, str) for entry in data):
        problems.add(place, f"must be an array of strings, not {shown(data)}")
        return ()
    return tuple(data)
