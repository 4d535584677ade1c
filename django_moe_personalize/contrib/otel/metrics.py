"""Metrics. All but ``request.duration`` are read when the site exports them, so they cost a page next to nothing.

No attribute has a visitor's data or an experience key, so the number of series is bounded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from django.db import close_old_connections
from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation, get_meter

from django_moe_personalize import __version__
from django_moe_personalize.client import get_client, get_data_client
from django_moe_personalize.delivery.base import BaseDelivery, DeliveryCounts, get_delivery
from django_moe_personalize.fetching.cache import ExperienceCache, Known, get_cache
from django_moe_personalize.fetching.shared import has_room
from django_moe_personalize.fetching.upstream import get_breaker
from django_moe_personalize.moengage.client import PersonalizeClient, Transport
from django_moe_personalize.moengage.http1 import HTTPExchange, Request, Response
from django_moe_personalize.resilience import Deadline, monotonic
from django_moe_personalize.runtime import Runtime, list_runtimes, protect_transactions

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
"""The buckets of request.duration. Pages wait for DEADLINE, 0.3 seconds by default."""

OPERATIONS: Final = {f"/experiences/{operation}": operation for operation in ("fetch", "metadata", "events")}
"""All other paths are of conversions: they have the id of the workspace."""

REASONS: Final = ("overflow", "refused", "attempts", "exit", "failed", "broker", "error", "erased")
"""The reasons for dropping. Each has a value from the start, because Prometheus ignores the first value of a series."""

Client = TypeVar("Client", bound=PersonalizeClient)

Found = Iterable[tuple[float, Mapping[str, str]]]
"""Values with their attributes."""


def start(provider: MeterProvider | None = None) -> None:
    """Create the instruments, and measure all runtimes of this process. By default, use the site's provider."""
    meter = get_meter("django_moe_personalize", __version__, provider)
    duration = meter.create_histogram(
        "moe_personalize.request.duration",
        "s",
        "Time from a request to MoEngage until its response is read",
        explicit_bucket_boundaries_advisory=SECONDS,
    )
    get_client.extend(partial(_measure_client, duration))
    get_data_client.extend(partial(_measure_client, duration))
    get_cache.extend(_count_lookups)
    counter, up_down = meter.create_observable_counter, meter.create_observable_up_down_counter
    for create, name, unit, description, read in (
        (counter, "cache.lookups", "{lookup}", "Questions to a cache", _read_lookups),
        (counter, "deadline.misses", "{fetch}", "Fetches that were too late for a page", _read_misses),
        (up_down, "breaker.state", "1", "1 for the state of the circuit breaker, else 0", _read_breaker),
        (counter, "events.accepted", "{event}", "Events that the delivery accepted", _read_accepted),
        (counter, "events.handed_over", "{event}", "Events in a queue that another process reads", _read_handed_over),
        (counter, "events.delivered", "{event}", "Events that MoEngage accepted", _read_delivered),
        (counter, "events.dropped", "{event}", "Events that were dropped", _read_dropped),
        (up_down, "events.pending", "{event}", "Events that wait", _read_pending),
        (meter.create_observable_gauge, "events.oldest.age", "s", "Age of the oldest event that waits", _read_age),
    ):
        create(f"moe_personalize.{name}", [partial(_observe, read)], unit, description)


def _observe(read: Callable[[Runtime], Found], options: CallbackOptions) -> list[Observation]:
    """Read the values of all runtimes. A delivery that fails, for example because of its database, has no values."""
    found = []
    for runtime in list_runtimes():
        with suppress(Exception), protect_transactions(), runtime.use():
            for value, attributes in read(runtime):
                found.append(Observation(value, {"workspace": runtime.name, **attributes}))
    return found


# Requests


class MeasuredTransport:
    """A transport that passes the seconds of each call of another transport to ``record``."""

    def __init__(self, transport: Transport, record: Callable[[Request, float, int | str], None]) -> None:
        if hasattr(transport, "start"):
            self.start = partial(self._start, transport.start)
        self._transport = transport
        self._record = record

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def __repr__(self) -> str:
        return repr(self._transport)

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        """See Transport.send()."""
        began = monotonic()
        try:
            response = self._transport.send(request, deadline=deadline)
        except Exception as error:
            self._record(request, began, type(error).__name__)
            raise
        self._record(request, began, response.status)
        return response

    def close(self) -> None:
        """See Transport.close()."""
        self._transport.close()

    def _start(self, start: Callable[[Request], HTTPExchange | None], request: Request) -> HTTPExchange | None:
        began = monotonic()
        if (exchange := start(request)) is not None:
            end_span = exchange.end_span

            def end(outcome: int | str) -> None:
                self._record(request, began, outcome)
                if end_span is not None:
                    end_span(outcome)

            exchange.end_span = end
        return exchange


