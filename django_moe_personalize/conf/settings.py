"""The settings: the dict ``MOE_PERSONALIZE``, then ``MOE_PERSONALIZE_<NAME>`` in the environment, then the default.

The dataclass is the table: a field is a setting, its reader says what the value may be. Nothing is
read at import.
"""

# ruff: noqa: RUF009 - setting() makes a dataclasses.field, which is what a default is made of

from __future__ import annotations

import dataclasses
import os
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from django_moe_personalize.conf import readers
from django_moe_personalize.conf.readers import Backend, Mistake, Reader

__all__ = ["Backend", "ConfigurationError", "Problem", "Settings", "find_problems", "get_settings"]

SETTING: Final = "MOE_PERSONALIZE"
DATA_CENTERS: Final = ("01", "02", "03", "04", "05", "06", "101")
DELIVERY: Final = "django_moe_personalize.delivery.thread.ThreadDelivery"
TRANSPORT: Final = "django_moe_personalize.moengage.transport.RequestsTransport"
UTM_PARAMETERS: Final = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")


class ConfigurationError(ImproperlyConfigured):
    """A mistake in the site's settings; ``hint`` names the mend and is part of the message."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".rstrip())
        self.message = message
        self.hint = hint


def setting(default: Any, reader: Reader, *, secret: bool = False) -> Any:
    """Declare a setting; the value of a secret one is in no repr and no message."""
    # A factory, because a MappingProxyType is no default a dataclass takes on Python 3.11.
    metadata = {"reader": reader, "secret": secret}
    return dataclasses.field(default_factory=lambda: default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settings:
    """The settings of a site, checked and typed; durations are in seconds.

    ``base_url`` is ``""`` when the site gave none and there is no data centre or the sandbox is on:
    then there is nothing to talk HTTP to. ``vary_cache_on`` is ``None`` for every attribute sent.
    """

    enabled: bool = setting(True, readers.boolean())
    workspace_id: str = setting("", readers.credential(colon=False))
    api_key: str = setting("", readers.credential(colon=True), secret=True)
    data_center: str = setting("", readers.data_center(*DATA_CENTERS))
    base_url: str = setting("", readers.text(default=""), secret=True)
    sandbox: bool | str = setting(False, readers.sandbox())
    experiences: Mapping[str, tuple[str, ...]] = setting(MappingProxyType({}), readers.routes())
    identify: str = setting("", readers.dotted_path())
    anonymous_id: bool = setting(True, readers.boolean())
    attributes: tuple[str, ...] = setting((), readers.sequence_of(readers.dotted_path_item, of="dotted paths"))
    query_parameters: tuple[str, ...] = setting(
        UTM_PARAMETERS, readers.sequence_of(readers.query_parameter_item, of="query parameters")
    )
    time_zone: ZoneInfo = setting(ZoneInfo("UTC"), readers.time_zone())
    trusted_proxies: tuple[readers.IPNetwork, ...] = setting(
        (), readers.sequence_of(readers.network_item, of="IP networks")
    )
    ip_precision: str = setting("full", readers.choice("full", "truncated", "off"))
    consent: str = setting("", readers.dotted_path())
    deadline: float = setting(0.3, readers.number(above=0, maximum=30, unit="of seconds"))
    max_concurrent_fetches: int = setting(16, readers.whole_number(minimum=1, maximum=1024))
    cache: str = setting("default", readers.text())
    cache_ttl: float = setting(60.0, readers.number(unit="of seconds"))
    cache_stale_ttl: float = setting(600.0, readers.number(unit="of seconds"))
    vary_cache_on: tuple[str, ...] | None = setting(None, readers.sequence_of(readers.name_item, of="attribute names"))
    metadata_ttl: float = setting(300.0, readers.number(minimum=1, unit="of seconds"))
    impressions: str = setting("render", readers.choice("render", "visible", "web_sdk", "manual"))
    delivery: Backend = setting(Backend(DELIVERY), readers.backend(DELIVERY), secret=True)
    cache_control: str = setting("private, no-store", readers.header())
    transport: Backend = setting(Backend(TRANSPORT), readers.backend(TRANSPORT), secret=True)
    offering_events: bool = setting(False, readers.boolean())
    content_hosts: tuple[str, ...] = setting((), readers.sequence_of(readers.host_item, of="host names"))


class Problem(NamedTuple):
    """One mistake: ``name`` is the setting's, ``message`` says what and where, ``hint`` the mend."""

    kind: Literal["value", "unknown", "environment"]
    name: str
    message: str
    hint: str = ""


FIELDS: Final = MappingProxyType({field.name.upper(): field for field in dataclasses.fields(Settings)})
"""The settings by the name they have in the dict."""


