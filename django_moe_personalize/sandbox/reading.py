"""Read values from the workspace file, which people edit by hand. Collect all mistakes with their places."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from django_moe_personalize.sandbox.audiences import Scalar

T = TypeVar("T")

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
        text = f"{self.name}: {place}: {message}" if place else f"{self.name}: {message}"
        # Several parts of the file may read one value, for example the audiences.
        if text not in self.found:
            self.found.append(text)

    def raise_any(self) -> None:
        """Raise WorkspaceError if a mistake was found."""
        if self.found:
            raise WorkspaceError(self.found)


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


@dataclass(frozen=True, slots=True)
class Value:
    """One value of the file, with its place. Its methods read the value, and add each mistake to ``problems``."""

    data: Any
    place: str
    problems: Problems

    def add(self, message: str) -> None:
        """Add a mistake at this place."""
        self.problems.add(self.place, message)

    def wrong(self, message: str) -> None:
        """Add a mistake in this value. ``message`` says how the value must be."""
        self.add(f"{message}, not {shown(self.data)}")

    def members(self, fields: Collection[str] | None = None) -> dict[str, Value]:
        """Return the members of an object, without its notes. A member that isn't one of ``fields`` is a mistake."""
        if not isinstance(self.data, Mapping):
            self.wrong("must be an object")
            return {}
        found = {name: Value(data, self._find_place(name), self.problems) for name, data in self.data.items()}
        found.pop(NOTE, None)
        for name, value in found.items():
            if fields is not None and name not in fields:
                value.add(f"unknown field{nearest(name, fields)}")
        return found

    def _find_place(self, name: str) -> str:
        if not re.fullmatch(r"[\w$-]+", name):
            return f"{self.place}[{shown(name)}]"
        return f"{self.place}.{name}" if self.place else name

    def entries(self, what: str = "") -> list[Value]:
        """Return the entries of an array. With ``what``, which names the entries, an empty array is a mistake."""
        if not isinstance(self.data, list) or (what and not self.data):
            self.wrong(f"must be an array{f' of {what}' if what else ''}")
            return []
        return [Value(data, f"{self.place}[{index}]", self.problems) for index, data in enumerate(self.data)]

    def read(self, valid: str, test: Callable[[Any], bool], default: T) -> T:
        """Return the value if it passes ``test``. Otherwise add a mistake with ``valid``, and return ``default``."""
        if test(self.data):
            return self.data  # type: ignore[no-any-return]
        self.wrong(f"must be {valid}")
        return default

    def text(self) -> str:
        """Return a string that isn't empty."""
        return self.read("a string that is not empty", lambda data: isinstance(data, str) and data != "", "")

    def texts(self) -> tuple[str, ...]:
        """Return an array of strings."""
        return tuple(self.read("an array of strings", _is_texts, []))

    def flag(self) -> bool:
        """Return a boolean."""
        return self.read("true or false", lambda data: isinstance(data, bool), False)

    def percent(self) -> float:
        """Return a number from 0 to 100."""
        return float(self.read("a number from 0 to 100", lambda data: is_number(data) and 0 <= data <= 100, 0.0))

    def weight(self) -> float:
        """Return a number above 0."""
        return float(self.read("a number above 0", lambda data: is_number(data) and data > 0, 1.0))

    def scalar(self) -> Scalar:
        """Return a string, a number or a boolean."""
        return self.read("a string, a number, true or false", lambda data: isinstance(data, (str, int, float)), "")

    def choice(self, choices: Collection[str]) -> str:
        """Return one of ``choices``."""
        if isinstance(self.data, str) and self.data in choices:
            return self.data
        self.add(f"unknown value {shown(self.data)}{nearest(str(self.data), choices)}")
        return next(iter(choices))


class Section:
    """An object with a fixed set of members. A member that isn't in ``fields`` is a mistake."""

    def __init__(self, value: Value, fields: Collection[str]) -> None:
        self.value = value
        self.members = value.members(fields)

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def get(self, name: str, default: Any) -> Value:
        """Return a member. If the member is absent, return a value with the data ``default`` in its place."""
        return self.members.get(name) or Value(default, self.value._find_place(name), self.value.problems)

    def require(self, name: str, default: Any) -> Value:
        """See get(). An absent member is a mistake."""
        if name not in self.members:
            self.value.add(f'"{name}" is missing')
        return self.get(name, default)


def _is_texts(data: object) -> bool:
    return isinstance(data, list) and all(isinstance(entry, str) for entry in data)
