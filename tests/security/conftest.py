"""How much is tried: a little in every run, everything with ``--long``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from django.core.signals import request_finished, request_started
from django.db import close_old_connections


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


@pytest.fixture
def handlers() -> Iterator[None]:
    """Let requests go to a handler itself; as with the test client, what another test left open is not theirs."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)
