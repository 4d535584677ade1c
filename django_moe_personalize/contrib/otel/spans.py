"""Spans for the round trips to the site's cache, and for passing the events of a page to the delivery.

``moengage/transport.py`` makes the spans of the calls to MoEngage, also without this app. A span belongs to the current
span, such as a page, also in a thread that works for this page. Without a current span, the package makes no span. So
no span of the package is the root of a trace. No span has a visitor's data.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from opentelemetry.context import attach, detach, set_value
from opentelemetry.trace import SpanKind, Tracer, TracerProvider, get_current_span, get_tracer, set_span_in_context

from django_moe_personalize import __version__
from django_moe_personalize.delivery.base import BaseDelivery, get_delivery
from django_moe_personalize.delivery.twofold import TwofoldDelivery
from django_moe_personalize.fetching.cache import ExperienceCache, get_cache
from django_moe_personalize.fetching.shared import has_room
from django_moe_personalize.fetching.switch import Switch, get_switch
from django_moe_personalize.runtime import Runtime

T = TypeVar("T")

SILENT: Final = "suppress_instrumentation"
"""With this value in the context, the instrumentations of databases and caches make no spans."""


def start(provider: TracerProvider | None = None) -> None:
    """Trace all runtimes of this process. By default, use the site's provider."""
    tracer = get_tracer("django_moe_personalize", __version__, provider)
    get_cache.extend(partial(_trace_cache, tracer))
    get_delivery.extend(partial(_trace_delivery, tracer))
    get_switch.extend(_silence_switch)


def _trace(tracer: Tracer, name: str, kind: SpanKind, runtime: Runtime, call: Callable[..., T], *args: Any) -> T:
    """Return ``call(*args)``, in a span if there is a current span. A tracing tool may fail, but the page must not."""
    span = None
    with suppress(Exception):
        if get_current_span().is_recording():
            count = len(args[-1])
            attributes: dict[str, str | int] = {"workspace": runtime.name, "moe_personalize.count": count}
            span = tracer.start_span(name, kind=kind, attributes=attributes)
            token = attach(set_span_in_context(span))
    try:
        return call(*args)
    finally:
        if span is not None:
            with suppress(Exception):
                detach(token)
                span.end()


def _trace_cache(tracer: Tracer, build: Callable[..., ExperienceCache], runtime: Runtime) -> ExperienceCache:
    """Trace the round trips to the site's cache. To look into the memory of the process takes a microsecond."""
    cache = build(runtime)
    if has_room(runtime):
        for name in ("read", "write"):
            span = f"moe_personalize.cache.{name}"
            setattr(cache, name, partial(_trace, tracer, span, SpanKind.INTERNAL, runtime, getattr(cache, name)))
    return cache


def _trace_delivery(tracer: Tracer, build: Callable[..., BaseDelivery], runtime: Runtime) -> BaseDelivery:
    """Trace how a page passes its events to the delivery, which may write into a database or a queue."""
    delivery = build(runtime)
    # Other deliveries record conversions with record().
    for name in ("record", "record_conversions") if isinstance(delivery, TwofoldDelivery) else ("record",):
        traced = partial(_trace, tracer, "moe_personalize.deliver", SpanKind.PRODUCER, runtime, getattr(delivery, name))
        setattr(delivery, name, traced)
    return delivery


def _silence_switch(build: Callable[..., Switch], runtime: Runtime) -> Switch:
    """Let the instrumentations of other packages make no span for the queries of the switch: each would be a root."""
    switch = build(runtime)
    refresh = switch._refresh

    def refresh_silently() -> None:
        token = attach(set_value(SILENT, True))
        try:
            refresh()
        finally:
            detach(token)

    switch._refresh = refresh_silently  # type: ignore[method-assign]
    return switch
