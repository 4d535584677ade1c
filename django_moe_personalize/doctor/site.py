"""Examine the site: its cache, its processes, its delivery of events, and the installed packages.

No finding contains a credential, an identifier, or the text of a third-party exception.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Final, Literal, NamedTuple

from django.apps import apps
from django.conf import settings as django_settings
from django.core.cache import caches
from django.utils import timezone
from django.utils.timesince import timesince

from django_moe_personalize.conf import Settings
from django_moe_personalize.delivery.base import BaseDelivery, DeliveryCounts
from django_moe_personalize.delivery.database import DatabaseDelivery
from django_moe_personalize.delivery.dummy import DummyDelivery
from django_moe_personalize.delivery.immediate import ImmediateDelivery
from django_moe_personalize.delivery.outbox import Outbox, has_table
from django_moe_personalize.delivery.queued import QueuedDelivery
from django_moe_personalize.fetching import shared, upstream
from django_moe_personalize.fetching.shared import build_key
from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.models import OutboxEvent
from django_moe_personalize.runtime import Runtime
from django_moe_personalize.tracking import watchdog
from django_moe_personalize.visitor.newcomers import count_lost, get_newcomers

STALE_SECONDS: Final = 600.0
"""An event that waits longer in the outbox is a problem."""

MANY_IDS: Final = 100
MANY_LOST: Final = 0.8
"""From this number and this share on, new anonymous ids that never came back are a warning."""

RATE_LIMIT_FIX: Final = "Raise CACHE_TTL, narrow VARY_CACHE_ON, or ask MoEngage for a higher limit."

State = Literal["ok", "warning", "problem"]


class Finding(NamedTuple):
    """One finding of the doctor. If ``what`` is a problem or a warning, ``fix`` says how to fix it.

    ``id`` stays the same when the texts change. The documentation lists all ids.
    """

    state: State
    what: str
    fix: str = ""
    id: str = ""


def examine_cache(settings: Settings) -> Iterator[Finding]:
    """Store a value in the site's cache and read it back. Raises the errors of the cache."""
    if settings.cache not in django_settings.CACHES:
        return
    cache, name, value = caches[settings.cache], build_key("doctor", uuid.uuid4().hex), uuid.uuid4().hex
    # The first use of a cache opens its connection. A page doesn't wait for that in each call.
    cache.get(name)
    started = time.perf_counter()
    cache.set(name, value, timeout=60)
    found = cache.get(name)
    took = time.perf_counter() - started
    cache.delete(name)
    place = f"The cache {settings.cache!r}"
    if not shared.has_shared_cache():
        # No finding for DummyCache, which stores nothing: the system check W005 reports it.
        if found == value:
            what = f"{place} works, but each process has its own: processes share neither answers nor notices."
            yield Finding("ok", what, id="cache.separate")
    elif found != value:
        fix = "Look into the log of its server."
        yield Finding("problem", f"{place} loses values immediately.", fix, "cache.loses")
    elif not shared.has_room():
        what = f"{place} works, but it evicts the site's entries beyond MAX_ENTRIES, so it gets no visitors' answers."
        yield Finding("ok", what, id="cache.no_room")
    elif took > settings.deadline:
        what = f"{place} takes {took * 1000:.0f} ms to store and return a value, which is longer than DEADLINE."
        yield Finding("warning", what, "Find out why it is slow, or set CACHE to a faster one.", "cache.slow")
    else:
        yield Finding("ok", f"{place} works ({took * 1000:.1f} ms), and processes share it.", id="cache.works")


def examine_processes() -> Iterator[Finding]:
    """Report the notices that the site's processes stored in the shared cache. Raises the errors of the cache."""
    if not shared.has_shared_cache():
        what = "The site's processes share no cache, so only their logs report rate limits and missing impressions."
        yield Finding("ok", what, id="processes.separate")
        return
    what = "No process reported a rate limit or an open circuit breaker in the last hour."
    healthy = Finding("ok", what, id="processes.well")
    yield from list(_examine_breakers(shared.read_notices(upstream.BREAKER_TOPIC))) or [healthy]
    yield from _examine_watchdogs(shared.read_notices(watchdog.TOPIC))
    if count := sum(int(notice["pages"]) for notice in shared.read_notices(watchdog.WEB_SDK_TOPIC)):
        what = f"In the last hour, at least {count:,} pages waited for MoEngage's Web SDK, but it never came."
        yield Finding("warning", what, watchdog.WEB_SDK_FIX, "web_sdk.missing")


