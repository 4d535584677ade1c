"""Deadline, backoff and the sliding count on a virtual clock."""

import pytest

from django_moe_personalize.resilience import Backoff, Deadline, SlidingCount


def test_deadline_counts_down_to_zero(clock):
    """The remaining time follows the clock and is never negative."""
    deadline = Deadline(2.0, clock=clock)
    for seconds, remaining, expired in ((0.0, 2.0, False), (1.5, 0.5, False), (9.0, 0.0, True)):
        clock.now += seconds
        assert (deadline.remaining(), deadline.expired) == (remaining, expired)


def test_no_deadline_never_expires():
    """A deadline of None leaves unlimited time."""
    assert Deadline(None).remaining() is None
    assert not Deadline(None).expired


@pytest.mark.parametrize(("attempt", "ceiling"), [(0, 0.5), (1, 1.0), (3, 4.0), (7, 60.0), (10_000, 60.0)])
def test_backoff_doubles_up_to_the_maximum(attempt, ceiling):
    """The wait lies between 0 and a ceiling that doubles up to the maximum."""
    assert Backoff(draw=lambda: 1.0).delay(attempt) == ceiling
    assert Backoff(draw=lambda: 0.0).delay(attempt) == 0.0
    assert 0.0 <= Backoff().delay(attempt) <= ceiling


def test_sliding_count_covers_the_last_seconds_and_one_slot_more():
    """An event counts for the whole time, and for at most one slot longer."""
    count = SlidingCount(10.0, slots=5)
    count.add(1.9)
    count.add(2.0, 5)
    assert [count.total(now) for now in (11.9, 12.0, 13.9, 14.0)] == [6, 5, 5, 0]


def test_sliding_count_keeps_one_number_for_each_slot():
    """More events take no more memory. After a silence all old numbers go at once."""
    count = SlidingCount(10.0)
    for moment in range(10_000):
        count.add(moment / 100)
    assert (count.total(100.0), len(count._counts)) == (1000, 10)
    count.add(10_000.0)
    assert (count.total(10_000.0), len(count._counts)) == (1, 1)
    count.clear()
    assert count.total(10_000.0) == 0
