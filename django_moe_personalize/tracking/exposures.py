"""Send the signals ``experience_shown`` and ``experience_clicked``, once for each counted event.

A receiver may be slow, so its page doesn't wait. The signals of a request follow when the server has sent the response:
Django then calls ``request.close()``, in the thread of the request, and under ASGI in a thread next to the event loop.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from django.http import HttpRequest, StreamingHttpResponse

from django_moe_personalize.fetching.shared import add_to_count
from django_moe_personalize.moengage.types import Action, Event, Experience
from django_moe_personalize.runtime import Runtime, get_runtime, log_once, part, protect_transactions
from django_moe_personalize.signals import EXPOSURE_SIGNALS, experience_clicked, experience_shown
from django_moe_personalize.tracking.tokens import OFFERINGS, TOKEN_MAX_AGE

MAX_ANNOUNCED: Final = 10_000
"""The UUIDs that a process remembers if the processes share no cache. One more UUID resets the memory."""

_FAILED: Final = (
    "The receiver %s of %s raised %s at %s. The page isn't affected. Fix the receiver: this process doesn't log its "
    "further exceptions of this kind."
)


def announce(
    events: Sequence[Event],
    request: HttpRequest | None,
    runtime: Runtime | None = None,
    stream: StreamingHttpResponse | None = None,
) -> None:
    """Send the signals of ``events`` after the response to ``request``. Without a request, send them immediately.

    ``stream`` is the response if the server is sending it already.
    """
    if not any(signal.has_listeners(Experience) for signal in EXPOSURE_SIGNALS):
        return
    # Now, because a request may report to another workspace than its own.
    runtime = runtime or get_runtime()
    # Build the events now. Otherwise this thread and the thread of the delivery might build them with other UUIDs.
    events = list(events)
    if request is None:
        send(events, None, runtime)
        return
    if stream is not None:
        # Django has read request.close already.
        stream._resource_closers.append(  # type: ignore[attr-defined]
            partial(send, events, request, runtime)
        )
        return
    close = request.close

    def close_and_send() -> None:
        # The attribute refers to the request, and only the garbage collector could free such a cycle.
        request.__dict__.pop("close", None)
        try:
            close()
        finally:
            send(events, request, runtime)

    # The middleware may get another response than the server sends. But each request is closed.
    request.close = close_and_send  # type: ignore[method-assign]


def send(events: Iterable[Event], request: HttpRequest | None, runtime: Runtime) -> None:
    """Send the signal of each event. Never raises."""
    with runtime.use(), suppress(Exception):
        for event in events:
            # A page, the token of its mark and a repeated beacon may report the same event.
            if event.action is not Action.OFFERING_SHOWN and (request is None or _is_new(event.event_uuid)):
                with protect_transactions():
                    _send(event, request)


def _send(event: Event, request: HttpRequest | None) -> None:
    context, key, uuid = event.attributes, event.experience_key, event.event_uuid
    variation_id, audience = context.get("moe_variation_id", ""), context.get("audience_name", "")
    if event.action is Action.SHOWN:
        name, offering = "experience_shown", context.get(OFFERINGS)
        failed = experience_shown.send_robust(
            sender=Experience,
            request=request,
            experience_key=key,
            variation_id=variation_id,
            audience=audience,
            offering=offering,
            event_uuid=uuid,
        )
    else:
        name, offering = "experience_clicked", context.get("moe_offering_id")
        failed = experience_clicked.send_robust(
            sender=Experience,
            request=request,
            experience_key=key,
            variation_id=variation_id,
            audience=audience,
            offering=offering,
            event_uuid=uuid,
        )
    for receiver, error in failed:
        if isinstance(error, Exception):
            _log(receiver, name, error)


def _log(receiver: Any, signal: str, error: Exception) -> None:
    """Log the first exception of a kind, without its text, because the text may contain personal data."""
    path = f"{receiver.__module__}.{getattr(receiver, '__qualname__', type(receiver).__qualname__)}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    key = ("receiver", path, type(error))
    log_once(key, _FAILED, path, signal, type(error).__name__, f"{last.filename}:{last.lineno}", level=40)


def _is_new(event_uuid: str) -> bool:
    """Return whether no process has sent the signal of this event yet, as far as the shared cache shows."""
    if (count := add_to_count(f"announced/{event_uuid}", 1, TOKEN_MAX_AGE)) is not None:
        return count == 1
    announced, mine = _get_announced(), object()
    if len(announced) >= MAX_ANNOUNCED:
        announced.clear()
    return announced.setdefault(event_uuid, mine) is mine


@part
def _get_announced(runtime: Runtime) -> dict[str, object]:
    """Return the UUIDs of the events whose signals this process has sent."""
    return {}
