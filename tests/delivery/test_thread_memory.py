"""The memory of the thread delivery: its limits, and the events that move into it."""

import pytest

from django_moe_personalize.delivery import thread
from django_moe_personalize.delivery.base import DeliveryCounts
from tests.delivery.events import make_event, make_events
from tests.delivery.vendor import SOON


def test_memory_is_limited_too(build):
    """Few large events reach the limit of bytes, and delivered events free their bytes."""
    large = [make_event(note="x" * 10_000) for _ in range(5)]
    delivery = build(max_bytes=3 * large[0].size)
    for _ in range(2):
        delivery.record(large)
        assert delivery.flush(SOON).pending == 0
    assert delivery.counts() == DeliveryCounts(accepted=10, delivered=6, dropped={"overflow": 4})


def test_event_that_does_not_fit_costs_no_other_event(build):
    """The events before and after a large event are delivered."""
    delivery = build(max_bytes=10_000)
    for events in (make_events(2), [make_event(note="x" * 20_000)], make_events(3)):
        delivery.record(events)
    assert delivery.flush(SOON) == DeliveryCounts(accepted=6, delivered=5, dropped={"overflow": 1})


def test_memory_has_little_beyond_its_limit(build, monkeypatch):
    """While events move into a full memory, the JSON of few of them exists."""
    built = []
    delivery = build(max_events=1)
    monkeypatch.setattr(delivery, "_append", lambda events, sizes: built.append(len(sizes)))
    for _ in range(50):
        delivery._recorded.append(make_events(10))
    delivery.counts()
    assert (sum(built), max(built)) == (500, thread.MAX_BUILT)


def test_interrupt_costs_no_event_that_was_built(build):
    """Ctrl-C may come while the thread that reads the counters builds events."""

    class Interrupting(list):
        def __iter__(self):
            raise KeyboardInterrupt

    delivery = build()
    delivery._recorded.extend([make_events(3), Interrupting([1])])
    with pytest.raises(KeyboardInterrupt):
        delivery.counts()
    assert delivery.flush(SOON) == DeliveryCounts(accepted=3, delivered=3)
