"""P10: the outbox: SQL statements of a page, and events per second that two deliverers drain from PostgreSQL."""

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
    """Set up a site that writes its events to the outbox in ``database``."""
    site.configure(
        moe=site.build_moe(base_url, DELIVERY=DELIVERY, DEADLINE=5.0),
        DATABASES={"default": dict(database)},
    )


def measure(options: Options) -> Iterator[Figure]:
    """Count the statements of a page, then drain the recorded events."""
    from tests.services.databases import start_postgresql

    with start_upstream() as upstream, start_postgresql() as database:
        configure(upstream.url("at-once"), database)
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        yield count_statements()
        yield drain(upstream, database, events=options.pick(40_000, 10_000))


def count_statements() -> Figure:
    """Return the statements of a page that records three impressions, without those of its transaction."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    ours = site.Site([site.OURS])
    ours.check("/read_and_track/", PERSONAL, HTTP_X_VISITOR="visitor-1")
    with CaptureQueriesContext(connection) as queries:
        ours.check("/read_and_track/", PERSONAL, HTTP_X_VISITOR="visitor-1")
    verbs = [query["sql"].split(" ", 1)[0] for query in queries]
    statements = [verb for verb in verbs if verb not in ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE")]
    expect(set(statements) <= {"INSERT"}, f"the page does more than insert: {verbs}")
    return Figure(
        what=f"SQL statements of a page that records {len(pages.KEYS)} impressions",
        baseline=1,
        ours=len(statements),
        difference=len(statements),
        limit="<= 1",
        unit="INSERT",
        notes=[f"with those of its transaction: {', '.join(verbs)}"],
    )


def drain(upstream: Upstream, database: Mapping[str, Any], *, events: int) -> Figure:
    """Return the events per second that two processes deliver, from the first lease to the last row."""
    from django_moe_personalize.delivery.base import get_delivery
    from django_moe_personalize.delivery.database import DatabaseDelivery

    delivery = get_delivery()
    assert isinstance(delivery, DatabaseDelivery)
    delivery.flush(60.0)
    record(delivery, events)
    expect(delivery.counts().pending == events, "the outbox does not have all events")
    before = upstream.get_counts("at-once")["actions"]
    seconds = time_deliverers(json.dumps([upstream.url("at-once"), database]))
    arrived = upstream.get_counts("at-once")["actions"] - before
    expect(arrived == events, f"{arrived} of {events} events arrived")
    expect(not delivery.counts().pending, "the outbox still has events")
    return Figure(
        what=f"events/s drained from PostgreSQL by {DELIVERERS} deliverers",
        baseline=15_000,
        ours=events / seconds,
        difference=events / seconds,
        limit=">= 15000",
        unit="events/s",
        notes=[f"{events} events in {seconds:.1f} s, each arrived once"],
    )


def record(delivery: DatabaseDelivery, events: int) -> None:
    """Record ``events`` impressions, each of another customer."""
    from django_moe_personalize.moengage.types import Action, Event

    context = build_experience(KEYS[0])["experience_context"]
    for start in range(0, events, 1000):
        numbers = range(start, start + 1000)
        delivery.record([Event(Action.SHOWN, f"visitor-{number}", context, 1_700_000_000) for number in numbers])


def time_deliverers(described: str) -> float:
    """Return the seconds that two deliverer processes take, from ready to the end of both."""
    command = [sys.executable, "-m", "benchmarks.p10_outbox", "--deliver"]
    environ = {**os.environ, "BENCH_OUTBOX": described}
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
    """Run a deliverer process: set up, print "ready", wait for a line on stdin, drain the outbox."""
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
