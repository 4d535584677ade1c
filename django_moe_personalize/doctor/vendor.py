"""Reachability: what ``moe_doctor`` finds at MoEngage's end, by asking as a page does, for nobody known."""

from __future__ import annotations

import functools
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from django_moe_personalize.client import build_client, is_embedded
from django_moe_personalize.conf import SETTING, ConfigurationError, Settings
from django_moe_personalize.conf.readers import nearest
from django_moe_personalize.doctor.site import Finding
from django_moe_personalize.exceptions import (
    AuthenticationError,
    DeadlineExceeded,
    InvalidResponseError,
    RateLimitedError,
    ResponseError,
    ServerError,
)
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.moengage.messages import Request, Response, Transport
from django_moe_personalize.moengage.types import MAX_KEYS, ExperiencesMetadata, ExperienceStatus
from django_moe_personalize.resilience import Deadline, WorkerPool

MAX_SKEW: Final = 5.0
"""Seconds by which this clock and the vendor's may differ: an event from the future is refused (contract §7)."""

T = TypeVar("T")


class _Watch:
    """A transport that reads the vendor's clock. Implements Transport."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.skew = 0.0

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        """See Transport.send()."""
        response = self._inner.send(request, deadline=deadline)
        with suppress(ValueError):
            # The header has whole seconds: half a second is what it leaves out on average.
            said = parsedate_to_datetime(response.headers.get("date", "")).timestamp() + 0.5
            self.skew = time.time() - said
        return response

    def close(self) -> None:
        """See Transport.close()."""
        self._inner.close()


class _Asker:
    """Ask on a thread that can be abandoned: a DNS lookup knows no deadline."""

    def __init__(self, client: PersonalizeClient, seconds: float) -> None:
        self.client = client
        self.took = 0.0
        self._seconds = seconds
        self._pool = WorkerPool(1, name="moe-personalize-doctor")

    def ask(self, function: Callable[..., T], *args: Any) -> T:
        """Return the answer; raises the APIError tree, and TimeoutError. ``took`` is in seconds."""
        started = time.perf_counter()
        answer = self._pool.submit(function, *args, deadline=Deadline(self._seconds)).result(self._seconds + 1)
        self.took = time.perf_counter() - started
        return answer


def examine_vendor(settings: Settings, keys: Mapping[str, str], seconds: float) -> Iterator[Finding]:
    """Ask for the metadata, compare with it the ``keys`` (with where they are named), and fetch those."""
    watches: list[_Watch] = []

    def watch(transport: Transport) -> Transport:
        watches.append(_Watch(transport))
        return watches[0]

    try:
        client = build_client(settings, wrap=watch)
    except ConfigurationError:
        yield Finding("problem", "MoEngage was not asked: the settings do not say how.", "See the findings above.")
        return
    yield Finding("ok", describe_end(settings))
    try:
        yield from _examine(_Asker(client, seconds), keys, settings)
    except Exception as error:
        yield explain(error, settings, seconds)
    if abs(watches[0].skew) > MAX_SKEW:
        told = f"This machine's clock is {watches[0].skew:+.0f} s off MoEngage's, which refuses events from the future."
        yield Finding("warning", told, "Let NTP set the clock.")
    client.close()


def describe_end(settings: Settings) -> str:
    """Return who is asked, in words without a credential."""
    if is_embedded(settings):
        return "The sandbox inside each process is asked, and MoEngage is not."
    host = urlsplit(settings.base_url).hostname
    is_vendor = host == f"sdk-{settings.data_center}.moengage.com"
    end = f"MoEngage's data centre {settings.data_center}" if is_vendor else "What BASE_URL names"
    end = "A sandbox behind BASE_URL" if settings.sandbox else end
    kind = ", a test workspace" if settings.workspace_id.endswith("_DEBUG") else ""
    return f"{end} is asked, at {host}, for the workspace {settings.workspace_id or 'of its file'}{kind}."


def _examine(asker: _Asker, keys: Mapping[str, str], settings: Settings) -> Iterator[Finding]:
    metadata = asker.ask(asker.client.fetch_metadata)
    statuses = Counter(meta.status.value for meta in metadata.experiences)
    told = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items())) or "none"
    took = f"{asker.took * 1000:.0f} ms"
    if statuses[ExperienceStatus.ACTIVE.value]:
        yield Finding("ok", f"The credentials are right; experiences of the workspace: {told} (asked in {took}).")
    else:
        mend = "Publish one in the dashboard, or see whether this is the right workspace."
        yield Finding("warning", f"The workspace has no active experience: {told} (asked in {took}).", mend)
    yield from compare_keys(keys, metadata)
    active = [meta.experience_key for meta in metadata.experiences if meta.status is ExperienceStatus.ACTIVE]
    wanted = [key for key in keys if key in active] or active
    if wanted:
        yield _examine_fetch(asker, wanted[:MAX_KEYS], settings)


def compare_keys(keys: Mapping[str, str], metadata: ExperiencesMetadata) -> Iterator[Finding]:
    """Yield which of the site's keys nobody can get, and how many there are."""
    statuses = {meta.experience_key: meta.status for meta in metadata.experiences}
    for key, place in keys.items():
        status = statuses.get(key)
        if status is None:
            near = nearest(key, statuses)
            mend = f"Did you mean {near!r}?" if near else f"Correct it there, or create it in the dashboard as {key!r}."
            yield Finding("problem", f"The workspace has no experience {key!r}, which {place} names.", mend)
        elif status is not ExperienceStatus.ACTIVE:
            told = f"Experience {key!r}, which {place} names, is {status.value}, so its default is shown."
            yield Finding("warning", told, "Activate it in the dashboard, if visitors are to see it.")
    active = sum(statuses.get(key) is ExperienceStatus.ACTIVE for key in keys)
    if not keys:
        yield Finding("ok", "Neither settings nor views nor templates name an experience; code may read others.")
    elif active:
        yield Finding("ok", f"Of the {len(keys)} keys that settings, views and templates name, {active} are active.")


