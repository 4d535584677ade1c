"""The outbox on real databases: each committed event arrives once, whichever processes are killed."""

import re
import time
from collections import Counter
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from tests.services.brokers import redis
from tests.services.conftest import LONG
from tests.services.databases import STARTS, Database, start_postgresql
from tests.services.outbox import RECORD, Site, run_experiment
from tests.services.serving import start_sandbox

EVENTS = 5_000
LONG_EVENTS = 100_000
DELIVERERS = 4

# Prints how many rows another deliverer can lease while one holds its locks.
LOOK = """
import threading
from django.db import connection, transaction
from django_moe_personalize.delivery.outbox import Outbox
locks = connection.features.has_select_for_update
def find():
    due = Outbox().due.order_by("due_at").values_list("pk", "body", "attempts")
    return due.select_for_update(skip_locked=locks)
def look():
    with transaction.atomic():
        Outbox().follow_index()
        seen.append(len(find()))
    connection.close()
seen = []
with transaction.atomic():
    Outbox().follow_index()
    print(find()[:100].explain())
    assert len(find()[:100]) == 100
    if locks:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
print(*seen)
"""

# Each test loads the machine for a while: one of pytest's processes runs them one after the other.
pytestmark = [pytest.mark.xdist_group("outbox"), pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", params=STARTS)
def database(request):
    with STARTS[request.param]() as database:
        yield database


@pytest.fixture
def site(database, vendor, tmp_path):
    """Return a site with an empty outbox."""
    return build_site(database, tmp_path, vendor.url, {"lease": 60.0, "timeout": 10.0})


def build_site(database: Database, *told: Any) -> Site:
    """Return a site with an empty outbox."""
    site = Site(database, *told)
    site.manage("migrate", "--verbosity", "0")
    site.manage("flush", "--no-input", "--verbosity", "0")
    return site


def test_deliverers_side_by_side_send_each_event_once(site, vendor, tell):
    """4 processes that start together share the work. None sends the rows that another one has leased."""
    site.manage("-c", RECORD.format(count=2000))
    vendor.delay = 0.02
    start = time.monotonic()
    deliverers = [site.start_deliverer() for _ in range(DELIVERERS)]
    said = [process.communicate()[0] for process in deliverers]
    seconds = time.monotonic() - start
    shares = [int(re.search(r"(\d+) events delivered", each)[1]) for each in said]
    tell(f"{site.database['ENGINE'].rpartition('.')[2]}: 2,000 events in {seconds:.1f} s, shares {sorted(shares)}")
    assert [process.returncode for process in deliverers] == [0] * DELIVERERS
    assert sum(shares) == 2000
    assert Counter(vendor.taken.values()) == {1: 2000}
    assert sum(share > 0 for share in shares) > 1
    counts = site.count()
    assert (counts["accepted"], counts["delivered"], counts["pending"]) == (2000, 2000, 0)


def test_one_poison_event_among_100_is_parked_alone(site, vendor):
    """99 are delivered. One is parked with MoEngage's reason, and sent again by --replay."""
    site.manage("-c", RECORD.format(count=100))
    find = "from django_moe_personalize.models import OutboxEvent as E; "
    vendor.poison = {site.manage("-c", find + "print(E.objects.order_by('pk')[37].event_uuid)").strip()}
    assert "99 events delivered, 1 refused and parked, 0 pending." in site.manage("moe_deliver")
    parked = site.manage("-c", find + "print(*[f'{e.event_uuid} {e.reason}' for e in E.objects.all()], sep=chr(10))")
    assert parked.strip() == f"{min(vendor.poison)} ResponseError: MoEngage answered 400: Invalid Field Value no"
    assert site.count()["dropped"] == {"refused": 1}
    vendor.poison = set()
    assert "1 parked events are due again.\n1 events delivered" in site.manage("moe_deliver", "--replay")
    assert site.count() == {"accepted": 100, "delivered": 100, "dropped": {}, "pending": 0, "handed_over": 0}


@pytest.mark.parametrize("count", [2000, 20_000])
def test_a_lease_follows_the_index(site, count):
    """For a batch the database neither sorts nor locks all rows, though it hasn't analyzed the table yet."""
    site.manage("-c", RECORD.format(count=count))
    *lines, others = site.manage("-c", LOOK).split("\n")[:-1]
    plan = " ".join(lines)
    assert "moe_outbox_due" in plan
    assert not re.search(r"\bsort|filesort|temp b-tree", plan, re.IGNORECASE), plan
    # SQLite has no locks on rows.
    assert others in ("", str(count - 100))


def test_erasing_finds_the_customer_alone(site):
    """Databases compare text differently, but erase() finds exactly one customer."""
    erase = "from django_moe_personalize.delivery.base import get_delivery; print(get_delivery().erase({!r}))"
    site.manage("-c", RECORD.format(count=20).replace("str(number)", "'aA ßs'[number % 5] * 2"))
    assert [site.manage("-c", erase.format(name)).strip() for name in ("aa", "ss", "ßß", "nobody")] == [
        "4",
        "4",
        "4",
        "0",
    ]
    counts = site.count()
    assert (counts["accepted"], counts["dropped"], counts["pending"]) == (20, {"erased": 12}, 8)


def test_failing_insert_costs_the_page_only_its_events(site, sandbox):
    """With ATOMIC_REQUESTS the page is a 200 with its own row. The next event outside a transaction adds the loss."""
    rename = "from django.db import connection as c; c.cursor().execute('ALTER TABLE {} RENAME TO {}')"
    table = "moe_personalize_outboxevent"
    with (
        site.serve(f"http://127.0.0.1:{sandbox}/v1", workers=1, threads=1) as server,
        closing(server.connect()) as visitor,
    ):
        site.manage("-c", rename.format(table, "away"))
        pages = [visitor.get(path, "ann") for path in ("/in-transaction/?name=first", "/page/")]
        site.manage("-c", rename.format("away", table))
        pages += [visitor.get(path, "ann") for path in ("/in-transaction/?name=second", "/page/")]
    assert [(page.status, page.body) for page in pages if len(page.body) == 1] == [(200, "1"), (200, "2")]
    assert (pages[1].status, "From the sandbox" in pages[1].body) == (200, True)
    counts = site.count()
    assert (counts["accepted"], counts["dropped"], counts["pending"]) == (8, {"error": 4}, 4)


def test_no_event_is_missing_or_counted_twice(database, sandbox, tmp_path, tell, extent):
    """Web workers and ``moe_deliver`` are killed at random and MoEngage fails: each event of a page arrives once."""
    every = (1.0, 3.0) if extent is LONG else (0.5, 2.0)
    name = f"{database['ENGINE'].rpartition('.')[2]}, moe_deliver"
    check(database, sandbox, tmp_path, extent, tell, name=name, every=every, deliver=Site.watch)


def test_celery_on_redis_misses_no_event_and_counts_none_twice(sandbox, tmp_path, tell, extent):
    """Celery's workers run ``deliver_outbox`` for its beat, with Redis as the broker. Killing them loses no event."""
    every = (2.0, 5.0) if extent is LONG else (1.0, 3.0)
    with start_postgresql() as database, redis() as (url, _):
        deliver = partial(Site.watch_with_celery, broker=url)
        name = "postgresql, celery on redis"
        check(database, sandbox, tmp_path, extent, tell, name=name, every=every, deliver=deliver)
    assert "Traceback" not in (tmp_path / "celery.log").read_text()


def check(database, sandbox, folder, extent, tell, *, name, every, deliver):
    """Run the experiment. Compare the recorded events with a failing sandbox's and with the counters of the outbox."""
    wanted = LONG_EVENTS if extent is LONG else EVENTS
    vendor_folder = folder / "vendor"
    vendor_folder.mkdir()
    with start_sandbox(vendor_folder) as port:
        site = build_site(database, folder, f"http://127.0.0.1:{port}/v1")
        pages_from = f"http://127.0.0.1:{sandbox}/v1"
        result = run_experiment(site, port, pages_from, wanted, deliverers=deliver(site), every=every)
    missing, twice = set(result.recorded) - result.arrived, result.counted - len(result.arrived)
    tell(f"{name}: {result.describe()}; {len(missing)} missing, {twice} counted twice")
    counts = result.counts
    assert len(result.recorded) == len(set(result.recorded)) >= wanted
    assert (len(missing), twice) == (0, 0)
    assert min(result.during, result.conversions, result.killed_workers, result.killed_deliverers) > 0
    assert (counts["pending"], counts["dropped"]) == (0, {})
    assert counts["accepted"] == counts["delivered"] == result.counted
