"""Dotted paths in settings: each error says how to fix the path or the options."""

import sys

import pytest

from django_moe_personalize.conf import Backend, ConfigurationError
from django_moe_personalize.conf.settings import load_backend, load_object
from tests.conf.configured import SECRET

not_callable = "a string"


class Part:
    def __init__(self, url, *, verify=True):
        """Do nothing."""


def without_options(client):
    """Do nothing."""


@pytest.mark.parametrize(
    ("path", "message", "hint"),
    [
        ("no_such.identify", "ModuleNotFoundError", "Correct the path"),
        ("tests.conf.test_backends.absent", "can't be imported", "Correct the path"),
        ("celery.Celery", "ModuleNotFoundError", 'pip install "django-moe-personalize[celery]"'),
        ("tests.conf.test_backends.not_callable", "isn't callable", "Name a function or a class."),
    ],
)
def test_wrong_path(monkeypatch, path, message, hint):
    """The error names the setting, the path and the reason, and the extra that installs a missing library."""
    monkeypatch.setitem(sys.modules, "celery", None)
    with pytest.raises(ConfigurationError) as caught:
        load_object("IDENTIFY", path)
    assert caught.value.message.startswith(f"MOE_PERSONALIZE[\"IDENTIFY\"] is '{path}', which ")
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Part", "Use only these options: verify."), ("without_options", "Remove the options: it accepts none.")],
)
def test_wrong_option(name, hint):
    """The error names the option without its value, and the hint lists the right options."""
    backend = Backend(f"tests.conf.test_backends.{name}", {"verfy": SECRET})
    with pytest.raises(ConfigurationError) as caught:
        load_backend("TRANSPORT", backend, "https://x")
    assert caught.value.message.startswith(f'MOE_PERSONALIZE["TRANSPORT"]["OPTIONS"] doesn\'t fit {backend.backend}: ')
    assert "'verfy'" in caught.value.message
    assert caught.value.hint == hint
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(("path", "expected"), [("tests.conf.test_backends.Part", Part), ("builtins.dict", dict)])
def test_right_backend(path, expected):
    """The class comes back if its signature accepts the options, or if it has no signature."""
    assert load_backend("TRANSPORT", Backend(path, {"verify": False}), "https://x") is expected