@cache
def get_settings() -> Settings:
    """Return the settings; raises ConfigurationError, which names every mistake at once."""
    found, problems = _resolve()
    fatal = [problem for problem in problems if problem.kind != "environment"]
    if fatal:
        # An error report prints the locals of every frame, and this one has the key.
        del found
    if len(fatal) == 1:
        raise ConfigurationError(fatal[0].message, hint=fatal[0].hint)
    if fatal:
        lines = (f"{problem.message} {problem.hint}".rstrip() for problem in fatal)
        raise ConfigurationError("\n- ".join([f"{SETTING} has {len(fatal)} mistakes:", *lines]))
    return Settings(**found)


def find_problems() -> list[Problem]:
    """Return every mistake of the settings, unknown environment variables included."""
    return _resolve()[1]


def _resolve() -> tuple[dict[str, Any], list[Problem]]:
    given = getattr(django_settings, SETTING, {})
    if not isinstance(given, Mapping):
        hint = f'Write {SETTING} = {{"WORKSPACE_ID": …, "API_KEY": …, "DATA_CENTER": …}}.'
        return {}, [Problem(kind="value", name=SETTING, message=f"{SETTING} is not a dict.", hint=hint)]
    found: dict[str, Any] = {}
    problems = [*_unknown_keys(given), *_unknown_variables()]
    for name, field in FIELDS.items():
        try:
            # None is what os.environ.get() gives for a variable that is not there: not given.
            if given.get(name) is not None:
                found[field.name] = _read(field, f'{SETTING}["{name}"]', given[name])
            elif f"{SETTING}_{name}" in os.environ:
                found.update(_read_variable(field, f"{SETTING}_{name}"))
        except ConfigurationError as error:
            problems.append(Problem(kind="value", name=name, message=error.message, hint=error.hint))
    problems += _settle(found)
    return found, problems


def _read(field: dataclasses.Field[Any], place: str, value: object, *, is_text: bool = False) -> Any:
    """Return what the setting's reader makes of ``value``; raises ConfigurationError."""
    reader: Reader = field.metadata["reader"]
    try:
        return reader.read(reader.parse(value) if is_text and isinstance(value, str) else value)
    except Mistake as mistake:
        found = value if mistake.found is readers.MISSING else mistake.found
        shown = f"a {type(found).__name__}, not shown" if field.metadata["secret"] else reprlib.repr(found)
        message = f"{place}{mistake.at} is {shown}; expected {mistake.expected}."
        raise ConfigurationError(message, hint=mistake.hint) from None


def _read_variable(field: dataclasses.Field[Any], variable: str) -> dict[str, Any]:
    """Return the field by name, or nothing for an empty variable, which is an unset one."""
    # Imported here: it takes a tenth of the whole package, and many sites set everything in the dict.
    from environ import Env

    env = Env()
    try:
        value = env.str(variable, default=None)
    except RecursionError:
        value = None
    if value is not None:
        return {field.name: _read(field, variable, value, is_text=True)}
    if not os.environ[variable]:
        return {}
    # The value itself may be a key that begins with a dollar: it is not repeated.
    message = f"{variable} begins with $, so it names another variable, which is not set."
    raise ConfigurationError(message, hint=f"Set that variable, or write the value into the dict {SETTING}.")


def _unknown_keys(given: Mapping[Any, Any]) -> Iterator[Problem]:
    for key in given:
        if key not in FIELDS:
            found = readers.nearest(key, FIELDS)
            hint = f'Did you mean "{found}"?' if found else f"The settings are {', '.join(FIELDS)}."
            yield Problem(kind="unknown", name=str(key), message=f"{SETTING} has no setting {key!r}.", hint=hint)


def _unknown_variables() -> Iterator[Problem]:
    for variable in os.environ:
        name = variable.removeprefix(f"{SETTING}_")
        if name != variable and name not in FIELDS:
            found = readers.nearest(name, FIELDS)
            hint = f"Did you mean {SETTING}_{found}?" if found else "Remove it, or give it another prefix."
            message = f"The environment variable {variable} is no setting of {SETTING}."
            yield Problem(kind="environment", name=name, message=message, hint=hint)


def _settle(found: dict[str, Any]) -> Iterator[Problem]:
    """Fill in, in ``found``, the defaults that hang on other settings."""
    if "sandbox" not in found:
        found["sandbox"] = django_settings.DEBUG and not found.get("workspace_id") and not found.get("api_key")
    if found.get("data_center") and not found.get("base_url") and not found["sandbox"]:
        found["base_url"] = f"https://sdk-{found['data_center']}.moengage.com/v1"
    fresh = found.get("cache_ttl", 60.0)
    if found.get("cache_stale_ttl", fresh) < fresh:
        message = f"CACHE_STALE_TTL of {SETTING} is {found['cache_stale_ttl']:g}, less than CACHE_TTL, {fresh:g}."
        hint = "It counts from the fetch: as long as CACHE_TTL, it turns stale answers off."
        yield Problem(kind="value", name="CACHE_STALE_TTL", message=message, hint=hint)
    found.setdefault("cache_stale_ttl", max(600.0, fresh))
