"""Attributes: what the page is asked with. User agent, IP address, day, hour, query, the site's own.

Built-ins come first, then the remembered query parameters, then the site's ``ATTRIBUTES`` in their
order; the limits drop from the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, tzinfo
from decimal import Decimal
from functools import lru_cache
from itertools import islice
from typing import Any, Final, Protocol
from urllib.parse import unquote_plus

from django.http import HttpRequest

from django_moe_personalize.conf import Settings, get_settings
from django_moe_personalize.conf.readers import RESERVED_NAMES
from django_moe_personalize.runtime import log_once
from django_moe_personalize.visitor.client_ip import get_client_ip
from django_moe_personalize.visitor.hooks import CallableError, acall, call

MAX_USER_AGENT_LENGTH: Final = 512
MAX_VALUE_LENGTH: Final = 256
MAX_CUSTOM_ATTRIBUTES: Final = 32
"""Attributes of a request besides MoEngage's own, query parameters included."""

MAX_BYTES: Final = 8 * 1024
"""Names and values of all attributes together, in UTF-8."""

MAX_QUERY_PAIRS: Final = 1000
"""Pairs of a query string that are looked at."""

MAX_ENCODED_NAMES: Final = 100
"""Names of parameters that are decoded; no link encodes those of campaigns."""

MAX_QUERY_LENGTH: Final = 8 * 1024
"""Characters of a query string that are looked at: some servers let through a multiple of it."""

MAX_REMEMBERED_LENGTH: Final = 1024
"""Characters remembered in a session; one in a signed cookie has room for 4 KiB in all."""

_SPARE: Final = 8
"""How many times what is kept of a text is looked at, for what is taken out of it."""

_STORED: Final = "_moe_personalize_stored"
SESSION_KEY: Final = "_moe_personalize_query"
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
# What breaks a log line, a header or UTF-8: controls, line separators, halves of a surrogate pair.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Permission(Protocol):
    """The part of a Consent that matters here."""

    @property
    def identify(self) -> bool: ...


def collect_attributes(request: HttpRequest, *, now: datetime, consent: Permission) -> dict[str, str]:
    """Return the in-session attributes to send (contract §2), clean and within the limits; never raises.

    ``now`` is an aware datetime. Without consent to identify, the IP address is truncated, and query
    parameters are neither remembered in the session nor recalled from it.
    """
    settings = get_settings()
    attributes = build_builtins(request, now, consent, settings)
    attributes.update(_remember(request, read_query(request.META, settings.query_parameters), consent, settings))
    for path in settings.attributes:
        try:
            attributes.update(accept_custom(path, call(path, request, Mapping)))
        except Exception as error:
            _report_provider(path, error)
    return apply_limits(attributes)


async def acollect_attributes(request: HttpRequest, *, now: datetime, consent: Permission) -> dict[str, str]:
    """See collect_attributes()."""
    settings = get_settings()
    attributes = build_builtins(request, now, consent, settings)
    attributes.update(await _aremember(request, read_query(request.META, settings.query_parameters), consent, settings))
    for path in settings.attributes:
        try:
            attributes.update(accept_custom(path, await acall(path, request, Mapping)))
        except Exception as error:
            _report_provider(path, error)
    return apply_limits(attributes)


# The built-ins: what every request has, without the session.


def read_user_agent(request: HttpRequest, now: datetime, consent: Permission, settings: Settings) -> dict[str, str]:
    """Return USER_AGENT as it came, cleaned and cut."""
    text = clean_text(request.META.get("HTTP_USER_AGENT", ""), MAX_USER_AGENT_LENGTH)
    return {"USER_AGENT": text} if text else {}


def read_ip_address(request: HttpRequest, now: datetime, consent: Permission, settings: Settings) -> dict[str, str]:
    """Return USER_IP_ADDRESS, truncated where the visitor is not to be identified."""
    precision = settings.ip_precision
    if precision == "full" and not consent.identify:
        precision = "truncated"
    address = get_client_ip(request.META, settings.trusted_proxies, precision)
    return {"USER_IP_ADDRESS": address} if address else {}


def read_day_and_hour(request: HttpRequest, now: datetime, consent: Permission, settings: Settings) -> dict[str, str]:
    """Return DAY_OF_THE_WEEK and TIME_OF_THE_DAY in the settings' zone."""
    return build_day_and_hour(now, settings.time_zone)


