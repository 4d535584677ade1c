"""Report events of the site's own, such as orders, of a request's visitor or of any customer (contract §8)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from asgiref.sync import sync_to_async
from django.http import HttpRequest

from django_moe_personalize.client import find_data_key_error
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.moengage.data_api import is_forbidden_id
from django_moe_personalize.moengage.types import Event
from django_moe_personalize.runtime import Runtime, get_runtime
from django_moe_personalize.tracking.page import report_loss
from django_moe_personalize.tracking.persons import is_counted
from django_moe_personalize.visitor import MINTED

_FORBIDDEN = (
    "track_event() reports nothing for some visitors, because MoEngage forbids their ids: a single character, or a "
    'word such as "guest". Use ids such as "user-1": see the setting IDENTIFY.'
)


def may_convert(request: HttpRequest, customer_id: str | None, runtime: Runtime) -> bool:
    """Return whether an event of the visitor ``customer_id`` counts. The same rules hold as for a click."""
    if not customer_id or not is_counted(request):
        return False
    if MINTED in request.__dict__ and runtime.settings.anonymous_events == "returning":
        return False
    if is_forbidden_id(customer_id):
        runtime.log_once("forbidden conversion", _FORBIDDEN)
        return False
    return True


def record_conversions(conversions: Sequence[Event], runtime: Runtime | None = None) -> None:
    """Pass ``conversions`` to the delivery of ``runtime``. Never raises."""
    runtime = runtime or get_runtime()
    try:
        if (error := find_data_key_error(runtime.settings)) is not None:
            runtime.log_once("data key", "Conversions can't be sent: %s", error, level=logging.ERROR)
        get_delivery(runtime).record_conversions(conversions)
    except Exception as error:
        report_loss(error)


async def arecord_conversions(conversions: Sequence[Event], runtime: Runtime) -> None:
    """See record_conversions()."""
    # In the thread of the site's sync code: the outbox may use its database connection.
    await sync_to_async(record_conversions)(conversions, runtime)
