"""Vitals: what ``moe_doctor`` finds at the site's own end, its cache, its processes, its events, what is installed.

Every function yields findings of one part, by using that part. None of them holds a credential, an
identifier, or the text of an exception that is not ours.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Final, Literal, NamedTuple

from django.conf import settings as django_settings
from django.core.cache import caches
from django.utils import timezone
from django.utils.timesince import timesince

from django_moe_personalize.conf import Settings
from django_moe_personalize.delivery.base import BaseDelivery, DeliveryCounts
from django_moe_personalize.delivery.database import DatabaseDelivery
from django_moe_personalize.delivery.dummy import DummyDelivery
from django_moe_personalize.delivery.immediate import ImmediateDelivery
from django_moe_personalize.delivery.queued import QueuedDelivery
from django_moe_personalize.fetching import shared, upstream
from django_moe_personalize.fetching.cache import build_key
from django_moe_personalize.models import OutboxEvent
from django_moe_personalize.resilience.governor import SLOT_SECONDS, SLOTS, name_slot
from django_moe_personalize.tracking import watchdog

BUSY: Final = 0.8
"""The share of the workspace's requests a minute above which there is a warning."""

STALE_SECONDS: Final = 600.0
"""How long an event may wait in the outbox."""

State = Literal["ok", "warning", "problem"]


class Finding(NamedTuple):
    """One thing found: what it is and, unless all is well, the mend."""

    state: State
    what: str
    mend: str = ""


def examine_cache(settings: Settings) -> Iterator[Finding]:
    """Store something in the site's cache and take it out again. Raises what the cache does."""
    if settings.cache not in django_settings.CACHES:
        return
    cache, name, value = caches[settings.cache], build_key("doctor", uuid.uuid4().hex), uuid.uuid4().hex
    started = time.perf_counter()
    cache.set(name, value, timeout=60)
    found = cache.get(name)
    took = time.perf_counter() - started
    cache.delete(name)
    place = f"The cache {settings.cache!r}"
    if shared.has_shared_cache():
        if found != value:
            yield Finding("problem", f"{place} did not give back what was stored in it.", "Look into its server's log.")
        elif took > settings.deadline:
            told = f"{place} takes {took * 1000:.0f} ms to store and give back a text, longer than a page may wait."
            yield Finding("warning", told, "Find out why it is slow, or give CACHE a faster one.")
        else:
            yield Finding("ok", f"{place} works ({took * 1000:.1f} ms) and is one that processes share.")
    elif found == value:
        told = f"{place} works, and is each process's own: answers, the breaker, the requests a minute, the limit on"
        yield Finding("ok", f"{told} beacons and withdrawn consent are known to one process alone.")


def examine_processes() -> Iterator[Finding]:
    """Say what the site's processes have put up in the cache they share. Raises what the cache does."""
    if not shared.has_shared_cache():
        told = "Breakers, rate limits and missing impressions of the site's processes are in their logs alone"
        yield Finding("ok", f"{told}: they share no cache.")
        return
    hurt = [notice for notice in shared.read_notices(upstream.BREAKER_TOPIC) if notice.get("state") != "closed"]
    for notice in hurt:
        told = f"The breaker of {notice['process']} was {notice.get('state')} {_read_age(notice)} ago"
        mend = "It asks again by itself; the vendor's findings tell whether MoEngage is back."
        yield Finding("warning", f"{told}: {notice.get('reason')}.", mend)
    if not hurt:
        yield Finding("ok", "No process has reported in the last hour that its breaker or rate limit holds it back.")
    yield _examine_requests()
    yield from _examine_alarms(shared.read_notices(watchdog.TOPIC))


def _read_age(notice: dict[str, Any]) -> str:
    return f"{max(0, int(time.time()) - int(notice['time']))} s"


