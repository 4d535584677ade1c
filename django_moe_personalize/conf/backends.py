"""Import the parts of a site that its settings name by a dotted path."""

from __future__ import annotations

import inspect
from typing import Any, Final

from django.utils.module_loading import import_string

from django_moe_personalize.conf.readers import Backend
from django_moe_personalize.conf.settings import SETTING, ConfigurationError

EXTRAS: Final = {"celery": "celery", "django_tasks": "tasks"}
"""A library that one of our deliveries needs, and the extra of this package that installs it."""


def load_object(name: str, path: str) -> Any:
    """Return the callable that the setting ``name`` refers to by its dotted ``path``. Raises ConfigurationError."""
    place = f'{SETTING}["{name}"]'
    try:
        found = import_string(path)
    except Exception as error:
        # A module of the site may raise anything while it is imported.
        message = f"{place} is {path!r}, which can't be imported: {type(error).__name__}: {error}."
        extra = EXTRAS.get(getattr(error, "name", None) or "")
        hint = "Correct the path, or install the library that it needs."
        if extra:
            hint = f'Install it: pip install "django-moe-personalize[{extra}]".'
        raise ConfigurationError(message, hint=hint) from error
    if not callable(found):
        raise ConfigurationError(f"{place} is {path!r}, which isn't callable.", hint="Name a function or a class.")
    return found


def load_backend(name: str, backend: Backend, *args: object) -> Any:
    """Return the class of a swappable part, if it accepts ``args`` and the options. Raises ConfigurationError."""
    found = load_object(f'{name}"]["BACKEND', backend.backend)
    try:
        signature = inspect.signature(found)
    except ValueError:
        # A class written in C doesn't tell its arguments.
        return found
    try:
        signature.bind(*args, **backend.options)
    except TypeError as error:
        # The error names options, never their values.
        message = f'{SETTING}["{name}"]["OPTIONS"] doesn\'t fit {backend.backend}: {error}.'
        accepted = ", ".join(list(signature.parameters)[len(args) :]) or "no options"
        raise ConfigurationError(message, hint=f"It accepts {accepted}.") from None
    return found
