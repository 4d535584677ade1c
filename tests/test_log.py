"""The lines about outages: the start with its cause, and the end."""

import logging

import pytest

from django_moe_personalize.log import BURST, LASTING, REFILL, Outage, logger
from django_moe_personalize.runtime import Runtime, log_once
from tests.virtual_time import Clock

HOUR = 3600


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def outage(clock):
    return Outage("Calls fail", "Calls work again", part="calls", clock=clock)


def read(caplog):
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def test_start_cause_and_end(outage, clock, caplog):
    """The log has one line for the start and one for the end, at one level, which Python shows by default."""
    for number in range(500):
        outage.fail(f"timeout {number}", "Do this.")
        outage.skip()
        clock.now += 0.1
    outage.end()
    outage.end()
    assert read(caplog) == [
        (logging.WARNING, "Calls fail (timeout 0). Do this."),
        (logging.WARNING, "Calls work again after 50 s (500 failed, 500 not made)."),
    ]


def test_fields_of_an_outage(outage, clock, caplog):
    """For structured logs, each line of an outage has the facts of its text as fields."""
    for cause, advice in (("500", "Wait."), ("401", "Check it.")):
        outage.fail(cause, advice)
        clock.now += 1.5
    outage.skip()
    outage.end()
    start = {"moe_part": "calls", "moe_workspace": "default", "moe_hidden": 0}
    assert [{name: value for name, value in vars(r).items() if name.startswith("moe_")} for r in caplog.records] == [
        {**start, "moe_event": "outage_start", "moe_cause": "500", "moe_fix": "Wait."},
        {**start, "moe_event": "outage_cause", "moe_cause": "401", "moe_fix": "Check it."},
        {
            "moe_event": "outage_end",
            "moe_part": "calls",
            "moe_workspace": "default",
            "moe_seconds": 3.0,
            "moe_failed": 2,
            "moe_not_made": 1,
        },
    ]


def test_each_outage_tells_its_cause(outage, clock, caplog):
    """A second outage has lines of its own, with its own counts. A long outage is told in minutes."""
    for cause in ("timeout", "refused"):
        outage.fail(cause, "Do this.")
        clock.now += HOUR
        outage.end()
    start, end = "Calls fail (%s). Do this.", "Calls work again after 60 minutes (1 failed)."
    assert [text for _, text in read(caplog)] == [start % "timeout", end, start % "refused", end]


def test_another_cause_within_an_outage(outage, caplog):
    """A cause that needs another fix is told once. The end has the level of the last cause."""
    for cause, advice, level in [("500", "Wait.", 30), ("401", "Check it.", 40), ("503", "Wait.", 30)] * 3:
        outage.fail(cause, advice, level)
    outage.end()
    assert read(caplog) == [
        (30, "Calls fail (500). Wait."),
        (40, "Calls fail for another reason (401). Check it."),
        (40, "Calls work again after 0 s (9 failed)."),
    ]


def test_outage_that_comes_and_goes(outage, clock, caplog):
    """Of outages every ten seconds, the first are logged, and later few. Their lines count the others."""
    for _ in range(HOUR // 10):
        outage.fail("timeout", "Do this.")
        clock.now += 5
        outage.end()
        clock.now += 5
    lines = [text for _, text in read(caplog)]
    first = ["Calls fail (timeout). Do this.", "Calls work again after 5 s (1 failed)."] * BURST
    assert lines[: len(first)] == first
    assert lines[len(first)] == "Calls fail (timeout). Do this. 9 short failures before this one weren't logged."
    assert HOUR / REFILL < len(lines) / 2 <= BURST + HOUR / REFILL


def test_long_outage_after_short_outages(outage, clock, caplog):
    """While short outages aren't logged, an outage that lasts is logged, with its start and its end."""
    for _ in range(20):
        outage.fail("short", "Do this.")
        outage.end()
    assert len(caplog.records) == 2 * BURST
    outage.fail("long", "Do this.")
    clock.now += LASTING
    outage.fail("long", "Do this.")
    outage.end()
    assert [text for _, text in read(caplog)][2 * BURST :] == [
        "Calls fail (long). Do this. 17 short failures before this one weren't logged.",
        "Calls work again after 30 s (2 failed).",
    ]


def test_fields_of_every_line(caplog):
    """Each line names its workspace, also in a thread of this workspace. A line of its own kind is a notice."""
    log_once("mistake", "A mistake.")
    with Runtime("outlet").use():
        logger.error("An error.")
    found = [(record.moe_event, record.moe_workspace) for record in caplog.records]
    assert found == [("notice", "default"), ("notice", "outlet")]
