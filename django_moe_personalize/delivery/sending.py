"""One attempt to send events to MoEngage, without the events of customers who withdrew consent."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Final

from django_moe_personalize.client import MissingDataKeyError, get_client, get_data_client
from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.exceptions import AuthenticationError, RateLimitedError, ResponseError
from django_moe_personalize.fetching.shared import build_key, get_many, set_many
from django_moe_personalize.moengage.clock import VendorClock
from django_moe_personalize.moengage.types import MAX_ELEMENTS, Event
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import Runtime

MAX_BODY_BYTES = 90_000
"""The estimated size of one call; MoEngage's limit is 100 to 128 KB (contract §7)."""

MARK_SECONDS: Final = 7 * 24 * 60 * 60
"""How long a mark lasts. Events wait longer only in the outbox, and the outbox deletes them without a mark."""

MAX_SKEW: Final = 5
"""The seconds by which the clocks of the site's machines may differ."""

_MAX_EVENTS: Final = 600
"""More events than this never fit into one call: the smallest event takes 160 bytes."""

_REFUSALS = frozenset({400, 413, 422})


@dataclass(slots=True)
class Outcome:
    """The result of one attempt, for each of its events.

    MoEngage will never accept ``refused`` events; each has its error. The caller may send ``kept`` events again with
    the same UUIDs. ``error`` stopped the attempt of impressions and clicks, and ``data_error`` that of conversions,
    which go to another API. ``withdrawn`` events belong to customers who withdrew consent. ``skew`` is how many seconds
    this machine's clock is ahead of MoEngage's clock.
    """

    delivered: list[Event] = field(default_factory=list)
    refused: list[tuple[Event, Exception]] = field(default_factory=list)
    kept: list[Event] = field(default_factory=list)
    withdrawn: list[Event] = field(default_factory=list)
    error: Exception | None = None
    data_error: Exception | None = None
    skew: float = 0.0

    @property
    def failure(self) -> Exception | None:
        """The error of the attempt. If both APIs failed, the error of impressions and clicks."""
        return self.error or self.data_error

    @property
    def wrong_credentials(self) -> bool:
        """Whether no retry can help until someone corrects WORKSPACE_ID, API_KEY, DATA_API_KEY or DATA_CENTER."""
        return has_wrong_credentials(self.failure)

    @property
    def retry_after(self) -> float:
        """The seconds that MoEngage asked us to wait before the next call, or 0.0."""
        return read_retry_after(self.failure)

    def stop(self, events: Sequence[Event], error: Exception) -> None:
        """Keep ``events``, and end the calls to their API."""
        if events[0].is_conversion:
            self.data_error = error
        else:
            self.error = error
        self.kept += events

    def find_error(self, event: Event) -> Exception | None:
        """Return the error that stopped the attempt of a kept event."""
        return self.data_error if event.is_conversion else self.error


def has_wrong_credentials(error: Exception | None) -> bool:
    """Return whether no retry can help until someone corrects the settings."""
    return isinstance(error, (AuthenticationError, ConfigurationError)) or _is_unknown_workspace(error)


def read_retry_after(error: Exception | None) -> float:
    """Return the seconds that MoEngage asked us to wait before the next call, or 0.0."""
    return (error.retry_after or 0.0) if isinstance(error, RateLimitedError) else 0.0


def count_fitting(events: Iterable[Event], *, max_customers: int = MAX_ELEMENTS) -> int:
    """Return how many events, counted from the first, fit into one call (contract §4). The first event always fits."""
    # Without a loop, an event takes 20 bytecodes instead of 40.
    first = [*islice(events, _MAX_EVENTS)]
    sizes = [event.size for event in first]
    if len(first) <= max_customers and sum(sizes) <= MAX_BODY_BYTES:
        return len(first)
    number = bisect_right([*accumulate(sizes)], MAX_BODY_BYTES)
    customers = [*dict.fromkeys([event.customer_id for event in first[:number]])]
    if len(customers) > max_customers:
        number = next(place for place, event in enumerate(first) if event.customer_id == customers[max_customers])
    return number or len(first[:1])


