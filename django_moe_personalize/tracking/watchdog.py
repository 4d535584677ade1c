"""The watchdog: log an error if pages show an experience and no impression is recorded, or if no event is delivered.

A page only adds to counters. The checks run in the background thread, and each process logs each error once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db import connections

from django_moe_personalize.conf import get_settings
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.fetching.shared import NOTICE_SECONDS, build_key, get_many, put_up_notice, set_many
from django_moe_personalize.fetching.upstream import get_background
from django_moe_personalize.log import logger
from django_moe_personalize.moengage.types import Action, Event, Experience
from django_moe_personalize.runtime import Runtime, part
from django_moe_personalize.signals import impressions_missing

TOPIC: Final = "watchdog"
"""The topic of the notices with which a process tells the doctor about missing impressions."""

RENDERED_PAGES: Final = 100
RENDERED_SECONDS: Final = 60.0
"""How many pages must show an experience, and for how long, before its impressions are missing."""

STALLED_SECONDS: Final = 600.0
"""How long no recorded event is delivered before that is an error."""

DELIVERY_CHECK_SECONDS: Final = 300.0
"""The time between two checks of the delivery's counts. With an outbox each check is a query."""

COUNTED_SECONDS: Final = 3600
"""How long the other processes know that one recorded an impression: all beacons may reach one process."""

MAX_EXPERIENCES: Final = 1000

FIXES: Final = {
    "visible": (
        'In the mode "visible" the browser counts: put {% personalize_scripts %} at the end of the page, include the '
        "package's URLs, and show the experience with {% experience %} where visitors see it"
    ),
    "render": "Run `manage.py moe_doctor`",
}
"""What to do about missing impressions, for the modes in which every shown experience should count."""


@dataclass(slots=True)
class _Rendered:
    """An experience that pages of this process have shown, and the number of these pages."""

    key: str
    name: str
    since: float
    pages: int = 0
    is_missing: bool = False


class Watchdog:
    """Compare the pages of one process that show an experience with its recorded impressions.

    ``clock`` is monotonic.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rendered: dict[str, _Rendered] = {}
        # By name, until when the other processes know about it; 0.0 if another process has recorded the impression.
        self._counted: dict[str, float] = {}
        self._published_until = 0.0
        self._check_delivery_at = self._clock() + DELIVERY_CHECK_SECONDS
        # The counts when an event was last known to be delivered, and the first check since then with new events.
        self._accepted = self._delivered = -1
        self._stalled_since = math.inf
        self._is_stalled = False

    def add_rendered_page(self, experiences: Iterable[Experience]) -> None:
        """Add a page that showed ``experiences`` to a visitor who may be counted."""
        for experience in experiences:
            key = experience.experience_key
            rendered = self._rendered.get(key)
            if rendered is None:
                if len(self._rendered) >= MAX_EXPERIENCES:
                    return
                rendered = _Rendered(key, _read_name(experience.experience_context), self._clock())
                self._rendered[key] = rendered
            # Without a lock: it doesn't matter if two threads count one page of a hundred too few.
            rendered.pages += 1
            if rendered.pages % RENDERED_PAGES == 0:
                self._check_experience(rendered)

    def add_recorded_events(self, events: Sequence[Event]) -> None:
        """Add events that the delivery has accepted."""
        now = self._clock()
        shown = [_read_name(event.attributes) for event in events if event.action is Action.SHOWN]
        if names := [name for name in shown if self._counted.get(name, 0.0) <= now]:
            shared = {build_key("counted", name): 1 for name in names}
            # If the background thread is busy, the next event tries again.
            is_accepted = get_background().offer(set_many, shared, timeout=COUNTED_SECONDS)
            self._counted.update(dict.fromkeys(names, now + COUNTED_SECONDS / 2 if is_accepted else now))
        if now >= self._check_delivery_at:
            self._check_delivery_at = now + DELIVERY_CHECK_SECONDS
            get_background().offer(self._check_delivery)

    def _check_experience(self, rendered: _Rendered) -> None:
        now = self._clock()
        if rendered.is_missing:
            if now >= self._published_until:
                get_background().offer(self._publish_notice)
        elif rendered.name not in self._counted and now - rendered.since >= RENDERED_SECONDS:
            get_background().offer(self._report_missing, rendered, rendered.pages)

    def _report_missing(self, rendered: _Rendered, pages: int) -> None:
        """Log that an experience has no impressions, unless another process has recorded one."""
        fix = FIXES.get(get_settings().impressions)
        if fix is None:
            return
        if get_many([build_key("counted", rendered.name)]):
            self._counted.setdefault(rendered.name, 0.0)
            return
        message = "%d pages showed the experience %r, but no impression of it was recorded. %s."
        logger.error(message, pages, rendered.key, fix)
        rendered.is_missing = True
        impressions_missing.send_robust(sender=Watchdog, experience_key=rendered.key, rendered=pages)
        self._publish_notice()

    def _check_delivery(self) -> None:
        """Find out whether an event was delivered since the last check."""
        try:
            counts = get_delivery().counts()
        finally:
            # An outbox was queried on a connection of the background thread, which Django doesn't close.
            connections.close_all()
        now, delivered = self._clock(), counts.delivered + counts.handed_over
        if delivered != self._delivered:
            self._accepted, self._delivered, self._stalled_since = counts.accepted, delivered, math.inf
            if self._is_stalled:
                self._is_stalled = False
                self._publish_notice()
        elif counts.accepted > self._accepted:
            self._stalled_since = min(self._stalled_since, now)
            if now - self._stalled_since >= STALLED_SECONDS:
                self._report_stall(counts.accepted - self._accepted, now - self._stalled_since)

    def _report_stall(self, count: int, seconds: float) -> None:
        if not self._is_stalled:
            self._is_stalled = True
            message = (
                "%d events were recorded in the last %d minutes, but none was delivered. Run `manage.py moe_doctor`. "
                "An outbox needs `manage.py moe_deliver --watch`, a queue needs its workers."
            )
            logger.error(message, count, seconds // 60)
            for rendered in list(self._rendered.values()):
                impressions_missing.send_robust(sender=Watchdog, experience_key=rendered.key, rendered=rendered.pages)
        self._publish_notice()

    def _publish_notice(self) -> None:
        """Tell the doctor what is missing now. A notice expires, so this runs again as long as something is missing."""
        self._published_until = self._clock() + NOTICE_SECONDS / 2
        missing = [shown for shown in list(self._rendered.values()) if shown.is_missing]
        missed = {shown.key: shown.pages for shown in missing if shown.name not in self._counted}
        put_up_notice(TOPIC, missed=missed, stalled=self._is_stalled)


def _read_name(context: Any) -> str:
    # An event has no experience key. It has the name that the dashboard shows.
    return str(context.get("experience", ""))


@part
def get_watchdog(runtime: Runtime) -> Watchdog:
    """Return the watchdog of this process."""
    return Watchdog()
