"""CeleryDelivery: a page publishes one message, a worker delivers it, and a failing broker holds up no page."""

import importlib.util
import json
import socket
import time
from datetime import datetime
from importlib import reload

import celery
import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Reject
from celery.signals import setup_logging

from django_moe_personalize import tasks
from django_moe_personalize.delivery import celery as ours
from django_moe_personalize.delivery import queued
from django_moe_personalize.delivery.base import DeliveryCounts
from django_moe_personalize.delivery.celery import OUTBOX_TASK, TASK, deliver
from django_moe_personalize.delivery.queued import Message
from tests.delivery.events import backend, make_events, messages, uuids
from tests.delivery.vendor import SOON

QUICK = 0.3  # The publish timeout in tests of a broker that hangs.


def take_out(app):
    """Return text, whole message, and seconds until it is due of each message, and empty the queue."""
    found = []
    with app.connection_for_read("memory://") as connection:
        channel = connection.channel()
        app.amqp.queues["celery"].bind(channel).declare()
        while message := channel.basic_get("celery", no_ack=True):
            (text, *_), _, _ = json.loads(message.body)
            due = message.headers["eta"]
            wait = datetime.fromisoformat(due).timestamp() - time.time() if due else 0.0
            found.append((text, message, wait))
    return found


@pytest.fixture
def site(monkeypatch):
    """Make a site's Celery with a queue in memory the current app."""
    app = Celery("site", broker="memory://", set_as_current=False)
    app.conf.broker_connection_retry_on_startup = True
    monkeypatch.setattr(celery._state, "default_app", app)
    # A worker in this process makes its app the current one of this thread.
    monkeypatch.setattr(celery._state._tls, "current_app", None)

    def leave_logging_alone(**kwargs):
        """Receive Celery's signal, so that a worker doesn't configure the logging of this process."""

    setup_logging.connect(leave_logging_alone)
    take_out(app)
    yield app
    setup_logging.disconnect(leave_logging_alone)
    take_out(app)


@pytest.fixture
def delivery(configure, site):
    return configure("celery.CeleryDelivery", backoff=1e-6, max_backoff=1e-6, pause=1e-6)


