"""Spans for the work that a page waits for besides the call to MoEngage: the site's cache, and the delivery of events.

``moengage/transport.py`` makes the spans of the calls, with or without this app. A span belongs to the current span, such
as a page, also in a thread that works for this page. Without a current span there is no span, so no span is a root. No
span has a visitor's data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

from opentelemetry.trace import SpanKind, Tracer, TracerProvider, get_current_span, get_tracer

from django_moe_personalize import __version__
from django_moe_personalize.delivery.base import BaseDelivery, get_delivery
from django_moe_personalize.fetching.cache import Answers, ExperienceCache, Known, get_cache
from django_moe_personalize.fetching.shared import has_room
from django_moe_personalize.moengage.types import Event
from django_moe_personalize.runtime import Runtime


def start(provider: TracerProvider | None = None) -> None:
    """Trace all runtimes of this process. By default, use the site's provider."""
    tracer = get_tracer("django_moe_personalize", __version__, provider)
    get_cache.extend(partial(_trace_cache, tracer))
    get_delivery.extend(partial(_trace_delivery, tracer))


@contextmanager
def _trace(tracer: Tracer, name: str, runtime: Runtime, kind: SpanKind, number: int) -> Iterator[None]:
    """Make a span, if there is a current span. A tracing tool may fail, but the page must not."""
    with ExitStack() as stack:
        with suppress(Exception):
            if get_current_span().is_recording():
                attributes: dict[str, str | int] = {"workspace": runtime.name, "moe_personalize.count": number}
                stack.enter_context(tracer.start_as_current_span(name, kind=kind, attributes=attributes))
        yield


def _trace_cache(tracer: Tracer, build: Callable[..., ExperienceCache], runtime: Runtime) -> ExperienceCache:
    """Trace the round trips to the site's cache. To look into the memory of the process takes a microsecond."""
    cache = build(runtime)
    read, write = cache.read, cache.write

    def traced_read(visitor: str, keys: Sequence[str]) -> Known:
        with _trace(tracer, "moe_personalize.cache.read", runtime, SpanKind.INTERNAL, len(keys)):
            return read(visitor, keys)

    def traced_write(visitor: str, answers: Answers) -> None:
        with _trace(tracer, "moe_personalize.cache.write", runtime, SpanKind.INTERNAL, len(answers)):
            write(visitor, answers)

    if has_room(runtime):
        cache.read, cache.write = traced_read, traced_write  # type: ignore[method-assign]
    return cache


def _trace_delivery(tracer: Tracer, build: Callable[..., BaseDelivery], runtime: Runtime) -> BaseDelivery:
    """Trace how a page passes its events to the delivery, which may write into a database or a queue."""
    delivery = build(runtime)
    record = delivery.record

    def traced_record(events: Sequence[Event]) -> None:
        with _trace(tracer, "moe_personalize.deliver", runtime, SpanKind.PRODUCER, len(events)):
            record(events)

    delivery.record = traced_record  # type: ignore[method-assign]
    return delivery
