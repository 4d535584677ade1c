"""Fixtures of the experiments. They try a little in every run, and everything with ``--long``."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.core.signals import request_finished, request_started
from django.db import close_old_connections

from django_moe_personalize.testing import override_personalize
from tests.conftest import Upstream
from tests.security.canary_values import SECRET


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option ``--long``, unless tests/services has added it."""
    with suppress(ValueError):
        parser.addoption("--long", action="store_true", help="the whole of each experiment")


@pytest.fixture(scope="session")
def extent(pytestconfig: pytest.Config) -> Callable[[int, int], int]:
    """Return a function that chooses between the short and the long number of attempts."""
    # The option exists only if this folder is named on the command line.
    long = pytestconfig.getoption("--long", default=False)
    return lambda short, whole: whole if long else short


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return a function that adds a line of figures to the report, and prints it with ``-s``."""

    def say(line: str) -> None:
        record_property("figures", line)
        print(line)

    return say


@pytest.fixture
def handlers() -> Iterator[None]:
    """Allow requests to a handler itself: like the test client, they don't close the connections of other tests."""
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


@pytest.fixture
def site(upstream: Upstream, settings: Any) -> Iterator[Upstream]:
    """Serve the test site to a visitor with known data."""
    settings.ROOT_URLCONF = "tests.site"
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"
    here = "tests.security.test_traces"
    with override_personalize(IDENTIFY=f"{here}.identify", ATTRIBUTES=[f"{here}.describe_cart"], API_KEY=SECRET):
        yield upstream
