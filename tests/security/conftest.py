"""How much is tried: a little in every run, everything with ``--long``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for the long form, where tests/services has not."""
    with suppress(ValueError):
        parser.addoption("--long", action="store_true", help="the whole of each experiment")


@pytest.fixture(scope="session")
def extent(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """Give what chooses between the short and the long number of attempts."""
    # Only where this folder is named on the command line is there such an option.
    long = pytestconfig.getoption("--long", default=False)
    return lambda short, whole: whole if long else short


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Give what puts a line of figures into the report, and shows it with ``-s``."""

    def say(line: str) -> None:
        record_property("figures", line)
        print(line)

    return say