def _examine_requests() -> Finding:
    slot = int(time.time() // SLOT_SECONDS)
    share = upstream.REQUESTS_A_MINUTE // SLOTS
    used = sum(min(share, count) for count in shared.read_counts([name_slot(slot - n) for n in range(SLOTS)]))
    told = f"Of the workspace's {upstream.REQUESTS_A_MINUTE:,} requests a minute at most {used:,} are taken."
    if used < BUSY * upstream.REQUESTS_A_MINUTE:
        return Finding("ok", told)
    return Finding("warning", told, "Narrow VARY_CACHE_ON or raise CACHE_TTL, or ask MoEngage for a higher limit.")


def _examine_alarms(notices: list[dict[str, Any]]) -> Iterator[Finding]:
    pages: Counter[str] = Counter()
    for notice in notices:
        pages.update({str(key): int(count) for key, count in notice.get("missed", {}).items()})
    for key, count in pages.items():
        told = f"Experience {key!r} was rendered on {count} pages at least, and no impression of it was counted."
        yield Finding("problem", told, "The log of the processes says which, and the mend.")
    for notice in notices:
        if notice.get("stalled"):
            told = f"{notice['process']} recorded events and saw none delivered, {_read_age(notice)} ago"
            yield Finding("problem", f"{told}.", "See what is said of the delivery.")


def examine_delivery(delivery: BaseDelivery) -> Iterator[Finding]:
    """Say how events are delivered and, where that can be known, what became of them. Raises what a database does."""
    name = f"{type(delivery).__module__}.{type(delivery).__qualname__}"
    match delivery:
        case DatabaseDelivery():
            yield from _examine_outbox(delivery)
        case QueuedDelivery():
            yield Finding("ok", f"{name} hands events to a queue; its counts live in serving processes and workers.")
            if delivery.fallback is not None:
                yield from examine_delivery(delivery.fallback)
        case ImmediateDelivery():
            yield Finding("ok", f"{name} sends while the page waits, and does not retry.")
        case DummyDelivery():
            state: State = "ok" if django_settings.DEBUG else "warning"
            yield Finding(state, f"{name} sends nothing.", "" if state == "ok" else "Leave DELIVERY to its default.")
        case _:
            told = f"{name} delivers in each serving process, where its counts live, out of this command's sight"
            yield Finding("ok", f"{told}; losses are in the logs and in the signal events_dropped.")


def _examine_outbox(delivery: DatabaseDelivery) -> Iterator[Finding]:
    outbox, deliverer = delivery.outbox, "Let `manage.py moe_deliver --watch` run."
    if not outbox.is_migrated:
        told = f"The database {outbox.alias!r} has no outbox, so every event is lost."
        yield Finding("problem", told, f"Run `manage.py migrate --database {outbox.alias}`.")
        return
    counts, oldest, now = delivery.counts(), outbox.find_oldest(), timezone.now()
    yield Finding("ok", f"The outbox in the database {outbox.alias!r}: {_describe(counts)}.")
    leased = outbox.rows.filter(state=OutboxEvent.State.PENDING, lease__isnull=False, due_at__gt=now).count()
    age = 0.0 if oldest is None else (now - oldest).total_seconds()
    if oldest is not None and age > STALE_SECONDS:
        at_work = f"a deliverer has {leased} of them at this moment" if leased else "no deliverer has one of them now"
        told = f"The oldest pending event has waited for {timesince(oldest, now)}; {at_work}."
        yield Finding("problem", told.replace("\xa0", " "), "" if leased else deliverer)
    elif leased:
        yield Finding("ok", f"A deliverer has {leased} events at this moment.")
    parked = outbox.parked.count()
    if parked:
        mend = "The admin shows why; when the cause is mended, run `manage.py moe_deliver --replay`."
        yield Finding("warning", f"{parked} events are parked.", mend)


def _describe(counts: DeliveryCounts) -> str:
    dropped = "".join(f", {count:,} dropped ({reason})" for reason, count in sorted(counts.dropped.items()))
    return f"{counts.accepted:,} events accepted, {counts.delivered:,} delivered{dropped}, {counts.pending:,} pending"


def examine_environment(*, shows_html: bool) -> Iterator[Finding]:
    """Say what is installed, or is not, that breaks or weakens the package."""
    if _find_version("niquests") or _find_version("urllib3-future"):
        told = "niquests is installed, which puts urllib3-future in the place of urllib3, on which requests rests."
        yield Finding("warning", told, "Uninstall niquests and urllib3-future, then reinstall urllib3.")
    if _find_version("urllib3").startswith("1."):
        told = f"urllib3 is {_find_version('urllib3')}; the package is tested with 2."
        yield Finding("warning", told, 'Type: pip install "urllib3>=2".')
    if shows_html and find_spec("nh3") is None:
        told = "A template uses |experience_html, and nh3 is not installed: marketers' HTML is shown as text."
        yield Finding("warning", told, 'Type: pip install "django-moe-personalize[html]".')


def _find_version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
