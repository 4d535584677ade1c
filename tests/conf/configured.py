"""Sites with different settings, for the tests of settings, checks and client."""

import os

import pytest
from django.test import override_settings

from django_moe_personalize.conf import ConfigurationError, get_settings

SECRET = "key-that-no-message-shows"
CREDENTIALS = {"WORKSPACE_ID": "SITE", "API_KEY": SECRET, "DATA_CENTER": "03"}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """Start without this package's environment variables, and without remembered settings."""
    for variable in list(os.environ):
        if variable.startswith("MOE_PERSONALIZE"):
            monkeypatch.delenv(variable)
    get_settings.cache_clear()
    yield
    # Before another fixture reads the settings.
    monkeypatch.undo()
    get_settings.cache_clear()


def configure(**given):
    with override_settings(MOE_PERSONALIZE=given):
        return get_settings()


def read_error(**given):
    with override_settings(MOE_PERSONALIZE=given), pytest.raises(ConfigurationError) as caught:
        get_settings()
    return caught.value


def configure_environment(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(f"MOE_PERSONALIZE_{name}", value)
    return configure()
