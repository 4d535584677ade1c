"""Read the settings from the dict ``MOE_PERSONALIZE``, or from environment variables ``MOE_PERSONALIZE_<NAME>``.

Each field of the dataclass ``Settings`` is a setting with its default, its reader and its cast for the environment.
Importing this module reads no setting.
"""

# ruff: noqa: RUF009 - setting() returns a dataclasses.field

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, timezone, tzinfo
from functools import cache, partial
from types import MappingProxyType, NoneType
from typing import Any, Final, Literal, NamedTuple, cast

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from django_moe_personalize.conf import readers
from django_moe_personalize.conf.readers import Backend, InvalidValue, suggest

SETTING: Final = "MOE_PERSONALIZE"

DEFAULT: Final = "default"
"""The name of the workspace of a site that has only one, and of all code that names no other workspace."""

NO_WORKSPACE: Final = "(none)"
"""In place of the name of a workspace, for a request whose workspace the site couldn't tell. It asks for nothing."""

COMMON: Final = frozenset({"WORKSPACES", "WORKSPACE", "TRUSTED_PROXIES", "ISLANDS"})
"""Settings that all workspaces share: the choice between them, and what describes the proxies in front of the site."""

CREDENTIALS: Final = ("WORKSPACE_ID", "API_KEY", "DATA_API_KEY")
"""A workspace that has one of them inherits none, so a key is never sent with the id of another workspace."""

used_runtime: Final = ContextVar[Any]("moe_personalize_runtime")
"""The runtime of the innermost Runtime.use() in this thread. Unset, it's that of the workspace DEFAULT."""

DATA_CENTERS: Final = ("01", "02", "03", "04", "05", "06", "101")
DELIVERY: Final = "django_moe_personalize.delivery.thread.ThreadDelivery"
TRANSPORT: Final = "django_moe_personalize.moengage.transport.RequestsTransport"
UTM_PARAMETERS: Final = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")

_CASTS: Final = {bool: bool, int: int, float: float, str: str, timezone: str, tuple: list, NoneType: list}
"""The casts of django-environ by the type of the setting's default. Settings of other types are JSON."""

_GUARDS: Final = {bool: r"(?i:true|on|ok|y|yes|1|false|off|n|no|0)", float: readers.NUMBER}
"""The texts that are passed to these casts. django-environ would read "offf" as False, and "30ms" as 30.0."""

LIBRARIES: Final = {"celery": "celery", "django_tasks": "django-tasks"}
"""The modules that deliveries of this package import, and the names under which pip installs them."""