BUILTINS: tuple[Callable[[HttpRequest, datetime, Permission, Settings], dict[str, str]], ...] = (
    read_user_agent,
    read_ip_address,
    read_day_and_hour,
)


def build_builtins(request: HttpRequest, now: datetime, consent: Permission, settings: Settings) -> dict[str, str]:
    """Return what the built-ins read, in their order."""
    attributes: dict[str, str] = {}
    for read in BUILTINS:
        attributes.update(read(request, now, consent, settings))
    return attributes


def build_day_and_hour(now: datetime, zone: tzinfo) -> dict[str, str]:
    """Return the day in English and the hour as two digits, whatever the locale (contract §2)."""
    local = now.astimezone(zone)
    return {"DAY_OF_THE_WEEK": DAYS[local.weekday()], "TIME_OF_THE_DAY": f"{local.hour:02d}"}


# Query parameters, remembered for the session.


def read_query(meta: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Return the wanted query parameters, clean, in the order of ``names``."""
    raw = meta.get("QUERY_STRING", "")
    if len(raw) > MAX_QUERY_LENGTH:
        # Without the pair that the end falls into: half a value is another one.
        raw = raw[:MAX_QUERY_LENGTH].rpartition("&")[0]
    if not raw or not names:
        return {}
    # The links of one mail are alike. Longer queries are nobody's: they would only fill the memory.
    is_remembered = len(raw) <= MAX_VALUE_LENGTH
    return dict((_read_pairs if is_remembered else _read_pairs.__wrapped__)(raw, tuple(names)))


@lru_cache(maxsize=1024)
def _read_pairs(raw: str, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    found = split_query(raw, names)
    cleaned = ((name, clean_text(found[name], MAX_VALUE_LENGTH)) for name in names if name in found)
    return tuple((name, text) for name, text in cleaned if text)


def split_query(raw: str, names: Iterable[str]) -> dict[str, str]:
    """Return the last non-empty value of each wanted name, decoded, of a raw query string.

    By hand, since ``request.GET`` decodes everything and costs more than a hit of the cache.
    """
    if not raw.isascii():
        raw = _decode_query(raw)
    found: dict[str, str] = {}
    decodable = MAX_ENCODED_NAMES
    for pair in raw.split("&", MAX_QUERY_PAIRS)[:MAX_QUERY_PAIRS]:
        name, _, value = pair.partition("=")
        if decodable and ("%" in name or "+" in name) and len(name) < MAX_VALUE_LENGTH:
            name = unquote_plus(name)
            decodable -= 1
        if value and name in names:
            found[name] = value
    # A character is at most four bytes, a byte at most three characters.
    return {name: unquote_plus(value[: 12 * MAX_VALUE_LENGTH]) for name, value in found.items()}


def _decode_query(raw: str) -> str:
    # WSGI hands bytes over as latin-1 (PEP 3333), ASGI has decoded them.
    try:
        return raw.encode("latin-1").decode()
    except UnicodeError:
        return raw


def _remember(request: HttpRequest, found: dict[str, str], consent: Permission, settings: Settings) -> dict[str, str]:
    """Return ``found`` and what the session remembers besides, after storing what is new."""
    if not _has_memory(request, found, consent, settings):
        return found
    session = request.session
    try:
        stored = session.get(SESSION_KEY)
        values = recall(found, stored, settings.query_parameters)
        if is_worth_storing(found, values, stored):
            with _storing(request) as save_now:
                session[SESSION_KEY] = values
                if save_now:
                    session.save()
    except Exception as error:
        return _report_session(error, found)
    return values


async def _aremember(
    request: HttpRequest, found: dict[str, str], consent: Permission, settings: Settings
) -> dict[str, str]:
    """See _remember()."""
    if not _has_memory(request, found, consent, settings):
        return found
    session = request.session
    try:
        stored = await session.aget(SESSION_KEY)
        values = recall(found, stored, settings.query_parameters)
        if is_worth_storing(found, values, stored):
            with _storing(request) as save_now:
                await session.aset(SESSION_KEY, values)
                if save_now:
                    await session.asave()
    except Exception as error:
        return _report_session(error, found)
    return values


def _has_memory(request: HttpRequest, found: Mapping[str, str], consent: Permission, settings: Settings) -> bool:
    """Whether the session may be touched and there is something to write, or a session to read."""
    session = getattr(request, "session", None)
    if session is None or not consent.identify or not settings.query_parameters:
        return False
    return bool(found) or getattr(session, "session_key", None) is not None


def recall(found: Mapping[str, str], stored: object, names: Iterable[str]) -> dict[str, str]:
    """Return the parameters found, or the stored ones when there are none.

    A new campaign replaces the last one whole: half of one and half of another never ran.
    """
    values = found or (stored if isinstance(stored, Mapping) else {})
    return {name: value for name in names if isinstance(value := values.get(name), str)}


def is_worth_storing(found: Mapping[str, str], values: Mapping[str, str], stored: object) -> bool:
    """Whether the query brought something new that a session has room for."""
    return bool(found) and values != stored and len(json.dumps(values)) <= MAX_REMEMBERED_LENGTH


@contextmanager
def _storing(request: HttpRequest) -> Iterator[bool]:
    """Yield whether to save now; on an error leave the session as it was.

    Django saves a modified session after the view, where a failing store is a 500 or a 400. A page
    must not fail for our sake, so what we alone modified is saved where we can take it back, and
    not saved again unless Django still has to set the cookie of a new session.
    """
    session = request.session
    was_modified, was_new = session.modified, session.session_key is None
    try:
        yield not was_modified
    except Exception:
        session.pop(SESSION_KEY, None)
        session.modified = was_modified
        raise
    session.modified = was_modified or was_new
    setattr(request, _STORED, True)


def has_stored_parameters(request: HttpRequest) -> bool:
    """Return whether this request's parameters went into the session: its response sets a visitor's cookie."""
    return hasattr(request, _STORED)


def _report_session(error: Exception, found: dict[str, str]) -> dict[str, str]:
    kind = type(error).__name__
    log_once(("session", kind), "The session failed (%s), so query parameters are not remembered.", kind)
    return found


# The site's own.


def accept_custom(path: str, answer: Mapping[Any, Any]) -> dict[str, str]:
    """Return what may be sent of a provider's answer; each kind of thing left out is logged once."""
    accepted: dict[str, str] = {}
    for name, value in answer.items():
        text = build_text(value)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            log_once(("name", path), "%s gives an attribute whose name is not like %s.", path, _NAME.pattern)
        elif name in RESERVED_NAMES:
            log_once(("reserved", path, name), "%s may not give %s, a field of MoEngage's own.", path, name)
        elif text is None:
            kind = type(value).__name__
            log_once(("value", path, kind), "%s gives an attribute of type %s, which is no text.", path, kind)
        elif cleaned := clean_text(text, MAX_VALUE_LENGTH):
            accepted[name] = cleaned
    return accepted


def build_text(value: object) -> str | None:
    """Return a custom attribute's value as text, ``""`` for None; ``None`` for what is no value.

    The vendor's SDKs type custom attributes as strings (contract §2).
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    # Python refuses to write out an integer of thousands of digits.
    if isinstance(value, float | Decimal) or (isinstance(value, int) and value.bit_length() <= MAX_VALUE_LENGTH):
        return str(value)
    return None


def clean_text(text: str, limit: int) -> str:
    """Return ``text`` on one line, encodable as UTF-8, stripped and cut to ``limit`` characters."""
    text = text[: _SPARE * limit]
    if not (text.isascii() and text.isprintable()):
        text = _UNFIT.sub("", text)
    return text.strip()[:limit].rstrip()


def apply_limits(attributes: dict[str, str]) -> dict[str, str]:
    """Return the attributes up to the first that is one too many or one too long for all together."""
    # Far from both limits, as nearly always; a character is at most four bytes.
    length = sum(map(len, attributes)) + sum(map(len, attributes.values()))
    if len(attributes) <= MAX_CUSTOM_ATTRIBUTES and 4 * length <= MAX_BYTES:
        return attributes
    custom = size = 0
    for place, (name, value) in enumerate(attributes.items()):
        custom += name not in RESERVED_NAMES
        size += len(name) + len(value.encode())
        if custom > MAX_CUSTOM_ATTRIBUTES or size > MAX_BYTES:
            message = "More than %d custom attributes, or %d bytes in all: the last ones are left out."
            log_once("limits", message, MAX_CUSTOM_ATTRIBUTES, MAX_BYTES)
            return dict(islice(attributes.items(), place))
    return attributes


def _report_provider(path: str, error: Exception) -> None:
    failure = CallableError.build(path, error)
    log_once(("attributes", str(failure)), "Attributes are left out: %s.", failure)
