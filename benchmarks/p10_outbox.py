"""P10: the outbox: statements a page, and events a second that two deliverers drain from PostgreSQL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from benchmarks import pages, site
from benchmarks.goal import Figure, Options, expect, run
from benchmarks.pages import PERSONAL
from benchmarks.upstream import KEYS, Upstream, build_experience, start_upstream, stop

if TYPE_CHECKING:
    from django_moe_personalize.delivery.database import DatabaseDelivery

DELIVERY = {"BACKEND": "django_moe_personalize.delivery.database.DatabaseDelivery"}
DELIVERERS = 2


def configure(base_url: str, database: Mapping[str, Any]) -> None:
    """Set up a site whose events go to the outbox in ``database``."""
    site.configure(
        moe=site.build_moe(base_url, DELIVERY=DELIVERY, DEADLINE=5.0),
        DATABASES={"default": dict(database)},
    )


def measure(options: Options) -> Iterator[Figure]:
    """Count a page's statements, then drain what was recorded."""
    from tests.services.databases import start_postgresql

    with start_upstream() as upstream, start_postgresql() as database:
        configure(upstream.url("at-once"), database)
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        yield count_statements()
        yield drain(upstream, database, events=options.pick(40_000, 10_000))


def count_statements() -> Figure:
    """Return the statements of a page that counts three impressions, beside the frame of its savepoint."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    ours = site.Site([site.OURS])
    ours.check("/read_and_track/", PERSONAL, HTTP_X_VISITOR="visitor-1")
    with CaptureQueriesContext(connection) as queries:
        ours.check("/read_and_track/", PERSONAL, HTTP_X_VISITOR="visitor-1")
    said = [query["sql"].split(" ", 1)[0] for query in queries]
    statements = [word for word in said if word not in ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE")]
    expect(set(statements) <= {"INSERT"}, f"a page does more than insert: {said}")
    return Figure(
        what=f"statements of a page that counts {len(pages.KEYS)} impressions",
        baseline=1,
        ours=len(statements),
        difference=len(statements),
        limit="<= 1",
        unit="INSERT",
        notes=[f"with its transaction: {', '.join(said)}"],
    )


def drain(upstream: Upstream, database: Mapping[str, Any], *, events: int) -> Figure:
    """Return the events a second that two processes hand over, from the first lease to the last row."""
    from django_moe_personalize.delivery.base import get_delivery
    from django_moe_personalize.delivery.database import DatabaseDelivery

    delivery = get_delivery()
    assert isinstance(delivery, DatabaseDelivery)
    delivery.flush(60.0)
    record(delivery, events)
    expect(delivery.counts().pending == events, "not every event is in the outbox")
    before = upstream.get_counts("at-once")["actions"]
    seconds = time_deliverers(json.dumps([upstream.url("at-once"), database]))
    arrived = upstream.get_counts("at-once")["actions"] - before
    expect(arrived == events, f"{arrived} of {events} events arrived")
    expect(not delivery.counts().pending, "events are left in the outbox")
    return Figure(
        what=f"events/s drained from PostgreSQL by {DELIVERERS} deliverers",
        baseline=5000,
        ours=events / seconds,
        difference=events / seconds,
        limit=">= 5000",
        unit="events/s",
        notes=[f"{events} events in {seconds:.1f} s, every one arrived once"],
    )


def record(delivery: DatabaseDelivery, events: int) -> None:
    """Record impressions of as many customers."""
    from django_moe_personalize.moengage.types import Action, Event

    context = build_experience(KEYS[0])["experience_context"]
    for start in range(0, events, 1000):
        numbers = range(start, start + 1000)
        delivery.record([Event(Action.SHOWN, f"visitor-{number}", context, 1_700_000_000) for number in numbers])


def time_deliverers(told: str) -> float:
    """Return the seconds that two processes, ready to go, take until both have ended."""
    command = [sys.executable, "-m", "benchmarks.p10_outbox", "--deliver"]
    environ = {**os.environ, "BENCH_OUTBOX": told}
    with ExitStack() as stack:
        deliverers = []
        for _ in range(DELIVERERS):
            process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.callback(stop, process)
            deliverers.append(process)
        for process in deliverers:
            assert process.stdout is not None
            expect(process.stdout.readline() == b"ready\n", "a deliverer did not start")
        started = time.perf_counter()
        for process in deliverers:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        for process in deliverers:
            expect(process.wait(200) == 0, "a deliverer failed")
        return time.perf_counter() - started


def deliver() -> None:
    """Be a deliverer: set up, say so, and drain when told to."""
    base_url, database = json.loads(os.environ["BENCH_OUTBOX"])
    configure(base_url, database)
    from django.db import connection

    from django_moe_personalize.delivery.base import get_delivery

    delivery = get_delivery()
    connection.ensure_connection()
    print("ready", flush=True)
    sys.stdin.readline()
    delivery.flush()


if __name__ == "__main__":
    if "--deliver" in sys.argv:
        deliver()
    else:
        run("P10", measure)