def _read_age(notice: dict[str, Any]) -> str:
    return f"{max(0, int(time.time()) - int(notice['time']))} s"


def _examine_breakers(notices: list[dict[str, Any]]) -> Iterator[Finding]:
    """Report open circuit breakers, and each rate limit, even after the circuit breaker has closed again."""
    for notice in notices:
        process, age, reason = notice["process"], _read_age(notice), str(notice.get("reason"))
        is_closed = notice.get("state") == "closed"
        if "rate limit" in reason:
            told = f"until {age} ago" if is_closed else f"{age} ago: {reason}"
            what = f"MoEngage's rate limit stopped process {process} {told}."
            yield Finding("warning", what, RATE_LIMIT_FIX, "processes.rate_limit")
        elif not is_closed:
            what = f"The circuit breaker of process {process} changed to {notice.get('state')} {age} ago: {reason}."
            fix = "Check above whether MoEngage answers. When it does, the circuit breaker closes by itself."
            yield Finding("warning", what, fix, "processes.breaker")


def _examine_watchdogs(notices: list[dict[str, Any]]) -> Iterator[Finding]:
    pages: Counter[str] = Counter()
    for notice in notices:
        pages.update({str(key): int(count) for key, count in notice.get("missed", {}).items()})
    for key, count in pages.items():
        what = f"At least {count} pages showed experience {key!r}, but no impression of it was recorded."
        fix = "Read the error in the log of the site: it says how to fix it."
        yield Finding("problem", what, fix, "impressions.missing")
    for notice in notices:
        if notice.get("stalled"):
            what = f"Process {notice['process']} recorded events, but {_read_age(notice)} ago none had been delivered."
            yield Finding("problem", what, "Follow the findings about the delivery.", "delivery.stalled")


def examine_visitors(settings: Settings) -> Iterator[Finding]:
    """Report how many new anonymous ids never came back. Raises the errors of the cache."""
    count, lost = count_lost([*shared.read_notices(watchdog.NEWCOMERS_TOPIC), get_newcomers().describe()])
    if not count:
        return
    is_reported = settings.anonymous_events == "always"
    what = f"Of {count:,} new anonymous ids in a sample, {lost:,} ({lost / count:.0%}) never came back."
    if is_reported and count >= MANY_IDS and lost / count >= MANY_LOST:
        fix = 'Set ANONYMOUS_EVENTS to "returning", so that programs without cookies make no profiles at MoEngage.'
        yield Finding("warning", what, fix, "visitors.lost")
    else:
        told = "Each of these may be a profile at MoEngage." if is_reported else "The package reports none of these."
        yield Finding("ok", f"{what} {told}", id="visitors.counted")


def examine_switch(runtime: Runtime) -> Iterator[Finding]:
    """Report the experiences that an operator has switched off. Raises the errors of the database and the cache."""
    switch = get_switch(runtime)
    if not switch.store.can_change():
        what = "`manage.py moe_switch` can't work: the site has neither its table nor a shared cache."
        fix = "Run `manage.py migrate`, or set CACHE to a cache that all processes share."
        yield Finding("warning", what, fix, "switch.no_store")
        return
    switch.change(switch.store.read())
    for entry in switch.entries:
        fix = f"Run `{switch.write_command(entry.experience_key)}` when it should be shown again."
        yield Finding("warning", f"{entry.describe()} Pages show the default.", fix, "switch.off")
    if not switch.entries:
        yield Finding("ok", "No experience is switched off.", id="switch.on")


def examine_delivery(delivery: BaseDelivery) -> Iterator[Finding]:
    """Report how the site delivers events. Report the counters of an outbox. Raises the errors of the database."""
    name = f"{type(delivery).__module__}.{type(delivery).__qualname__}"
    match delivery:
        case DatabaseDelivery():
            yield from _examine_outbox(delivery)
        case QueuedDelivery():
            what = f"{name} hands events to a queue. Only web processes and workers know the counts."
            yield Finding("ok", what, id="delivery.queue")
            for obstacle in delivery.find_obstacles():
                yield Finding(*obstacle)
            if delivery.fallback is not None:
                yield from examine_delivery(delivery.fallback)
        case ImmediateDelivery():
            yield Finding("ok", f"{name} sends while the page waits, and doesn't retry.", id="delivery.immediate")
        case DummyDelivery():
            state: State = "ok" if django_settings.DEBUG else "warning"
            fix = "" if state == "ok" else "Remove DELIVERY to send events."
            yield Finding(state, f"{name} sends nothing.", fix, "delivery.dummy")
        case _:
            what = f"{name} delivers in each web process, and only that process knows its counts."
            what = f"{what} The log and the signal events_dropped report dropped events."
            yield Finding("ok", what, id="delivery.process")