class ConfigurationError(ImproperlyConfigured):
    """The site's settings are wrong. ``hint`` says how to fix them. The hint is part of the text."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".rstrip())
        self.message = message
        self.hint = hint


def setting(value: Any, read: Callable[..., Any], *, secret: bool = False, **options: Any) -> Any:
    """Declare a setting with its default. ``read`` gets the options. No repr and no message shows a secret."""
    metadata = {"read": partial(read, **options), "cast": _CASTS.get(type(value), json.loads), "secret": secret}
    # Python 3.11 refuses a MappingProxyType as a default, but not as the result of a factory.
    return dataclasses.field(default_factory=lambda: value, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settings:
    """The settings of a workspace, checked and typed. Durations are in seconds.

    ``base_url`` is "" if the site sets no BASE_URL, and has no DATA_CENTER or uses the sandbox. ``None`` in
    ``vary_cache_on`` means all attributes. ``suffix`` ends the names of the workspace's cookies.
    """

    name: str = DEFAULT
    suffix: str = ""
    enabled: bool = setting(True, readers.read_boolean)
    workspace_id: str = setting("", readers.read_credential, colon=False)
    api_key: str = setting("", readers.read_credential, colon=True, secret=True)
    data_api_key: str = setting("", readers.read_credential, colon=True, secret=True)
    data_center: str = setting("", readers.read_data_center, choices=DATA_CENTERS)
    base_url: str = setting("", readers.read_string, pattern=".*", expected="a string", secret=True)
    sandbox: bool | str = setting(False, readers.read_sandbox)
    experiences: Mapping[str, tuple[str, ...]] = setting(MappingProxyType({}), readers.read_routes)
    learn_routes: bool | str = setting(True, readers.read_switch_or_path)
    identify: str = setting("", readers.read_dotted_path, may_be_empty=True)
    anonymous_id: bool = setting(True, readers.read_boolean)
    anonymous_events: str = setting("always", readers.read_choice, choices=("always", "returning"))
    attributes: tuple[str, ...] = setting((), readers.read_list, each=readers.read_dotted_path)
    query_parameters: tuple[str, ...] = setting(UTM_PARAMETERS, readers.read_list, each=readers.read_query_parameter)
    time_zone: tzinfo = setting(UTC, readers.read_time_zone)
    trusted_proxies: tuple[readers.Proxy, ...] = setting((), readers.read_list, each=readers.read_proxy)
    ip_precision: str = setting("full", readers.read_choice, choices=("full", "truncated", "off"))
    consent: str = setting("", readers.read_dotted_path, may_be_empty=True)
    deadline: float = setting(0.3, readers.read_seconds, above=0, maximum=30)
    max_concurrent_fetches: int = setting(16, readers.read_whole_number, minimum=1, maximum=1024)
    cache: str = setting("default", readers.read_string)
    cache_ttl: float = setting(60.0, readers.read_seconds)
    cache_stale_ttl: float = setting(600.0, readers.read_seconds)
    vary_cache_on: tuple[str, ...] | None = setting(None, readers.read_list, each=readers.read_name)
    metadata_ttl: float = setting(300.0, readers.read_seconds, minimum=1)
    impressions: str = setting("render", readers.read_choice, choices=("render", "visible", "web_sdk", "manual"))
    islands: str = setting("script", readers.read_choice, choices=("script", "esi"))
    delivery: Backend = setting(Backend(DELIVERY), readers.read_backend, default=DELIVERY, secret=True)
    cache_control: str = setting("private, no-store", readers.read_header)
    transport: Backend = setting(Backend(TRANSPORT), readers.read_backend, default=TRANSPORT, secret=True)
    offering_events: bool = setting(False, readers.read_boolean)
    content_hosts: tuple[str, ...] = setting((), readers.read_list, each=readers.read_host)
    workspaces: Mapping[str, Any] = setting(MappingProxyType({}), readers.read_workspaces, secret=True)
    workspace: str = setting("", readers.read_dotted_path, may_be_empty=True)


class Problem(NamedTuple):
    """One mistake in the settings. The message describes the mistake and its place. The hint says how to fix it."""

    kind: Literal["value", "unknown", "environment"]
    name: str
    message: str
    hint: str = ""


FIELDS: Final = MappingProxyType({each.name.upper(): each for each in dataclasses.fields(Settings) if each.metadata})
"""The fields of Settings by their names in the dict."""


@cache
def get_settings() -> Settings:
    """Return the settings of the current workspace. Raises one ConfigurationError for all mistakes."""
    # On a site with one workspace, a page runs no bytecode here.
    return cast(Settings, _CurrentSettings()) if len(list_workspaces()) > 1 else load_settings(DEFAULT)


class _CurrentSettings:
    """On a site with several workspaces: the settings of the workspace that this thread works for at each read."""

    def __init__(self) -> None:
        self._default = load_settings(DEFAULT)

    def __getattr__(self, name: str) -> Any:
        runtime = used_runtime.get(None)
        return getattr(self._default if runtime is None else runtime.settings, name)


def get_settings_of(workspace: str) -> Settings:
    """Return the settings of one workspace. Raises one ConfigurationError for all mistakes."""
    found = get_settings()
    return found if workspace == DEFAULT and isinstance(found, Settings) else load_settings(workspace)


def list_workspaces() -> tuple[str, ...]:
    """Return the names of the site's workspaces, DEFAULT first. Mistakes in WORKSPACES raise no exception here."""
    given = getattr(django_settings, SETTING, {})
    own = _read_workspaces(given if isinstance(given, Mapping) else {})
    return (DEFAULT, *(name for name in own if name != DEFAULT))


