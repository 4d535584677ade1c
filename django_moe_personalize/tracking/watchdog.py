"""Log an error if pages show an experience but no impression is recorded, or if no event is delivered.

In the mode "web_sdk" the watchdog counts the pages that waited for MoEngage's Web SDK in vain.

A page only adds to counters. A background thread runs the checks, and each process logs each error once.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.db import connections

from django_moe_personalize.conf import get_settings
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.fetching.shared import NOTICE_SECONDS, build_key, get_many, put_up_notice, set_many
from django_moe_personalize.fetching.upstream import get_background
from django_moe_personalize.log import logger
from django_moe_personalize.moengage.types import Action, Event, Experience
from django_moe_personalize.runtime import Runtime, log_once, part
from django_moe_personalize.signals import impressions_missing
from django_moe_personalize.visitor.newcomers import get_newcomers

TOPIC: Final = "watchdog"
NEWCOMERS_TOPIC: Final = "newcomers"
WEB_SDK_TOPIC: Final = "web-sdk"
"""The topics of the notices for ``moe_doctor``: missing impressions, new anonymous ids, pages without the Web SDK."""

RENDERED_PAGES: Final = 100
RENDERED_SECONDS: Final = 60.0
"""The watchdog reports an experience without an impression only after so many pages and so many seconds. It checks
the experiences once in this time."""

NEWCOMERS_SECONDS: Final = 900.0
WEB_SDK_SECONDS: Final = 60.0
"""The time between two notices of a process about new anonymous ids, and about pages without the Web SDK."""

WEB_SDK_PAGES: Final = 10
"""From this number on, pages without the Web SDK are an error in the log. An ad blocker may cause single ones."""

WEB_SDK_FIX: Final = (
    "Check that the template has MoEngage's loader, that IMPRESSIONS is right, and that the Content-Security-Policy "
    "allows the scripts of cdn.moengage.com. If only some visitors are affected, their ad blocker is the reason."
)

STALLED_SECONDS: Final = 600.0
"""The time without a delivered event after which the watchdog logs an error."""

DELIVERY_CHECK_SECONDS: Final = 300.0
"""The time between two checks of the delivery's counters. With an outbox each check is a query."""

COUNTED_SECONDS: Final = 3600
"""Seconds for which the cache tells other processes about an impression. All beacons may reach one process."""

MAX_EXPERIENCES: Final = 1000

FIXES: Final = {
    "visible": (
        'In the mode "visible" the browser counts: put {% personalize_scripts %} at the end of the page, include the '
        "package's URLs, and show the experience with {% experience %} where visitors see it"
    ),
    "render": "Run `manage.py moe_doctor`",
}
"""How to fix missing impressions, by the mode in IMPRESSIONS. In the other modes, a page may count no impression."""


@dataclass(slots=True)
class _Rendered:
    """An experience that pages of this process have shown."""

    key: str
    name: str
    since: float
    is_missing: bool = False


@dataclass(slots=True)
class _Pages:
    """The number of pages that showed the same experiences, and until when other processes know their impressions."""

    count: int = 0
    known_until: float = 0.0


