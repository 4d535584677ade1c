"""Customers who withdraw consent or ask to be forgotten: their earlier events aren't sent.

Events wait in the memory of other processes and in queues, where the process that handles the withdrawal can't
reach them. So it leaves a mark in the site's cache, and every process looks for marks before it sends.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from django_moe_personalize.fetching.shared import build_key, get_many, set_many
from django_moe_personalize.moengage.types import Event

MARK_SECONDS: Final = 7 * 24 * 60 * 60
"""How long a mark lasts: longer than an event waits anywhere except in the outbox, which deletes its own events."""

MAX_SKEW: Final = 5
"""Seconds by which the clocks of a site's machines may differ."""


def mark_withdrawal(customer_id: str) -> bool:
    """Stop all events of ``customer_id`` up to now. Return whether the cache stored the mark.

    Later events are sent, so a customer who agrees again needs no second call.
    """
    return set_many({build_key("withdrawn", customer_id): int(time.time())}, timeout=MARK_SECONDS)


def split_withdrawn(events: Sequence[Event]) -> tuple[Sequence[Event], Sequence[Event]]:
    """Return the events to send, and those of customers who have withdrawn since. One round trip to the cache.

    If the cache fails, all events are to be sent.
    """
    names = {event.customer_id: build_key("withdrawn", event.customer_id) for event in events}
    marks = get_many(names.values())
    if not marks:
        return events, ()
    kept: list[Event] = []
    withdrawn: list[Event] = []
    for event in events:
        mark = marks.get(names[event.customer_id])
        is_withdrawn = isinstance(mark, int) and event.event_time <= mark + MAX_SKEW
        (withdrawn if is_withdrawn else kept).append(event)
    return kept, withdrawn
