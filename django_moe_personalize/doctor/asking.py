"""Fetch experiences now, outside a page: through the client and the circuit breaker, but not through the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar
from urllib.parse import urlsplit

from django.core.management.base import CommandError
from django.http import HttpRequest
from django.utils import timezone

from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.doctor.vendor import explain_error
from django_moe_personalize.exceptions import APIError
from django_moe_personalize.fetching import Question, upstream
from django_moe_personalize.moengage.frames import FETCH_FIELDS
from django_moe_personalize.moengage.types import MAX_KEYS, Experience, ExperienceFailure, ExperiencesResult
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import Runtime, get_runtime
from django_moe_personalize.visitor import Consent, Identity, Visitor
from django_moe_personalize.visitor.attributes import build_builtins

T = TypeVar("T")

SECONDS = 10.0
"""The deadline of a call. No page waits for it."""


def ask(
    runtime: Runtime,
    keys: Sequence[str],
    *,
    customer_id: str | None = None,
    attributes: Mapping[str, str] | None = None,
) -> ExperiencesResult:
    """Return the visitor's experiences, in calls of at most 25 keys. Raises APIError."""
    visitor = Visitor(Identity(customer_id), dict(build_time() if attributes is None else attributes))
    experiences: dict[str, Experience] = {}
    failures: list[ExperienceFailure] = []
    for start in range(0, len(keys), MAX_KEYS):
        batch = tuple(keys[start : start + MAX_KEYS])
        question = Question(runtime, visitor, batch, Deadline(SECONDS), is_page=False)
        result = upstream.call(question, batch)
        experiences.update(result.experiences)
        failures += result.failures
    return ExperiencesResult(experiences, tuple(failures))


def build_time(moment: datetime | None = None) -> dict[str, str]:
    """Return the day and the hour that a page sends. A moment without a time zone is in TIME_ZONE."""
    settings = get_runtime().settings
    if moment is None:
        moment = timezone.now()
    elif moment.tzinfo is None:
        moment = moment.replace(tzinfo=settings.time_zone)
    return build_builtins(HttpRequest(), moment, Consent(), settings)


def read_attributes(pairs: Sequence[str]) -> dict[str, str]:
    """Return the attributes of arguments like ``name=value``. Raises CommandError."""
    attributes = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or name in FETCH_FIELDS:
            raise CommandError(f"--attribute {pair} can't be sent. Write the name of an attribute as name=value.")
        attributes[name] = value
    return attributes


def check_enabled() -> None:
    """Raise CommandError if ENABLED is off."""
    if not get_runtime().settings.enabled:
        raise CommandError(
            "ENABLED is off, so nothing is asked. Set it to True, or run the command with other settings."
        )


def explain_failures(call: Callable[[], T]) -> T:
    """Return ``call()``. Raises CommandError with the cause and the fix, and with exit code 2, if the call fails."""
    try:
        check_enabled()
        return call()
    except ConfigurationError as error:
        raise CommandError(f"{error.message} {error.hint}", returncode=2) from error
    except APIError as error:
        host = urlsplit(get_runtime().settings.base_url).hostname or "the sandbox"
        finding = explain_error(error, host, "", SECONDS)
        raise CommandError(f"{finding.what} {finding.fix}", returncode=2) from error
