"""Sites that are configured in one way or another, for tests of the settings."""

import os

import pytest
from django.test import override_settings

from django_moe_personalize.conf import ConfigurationError, get_settings

SECRET = "key-nobody-may-read"


@pytest.fixture(name="clean_environment", autouse=True)
def _clean_environment(monkeypatch):
    """Start without variables of ours and without remembered settings."""
    for variable in list(os.environ):
        if variable.startswith("MOE_PERSONALIZE"):
            monkeypatch.delenv(variable)
    get_settings.cache_clear()
    yield
    # Before any other fixture looks at the settings again.
    monkeypatch.undo()
    get_settings.cache_clear()


def configure(**given):
    """Return the settings of a site with this dict."""
    with override_settings(MOE_PERSONALIZE=given):
        return get_settings()


def mistake(**given):
    """Return the error of a site with this dict."""
    with override_settings(MOE_PERSONALIZE=given), pytest.raises(ConfigurationError) as caught:
        get_settings()
    return caught.value


def from_environment(monkeypatch, **variables):
    """Return the settings of a site without a dict and with these variables."""
    for name, value in variables.items():
        monkeypatch.setenv(f"MOE_PERSONALIZE_{name}", value)
    return configure()
