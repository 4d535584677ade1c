"""Fixtures for the tests of the system checks."""

from tests.conf.configured import clean_environment  # noqa: F401 - a fixture
