"""The finders that other libraries register, for templates and content that only they can read.

This module is apart from ``usages``, because a server process registers finders but never runs them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from django_moe_personalize.runtime import log_once


class Usage(NamedTuple):
    """One place that uses an experience. ``kind`` is ``template``, ``code``, ``view``, ``settings`` or ``schema``.

    A finder of another library has a kind of its own. ``line`` is 0 if it isn't known.
    """

    experience_key: str
    kind: str
    file: str
    line: int

    @property
    def place(self) -> str:
        """The file, relative to the current folder if it is inside, and the line."""
        file = self.file
        with suppress(ValueError):
            file = str(Path(file).relative_to(Path.cwd()))
        return f"{file}:{self.line}" if self.line else file


Finder = Callable[[], Iterable[Usage]]

registered: Final[list[Finder]] = []
"""The finders of other libraries."""


def register_finder(finder: Finder) -> Finder:
    """Let find_usages() call ``finder`` too. Use this function as a decorator."""
    if finder not in registered:
        registered.append(finder)
    return finder


def report_unread(name: str, source: str, error: Exception) -> None:
    """Log that the keys of a broken template aren't known. A page with this template raises the same exception."""
    if re.search(r"{%-?\s*experience|experience_value", source):
        message = "The template %r can't be read, so its experience keys are not known: %s. Correct the template."
        # The errors of Jinja2 have a line, and those of Django have it in their text.
        line = f"line {error.lineno}: " if hasattr(error, "lineno") else ""
        log_once(("unread", name), message, name, line + str(error).rstrip("."))
