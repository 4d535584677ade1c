"""The watchdog: log an error if pages show an experience and no impression is recorded, or if no event is delivered.

A page only adds to counters. The checks run in the background thread, and each process logs each error once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from django.db import connections

from django_moe_personalize.conf import get_settings
from django_moe_personalize.delivery.base import DeliveryCounts, get_delivery
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
"""How long the other processes believe a process that it recorded an impression.

They have to, because all beacons of an experience may reach one process.
"""

MAX_EXPERIENCES: Final = 1000

FIXES: Final = {
    "visible": (
        'In the mode "visible" the browser counts: put {% personalize_scripts %} at the end of the page, include the '
        "package's URLs, and show the experience with {% experience %} where visitors see it"
    ),
    "render": "Run `manage.py moe_doctor`",
}
"""What to do about missing impressions, for the modes in which every shown experience should count."""


class _Rendered:
    """An experience that pages of this process have shown, and the number of these pages."""

    __slots__ = ("check_at", "key", "name", "pages", "since")

    def __init__(self, experience: Experience, now: float) -> None:
        self.key = experience.experience_key
        self.name = _read_name(experience.experience_context)
        self.pages = 0
        self.check_at = RENDERED_PAGES
        self.since = now


class Watchdog:
    """Compare the pages of one process that show an experience with its recorded impressions.

    ``clock`` is monotonic.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rendered: dict[str, _Rendered] = {}
        # By name, until when the other processes know about it; 0.0 if another process has recorded the impression.
        self._counted: dict[str, float] = {}
        self._missing: set[str] = set()
        self._published_until = 0.0
        self._check_delivery_at = self._clock() + DELIVERY_CHECK_SECONDS
        self._last_counts: DeliveryCounts | None = None
        self._stalled_since: float | None = None
        self._is_stalled = False

    def add_rendered_page(self, experiences: Iterable[Experience]) -> None:
        """Add a page that showed ``experiences`` to a visitor who may be counted."""
        for experience in experiences:
            rendered = self._rendered.get(experience.experience_key)
            if rendered is None:
                if len(self._rendered) >= MAX_EXPERIENCES:
                    return
                rendered = self._rendered[experience.experience_key] = _Rendered(experience, self._clock())
            # Without a lock: it doesn't matter if two threads count one page of a hundred too few.
            rendered.pages += 1
            if rendered.pages >= rendered.check_at:
                self._check_experience(rendered)

    def add_recorded_events(self, events: Sequence[Event]) -> None:
        """Add events that the delivery has accepted."""
        now = self._clock()
        shown = [_read_name(event.attributes) for event in events if event.action is Action.SHOWN]
        if names := [name for name in shown if self._counted.get(name, 0.0) <= now]:
            until = now + COUNTED_SECONDS / 2 if _run_in_background(_share_counted, names) else now
            self._counted.update(dict.fromkeys(names, until))
        if now >= self._check_delivery_at:
            self._check_delivery_at = now + DELIVERY_CHECK_SECONDS
            _run_in_background(self._check_delivery)

    def _check_experience(self, rendered: _Rendered) -> None:
        rendered.check_at = rendered.pages + RENDERED_PAGES
        now = self._clock()
        if rendered.key in self._missing:
            if now >= self._published_until:
                _run_in_background(self._publish_notice)
            return
        should_count = rendered.name not in self._counted and get_settings().impressions in FIXES
        if should_count and now - rendered.since >= RENDERED_SECONDS:
            _run_in_background(self._report_missing, rendered, rendered.pages)

    def _report_missing(self, rendered: _Rendered, pages: int) -> None:
        """Log that an experience has no impressions, unless another process has recorded one."""
        if get_many([_build_counted_key(rendered.name)]):
            self._counted.setdefault(rendered.name, 0.0)
            return
        message = "%d pages showed the experience %r, but no impression of it was recorded. %s."
        logger.error(message, pages, rendered.key, FIXES[get_settings().impressions])
        self._missing.add(rendered.key)
        impressions_missing.send_robust(sender=Watchdog, experience_key=rendered.key, rendered=pages)
        self._publish_notice()

    def _check_delivery(self) -> None:
        """Find out whether an event was delivered since the last check."""
        try:
            counts = get_delivery().counts()
        finally:
            # An outbox was queried on a connection of the background thread, which Django doesn't close.
            connections.close_all()
        last, now = self._last_counts, self._clock()
        if last is None or _count_delivered(counts) != _count_delivered(last):
            self._last_counts, self._stalled_since = counts, None
            if self._is_stalled:
                self._is_stalled = False
                self._publish_notice()
        elif counts.accepted > last.accepted and self._stalled_since is None:
            self._stalled_since = now
        elif self._stalled_since is not None and now - self._stalled_since >= STALLED_SECONDS:
            self._report_stall(counts.accepted - last.accepted, now - self._stalled_since)

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
        missing = [rendered for rendered in list(self._rendered.values()) if rendered.key in self._missing]
        missed = {rendered.key: rendered.pages for rendered in missing if rendered.name not in self._counted}
        put_up_notice(TOPIC, missed=missed, stalled=self._is_stalled)


def _count_delivered(counts: DeliveryCounts) -> int:
    return counts.delivered + counts.handed_over


def _read_name(context: Any) -> str:
    # An event has no experience key. It has the name that the dashboard shows.
    return str(context.get("experience", ""))


def _build_counted_key(name: str) -> str:
    return build_key("counted", name)


def _share_counted(names: Iterable[str]) -> None:
    """Tell the other processes that impressions of these experiences were recorded."""
    set_many({_build_counted_key(name): 1 for name in names}, timeout=COUNTED_SECONDS)


def _run_in_background(function: Callable[..., object], *args: object) -> bool:
    """Return whether the background thread accepted the work. If it is busy, a later page or event tries again."""
    return get_background().offer(function, *args)


@part
def get_watchdog(runtime: Runtime) -> Watchdog:
    """Return the watchdog of this process."""
    return Watchdog()
