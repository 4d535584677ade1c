"""A view for health checks of load balancers and orchestrators. It never calls MoEngage, a cache or a database."""

from __future__ import annotations

import time
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from django_moe_personalize.delivery.base import BaseDelivery, get_delivery
from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.fetching.switch_store import ALL
from django_moe_personalize.fetching.upstream import get_breaker, get_outage
from django_moe_personalize.runtime import Runtime, list_runtimes


@login_not_required
@never_cache
@require_safe
def health(request: HttpRequest) -> JsonResponse:
    """Return the state of this process as JSON: 200, or 503 if only a restart of the process helps.

    An outage of MoEngage is a 200, because the site works without MoEngage.
    """
    workspaces = {runtime.name: _describe(runtime) for runtime in list_runtimes()}
    is_failing = any(each["delivery"] and each["delivery"]["is_dead"] for each in workspaces.values())
    body = {"status": "failing" if is_failing else "ok", "workspaces": workspaces}
    return JsonResponse(body, status=503 if is_failing else 200)


def _describe(runtime: Runtime) -> dict[str, Any]:
    # find() builds nothing: a process that has shown no experience yet has none of these parts.
    breaker, outage, delivery = get_breaker.find(runtime), get_outage.find(runtime), get_delivery.find(runtime)
    switch = get_switch.find(runtime)
    off = switch.list_off() if switch else []
    return {
        "breaker": breaker.state if breaker else "closed",
        "fetches_fail": bool(outage and outage.is_on),
        "switch": {
            "is_known": bool(switch and switch.is_known),
            "all_off": ALL in off,
            "keys_off": len([key for key in off if key != ALL]),
        },
        "delivery": _describe_delivery(delivery) if delivery else None,
    }


def _describe_delivery(delivery: BaseDelivery) -> dict[str, Any]:
    if delivery.counts_in_database:
        # A database that hangs would hang the health check, and the site would be out of rotation.
        return {"backend": type(delivery).__name__, "pending": None, "oldest_seconds": None, "is_dead": False}
    # A queue can't tell the age of its events.
    pending, oldest = delivery.counts().pending, (delivery.fallback or delivery).find_oldest()
    return {
        "backend": type(delivery).__name__,
        "pending": pending,
        "oldest_seconds": None if oldest is None else max(0.0, round(time.time() - oldest, 1)),
        # An unexpected error has ended the thread, so no event leaves this process before its end.
        "is_dead": any(map(_is_dead, (delivery, getattr(delivery, "second", None), delivery.fallback))),
    }


def _is_dead(delivery: BaseDelivery | None) -> bool:
    thread = getattr(delivery, "_thread", None)
    if delivery is None or thread is None or thread.is_alive():
        return False
    # The events of this thread alone: conversions have another thread.
    return BaseDelivery.counts(delivery).pending > 0
