"""Fixtures for the tests of the settings."""

from tests.conf.configured import clean_environment  # noqa: F401 - a fixture
