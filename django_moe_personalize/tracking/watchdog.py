"""The alarm: experiences are shown and nobody counts them, which no page ever shows.

A page adds one to a number, and nothing more. What is looked at, said and shared happens beside
it, on the metadata's thread, and each thing is said once a process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from django.db import connections

from django_moe_personalize.conf import get_settings
from django_moe_personalize.delivery.base import DeliveryCounts, get_delivery
from django_moe_personalize.fetching import cache, upstream
from django_moe_personalize.fetching.shared import NOTICE_SECONDS, put_up_notice
from django_moe_personalize.log import logger
from django_moe_personalize.moengage.types import Action, Event, Experience
from django_moe_personalize.runtime import Runtime, part
from django_moe_personalize.signals import impressions_missing

TOPIC: Final = "alarm"
"""Under which a process tells the others of its site what it misses."""

RENDERED_PAGES: Final = 100
RENDERED_SECONDS: Final = 60.0
"""How many pages must have shown an experience, over how long, before it is missed that none was counted."""

STALLED_SECONDS: Final = 600.0
"""How long events may be recorded without one that leaves."""

LOOK_SECONDS: Final = 300.0
"""Between two looks at the delivery's counts, which with an outbox are a query."""

COUNTED_SECONDS: Final = 3600
"""How long a process is believed that it counted an experience: beacons may all come to another one."""

MAX_EXPERIENCES: Final = 1000

MENDS: Final = {
    "visible": (
        'In the mode "visible" the browser counts: put {% personalize_scripts %} at the end of the page, include the '
        "package's URLs, and let the experience stand in {% experience %} where it is seen"
    ),
    "render": "Run `manage.py moe_doctor`",
}
"""What to do, by the modes in which what is rendered is to be counted."""


class _Shown:
    """An experience that pages of this process have shown."""

    __slots__ = ("key", "look_at", "name", "pages", "since")

    def __init__(self, experience: Experience, now: float) -> None:
        self.key = experience.experience_key
        self.name = _read_name(experience.experience_context)
        self.pages = 0
        self.look_at: float = RENDERED_PAGES
        self.since = now


class Alarm:
    """Count pages that show an experience against the impressions recorded of it, in one process.

    ``clock`` is monotonic.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shown: dict[str, _Shown] = {}
        self._counted: dict[str, float] = {}
        self._missed: set[str] = set()
        self._told_until = 0.0
        self._look_at = self._clock() + LOOK_SECONDS
        self._known: DeliveryCounts | None = None
        self._stalled_since: float | None = None
        self._is_stalled = False

    def add_page(self, experiences: Iterable[Experience]) -> None:
        """Count a page that showed ``experiences`` to somebody who may be counted."""
        for experience in experiences:
            shown = self._shown.get(experience.experience_key)
            if shown is None:
                if len(self._shown) >= MAX_EXPERIENCES:
                    return
                shown = self._shown[experience.experience_key] = _Shown(experience, self._clock())
            # Not locked: one of a hundred may get lost between two threads.
            shown.pages += 1
            if shown.pages >= shown.look_at:
                self._suspect(shown)

    def add_events(self, events: Sequence[Event]) -> None:
        """Count what was handed to the delivery."""
        now = self._clock()
        shown = [_read_name(event.attributes) for event in events if event.action is Action.SHOWN]
        if names := [name for name in shown if self._counted.get(name, 0.0) <= now]:
            until = now + COUNTED_SECONDS / 2 if _run_beside(_share, names) else now
            self._counted.update(dict.fromkeys(names, until))
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            _run_beside(self._look_at_delivery)

    def _suspect(self, shown: _Shown) -> None:
        shown.look_at = shown.pages + RENDERED_PAGES
        now = self._clock()
        if shown.key in self._missed:
            if now >= self._told_until:
                _run_beside(self._put_up)
            return
        is_to_be_counted = shown.name not in self._counted and get_settings().impressions in MENDS
        if is_to_be_counted and now - shown.since >= RENDERED_SECONDS:
            _run_beside(self._miss, shown, shown.pages)

    def _miss(self, shown: _Shown, pages: int) -> None:
        """Say that an experience is not counted, if no other process has counted it either."""
        if cache.get_many([_build_name(shown.name)]):
            self._counted.setdefault(shown.name, 0.0)
            return
        message = "Experience %r was rendered on %d pages, and not one impression of it was recorded. %s."
        logger.error(message, shown.key, pages, MENDS[get_settings().impressions])
        self._missed.add(shown.key)
        impressions_missing.send_robust(sender=Alarm, experience_key=shown.key, rendered=pages)
        self._put_up()

    def _look_at_delivery(self) -> None:
        """Find out whether any event has left since the last one did."""
        try:
            counts = get_delivery().counts()
        finally:
            # The thread is ours, and so is the connection that an outbox was asked on.
            connections.close_all()
        known, now = self._known, self._clock()
        if known is None or _count_gone(counts) != _count_gone(known):
            self._known, self._stalled_since = counts, None
            if self._is_stalled:
                self._is_stalled = False
                self._put_up()
        elif counts.accepted > known.accepted and self._stalled_since is None:
            self._stalled_since = now
        elif self._stalled_since is not None and now - self._stalled_since >= STALLED_SECONDS:
            self._report_stall(counts.accepted - known.accepted, now - self._stalled_since)

    def _report_stall(self, count: int, seconds: float) -> None:
        if not self._is_stalled:
            self._is_stalled = True
            message = (
                "%d events were recorded in the last %d minutes and none was delivered. Run `manage.py moe_doctor`; "
                "an outbox needs `manage.py moe_deliver --watch`, a queue its workers."
            )
            logger.error(message, count, seconds // 60)
            for shown in list(self._shown.values()):
                impressions_missing.send_robust(sender=Alarm, experience_key=shown.key, rendered=shown.pages)
        self._put_up()

    def _put_up(self) -> None:
        """Tell the doctor what is missed as of now; again and again, for a notice does not last."""
        self._told_until = self._clock() + NOTICE_SECONDS / 2
        shown = [entry for entry in list(self._shown.values()) if entry.key in self._missed]
        missed = {entry.key: entry.pages for entry in shown if entry.name not in self._counted}
        put_up_notice(TOPIC, missed=missed, stalled=self._is_stalled)


def _count_gone(counts: DeliveryCounts) -> int:
    return counts.delivered + counts.handed_over


def _read_name(context: Any) -> str:
    # Events do not carry the key; the name is what the dashboard counts by.
    return str(context.get("experience", ""))


def _build_name(name: str) -> str:
    return cache.build_key("counted", name)


def _share(names: Iterable[str]) -> None:
    cache.set_many({_build_name(name): 1 for name in names}, timeout=COUNTED_SECONDS)


def _run_beside(function: Callable[..., object], *args: object) -> bool:
    """Return whether somebody was free. What is missing now is missing on the next hundred pages too."""
    return upstream.get_background().offer(function, *args)


@part
def get_watchdog(runtime: Runtime) -> Alarm:
    """Return the watchdog of this process."""
    return Alarm()
