"""Deadline and backoff on a virtual clock."""

import pytest

from django_moe_personalize.resilience import Backoff, Deadline


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
