"""Read objects from the workspace file, which people edit by hand. Collect all mistakes with their places."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NoReturn

NOTE = "//"
"""The name of a member with a note for people. The sandbox ignores this member."""


class WorkspaceError(ValueError):
    """The workspace file has mistakes. ``problems`` has a line ``file: place: mistake`` for each mistake."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class Problems:
    """The mistakes in the file ``name``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.found: list[str] = []

    def add(self, place: str, message: str) -> None:
        """Add a mistake. ``place`` is a path such as ``experiences[2].key``."""
        self.found.append(f"{self.name}: {place}: {message}" if place else f"{self.name}: {message}")

    def raise_any(self) -> None:
        """Raise WorkspaceError if a mistake was found."""
        if self.found:
            raise WorkspaceError(self.found)


def member(place: str, name: str) -> str:
    """Return the place of the member ``name`` of the object at ``place``."""
    if not re.fullmatch(r"[\w$-]+", name):
        return f"{place}[{shown(name)}]"
    return f"{place}.{name}" if place else name


def shown(value: object) -> str:
    """Return ``value`` as JSON for a message, at most 60 characters long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``, did you mean "x"?`` with the closest of ``names``. If no name is close, return a list of all names."""
    valid = sorted(names)
    close = difflib.get_close_matches(name, valid, n=1) or [n for n in valid if n.lower() == name.lower()]
    if close:
        return f', did you mean "{close[0]}"?'
    return f" (valid: {', '.join(valid) or 'none'})"


def refuse_constant(constant: str) -> NoReturn:
    """Refuse ``NaN`` and ``Infinity``, which Python's JSON reader accepts. Raises ValueError."""
    raise ValueError(f"{constant} is not a JSON number")


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite number. A boolean isn't a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class Section:
    """One object of the file. Its methods read its members, and add each mistake to ``problems``.

    The constructor adds a mistake if ``data`` isn't an object, and for each member that isn't in ``fields``.
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
        """Add a mistake in the value of ``name``. ``message`` says how the value must be."""
        self.problems.add(self.at(name), f"{message}, not {shown(self.data[name])}")

    def text(self, name: str, default: str | None = None) -> str:
        """Return a string that isn't empty. Without ``default``, an absent member is a mistake."""
        if name not in self.data:
            if default is None:
                self.require(name)
            return default or ""
        value = self.data[name]
        if not isinstance(value, str) or not value:
            self.wrong(name, "must be a string that is not empty")
            return ""
        return value

    def require(self, name: str) -> None:
        """Add a mistake if the member ``name`` is absent."""
        if name not in self.data:
            self.problems.add(self.place, f'"{name}" is missing')

    def choice(self, name: str, choices: Collection[str], default: str) -> str:
        """Return one of ``choices``, or ``default`` if the member is absent."""
        value = self.data.get(name, default)
        if not isinstance(value, str) or value not in choices:
            self.problems.add(self.at(name), f"unknown value {shown(value)}{nearest(str(value), choices)}")
            return default
        return value

    def flag(self, name: str) -> bool:
        """Return a boolean, or ``False`` if the member is absent."""
        value = self.data.get(name, False)
        if not isinstance(value, bool):
            self.wrong(name, "must be true or false")
        return value is True

    def percent(self, name: str) -> float:
        """Return a number from 0 to 100, or 0 if the member is absent."""
        value = self.data.get(name, 0)
        if not is_number(value) or not 0 <= value <= 100:
            self.wrong(name, "must be a number from 0 to 100")
            return 0.0
        return float(value)

    def weight(self, name: str) -> float:
        """Return a number above 0, or 1 if the member is absent."""
        value = self.data.get(name, 1)
        if not is_number(value) or value <= 0:
            self.wrong(name, "must be a number above 0")
            return 1.0
        return float(value)

    def texts(self, name: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return an array of strings, or ``default`` if the member is absent."""
        return read_texts(self.data[name], self.at(name), self.problems) if name in self.data else default

    def members(self, name: str) -> Iterator[tuple[str, str, Any]]:
        """Yield (name, place, value) for each member of the object ``name``."""
        place = self.at(name)
        for key, value in read_object(self.data.get(name, {}), place, self.problems).items():
            yield key, member(place, key), value

    def sections(self, name: str, fields: Collection[str]) -> list[Section]:
        """Return a section for each entry of ``name``, an array of objects."""
        value = self.data.get(name, [])
        if not isinstance(value, list):
            self.wrong(name, "must be an array")
            return []
        places = (f"{self.at(name)}[{index}]" for index in range(len(value)))
        return [Section(entry, place, self.problems, fields=fields) for entry, place in zip(value, places, strict=True)]


def read_object(data: object, place: str, problems: Problems) -> Mapping[str, Any]:
    """Return an object without its notes. For other data, add a mistake and return an empty object."""
    if not isinstance(data, Mapping):
        problems.add(place, f"must be an object, not {shown(data)}")
        return {}
    return {name: value for name, value in data.items() if name != NOTE}


def read_texts(data: object, place: str, problems: Problems) -> tuple[str, ...]:
    """Return an array of strings. For other data, add a mistake and return an empty tuple."""
    if not isinstance(data, list) or not all(isinstance(entry, str) for entry in data):
        problems.add(place, f"must be an array of strings, not {shown(data)}")
        return ()
    return tuple(data)