def send(
    events: Sequence[Event], *, timeout: float, until: Deadline | None = None, runtime: Runtime | None = None
) -> Outcome:
    """Send events to MoEngage in as few calls as the contract allows. Never raises.

    A call takes at most ``timeout`` seconds and never ends after ``until``. If MoEngage refuses a batch, send() halves
    the batch until each bad event is alone, so that the good events arrive (contract §4). Another failure ends the
    calls to the same API. The Data API takes the conversions of one customer in a call (contract §8).
    """
    outcome, clock = Outcome(), VendorClock()
    parts = _split(events) if events else []
    is_first_refusal = True
    while parts:
        part = parts.pop()
        if outcome.find_error(part[0]) is not None:
            outcome.kept += part
            continue
        number = count_fitting(part)
        part, rest = part[:number], part[number:]
        parts += [rest] if rest else []
        try:
            client = (get_data_client if part[0].is_conversion else get_client)(runtime)
            clock = client.clock
            client.send_events(part, deadline=_limit(timeout, until))
        except Exception as error:
            is_refusal = _is_refusal(error)
            if is_refusal and is_first_refusal and any(event.event_time > clock.now() for event in part):
                # The response may have shown that this machine's clock is wrong. Send the events with other times.
                parts.append(part)
            else:
                parts += _sort_out(part, error, outcome)
            is_first_refusal = is_first_refusal and not is_refusal
        else:
            outcome.delivered += part
    outcome.skew = clock.skew
    return outcome


def _sort_out(part: Sequence[Event], error: Exception, outcome: Outcome) -> Sequence[Sequence[Event]]:
    """Put the events of a failed call into ``outcome``, or return the halves to send instead."""
    is_refusal = _is_refusal(error)
    if is_refusal and len(part) > 1:
        middle = len(part) // 2
        return [part[middle:], part[:middle]]
    if is_refusal or isinstance(error, MissingDataKeyError):
        # Without DATA_API_KEY, the outbox parks the events, so that they can be sent after the key is set.
        outcome.refused += [(event, error) for event in part]
        return ()
    outcome.stop(part, error)
    return ()


def _split(events: Sequence[Event]) -> list[Sequence[Event]]:
    """Return the impressions and clicks, and the conversions of each customer. The last part comes first."""
    conversions: dict[str, list[Event]] = {}
    for event in events:
        if event.is_conversion:
            conversions.setdefault(event.customer_id, []).append(event)
    if not conversions:
        return [events]
    others = [event for event in events if not event.is_conversion]
    return [*reversed(conversions.values()), *([others] if others else [])]


def _limit(timeout: float, until: Deadline | None) -> Deadline:
    left = until.remaining() if until else None
    return Deadline(timeout if left is None else min(timeout, left))


def _is_refusal(error: Exception) -> bool:
    """Whether the events cause the error. An event that JSON can't express raises ValueError or TypeError.

    Without DATA_API_KEY conversions count as refused: the outbox parks them, and can send them after the key is set.
    """
    if isinstance(error, ResponseError):
        return error.status in _REFUSALS and not _is_unknown_workspace(error)
    return isinstance(error, (TypeError, ValueError, MissingDataKeyError))


def _is_unknown_workspace(error: Exception | None) -> bool:
    """Whether the error is a 400 because of the MOE-APPKEY header, and not because of the events (contract §1)."""
    return isinstance(error, ResponseError) and error.status == 400 and error.title == "Request Error"


def mark_withdrawal(customer_id: str) -> bool:
    """Stop all events that the customer caused up to now. Return whether the cache stored the mark.

    Events wait in the memory of other processes and in queues, out of this process's reach. So this process leaves a
    mark in the site's cache, and every process looks for marks before it sends events. Later events are sent.
    """
    return set_many({build_key("withdrawn", customer_id): int(time.time())}, timeout=MARK_SECONDS)


def split_withdrawn(events: Sequence[Event]) -> tuple[Sequence[Event], Sequence[Event]]:
    """Return the events to send, and the events whose customers withdrew consent later. Uses one trip to the cache.

    If the cache fails, no event counts as withdrawn.
    """
    names = {customer: build_key("withdrawn", customer) for customer in {event.customer_id for event in events}}
    marks = get_many(names.values())
    if not marks:
        return events, ()
    kept: list[Event] = []
    withdrawn: list[Event] = []
    for event in events:
        mark = marks.get(names[event.customer_id])
        # A time in the future: the clock was wrong when the event was recorded, maybe before the withdrawal.
        is_early = isinstance(mark, int) and not mark + MAX_SKEW < event.event_time <= time.time() + MAX_SKEW
        (withdrawn if is_early else kept).append(event)
    return kept, withdrawn
