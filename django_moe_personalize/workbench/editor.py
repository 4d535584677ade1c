"""The workspace file as a text to edit: without its API key, and with the line of each mistake."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from django_moe_personalize.sandbox.reading import WorkspaceError, shown
from django_moe_personalize.sandbox.workspace import SHIPPED, WorkspaceFile, read_workspace

_KEY: Final = re.compile(r'("(?:data_)?api_key"\s*:\s*)("(?:[^"\\\n]|\\.)*"?|[^\n]+)')
"""The API key, also in a text that isn't valid JSON. A variable with this name looks alike, and is hidden too."""

_HIDDEN: Final = re.compile(r'"\(hidden (\d+)\)"')

_TOKEN: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"?|[{}\[\],:]|[^\s{}\[\],:"]+')
_LINE: Final = re.compile(r"line (\d+), column \d+")


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake in the file. ``line`` counts from 1, and is 0 if the place has no line."""

    text: str
    line: int = 0


@dataclass(frozen=True, slots=True)
class Draft:
    """A text in the browser. ``stamp`` names the version of the file that the browser has opened."""

    text: str
    stamp: str
    problems: tuple[Problem, ...] = ()
    is_outdated: bool = False


class Editor:
    """Read and write the file of a workspace."""

    def __init__(self, file: WorkspaceFile) -> None:
        self.path = file.path.resolve()
        self.is_read_only = self.path == SHIPPED.resolve()
        self._file = file

    @property
    def stamp(self) -> str:
        """The version of the file on the disk."""
        with suppress(OSError):
            status = self.path.stat()
            return f"{status.st_mtime_ns}-{status.st_size}"
        return ""

    def open(self) -> Draft:
        """Return the file as it is on the disk, with its mistakes."""
        stamp, text = self.stamp, self._read()
        return Draft(_hide_keys(text), stamp, find_problems(text, self.path.name) if text else self._list_unread())

    def save(self, draft: Draft, *, anyway: bool) -> Draft | None:
        """Write a text, and return ``None``. If that isn't possible, return the draft with the reasons.

        A text with a mistake is never written, and another version of the file only with ``anyway``.
        """
        old = self._read()
        text = _restore_keys(draft.text.replace("\r\n", "\n"), old)
        if problems := find_problems(text, self.path.name) or _find_unknown_keys(text):
            return Draft(draft.text, draft.stamp, problems)
        if draft.stamp != self.stamp and not anyway:
            return Draft(draft.text, draft.stamp, is_outdated=True)
        try:
            self._write(text.replace("\n", "\r\n") if "\r\n" in old else text)
        except OSError as error:
            problem = Problem(f"{self.path.name}: cannot be written: {error.strerror}. Check the permissions.")
            return Draft(draft.text, draft.stamp, (problem,))
        return None

    def _read(self) -> str:
        """Return the text of the file, or ``""`` if it can't be read."""
        try:
            data = self.path.read_bytes()
            return data.decode(json.detect_encoding(data))
        except (OSError, UnicodeError):
            return ""

    def _list_unread(self) -> tuple[Problem, ...]:
        self._file.refresh()
        return tuple(map(Problem, self._file.problems))

    def _write(self, text: str) -> None:
        """Replace the file at once, so that the sandbox never reads half a file."""
        number, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(number, "w", encoding="utf-8", newline="") as file:
                file.write(text)
            if self.path.exists():
                shutil.copymode(self.path, name)
            Path(name).replace(self.path)
        finally:
            Path(name).unlink(missing_ok=True)


def find_problems(text: str, name: str) -> tuple[Problem, ...]:
    """Return the mistakes that the sandbox finds in the text of a workspace file."""
    try:
        read_workspace(text, name=name)
    except WorkspaceError as error:
        lines = _find_lines(text)
        return tuple(_build_problem(problem, name, lines) for problem in error.problems)
    return ()


def _build_problem(problem: str, name: str, lines: dict[str, int]) -> Problem:
    text = problem.removeprefix(f"{name}: ")
    if text.startswith(("must be an object", "api_key: ")):
        # The message quotes a wrong value, which may be the API key or have it.
        text = text.partition(", not ")[0]
    if match := _LINE.match(text):
        return Problem(text, int(match[1]))
    place = next((place for place in lines if place and text.startswith(f"{place}: ")), "")
    return Problem(text, lines[place] if place else 0)


def _find_lines(text: str) -> dict[str, int]:
    """Return the line of each place of a JSON text."""
    lines: dict[str, int] = {}
    # The open objects and arrays: their places, and the names or indexes of their current members.
    stack: list[tuple[str, str | int | None]] = []
    line, seen = 1, 0
    for match in _TOKEN.finditer(text):
        part, (place, current) = match[0], stack[-1] if stack else ("", "")
        if part in "}]":
            del stack[-1:]
        elif part in ":,":
            stack[-1:] = [(place, current if part == ":" else current + 1 if isinstance(current, int) else None)]
        elif current is None:
            stack[-1] = (place, part.strip('"'))
        else:
            line, seen = line + text.count("\n", seen, match.start()), match.start()
            inner = _join(place, current)
            lines[inner] = line
            if part in "{[":
                stack.append((inner, 0 if part == "[" else None))
    return lines


def _join(place: str, member: str | int) -> str:
    """Return the place of a member of the object or array at ``place``, as the messages name it."""
    if isinstance(member, int):
        return f"{place}[{member}]"
    if member and not re.fullmatch(r"[\w$-]+", member):
        return f"{place}[{shown(member)}]"
    return f"{place}.{member}" if place else member


def _hide_keys(text: str) -> str:
    """Return a text with ``"(hidden 1)"`` instead of the first API key, and so on."""
    numbers = itertools.count(1)
    return _KEY.sub(lambda match: f'{match[1]}"(hidden {next(numbers)})"', text)


def _restore_keys(text: str, old: str) -> str:
    """Put the keys of the ``old`` text back where the new text says that they are hidden."""
    keys = [match[2] for match in _KEY.finditer(old)]
    return _HIDDEN.sub(lambda match: keys[int(match[1]) - 1] if 0 < int(match[1]) <= len(keys) else match[0], text)


def _find_unknown_keys(text: str) -> tuple[Problem, ...]:
    """Return a problem for each API key that is still hidden in ``text``, because the file has no such key."""
    found = [match for match in _KEY.finditer(text) if _HIDDEN.fullmatch(match[2])]
    message = "api_key: the file has no key {}. Write the API key, or load the page again."
    return tuple(Problem(message.format(match[2]), text.count("\n", 0, match.start()) + 1) for match in found)
