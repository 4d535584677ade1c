"""CeleryDelivery on Redis and RabbitMQ: workers are killed while MoEngage fails, and every event counts once."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.services.brokers import Site, signal_group, start_rabbitmq
from tests.services.conftest import LONG, Extent
from tests.services.load import poll
from tests.services.serving import CREDENTIALS, START_SECONDS, find_free_port, start_redis, start_sandbox

FAULTS = {"error_rate": 0.3, "reset": 0.1}
"""At a reset the events are taken and the answer is lost: a retry must not count again."""

PAGES = 400
PUBLISH_SECONDS = 0.5
SLACK = 0.3
QUIET_SECONDS = 8.0
MAX_HELD = 6
"""Pages that may wait for a broker that hangs: two in a row, and then one now and then that asks whether it is back."""


@contextmanager
def redis() -> Iterator[tuple[str, Any]]:
    """Run Redis; give its URL and process."""
    port = find_free_port()
    with start_redis(port) as process:
        yield f"redis://127.0.0.1:{port}/0", process


@contextmanager
def rabbitmq() -> Iterator[tuple[str, Any]]:
    """Run RabbitMQ; give its URL and process."""
    port = find_free_port()
    with start_rabbitmq(port) as process:
        yield f"amqp://guest:guest@127.0.0.1:{port}//", process


BROKERS = pytest.mark.parametrize("start_broker", [redis, rabbitmq])


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[int]:
    """Run a sandbox whose ledger and faults are this test's own, and give its port."""
    with start_sandbox(tmp_path) as port:
        yield port


def ask_sandbox(port: int, path: str, **request: Any) -> dict[str, Any]:
    """Return what the sandbox's control path answers."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/_sandbox/{path}", **request)
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return json.load(answer)


def read_uuids(port: int) -> list[str]:
    """Return the UUID of each event that was counted."""
    return [entry["event_uuid"] for entry in ask_sandbox(port, "ledger")["entries"]]


def build_site(sandbox: int, broker: str, folder: Path, **options: Any) -> Site:
    """Return a site that delivers through the broker to the sandbox."""
    told = {"backoff": 0.2, "max_backoff": 1.0, **options}
    delivery = {"BACKEND": "django_moe_personalize.delivery.celery.CeleryDelivery", "OPTIONS": told}
    moe = {**CREDENTIALS, "BASE_URL": f"http://127.0.0.1:{sandbox}/v1", "DELIVERY": delivery}
    return Site(moe, broker, folder / "workers.log")


@pytest.mark.parametrize(
    ("start_broker", "share", "pauses"),
    [(rabbitmq, 0.5, (0.3, 0.9)), (redis, 0.5, (0.3, 0.9)), (redis, 1.0, (2.0, 3.0))],
    ids=["rabbitmq", "redis", "redis-whole"],
)
def test_killed_workers_and_a_failing_vendor_lose_nothing_and_count_nothing_twice(
    start_broker: Any,
    share: float,
    pauses: tuple[float, float],
    sandbox: int,
    tmp_path: Path,
    extent: Extent,
    tell: Callable[[str], None],
) -> None:
    """While 30 % of calls fail and answers are lost, workers are killed; the ledger has each event once in the end.

    ``share`` of them are killed whole, with what they have in hand, and the others lose one process. With long
    ``pauses`` they are hard at work when it happens, with short ones also starting.
    """
    pages, seconds = (10_000, 120.0) if extent is LONG else (1_000, 10.0)
    faults = json.dumps({**FAULTS, "seed": 1}).encode()
    ask_sandbox(sandbox, "faults", method="PUT", data=faults, headers={"Content-Type": "application/json"})
    draw, kills, whole = random.Random(1), 0, 0
    # A broker that is slow, as on a machine that has too much to do, is not what is tried here.
    options = {"recovery": 2.0, "publish_timeout": 10.0}
    with (
        start_broker() as (url, _),
        build_site(sandbox, url, tmp_path, **options).work() as worker,
        build_site(sandbox, url, tmp_path, **options).record(pages, seconds) as web,
    ):
        web.stdout.readline()
        while web.poll() is None and kills < pages // 125:
            time.sleep(draw.uniform(*pauses))
            kills += 1
            worker.revive()
            if draw.random() < share:
                whole += 1
                worker.kill()
                worker.start()
            else:
                worker.kill_one()
        report = json.loads(web.communicate(timeout=seconds + 30)[0])
        # However the last kill has left it.
        worker.kill()
        worker.start()
        ended = time.monotonic()
        wait_for_rest(sandbox, 2 * pages)
        waited = time.monotonic() - ended
        in_journal = poll(lambda: count_in_journal(url), lambda found: found == 0, QUIET_SECONDS)
    counted = read_uuids(sandbox)

    missing, twice = len(set(report["uuids"]) - set(counted)), len(counted) - len(set(counted))
    told = f"{len(counted)} events, {kills} kills, {whole} of whole workers: {missing} missing, {twice} counted twice"
    tell(f"{told}, {waited:.1f} s afterwards")
    assert (missing, twice, len(counted)) == (0, 0, 2 * pages)
    assert in_journal == 0
    assert report["counts"]["handed_over"] == report["counts"]["accepted"] == 2 * pages


def test_what_redis_gave_to_a_worker_that_is_killed_comes_again(
    sandbox: int, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """A message that was taken off the list, and that no worker has noted, is queued again by the next worker."""
    with redis() as (url, _):
        site = build_site(sandbox, url, tmp_path, recovery=1.0)
        with site.work() as worker, site.record(80, 10.0) as web:
            poll(lambda: len(read_uuids(sandbox)), lambda found: found >= 20, START_SECONDS)
            # It waits for a message: the next goes to it, and no further.
            signal_group(worker._process, signal.SIGSTOP)
            report = json.loads(web.communicate(timeout=60)[0].splitlines()[-1])
            before = len(read_uuids(sandbox)) // 2 + count_in_hands(url)
            worker.kill()
            worker.start()
            counted = poll(lambda: read_uuids(sandbox), lambda found: len(found) == 160, 4 * QUIET_SECONDS)
    missing = len(set(report["uuids"]) - set(counted))
    tell(f"80 pages: {80 - before} in nobody's hands when the worker was killed; {missing} events missing in the end")
    assert missing == 0
    assert len(counted) == 160


def count_in_hands(url: str) -> int:
    """Return how many messages Celery's Redis has, in the queue and with workers."""
    with Redis.from_url(url) as client:
        return int(client.llen("celery")) + int(client.hlen("unacked"))