def _measure_client(duration: Histogram, build: Callable[..., Client], runtime: Runtime) -> Client:
    def record(request: Request, began: float, outcome: int | str) -> None:
        attributes = {"workspace": runtime.name, "operation": OPERATIONS.get(request.path, "conversions")}
        if isinstance(outcome, int):
            attributes["http.response.status_code"] = str(outcome)
        if isinstance(outcome, str) or outcome >= 400:
            attributes["error.type"] = str(outcome)
        # An SDK may fail, but the page must not.
        with suppress(Exception):
            duration.record(monotonic() - began, attributes)

    return build(runtime, wrap=lambda transport: MeasuredTransport(transport, record))


# Pages


def _count_lookups(build: Callable[..., ExperienceCache], runtime: Runtime) -> ExperienceCache:
    cache = build(runtime)

    def count(level: str, look: Callable[..., Known], visitor: str, keys: Sequence[str]) -> Known:
        known = look(visitor, keys)
        is_hit, is_known = not known.due, known.answers.keys() >= {*known.due}
        runtime.count("lookups", level, "hit" if is_hit else "stale" if is_known else "miss")
        return known

    cache.peek = partial(count, "memory", cache.peek)  # type: ignore[method-assign]
    if has_room(runtime):
        cache.read = partial(count, "shared", cache.read)  # type: ignore[method-assign]
    return cache


def _read_lookups(runtime: Runtime) -> Found:
    for level in ("memory", "shared") if has_room(runtime) else ("memory",):
        for result in ("hit", "stale", "miss"):
            yield runtime.counts["lookups", level, result], {"level": level, "result": result}


def _read_misses(runtime: Runtime) -> Found:
    yield runtime.counts[("deadline_misses",)], {}


def _read_breaker(runtime: Runtime) -> Found:
    if (breaker := get_breaker.find(runtime)) is not None:
        for state in ("closed", "open", "half-open"):
            yield int(breaker.state == state), {"state": state}


# Events


def _find_deliveries(runtime: Runtime) -> Iterator[tuple[BaseDelivery, dict[str, str]]]:
    delivery = get_delivery.find(runtime)
    for each in () if delivery is None else (delivery, delivery.fallback):
        if each is not None:
            yield each, {"delivery": type(each).__name__}


def _count_events(delivery: BaseDelivery) -> DeliveryCounts:
    # An outbox counts the events of all processes, and a queue also those of its fallback.
    is_more = delivery.uses_database or delivery.fallback is not None
    return BaseDelivery.counts(delivery) if is_more else delivery.counts()


def _read_accepted(runtime: Runtime) -> Found:
    for delivery, attributes in _find_deliveries(runtime):
        counts = _count_events(delivery)
        # A queue that fails counts its events as not accepted again. A metric of this kind must never fall.
        yield counts.accepted - (0 if delivery.fallback is None else counts.pending), attributes


def _read_handed_over(runtime: Runtime) -> Found:
    for delivery, attributes in _find_deliveries(runtime):
        yield _count_events(delivery).handed_over, attributes


def _read_delivered(runtime: Runtime) -> Found:
    for delivery, attributes in _find_deliveries(runtime):
        yield _count_events(delivery).delivered, attributes


def _read_dropped(runtime: Runtime) -> Found:
    for delivery, attributes in _find_deliveries(runtime):
        for reason, count in {**dict.fromkeys(REASONS, 0), **_count_events(delivery).dropped}.items():
            yield count, {"reason": reason, **attributes}


def _read_pending(runtime: Runtime) -> Found:
    for delivery, attributes in _find_deliveries(runtime):
        counts = _count_events(delivery) if delivery.fallback is not None else delivery.counts()
        yield counts.pending, attributes
        _leave_database(delivery)


def _read_age(runtime: Runtime) -> Found:
    for delivery, attributes in _find_deliveries(runtime):
        oldest = delivery.find_oldest()
        yield 0.0 if oldest is None else max(0.0, time.time() - oldest), attributes
        _leave_database(delivery)


def _leave_database(delivery: BaseDelivery) -> None:
    """Close an old connection of the exporter's thread. Django closes connections only at the end of a request."""
    if delivery.uses_database:
        close_old_connections()