def _examine_outbox(delivery: DatabaseDelivery) -> Iterator[Finding]:
    outbox = delivery.outbox
    if not outbox.is_migrated:
        what = f"The database {outbox.alias!r} has no table for the outbox, so every event is lost."
        yield Finding("problem", what, f"Run `manage.py migrate --database {outbox.alias}`.", "outbox.no_table")
        return
    counts = delivery.counts()
    dropped = "".join(f", {count:,} dropped ({reason})" for reason, count in sorted(counts.dropped.items()))
    counted = f"{counts.accepted:,} events accepted, {counts.delivered:,} delivered{dropped}"
    what = f"The outbox in the database {outbox.alias!r}: {counted}, {counts.pending:,} pending."
    yield Finding("ok", what, id="outbox.counts")
    yield from _examine_pending(outbox, counts)
    if parked := outbox.parked.count():
        fix = "Find the cause in the admin and fix it. Then run `manage.py moe_deliver --replay`."
        what = f"{parked} events are parked, because they can't be delivered."
        yield Finding("warning", what, fix, "outbox.parked")


def _examine_pending(outbox: Outbox, counts: DeliveryCounts) -> Iterator[Finding]:
    """Report whether a deliverer sends the pending events, as far as the table shows this."""
    oldest, now = outbox.find_oldest(), timezone.now()
    is_new = outbox.due.filter(attempts=0, created_at__lt=now - timedelta(minutes=1)).exists()
    leased = outbox.rows.filter(state=OutboxEvent.State.PENDING, lease__isnull=False, due_at__gt=now).count()
    if oldest is not None and (now - oldest).total_seconds() > STALE_SECONDS:
        at_work = f"a deliverer is sending {leased} events now" if leased else "no deliverer is sending events now"
        what = f"The oldest pending event has waited for {timesince(oldest, now)}, and {at_work}."
        fix = "Read the log of the deliverer." if leased else "Run `manage.py moe_deliver --watch`."
        if not outbox.rows.filter(state=OutboxEvent.State.PENDING, is_conversion=False).exists():
            fix = f"{fix} Only conversions wait, so check DATA_API_KEY too."
        yield Finding("problem", what.replace("\xa0", " "), fix, "outbox.waits")
    elif is_new and not leased:
        what = "Events have waited for more than a minute, and no deliverer has tried to send them."
        yield Finding("warning", what, "Run `manage.py moe_deliver --watch`.", "outbox.no_deliverer")
    elif counts.pending == counts.accepted and not leased:
        what = "The outbox hasn't delivered any event yet, so the doctor can't see whether a deliverer runs."
        fix = "Run `manage.py moe_deliver --watch`, open a page with an experience, and run the doctor again."
        yield Finding("warning", what, fix, "outbox.unproven")
    elif leased:
        yield Finding("ok", f"A deliverer is sending {leased} events now.", id="outbox.sends")


def examine_sessions() -> Iterator[Finding]:
    """Report sessions in a database without a table. Raises the errors of the database."""
    store = import_module(django_settings.SESSION_ENGINE).SessionStore
    # Only sessions in a database have a model.
    get_model = getattr(store, "get_model_class", None)
    if get_model and apps.is_installed("django.contrib.sessions") and not has_table(get_model()):
        what = "The database has no table for sessions, so visitors with a session see the fallbacks."
        yield Finding("problem", what, "Run `manage.py migrate`.", "sessions.no_table")


def examine_packages(used: Collection[str]) -> Iterator[Finding]:
    """Report packages whose presence or absence causes problems. ``used`` are the tags in the site's templates."""
    versions: dict[str, str] = {}
    for name in ("niquests", "urllib3", "urllib3-future"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    if versions.keys() - {"urllib3"}:
        what = "niquests is installed. Its urllib3-future replaces urllib3, which requests needs."
        fix = "Uninstall niquests and urllib3-future, then reinstall urllib3."
        yield Finding("warning", what, fix, "packages.niquests")
    if (old := versions.get("urllib3", "")).startswith("1."):
        what = f"urllib3 {old} is installed, but this package is tested with urllib3 2."
        yield Finding("warning", what, 'Run `pip install "urllib3>=2"`.', "packages.urllib3")
    if "experience_html" in used and find_spec("nh3") is None:
        what = "A template uses |experience_html, but nh3 isn't installed, so pages show HTML as plain text."
        yield Finding("warning", what, "Run `pip install nh3`.", "packages.nh3")
