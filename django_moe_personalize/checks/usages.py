"""Find where a site uses experience keys: in templates, views, settings, schemas, and in other libraries."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from django.conf import settings as django_settings
from django.urls import get_resolver
from django.views import View

from django_moe_personalize.checks.experience_keys import iterate_urls
from django_moe_personalize.checks.finders import Finder, Usage, register_finder, registered
from django_moe_personalize.checks.python_code import find_constants, find_keys_in_code, find_variable, list_files
from django_moe_personalize.checks.template_keys import find_in_templates
from django_moe_personalize.conf import SETTING, get_settings
from django_moe_personalize.planning import KEYS_ATTRIBUTE
from django_moe_personalize.schemas import ExperienceSchema, get_schemas

__all__ = ["Usage", "find_usages", "register_finder"]


def find_usages() -> list[Usage]:
    """Return all places that use an experience, ordered by key. Each line of a file is there once."""
    # find_in_templates() loads the template engines, and the module of an engine may register a finder.
    found = [usage for finders in (_OWN, registered) for finder in finders for usage in finder()]
    first: dict[tuple[str, str, int], Usage] = {}
    for usage in found:
        first.setdefault((usage.experience_key, usage.file, usage.line), usage)
    return sorted(first.values(), key=lambda usage: (usage.experience_key, usage.kind, usage.file, usage.line))


def find_in_code() -> Iterator[Usage]:
    """Yield the keys in the Python code of the site's own apps and of its project."""
    for path in list_files():
        for key, file, line in find_keys_in_code(path):
            yield Usage(key, "code", file, line)


def find_in_views() -> Iterator[Usage]:
    """Yield the keys that views declare, where the code doesn't have them as text."""
    in_code = {usage.experience_key for usage in find_in_code()}
    # If ROOT_URLCONF has a mistake, Django's own checks report it.
    with suppress(Exception):
        for _, pattern in iterate_urls(get_resolver()):
            view = getattr(pattern, "callback", None)
            methods = [getattr(getattr(view, "view_class", None), name, None) for name in View.http_method_names]
            for declared in [view, *methods]:
                file, line = find_definition(getattr(declared, "view_class", declared))
                for key in getattr(declared, KEYS_ATTRIBUTE, ()):
                    if key not in in_code:
                        yield Usage(key, "view", file, line)


def find_in_settings() -> Iterator[Usage]:
    """Yield the keys in EXPERIENCES. If no settings file has a key as text, its place is that of the route's name."""
    keys = {key: route for route, keys in get_settings().experiences.items() for key in keys}
    module = sys.modules.get(getattr(django_settings, "SETTINGS_MODULE", ""))
    found = find_constants(module, {*keys, *keys.values()}) if keys and module is not None else []
    places = {text: (file, line) for text, file, line in found if text not in keys}
    for key, file, line in found:
        if key in keys:
            yield Usage(key, "settings", file, line)
    for key in keys.keys() - {key for key, _, _ in found}:
        place = f'{SETTING}["EXPERIENCES"]["{keys[key]}"]', 0
        yield Usage(key, "settings", *places.get(keys[key], place))


def find_in_schemas() -> Iterator[Usage]:
    """Yield the key of each schema."""
    for schema in get_schemas():
        yield Usage(schema.key, "schema", *find_schema_place(schema, "key"))


def find_schema_place(schema: type[ExperienceSchema], variable: str = "") -> tuple[str, int]:
    """Return the file and the line of a variable, or of the class if it has no such variable."""
    bases = [base for base in schema.__mro__ if issubclass(base, ExperienceSchema) and base is not ExperienceSchema]
    owner = next((base for base in bases if variable in {**vars(base), **inspect.get_annotations(base)}), schema)
    file, line = find_definition(owner)
    return file, find_variable(file, owner.__qualname__, variable) or line


def find_definition(defined: Any) -> tuple[str, int]:
    """Return the file and the line of a function or a class."""
    with suppress(Exception):
        defined = inspect.unwrap(defined)
        return str(Path(inspect.getfile(defined)).resolve()), max(inspect.getsourcelines(defined)[1], 1)
    return f"{getattr(defined, '__module__', '')}.{getattr(defined, '__qualname__', '')}", 0


_OWN: Final[tuple[Finder, ...]] = (find_in_templates, find_in_code, find_in_views, find_in_settings, find_in_schemas)