def _examine_fetch(asker: _Asker, keys: Sequence[str], settings: Settings) -> Finding:
    """Fetch twice: on a new connection, as the first page of a process does, and on the kept one."""
    fetch = functools.partial(asker.client.fetch_experiences, keys)
    asker.client.close()
    asker.ask(fetch)
    cold = asker.took
    came = len(asker.ask(fetch).experiences)
    times = f"{cold * 1000:.0f} ms on a new connection, {asker.took * 1000:.0f} ms on a kept one"
    told = (
        f"A fetch of {len(keys)} keys took {times}; a page waits {settings.deadline * 1000:.0f} ms. "
        f"Somebody unknown gets {came} of them."
    )
    if asker.took > settings.deadline:
        mend = "Pages show their defaults until an answer is cached: raise DEADLINE, or see why it takes so long."
        return Finding("warning", told, mend)
    if cold > settings.deadline:
        mend = "The first page of each process shows its defaults. Raise DEADLINE if that matters."
        return Finding("warning", told, mend)
    return Finding("ok", told)


def explain(error: Exception, settings: Settings, seconds: float) -> Finding:
    """Return what a failed call means and the mend, in our words alone."""
    host = urlsplit(settings.base_url).hostname
    told, mend = _explain_answer(error) or _explain_silence(error, f"{host}", seconds)
    return Finding("problem", told, mend)


def _explain_answer(error: Exception) -> tuple[str, str] | None:
    """Explain what came instead of an answer; ``None`` when nothing did."""
    key = "Take the key of Personalize from Settings > Account > APIs (another feature's is refused, an old one too)"
    match error:
        case AuthenticationError(status=403):
            return "MoEngage forbids the call (403).", "The account may be suspended: ask MoEngage."
        case AuthenticationError():
            told = "MoEngage refuses the credentials (401): a wrong id or key, a regenerated key, or another feature's."
            return told, f"{key}, and the id of the same workspace."
        case RateLimitedError():
            return "The workspace has made too many requests (429).", "Wait, then see what makes so many."
        case ServerError():
            return f"MoEngage itself fails ({error.status}).", "Wait; pages show what is cached, or their defaults."
        case ResponseError(status=400, title="Request Error"):
            told = "MoEngage does not know the workspace (400)."
            return told, "Correct WORKSPACE_ID; and DATA_CENTER, for it is known at its own alone."
        case ResponseError():
            told = f"What answers does not do so as MoEngage ({error.status})."
            return told, "Correct BASE_URL or DATA_CENTER; a proxy may stand between."
        case InvalidResponseError():
            told = "What answers does not speak as MoEngage does."
            return told, "Correct BASE_URL; a proxy may put pages of its own in between."
        case _:
            return None


def _explain_silence(error: Exception, host: str, seconds: float) -> tuple[str, str]:
    match error.__cause__:
        case socket.gaierror():
            return f"{host} cannot be found (DNS).", "Correct DATA_CENTER or BASE_URL, or this machine's DNS."
        case ssl.SSLError() as cause:
            why = f": {cause.verify_message}" if isinstance(cause, ssl.SSLCertVerificationError) else ""
            mend = f'Behind a proxy that opens TLS, name its CA file in {SETTING}["TRANSPORT"]["OPTIONS"]["verify"].'
            return f"No TLS with {host}{why}.", mend
        case ConnectionRefusedError():
            return f"{host} refuses connections.", "Is it running, and is its port in BASE_URL right?"
    if isinstance(error, (DeadlineExceeded, TimeoutError)):
        mend = "Let this machine through the firewall, or name the proxy in TRANSPORT; MoEngage may also be slow."
        return f"No answer from {host} within {seconds:g} s.", mend
    return f"No whole answer from {host} ({type(error).__name__}).", "Try again; then look at firewall and proxy."