def _read_workspaces(given: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Return the settings that each workspace changes, or nothing if WORKSPACES has a mistake."""
    try:
        if (value := given.get("WORKSPACES")) is None:
            value = _read_variable(f"{SETTING}_WORKSPACES", json.loads)
        return {} if value is None else readers.read_workspaces(value)
    except (ConfigurationError, InvalidValue):
        return {}


def load_settings(workspace: str) -> Settings:
    """See get_settings_of(). This function reads the settings of Django and the environment again."""
    if workspace == NO_WORKSPACE:
        deny = "django_moe_personalize.visitor.identity.deny"
        return dataclasses.replace(load_settings(DEFAULT), name=workspace, consent=deny, attributes=(), experiences={})
    values, problems = _resolve(workspace)
    fatal = [problem for problem in problems if problem.kind != "environment"]
    if not fatal:
        return Settings(**values, name=workspace, suffix="" if workspace == DEFAULT else f"_{workspace}")
    # An error report prints the local variables of every frame, and ``values`` has the API key.
    del values
    if len(fatal) == 1:
        raise ConfigurationError(fatal[0].message, hint=fatal[0].hint)
    lines = (f"{problem.message} {problem.hint}".rstrip() for problem in fatal)
    raise ConfigurationError("\n- ".join([f"{SETTING} has {len(fatal)} mistakes:", *lines]))


def find_problems() -> list[Problem]:
    """Return all mistakes in the settings, and the environment variables that only look like settings."""
    return list(dict.fromkeys(problem for name in list_workspaces() for problem in _resolve(name)[1]))


def _resolve(workspace: str) -> tuple[dict[str, Any], list[Problem]]:
    given = getattr(django_settings, SETTING, {})
    if not isinstance(given, Mapping):
        hint = f'Write {SETTING} = {{"WORKSPACE_ID": …, "API_KEY": …, "DATA_CENTER": …}}.'
        return {}, [Problem("value", SETTING, f"{SETTING} is not a dict.", hint)]
    values: dict[str, Any] = {}
    own, own_place = _read_workspaces(given).get(workspace, {}), f'{SETTING}["WORKSPACES"]["{workspace}"]'
    problems = [*_find_unknown_keys(given, SETTING), *_find_unknown_keys(own, own_place), *_find_unknown_variables()]
    closed = CREDENTIALS if any(own.get(name) for name in CREDENTIALS) else ()
    for name, field in FIELDS.items():
        place, variable = f'{SETTING}["{name}"]', f"{SETTING}_{name}"
        try:
            # None counts as missing: os.environ.get() returns None for a missing variable.
            if (value := own.get(name)) is not None or name in closed:
                place = f'{own_place}["{name}"]'
            elif (value := given.get(name)) is None:
                place, value = variable, _read_variable(variable, field.metadata["cast"])
            if value is not None:
                values[field.name] = field.metadata["read"](value)
        except ConfigurationError as error:
            problems.append(Problem("value", name, error.message, error.hint))
        except InvalidValue as error:
            is_secret = field.metadata["secret"]
            shown = f"a {type(error.found).__name__}, not shown" if is_secret else reprlib.repr(error.found)
            message = f"{place}{error.place} is {shown}; expected {error.expected}."
            problems.append(Problem("value", name, message, error.hint))
    problems += _complete(values)
    return values, problems


def _read_variable(variable: str, cast: Any) -> object:
    """Return the value of an environment variable, or ``None`` if it is missing or empty.

    A text that ``cast`` can't read stays as it is: the reader of the setting rejects it.
    """
    if not os.environ.get(variable):
        return None
    # Many sites use only the dict.
    from environ import Env

    try:
        # "$OTHER" refers to another variable. Env resolves this only for a str. With its other casts Env fails.
        text = Env().str(variable, default=None)
    except RecursionError:
        text = None
    if text is None:
        # The message leaves out the text after the dollar, because the value may be a key that begins with a dollar.
        message = f"{variable} begins with $, so it names another variable, which is not set."
        raise ConfigurationError(message, hint=f"Set that variable, or write the value into the dict {SETTING}.")
    text = text.strip()
    if cast in _GUARDS and not re.fullmatch(_GUARDS[cast], text):
        return text
    if cast is list:
        # A list may also be JSON, because only JSON can express an empty list.
        cast = json.loads if text.startswith("[") else [str.strip]
    try:
        return Env.parse_value(text, cast)
    except (ValueError, RecursionError):
        return text


def _find_unknown_keys(given: Mapping[Any, Any], place: str) -> Iterator[Problem]:
    for key in given:
        if key not in FIELDS:
            hint = suggest(key, FIELDS, f"Use one of {', '.join(FIELDS)}.")
            yield Problem("unknown", str(key), f"{place} has the unknown key {key!r}.", hint)
        elif key in COMMON and place != SETTING:
            message = f"{place} has {key}, but all workspaces share this setting."
            yield Problem("value", key, message, f"Move it out of there, to the other keys of {SETTING}.")


def _find_unknown_variables() -> Iterator[Problem]:
    for variable in os.environ:
        # Docker takes a byte order mark, and "export" in a line of an env file, as a part of the name.
        name = re.sub(rf"^\ufeff?(export\s+)?{SETTING}_", "", variable)
        if name != variable and (name not in FIELDS or not variable.startswith(SETTING)):
            hint = suggest(name, FIELDS, "Remove it, or give it another prefix.")
            message = f"The environment variable {variable} names the unknown setting {name!r}."
            yield Problem("environment", name, message, hint)


def is_test_run() -> bool:
    """Return whether this process runs the site's tests: its test runner has called setup_test_environment()."""
    # DEBUG doesn't tell, because Django turns DEBUG off for tests. A server has no reason to import django.test.utils.
    state = getattr(sys.modules.get("django.test.utils"), "_TestState", None)
    return hasattr(state, "saved_data")


def _complete(values: dict[str, Any]) -> Iterator[Problem]:
    """Add the defaults that depend on other settings to ``values``."""
    if "sandbox" not in values:
        has_credentials = bool(values.get("workspace_id") or values.get("api_key"))
        values["sandbox"] = is_test_run() or (django_settings.DEBUG and not has_credentials)
    if values.get("data_center") and not values.get("base_url") and not values["sandbox"]:
        values["base_url"] = f"https://sdk-{values['data_center']}.moengage.com/v1"
    fresh = values.get("cache_ttl", 60.0)
    stale = values.setdefault("cache_stale_ttl", max(600.0, fresh))
    if values.get("workspaces") and DEFAULT not in values["workspaces"]:
        hint = f'Add "{DEFAULT}": {{}} with the settings of the workspace that commands and tasks use by default.'
        yield Problem("value", "WORKSPACES", f'{SETTING}["WORKSPACES"] has no workspace "{DEFAULT}".', hint)
    if stale < fresh:
        message = f"CACHE_STALE_TTL of {SETTING} ({stale:g} s) is shorter than CACHE_TTL ({fresh:g} s)."
        yield Problem("value", "CACHE_STALE_TTL", message, f"Set it to at least {fresh:g}, or remove it.")


# Dotted paths in settings.


def load_object(name: str, path: str) -> Any:
    """Return the callable at the dotted ``path`` in the setting ``name``. Raises ConfigurationError."""
    place = f'{SETTING}["{name}"]'
    try:
        found = import_string(path)
    except Exception as error:
        # Importing a site's module may raise anything.
        library = LIBRARIES.get(getattr(error, "name", None) or "")
        hint = f"Install it: pip install {library}." if library else "Correct the path, or install the missing library."
        message = f"{place} is {path!r}, which can't be imported: {type(error).__name__}: {error}."
        raise ConfigurationError(message, hint=hint) from error
    if not callable(found):
        raise ConfigurationError(f"{place} is {path!r}, which isn't callable.", hint="Name a function or a class.")
    return found


def load_backend(name: str, backend: Backend, *args: object) -> Any:
    """Return the class of ``backend``. Raises ConfigurationError if the class doesn't accept ``args`` and options."""
    found = load_object(f'{name}"]["BACKEND', backend.backend)
    try:
        signature = inspect.signature(found)
    except ValueError:
        # Some classes written in C have no signature.
        return found
    try:
        signature.bind(*args, **backend.options)
    except TypeError as error:
        # The text of the error has the names of options, but not their values.
        message = f'{SETTING}["{name}"]["OPTIONS"] doesn\'t fit {backend.backend}: {error}.'
        accepted = ", ".join(list(signature.parameters)[len(args) :])
        hint = f"Use only these options: {accepted}." if accepted else "Remove the options: it accepts none."
        raise ConfigurationError(message, hint=hint) from None
    return found
