"""CeleryDelivery on Redis and RabbitMQ: what a killed worker loses, and what a failing broker costs a page."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.services.brokers import CelerySite, rabbitmq, redis
from tests.services.conftest import LONG
from tests.services.load import poll
from tests.services.serving import CREDENTIALS, ask_sandbox, signal_group

FAULTS = {"error_rate": 0.3, "reset": 0.1}
"""At a reset the sandbox has counted the events and the response is lost: a retry must not count again."""

PAGES = 400
PUBLISH_SECONDS = 0.5
SLACK = 5.0
"""Seconds by which a busy machine may hold up a page. A page that waits without a limit takes until the test ends."""

QUIET_SECONDS = 8.0
MAX_HELD = 20
"""Pages that may wait for a broker that hangs: two in a row, probes now and then, and some on a busy machine."""

# Redis: unacknowledged messages of a killed worker come back soon. By default this takes an hour.
RECOVER_SOON = {
    "visibility_timeout": 3,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    "unacked_mutex_expire": 1,
}


def read_uuids(port: int) -> list[str]:
    return [entry["event_uuid"] for entry in ask_sandbox(port, "ledger")["entries"]]


def build_site(sandbox: int, broker: str, folder: Path, **options: Any) -> CelerySite:
    """Return a site that delivers through the broker to the sandbox."""
    told = {"backoff": 0.2, "max_backoff": 1.0, **options}
    delivery = {"BACKEND": "django_moe_personalize.delivery.celery.CeleryDelivery", "OPTIONS": told}
    moe = {**CREDENTIALS, "BASE_URL": f"http://127.0.0.1:{sandbox}/v1", "DELIVERY": delivery}
    transport = RECOVER_SOON if broker.startswith("redis") else {}
    return CelerySite(moe, broker, folder / "workers.log", **transport)


@pytest.mark.timeout(900)  # The long form takes three minutes, on a busy machine seven.
@pytest.mark.parametrize(
    ("start_broker", "share", "pauses"),
    [(rabbitmq, 0.5, (0.3, 0.9)), (redis, 0.5, (0.3, 0.9)), (redis, 1.0, (2.0, 3.0))],
    ids=["rabbitmq", "redis", "redis-whole"],
)
def test_killed_workers_lose_what_the_broker_has_forgotten_and_no_more(
    start_broker, share, pauses, own_sandbox, tmp_path, extent, tell
):
    """Workers are killed, 30 % of the calls fail and responses are lost. No event is counted twice.

    On RabbitMQ no event is lost. On Redis each killed worker loses at most one message, of two events. The test
    kills a ``share`` of the workers as a whole, and one process of the others. After long ``pauses`` the workers are
    at work when it happens, after short ones some of them are starting.
    """
    pages, seconds = (10_000, 120.0) if extent is LONG else (1_000, 10.0)
    ask_sandbox(own_sandbox, "faults", {**FAULTS, "seed": 1})
    draw, kills = random.Random(1), 0
    # A slow broker on a busy machine is not the subject of this test.
    options = {"publish_timeout": 10.0}
    with (
        start_broker() as (url, _),
        build_site(own_sandbox, url, tmp_path, **options).work() as worker,
        build_site(own_sandbox, url, tmp_path, **options).record(pages, seconds) as web,
    ):
        web.stdout.readline()
        while web.poll() is None and kills < pages // 125:
            time.sleep(draw.uniform(*pauses))
            kills += 1
            worker.revive()
            if draw.random() < share:
                worker.restart()
            else:
                worker.kill_one()
        report = json.loads(web.communicate(timeout=seconds + 30)[0])
        # The last kill may have left it broken.
        worker.restart()
        worker.wait_until_ready()
        ended = time.monotonic()
        wait_for_rest(own_sandbox, 2 * pages)
        waited = time.monotonic() - ended
    counted = read_uuids(own_sandbox)

    missing, twice = len(set(report["uuids"]) - set(counted)), len(counted) - len(set(counted))
    told = f"{2 * pages} events, {kills} kills, {worker.kills} of whole workers"
    tell(f"{told}: {missing} missing, {twice} counted twice, {waited:.1f} s afterwards")
    assert twice == 0
    assert missing <= (0 if start_broker is rabbitmq else 2 * worker.kills)
    assert set(counted) <= set(report["uuids"])
    assert report["counts"]["handed_over"] == report["counts"]["accepted"] == 2 * pages


def wait_for_rest(sandbox: int, wanted: int) -> None:
    """Wait until all events have arrived, or until no further event arrives for longer than any retry waits."""
    before, count = -1, 0
    while before < count < wanted:
        before = count
        count = poll(lambda: len(read_uuids(sandbox)), lambda found: found >= wanted, QUIET_SECONDS)


@pytest.mark.parametrize("start_broker", [redis, rabbitmq])
@pytest.mark.parametrize("trouble", ["killed", "hangs"])
def test_a_failing_broker_holds_up_no_page_and_costs_no_event(start_broker, trouble, own_sandbox, tmp_path, tell):
    """The fallback delivers the events. Only a few pages wait for a broker that hangs, and only for a moment."""
    fallback = {"BACKEND": "django_moe_personalize.delivery.thread.ThreadDelivery", "OPTIONS": {"exit_timeout": 10.0}}
    with start_broker() as (url, broker):
        site = build_site(own_sandbox, url, tmp_path, fallback=fallback, publish_timeout=PUBLISH_SECONDS)
        with site.record(PAGES, 6.0) as web:
            web.stdout.readline()
            signal_group(broker, signal.SIGKILL if trouble == "killed" else signal.SIGSTOP)
            report = json.loads(web.communicate(timeout=60)[0])
    # The first page imports Celery's modules for this broker.
    held = sorted(report["held"][1:])
    counts = report["counts"]
    tell(f"pages held {held[PAGES // 2] * 1000:.1f} ms, {held[-1] * 1000:.0f} ms at most; {counts}")
    assert held[-1] < PUBLISH_SECONDS + SLACK
    assert sum(each > 0.9 * PUBLISH_SECONDS for each in held) <= MAX_HELD
    assert 100 <= counts["handed_over"] < 2 * PAGES
    assert counts["handed_over"] + counts["delivered"] == counts["accepted"] == 2 * PAGES
    assert len(set(read_uuids(own_sandbox))) == counts["delivered"]