@pytest.fixture(params=["amqp", "redis"])
def silent_broker(request):
    """Give the URL of a broker that accepts connections and never sends a byte."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"{request.param}://127.0.0.1:{listener.getsockname()[1]}//"


@pytest.fixture
def dead_broker():
    with socket.socket() as bound:
        # Bound but not listening, so no other process gets this port.
        bound.bind(("127.0.0.1", 0))
        yield f"amqp://127.0.0.1:{bound.getsockname()[1]}//"


def test_a_page_is_one_message(delivery, site):
    """All events of a page travel together as JSON, and count as handed over."""
    events = make_events(3)
    delivery.record(events)
    ((text, message, wait),) = take_out(site)
    assert Message.read(text) == Message(events)
    assert (message.content_type, message.headers["task"], wait) == ("application/json", TASK, 0.0)
    assert message.headers["ignore_result"] is True
    # Celery writes these into its log and events.
    assert (message.headers["argsrepr"], message.headers["kwargsrepr"]) == ("(…)", "{}")
    assert delivery.counts() == DeliveryCounts(accepted=3, handed_over=3)


def test_connections_are_kept_and_closed(delivery, site):
    """All pages use one connection. Closing the delivery closes it."""
    for _ in range(3):
        delivery.record(make_events(1))
    (connection,) = delivery._idle
    assert connection.connected
    delivery.close()
    assert not delivery._idle
    assert not connection.connected
    assert len(take_out(site)) == 3


def test_a_worker_of_the_site_delivers_the_pages_events(delivery, site, vendor):
    """From the page through a worker to MoEngage, with retries: each event arrives once."""
    events = make_events(20)
    vendor.failures = [500, 503]
    with start_worker(site, perform_ping_check=False, loglevel="ERROR"):
        for start in range(0, 20, 2):
            delivery.record(events[start : start + 2])
        assert vendor.wait_for(lambda vendor: len(vendor.taken) == 20)
    assert vendor.taken == dict.fromkeys(uuids(events), 1)
    counts = delivery.counts()
    # Page and worker are one process here, which counts handed over events as accepted again.
    assert (counts.accepted - counts.handed_over, counts.delivered, counts.pending) == (20, 20, 0)


def test_a_retry_waits_in_the_queue(configure, site, vendor):
    """The worker publishes the failed events with the time at which they are due."""
    configure("celery.CeleryDelivery", max_backoff=300.0)
    vendor.status, vendor.headers = 429, {"Retry-After": "120"}
    deliver(Message(make_events(1)).write())
    ((text, _, wait),) = take_out(site)
    assert Message.read(text).attempts == 1
    assert 115 < wait <= 120


def test_the_broker_keeps_a_message_whose_retry_it_does_not_accept(configure, site, dead_broker, vendor, monkeypatch):
    """The worker rejects the message, so the broker delivers it again. The fallback stays out of it."""
    monkeypatch.setattr(ours, "_REJECT_SECONDS", 0.0)
    delivery = configure("celery.CeleryDelivery", fallback=backend("dummy.DummyDelivery"))
    site.conf.broker_url = dead_broker
    vendor.status = 500
    with pytest.raises(Reject) as caught:
        deliver(Message(make_events(2)).write())
    assert caught.value.requeue is True
    assert delivery.counts() == DeliveryCounts(accepted=2, handed_over=2)


def test_a_killed_worker_leaves_its_message_unacknowledged(site):
    """Autodiscovery alone registers the task, which acknowledges a message after the work."""
    site.autodiscover_tasks(["django_moe_personalize"], force=True)
    task = site.tasks[TASK]
    assert (task.acks_late, task.reject_on_worker_lost, task.acks_on_failure_or_timeout) == (True, True, False)
    assert task.ignore_result


def test_eager_tasks_are_delivered_in_place(delivery, site, vendor):
    """With task_always_eager, as in a site's tests, the page itself sends the events, and doesn't retry."""
    site.conf.task_always_eager = True
    delivery.record(make_events(2))
    assert delivery.counts() == DeliveryCounts(accepted=2, delivered=2)
    vendor.status = 500
    delivery.record(make_events(3))
    assert delivery.counts() == DeliveryCounts(accepted=5, delivered=2, dropped={"failed": 3})


@pytest.mark.django_db
@pytest.mark.parametrize("name", [OUTBOX_TASK, "django_moe_personalize.tasks.deliver_outbox"])
def test_celery_drains_the_outbox(configure, site, vendor, name):
    """A schedule may name the task by its name or by its import path. Both names drain the outbox."""
    site.conf.task_always_eager = True
    delivery = configure("database.DatabaseDelivery")
    delivery.record(make_events(3))
    task = site.tasks[name]
    assert task.ignore_result
    assert task.apply_async(kwargs={"max_seconds": 5.0}).get() == vendor.taken.total() == 3
    delivery.record(make_events(2))
    assert tasks.deliver_outbox() == 2


def test_the_tasks_are_there_without_celery(monkeypatch):
    """Without Celery, other task queues can import the module ``tasks`` and run deliver_outbox()."""
    with monkeypatch.context() as context:
        context.delattr(tasks, "deliver")
        context.setattr(importlib.util, "find_spec", lambda name: None)
        reload(tasks)
        assert not hasattr(tasks, "deliver")
        assert tasks.deliver_outbox is queued.deliver_outbox
        assert tasks.deliver_outbox.enqueue is queued.enqueue
    reload(tasks)
    assert tasks.deliver is deliver


def test_a_dead_broker_costs_events_and_no_time(delivery, site, dead_broker, caplog):
    """Pages skip the broker after two failures. Later one page publishes a probe. The log has both changes."""
    caplog.set_level("INFO", "django_moe_personalize")
    site.conf.broker_url = dead_broker
    for _ in range(5):
        delivery.record(make_events(2))
    assert delivery._breaker.state == "open"
    assert delivery.counts() == DeliveryCounts(accepted=10, dropped={"broker": 10})
    site.conf.broker_url = "memory://"
    delivery._breaker._until = 0.0
    delivery.record(make_events(1))
    assert delivery.counts().handed_over == len(take_out(site)) == 1
    assert delivery._breaker.state == "closed"
    (level, start), end = messages(caplog)
    cause = "The queue doesn't accept events (OperationalError). Until it works, events are dropped."
    assert (level, start.startswith(cause)) == ("ERROR", True)
    assert end == ("ERROR", "The queue accepts events again after 0 s (5 failed).")


def test_a_broker_that_hangs_holds_up_two_pages(configure, site, silent_broker):
    """Each of the two pages waits for at most publish_timeout. Later pages skip the broker."""
    delivery = configure("celery.CeleryDelivery", publish_timeout=QUICK)
    site.conf.broker_url = silent_broker
    seconds = []
    for _ in range(9):
        start = time.monotonic()
        delivery.record(make_events(1))
        seconds.append(time.monotonic() - start)
    assert all(QUICK / 2 < each < SOON for each in seconds[:2])
    # Most of them: on a busy machine any page may be slow.
    assert sorted(seconds[2:])[4] < QUICK / 2
    assert delivery.counts().dropped == {"broker": 9}


def test_dead_idle_connections_cost_nothing(delivery, site, dead_broker):
    """The page closes the dead connections and publishes on a new connection."""
    for _ in range(2):
        connection = Celery(broker=dead_broker, set_as_current=False).connection_for_write()
        connection.transport_options = {"max_retries": 0}
        delivery._idle.append(connection)
    delivery.record(make_events(2))
    assert delivery.counts() == DeliveryCounts(accepted=2, handed_over=2)
    assert len(delivery._idle) == 1


def test_a_page_waits_for_one_connection_only(configure, site, silent_broker):
    """If an idle connection hangs, the page doesn't wait for a new connection as well."""
    delivery = configure("celery.CeleryDelivery", publish_timeout=QUICK)
    site.conf.broker_url, working = silent_broker, site.conf.broker_url
    delivery._idle.append(delivery._connect())
    site.conf.broker_url = working
    delivery.record(make_events(2))
    assert delivery.counts() == DeliveryCounts(accepted=2, dropped={"broker": 2})
