"""Resilience needs no Django, so its tests need no clean process."""

import threading

import pytest

from tests.virtual_time import Clock


@pytest.fixture(autouse=True)
def fresh_process():
    """Replace the fixture of the other tests, which need Django's cache."""


@pytest.fixture
def clock():
    """Give a clock that stands still."""
    return Clock()


@pytest.fixture
def gate():
    """Give an event that releases every blocked thread, at the latest when the test ends."""
    event = threading.Event()
    yield event
    event.set()
