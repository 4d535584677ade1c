"""Import the objects that settings name by dotted paths."""

from __future__ import annotations

import inspect
from typing import Any, Final

from django.utils.module_loading import import_string

from django_moe_personalize.conf.readers import Backend
from django_moe_personalize.conf.settings import SETTING, ConfigurationError

EXTRAS: Final = {"celery": "celery", "django_tasks": "tasks"}
"""The libraries that our deliveries need, and this package's extras that install them."""


def load_object(name: str, path: str) -> Any:
    """Return the callable at the dotted ``path`` in the setting ``name``. Raises ConfigurationError."""
    place = f'{SETTING}["{name}"]'
    try:
        found = import_string(path)
    except Exception as error:
        # Importing a site's module may raise anything.
        extra = EXTRAS.get(getattr(error, "name", None) or "")
        install = f'Install it: pip install "django-moe-personalize[{extra}]".'
        hint = install if extra else "Correct the path, or install the missing library."
        message = f"{place} is {path!r}, which can't be imported: {type(error).__name__}: {error}."
        raise ConfigurationError(message, hint=hint) from error
    if not callable(found):
        raise ConfigurationError(f"{place} is {path!r}, which isn't callable.", hint="Name a function or a class.")
    return found


def load_backend(name: str, backend: Backend, *args: object) -> Any:
    """Return the class of a swappable part. Raises ConfigurationError if it doesn't take ``args`` and its options."""
    found = load_object(f'{name}"]["BACKEND', backend.backend)
    try:
        signature = inspect.signature(found)
    except ValueError:
        # Some classes written in C have no signature.
        return found
    try:
        signature.bind(*args, **backend.options)
    except TypeError as error:
        # The text of the error contains names of options, and none of their values.
        message = f'{SETTING}["{name}"]["OPTIONS"] doesn\'t fit {backend.backend}: {error}.'
        accepted = ", ".join(list(signature.parameters)[len(args) :])
        hint = f"Use only these options: {accepted}." if accepted else "Remove the options: it accepts none."
        raise ConfigurationError(message, hint=hint) from None
    return found
