"""Spans of the calls to MoEngage, if the site uses OpenTelemetry or Sentry. This package imports neither of them.

A span belongs to the current span of the caller, such as a page. Without a current span, as in a thread that sends the
events of many visitors, a call gets no span: each call would be a trace of its own.

Calls have no trace headers (``traceparent``, ``sentry-trace``, ``baggage``). MoEngage doesn't continue traces, and
could use the id of a trace to connect calls that the package sends without the visitor's id.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django_moe_personalize.moengage.http1 import Request

End = Callable[[int | str], None]
"""End a span. Takes the status of the response, or the name of the error."""


def start_span(request: Request, base_url: str) -> End | None:
    """Start a span for a call that begins now. Return ``None`` if no tracing tool has a current span."""
    modules = sys.modules
    otel, sentry = modules.get("opentelemetry.trace"), modules.get("sentry_sdk")
    if otel is None and sentry is None:
        return None
    ends: list[End] = []
    # A tracing tool may fail, but the page must not.
    with suppress(Exception):
        if otel is not None and otel.get_current_span().is_recording():
            ends.append(_start_otel(otel, request, base_url))
    with suppress(Exception):
        if sentry is not None and (parent := sentry.get_current_span()) is not None:
            ends.append(_start_sentry(parent, request, base_url))

    def end(outcome: int | str) -> None:
        for one in ends:
            with suppress(Exception):
                one(outcome)

    return end if ends else None


def _start_otel(otel: Any, request: Request, base_url: str) -> End:
    """Start a span with the attributes of OpenTelemetry's conventions for HTTP clients."""
    attributes = {"http.request.method": request.method, "url.full": base_url + request.path}
    tracer = otel.get_tracer("django_moe_personalize")
    span = tracer.start_span(f"{request.method} {request.path}", kind=otel.SpanKind.CLIENT, attributes=attributes)

    def end(outcome: int | str) -> None:
        is_status = isinstance(outcome, int)
        span.set_attribute("http.response.status_code" if is_status else "error.type", outcome)
        if not is_status or int(outcome) >= 400:
            span.set_status(otel.StatusCode.ERROR)
        span.end()

    return end


def _start_sentry(parent: Any, request: Request, base_url: str) -> End:
    span = parent.start_child(op="http.client", name=f"{request.method} {base_url}{request.path}")

    def end(outcome: int | str) -> None:
        if isinstance(outcome, int):
            span.set_http_status(outcome)
        else:
            span.set_status("deadline_exceeded" if outcome == "DeadlineExceeded" else "unknown_error")
        span.finish()

    return end