def count_in_journal(url: str) -> int:
    """Return how many messages Redis has noted that no worker was done with."""
    if not url.startswith("redis:"):
        return 0
    with Redis.from_url(url) as client:
        return int(client.zcard("{moe_personalize.celery}.due"))


def wait_for_rest(sandbox: int, wanted: int) -> None:
    """Wait until all events have come, or none for longer than anything here waits for its next attempt."""
    before, count = -1, 0
    while before < count < wanted:
        before = count
        count = poll(lambda: len(read_uuids(sandbox)), lambda found: found >= wanted, QUIET_SECONDS)


@BROKERS
@pytest.mark.parametrize("trouble", ["killed", "hangs"])
def test_a_broker_that_is_not_there_holds_no_page_and_costs_no_event(
    start_broker: Any, trouble: str, sandbox: int, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """What it does not take the fallback delivers; a page that meets a broker that hangs is held for a moment."""
    fallback = {"BACKEND": "django_moe_personalize.delivery.thread.ThreadDelivery", "OPTIONS": {"exit_timeout": 10.0}}
    with start_broker() as (url, broker):
        site = build_site(sandbox, url, tmp_path, fallback=fallback, publish_timeout=PUBLISH_SECONDS)
        with site.record(PAGES, 6.0) as web:
            web.stdout.readline()
            signal_broker(broker, signal.SIGKILL if trouble == "killed" else signal.SIGSTOP)
            report = json.loads(web.communicate(timeout=60)[0])
    # The first has imported what Celery needs for this broker.
    held = sorted(report["held"][1:])
    counts = report["counts"]
    tell(f"pages held {held[PAGES // 2] * 1000:.1f} ms, {held[-1] * 1000:.0f} ms at most; {counts}")
    assert held[-1] < PUBLISH_SECONDS + SLACK
    assert sum(each > PUBLISH_SECONDS / 2 for each in held) <= MAX_HELD
    assert 100 <= counts["handed_over"] < 2 * PAGES
    assert counts["handed_over"] + counts["delivered"] == counts["accepted"] == 2 * PAGES
    assert len(set(read_uuids(sandbox))) == counts["delivered"]


def signal_broker(process: Any, number: int) -> None:
    """Signal a broker: all of RabbitMQ's processes, or the one of Redis, which shares the group of these tests."""
    if os.getpgid(process.pid) == process.pid:
        signal_group(process, number)
    else:
        process.send_signal(number)
