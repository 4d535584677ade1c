"""P9: recording one impression, against Segment's ``track`` and PostHog's ``capture``; sending in batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from benchmarks import site
from benchmarks.goal import Figure, Options, expect, run
from benchmarks.timing import alternate, describe
from benchmarks.upstream import KEYS, Upstream, build_experience, start_upstream

CALLS = 50
"""Events in a block: less than a batch, so that no sender is timed here (P14 does that)."""

BATCH = 100


def build_recorder() -> Callable[[], None]:
    """Return a function that does a page's work for one impression, from the experience to the delivery."""
    from django_moe_personalize import tracking
    from django_moe_personalize.moengage.client import read_experience

    experience = read_experience(KEYS[0], build_experience(KEYS[0]))

    def record() -> None:
        tracker = tracking.PageTracker("visitor-1")
        tracker.show(experience)
        tracking.record(tracker.take(shown=True))

    return record


def build_peers(upstream: Upstream) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """Return a function of each peer that records one event with the same content, and the clients to flush."""
    import posthog
    from segment.analytics import Client

    logging.getLogger("posthog").setLevel(logging.CRITICAL)
    context = build_experience(KEYS[0])["experience_context"]
    segment = Client("key", host=upstream.sink)
    hog = posthog.Posthog("key", host=upstream.sink)
    contenders: dict[str, Callable[[], object]] = {
        "Segment": lambda: segment.track("visitor-1", "Experience shown", context),
        "PostHog": lambda: hog.capture("Experience shown", distinct_id="visitor-1", properties=context),
    }
    return contenders, {"Segment": segment, "PostHog": hog}


def measure(options: Options) -> Iterator[Figure]:
    """Measure the work of the page, then the work of the sender."""
    with start_upstream() as upstream:
        site.configure(moe=site.build_moe(upstream.url("at-once")))
        yield from measure_recording(upstream, rounds=options.pick(200, 60))
        yield measure_batches(upstream, rounds=options.pick(30, 10))


def measure_recording(upstream: Upstream, *, rounds: int) -> Iterator[Figure]:
    """Return the time one event costs the page while the senders run, against each peer."""
    from django_moe_personalize.delivery.base import get_delivery

    delivery = get_delivery()
    peers, clients = build_peers(upstream)
    record = build_recorder()
    flush = {"ours": lambda: delivery.flush(5.0), **{name: clients[name].flush for name in peers}}

    def settle(name: str, calls: int) -> None:
        flush[name]()

    found = alternate({"ours": record, **peers}, rounds=rounds, calls=CALLS, after=settle)
    counts = delivery.counts()
    expect(counts.delivered == (rounds + 1) * CALLS, f"not all impressions were delivered: {counts}")
    for peer, limit in (("Segment", "<= 0.15"), ("PostHog", "<= 0.05")):
        ratios = found.ratio("ours", peer)
        yield Figure(
            what=f"time to record one impression / one event of {peer}",
            baseline=found.median(peer) * 1e6,
            ours=found.median("ours") * 1e6,
            ratio=median(ratios),
            limit=limit,
            unit="µs",
            notes=[describe(ratios)],
            profile=lambda: [record() for _ in range(5000)],
        )


def measure_batches(upstream: Upstream, *, rounds: int) -> Figure:
    """Return the events per second that are sent in batches, against events sent one by one."""
    from django_moe_personalize.delivery.sending import send
    from django_moe_personalize.moengage.client import read_experience
    from django_moe_personalize.moengage.types import Action, Event

    # Read from the wire, as in a page.
    context = read_experience(KEYS[0], build_experience(KEYS[0])).experience_context

    def build(number: int) -> list[Event]:
        events = [Event(Action.SHOWN, f"visitor-{place}", context, 1_700_000_000) for place in range(number)]
        # A delivery serializes each event when it is recorded. That is the page's work, measured above.
        expect(all(event.size == len(event.element) for event in events), "an event can't be serialized")
        return events

    def deliver(events: list[Event]) -> None:
        outcome = send(events, timeout=5.0)
        expect(len(outcome.delivered) == len(events), f"an attempt ended with {outcome.error}")

    one, many = build(1), build(BATCH)
    found = alternate({"one": lambda: deliver(one), "batch": lambda: deliver(many)}, rounds=rounds, calls=20)
    ratios = found.compute(lambda of: BATCH * of["one"] / of["batch"])
    return Figure(
        what=f"events/s delivered in batches of {BATCH} / one by one, upstream at-once",
        baseline=1 / found.median("one"),
        ours=BATCH / found.median("batch"),
        ratio=median(ratios),
        limit=">= 90",
        unit="events/s",
        notes=[describe(ratios, 1), "each event of another customer"],
        profile=lambda: [deliver(many) for _ in range(200)],
    )


if __name__ == "__main__":
    run("P9", measure)