class Watchdog:
    """Compare the pages of one process that show an experience with the recorded impressions of the experience."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rendered: dict[str, _Rendered] = {}
        self._pages: dict[tuple[str, ...], _Pages] = {}
        self._check_rendered_at = self._clock() + RENDERED_SECONDS
        # The time until which other processes know about an impression, by the name of its experience. The time is 0.0
        # if another process recorded the impression.
        self._counted: dict[str, float] = {}
        self._published_until = 0.0
        # In its first minute a process has few new ids.
        self._publish_newcomers_at = self._clock() + 60.0
        self._check_delivery_at = self._clock() + DELIVERY_CHECK_SECONDS
        # The counters when a check last found a delivered event.
        self._accepted = self._delivered = -1
        # The time of the first check after that check. Infinity: there was no check after it.
        self._stalled_since = math.inf
        self._is_stalled = False
        # The pages without the Web SDK in the current hour, the end of the hour, and the time of the next notice.
        self._without_sdk, self._hour_ends_at, self._publish_sdk_at = 0, 0.0, 0.0

    def add_rendered_page(self, experiences: Mapping[str, Experience]) -> None:
        """Count a page that showed ``experiences``, by key. Its visitor allows tracking and has an id."""
        self._add_page(experiences, self._clock())

    def add_recorded_events(self, events: Sequence[Event]) -> None:
        """Note the impressions among ``events``, which the delivery has accepted."""
        now = self._clock()
        shown: Mapping[str, Experience] | None = getattr(events, "shown", None)  # of Impressions
        if shown is not None:
            pages = self._add_page(shown, now)
            if pages.known_until <= now:
                contexts = [experience.experience_context for experience in shown.values()]
                # The events aren't read here, because the delivery's thread builds them.
                pages.known_until = self._report_counted(filter(None, contexts), now)
        else:
            self._report_counted((event.attributes for event in events if event.action is Action.SHOWN), now)
        if now >= self._check_delivery_at:
            self._check_delivery_at = now + DELIVERY_CHECK_SECONDS
            get_background().offer(self._check_delivery)

    def _add_page(self, experiences: Mapping[str, Experience], now: float) -> _Pages:
        try:
            # Most pages show the experiences of an earlier page, and need no more than this look-up.
            pages = self._pages[tuple(experiences)]
        except KeyError:
            pages = self._add_keys(experiences, now)
        # No lock: if two threads add at the same time, one page may not be counted. This is harmless.
        pages.count += 1
        if now >= self._check_rendered_at:
            # If the background thread is busy, the next page tries again.
            is_accepted = get_background().offer(self._check_rendered)
            self._check_rendered_at = now + RENDERED_SECONDS if is_accepted else now
        return pages

    def _report_counted(self, contexts: Iterable[Mapping[str, Any]], now: float) -> float:
        """Tell the other processes about impressions with these contexts, and return until when they know."""
        names = {*map(_read_name, contexts)}
        if due := [name for name in names if self._counted.get(name, 0.0) <= now]:
            shared = {build_key("counted", name): 1 for name in due}
            # If the background thread is busy, the next impression tries again.
            is_accepted = get_background().offer(set_many, shared, timeout=COUNTED_SECONDS)
            self._counted.update(dict.fromkeys(due, now + COUNTED_SECONDS / 2 if is_accepted else now))
        return min((self._counted[name] for name in names), default=now)

    def _add_keys(self, experiences: Mapping[str, Experience], now: float) -> _Pages:
        for key, experience in experiences.items():
            if key not in self._rendered and len(self._rendered) < MAX_EXPERIENCES:
                self._rendered[key] = _Rendered(key, _read_name(experience.experience_context), now)
        if len(self._pages) >= MAX_EXPERIENCES:
            # Code may show the experiences in endless orders. So add up the pages of each experience.
            self._pages = {(key,): _Pages(count) for key, count in self._count_pages().items() if key in self._rendered}
        return self._pages.setdefault(tuple(experiences), _Pages())

    def _count_pages(self) -> Counter[str]:
        """Return how many pages showed each experience."""
        pages = Counter[str]()
        for keys, shown in list(self._pages.items()):
            pages.update(dict.fromkeys(keys, shown.count))
        return pages

    def add_new_id(self, anonymous_id: str) -> None:
        """Note an anonymous id that a page gives to a browser. Its visitor isn't known to be a robot."""
        get_newcomers().add_given(anonymous_id)
        now = self._clock()
        if now >= self._publish_newcomers_at:
            self._publish_newcomers_at = now + NEWCOMERS_SECONDS
            get_background().offer(put_up_notice, NEWCOMERS_TOPIC, **get_newcomers().describe())

    def add_page_without_sdk(self) -> None:
        """Count a page that waited for MoEngage's Web SDK in vain. Any visitor can report such a page."""
        now = self._clock()
        if now >= self._hour_ends_at:
            self._without_sdk, self._hour_ends_at = 0, now + NOTICE_SECONDS
        self._without_sdk += 1
        if self._without_sdk == WEB_SDK_PAGES:
            message = "%d pages waited for MoEngage's Web SDK, but it never came, so they counted nothing. %s"
            log_once("web_sdk", message, WEB_SDK_PAGES, WEB_SDK_FIX, level=logging.ERROR)
        if now >= self._publish_sdk_at:
            self._publish_sdk_at = now + WEB_SDK_SECONDS
            get_background().offer(put_up_notice, WEB_SDK_TOPIC, pages=self._without_sdk)

    def _check_rendered(self) -> None:
        """Find the experiences that many pages showed and that have no impression."""
        now, pages = self._clock(), self._count_pages()
        for rendered in list(self._rendered.values()):
            is_due = pages[rendered.key] >= RENDERED_PAGES and now - rendered.since >= RENDERED_SECONDS
            if is_due and not rendered.is_missing and rendered.name not in self._counted:
                self._report_missing(rendered, pages[rendered.key])
        if now >= self._published_until and any(rendered.is_missing for rendered in list(self._rendered.values())):
            self._publish_notice()

    def _report_missing(self, rendered: _Rendered, pages: int) -> None:
        """Log that an experience has no impressions, unless another process has recorded an impression."""
        fix = FIXES.get(get_settings().impressions)
        if fix is None:
            return
        if get_many([build_key("counted", rendered.name)]):
            self._counted.setdefault(rendered.name, 0.0)
            return
        message = "%d pages showed the experience %r, but no impression of it was recorded. %s."
        fields = {"moe_event": "impressions_missing", "moe_experience_key": rendered.key, "moe_count": pages}
        logger.error(message, pages, rendered.key, fix, extra=fields)
        rendered.is_missing = True
        impressions_missing.send_robust(sender=Watchdog, experience_key=rendered.key, rendered=pages)
        self._publish_notice()

    def _check_delivery(self) -> None:
        """Find out whether an event was delivered since the last check."""
        try:
            counts = get_delivery().counts()
        finally:
            # counts() of an outbox opens a database connection in this background thread. Django doesn't close it.
            connections.close_all()
        now, delivered = self._clock(), counts.delivered + counts.handed_over
        if delivered != self._delivered:
            self._accepted, self._delivered, self._stalled_since = counts.accepted, delivered, math.inf
            if self._is_stalled:
                self._is_stalled = False
                logger.error("Recorded events are delivered again.", extra={"moe_event": "stall_end"})
                self._publish_notice()
        else:
            # A check runs only after new events, so the delivery has accepted events since the last check.
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
            fields = {"moe_event": "stall_start", "moe_count": count, "moe_seconds": seconds}
            logger.error(message, count, seconds // 60, extra=fields)
            pages = self._count_pages()
            for key in list(self._rendered):
                impressions_missing.send_robust(sender=Watchdog, experience_key=key, rendered=pages[key])
        self._publish_notice()

    def _publish_notice(self) -> None:
        """Tell ``moe_doctor`` what is missing now. The notice expires, so call this again while events are missing."""
        self._published_until = self._clock() + NOTICE_SECONDS / 2
        missing = [shown for shown in list(self._rendered.values()) if shown.is_missing]
        pages = self._count_pages()
        missed = {shown.key: pages[shown.key] for shown in missing if shown.name not in self._counted}
        put_up_notice(TOPIC, missed=missed, stalled=self._is_stalled)


def _read_name(context: Any) -> str:
    # An event has no experience key. It has the name of the experience in the dashboard.
    return str(context.get("experience", ""))


@part
def get_watchdog(runtime: Runtime) -> Watchdog:
    """Return the watchdog of this process."""
    return Watchdog()
