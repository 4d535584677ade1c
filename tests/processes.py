"""For tests of processes and threads that work at the same time."""

import contextlib
import os
import signal
import threading
import warnings
from contextvars import ContextVar
from unittest.mock import patch

import pytest

from django_moe_personalize.testing import override_personalize

SOON = 30.0
"""Seconds that nothing takes on the busiest machine. A wait that ends with them has failed."""


@pytest.fixture(name="shared")
def use_shared_cache(settings, tmp_path):
    """Use a cache that processes share, and that belongs to the package alone."""
    backend = "django.core.cache.backends.filebased.FileBasedCache"
    settings.CACHES |= {"experiences": {"BACKEND": backend, "LOCATION": str(tmp_path / "cache")}}
    with override_personalize(CACHE="experiences"):
        yield


@contextlib.contextmanager
def filled(pool):
    """Let a pool accept no work while the context lasts."""
    pool.in_flight += 1000
    try:
        yield
    finally:
        pool.in_flight -= 1000


def together(number, call):
    """Call ``call(index)`` in this many threads that start at the same moment; return the results."""
    start = threading.Barrier(number)
    results = []

    def run(index):
        start.wait(SOON)
        results.append(call(index))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert len(results) == number
    return results


@contextlib.contextmanager
def recorded_contexts():
    """Set a context variable as a page does, and give the list of its values where threads are started.

    Sentry reads its context there, and gives the new thread this context.
    """
    visitor, values, start = ContextVar("visitor", default=None), [], threading.Thread.start

    def record(thread):
        values.append(visitor.get())
        start(thread)

    token = visitor.set("the page's visitor")
    with patch.object(threading.Thread, "start", record):
        yield values
    visitor.reset(token)


@contextlib.contextmanager
def no_threads():
    """Let the system start no thread: each asks for a larger stack than there is memory to address."""
    previous = threading.stack_size(1 << 46)
    try:
        yield
    finally:
        threading.stack_size(previous)


def in_child(check):
    """Run ``check`` in a forked child and return whether it was true there."""
    with warnings.catch_warnings():
        # Python warns of forks in processes with threads. The tests show that this one goes well.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        # A child that hangs fails.
        signal.alarm(int(SOON))
        passed = False
        try:
            passed = bool(check())
        finally:
            os._exit(0 if passed else 1)
    return os.waitpid(pid, 0)[1] == 0
