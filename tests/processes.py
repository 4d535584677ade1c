"""What tests of processes that work side by side share: their cache, and threads that are all busy."""

import contextlib

import pytest


@pytest.fixture(name="shared")
def use_shared_cache(settings, tmp_path):
    """Use a cache that processes share."""
    backend = "django.core.cache.backends.filebased.FileBasedCache"
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": str(tmp_path / "cache")}}


@contextlib.contextmanager
def filled(pool):
    """Let a pool take no work for so long."""
    pool.in_flight += 1000
    try:
        yield
    finally:
        pool.in_flight -= 1000
