"""Who asks to be forgotten, or takes a consent back, has nothing sent that was recorded before.

Events wait in the memory of other processes and in queues, out of reach of the page that is told.
So a mark is left in the site's cache, and looked for when events are sent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from django_moe_personalize.fetching.shared import build_key, get_many, set_many
from django_moe_personalize.moengage.types import Event

MARK_SECONDS: Final = 7 * 24 * 60 * 60
"""How long a mark is kept: longer than an event waits anywhere but in the outbox, which erases its own."""

MAX_SKEW: Final = 5
"""Seconds by which the clocks of a site's machines may differ."""


def mark_withdrawal(customer_id: str) -> bool:
    """Let no event of ``customer_id`` be sent that happened until now; return whether the cache took the mark.

    What happens from now on is sent: whoever is asked again and agrees needs nothing to be undone.
    """
    return set_many({build_key("withdrawn", customer_id): int(time.time())}, timeout=MARK_SECONDS)


def split_withdrawn(events: Sequence[Event]) -> tuple[Sequence[Event], Sequence[Event]]:
    """Return the events to send and those of a visitor who has withdrawn since; one round trip to the cache.

    With a cache that fails all are sent.
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
