"""CeleryDelivery: a page is one message, a worker delivers it once, and a broker that fails holds no page."""

import json
import logging
import socket
import sys
import time
from datetime import datetime
from importlib import reload

import celery
import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Reject
from celery.signals import setup_logging
from django.core.management import call_command

from django_moe_personalize import tasks
from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.delivery import celery as ours
from django_moe_personalize.delivery import queued
from django_moe_personalize.delivery.base import DeliveryCounts, get_delivery
from django_moe_personalize.delivery.celery import TASK, deliver
from django_moe_personalize.delivery.dummy import DummyDelivery
from django_moe_personalize.delivery.links import Link
from django_moe_personalize.delivery.queued import Message
from tests.delivery_vendor import SOON
from tests.test_delivery import backend, heard, make_events, messages, vendor  # noqa: F401 - fixtures among them
from tests.processes import in_child

NAME = "celery.CeleryDelivery"
QUICK = 0.3
"""Seconds in which a page is over though it met a broker that does not answer."""


class Site:
    """A site's Celery with a queue in memory, which the test empties as a worker would."""

    def __init__(self):
        self.app = Celery("site", broker="memory://", set_as_current=False)
        self.app.conf.broker_connection_retry_on_startup = True

    def take_out(self):
        """Return of each message in the queue its text, the whole of it, and the seconds until it is due."""
        found = []
        with self.app.connection_for_read("memory://") as connection:
            channel = connection.channel()
            self.app.amqp.queues["celery"].bind(channel).declare()
            while message := channel.basic_get("celery", no_ack=True):
                (text,), _, _ = json.loads(message.body)
                due = message.headers["eta"]
                wait = datetime.fromisoformat(due).timestamp() - time.time() if due else 0.0
                found.append((text, message, wait))
        return found


def leave_logging_alone(**kwargs):
    """Receive the signal before which a worker configures logging: a receiver is asked to do it instead."""


@pytest.fixture
def site(monkeypatch):
    """Make Celery's current app that of a site, with nothing in its queue."""
    site = Site()
    monkeypatch.setattr(celery._state, "default_app", site.app)
    # A worker in this process makes its app the current one of this thread as well.
    monkeypatch.setattr(celery._state._tls, "current_app", None)
    # Nor is this process's logging the worker's to configure.
    setup_logging.connect(leave_logging_alone)
    site.take_out()
    yield site
    setup_logging.disconnect(leave_logging_alone)
    site.take_out()


@pytest.fixture
def configure(vendor, settings):  # noqa: F811
    """Configure the site's delivery and return it."""

    def configure(**options):
        told = {"backoff": 1e-6, "max_backoff": 1e-6, "pause": 1e-6, **options}
        settings.MOE_PERSONALIZE = vendor.settings(DELIVERY=backend(NAME, **told))
        return get_delivery()

    return configure


@pytest.fixture
def silent_broker():
    """Give the URL of a broker that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"amqp://127.0.0.1:{listener.getsockname()[1]}//"


@pytest.fixture
def dead_broker():
    """Give the URL of a broker that is not there."""
    with socket.socket() as bound:
        # Bound and not listening: nobody else gets this port.
        bound.bind(("127.0.0.1", 0))
        yield f"amqp://127.0.0.1:{bound.getsockname()[1]}//"


def uuids(events):
    """Return the UUIDs of events."""
    return [event.event_uuid for event in events]


def find_idle(delivery):
    """Return the connections that the delivery keeps."""
    return [link.connection for link in delivery._links._idle]


# -- the message


def test_message_is_what_was_written():
    """Events survive the queue with all their fields, and so do the counts."""
    events = make_events(3)
    assert Message.read(Message(events, 2, 1).write()) == Message(events, 2, 1)


def test_message_of_another_release_is_read_as_far_as_it_is_known():
    """A field of events that this release does not know is left out."""
    (event,) = make_events(1)
    told = json.loads(Message([event]).write())
    told["events"][0]["later"] = True
    told["more"] = 1
    assert Message.read(json.dumps(told)).events == [event]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "1", "{}", '{"events": 1}', '{"events": [1], "attempts": 0, "pauses": 0}',
     '{"events": [{"action": "X"}], "attempts": 0, "pauses": 0}', '{"events": [{}], "attempts": 0, "pauses": 0}'],
)  # fmt: skip
def test_what_is_no_message_of_ours_is_dropped_with_a_line(configure, caplog, site, text):
    """A worker survives what it finds in the queue, and does not ask for it again."""
    delivery = configure()
    deliver(text)
    assert delivery.counts() == DeliveryCounts()
    assert messages(caplog)[0][0] == "ERROR"
    assert site.take_out() == []


# -- the page


def test_a_page_is_one_message(configure, site):
    """What a page recorded travels together as JSON, and counts as handed over."""
    delivery, events = configure(), make_events(3)
    delivery.record(events)
    ((text, message, wait),) = site.take_out()
    assert Message.read(text) == Message(events)
    assert (message.content_type, message.headers["task"], wait) == ("application/json", TASK, 0.0)
    assert message.headers["ignore_result"] is True
    assert delivery.counts() == delivery.flush() == DeliveryCounts(accepted=3, handed_over=3)


def test_nothing_personal_stands_beside_the_message(configure, site):
    """What Celery logs and tells monitors of the arguments has no visitor."""
    configure().record(make_events(1))
    ((_, message, _),) = site.take_out()
    assert (message.headers["argsrepr"], message.headers["kwargsrepr"]) == ("(…)", "{}")


def test_connections_are_kept_and_closed(configure, site):
    """Page after page uses one connection, which closing the delivery ends."""
    delivery = configure()
    for _ in range(3):
        delivery.record(make_events(1))
    (connection,) = find_idle(delivery)
    delivery.close()
    assert not find_idle(delivery)
    assert not connection.connected
    assert len(site.take_out()) == 3


def test_a_child_uses_no_connection_of_its_parent(configure, site):
    """After a fork there are no connections, and the parent's stay open."""
    delivery = configure()
    delivery.record(make_events(1))
    assert in_child(lambda: not find_idle(delivery) and delivery.counts() == DeliveryCounts())
    assert find_idle(delivery)[0].connected


def test_events_that_are_no_json_cost_their_page_alone(configure, site):
    """What cannot be written is dropped as an error when it is recorded."""
    delivery, events = configure(), make_events(2)
    events[1].attributes["what"] = object()
    delivery.record(events)
    assert delivery.counts() == DeliveryCounts(accepted=2, dropped={"error": 2})


# -- the worker


def test_a_worker_delivers_once_and_keeps_books_of_its_own(configure, site, vendor, heard):  # noqa: F811
    """The message's events arrive with the UUIDs of the page."""
    delivery, events = configure(), make_events(250)
    deliver(Message(events).write())
    assert vendor.taken == dict.fromkeys(uuids(events), 1)
    assert delivery.counts() == DeliveryCounts(accepted=250, delivered=250)
    assert heard == [("delivered", 250)]
    assert site.take_out() == []


def test_a_failure_is_handed_over_again_with_the_same_uuids(configure, site, vendor):  # noqa: F811
    """Only what was not delivered travels again, later, and its attempt is counted."""
    delivery, events = configure(backoff=600.0, max_backoff=600.0), make_events(250)
    vendor.failures = [200, 500]
    deliver(Message(events, attempts=5).write())
    ((text, _, wait),) = site.take_out()
    assert Message.read(text) == Message(events[100:], attempts=6)
    assert 0.0 < wait < 600.0
    assert delivery.counts() == DeliveryCounts(accepted=250, delivered=100, handed_over=150)


def test_waits_have_full_jitter_below_a_doubling_bound(configure, site, vendor):  # noqa: F811
    """Retries spread between nothing and the bound, which doubles until its end."""
    configure(backoff=100.0, max_backoff=400.0)
    vendor.status = 500
    for attempts, bound in ((0, 100.0), (1, 200.0), (2, 400.0), (30, 400.0)):
        for _ in range(10):
            deliver(Message(make_events(1), attempts=attempts).write())
        waits = [wait for _, _, wait in site.take_out()]
        assert max(waits) <= bound
        assert bound / 20 < max(waits) - min(waits)


def test_retry_after_is_obeyed_within_the_longest_wait(configure, site, vendor):  # noqa: F811
    """The vendor is left alone for as long as it asks, but not beyond what the queue may hold."""
    configure(max_backoff=300.0)
    vendor.status = 429
    for asked, expected in (("120", 120), ("86400", 300)):
        vendor.headers = {"Retry-After": asked}
        deliver(Message(make_events(1)).write())
        ((_, _, wait),) = site.take_out()
        assert expected - 5 < wait <= expected


def test_the_last_attempt_drops_with_a_line(configure, site, vendor, caplog):  # noqa: F811
    """Events are not sent for ever; what is given up is counted and logged."""
    delivery = configure(max_attempts=3)
    vendor.status = 500
    deliver(Message(make_events(4), attempts=2).write())
    assert delivery.counts() == DeliveryCounts(accepted=4, dropped={"attempts": 4})
    assert ("ERROR", "4 events were sent in vain 3 times and are dropped") in messages(caplog)
    assert site.take_out() == []


def test_a_bad_event_is_refused_alone(configure, site, vendor, caplog):  # noqa: F811
    """The others arrive; the refusal is logged with the vendor's reason."""
    delivery, events = configure(), make_events(5)
    vendor.poison = {events[2].event_uuid}
    deliver(Message(events).write())
    assert delivery.counts() == DeliveryCounts(accepted=5, delivered=4, dropped={"refused": 1})
    assert "Invalid Field Value" in messages(caplog)[0][1]
    assert site.take_out() == []


def test_wrong_credentials_lose_nothing_and_are_said_once(configure, site, vendor, caplog):  # noqa: F811
    """However often it is tried, no attempt is used up; the waits double; there is one loud line."""
    delivery = configure(max_attempts=2, pause=100.0, max_backoff=250.0)
    vendor.status = 401
    text, waits = Message(make_events(2), attempts=1).write(), []
    for _ in range(4):
        deliver(text)
        ((text, _, wait),) = site.take_out()
        waits.append(round(wait))
    assert waits == [100, 200, 250, 250]
    assert Message.read(text).attempts == 1
    assert [level for level, _ in messages(caplog)] == ["ERROR"]
    vendor.status = 200
    deliver(text)
    assert delivery.counts().delivered == vendor.taken.total() == 2


def test_message_stays_with_the_broker_that_takes_no_other(configure, site, dead_broker, vendor, monkeypatch):  # noqa: F811
    """Where a retry cannot be published the broker is asked to keep what it gave."""
    monkeypatch.setattr(ours, "_KEEP_SECONDS", 0.0)
    delivery = configure(fallback=backend("dummy.DummyDelivery"))
    site.app.conf.broker_url = dead_broker
    vendor.status = 500
    with pytest.raises(Reject) as caught:
        deliver(Message(make_events(2)).write())
    assert caught.value.requeue is True
    assert delivery.counts() == DeliveryCounts(accepted=2, handed_over=2)


@pytest.mark.parametrize(
    "changes",
    [{"DELIVERY": backend("dummy.DummyDelivery")}, {"DELIVERY": backend("missing.Delivery")}],
    ids=["another delivery", "a mistake"],
)
def test_a_queue_is_emptied_after_the_setting_has_changed(settings, site, vendor, changes):  # noqa: F811
    """What was handed over is delivered though DELIVERY names something else by now."""
    settings.MOE_PERSONALIZE = vendor.settings(**changes)
    deliver(Message(make_events(2)).write())
    assert vendor.taken.total() == 2


def test_task_may_be_killed_and_is_found(site):
    """A killed worker's message is delivered again, and autodiscovery alone registers the task."""
    site.app.autodiscover_tasks(["django_moe_personalize"], force=True)
    task = site.app.tasks[TASK]
    assert (task.acks_late, task.reject_on_worker_lost, task.acks_on_failure_or_timeout) == (True, True, False)
    assert task.ignore_result


def test_discovery_costs_a_site_without_celery_nothing(monkeypatch):
    """Other queues look for a module ``tasks`` too."""
    with monkeypatch.context() as context:
        context.delattr(tasks, "deliver")
        context.delitem(sys.modules, "django_moe_personalize.delivery.celery")
        context.setitem(sys.modules, "celery", None)
        reload(tasks)
        assert not hasattr(tasks, "deliver")
    assert tasks.deliver is deliver


def test_a_worker_of_the_site_delivers_what_pages_recorded(configure, site, vendor):  # noqa: F811
    """From page to MoEngage through a worker, retries included: each event once."""
    delivery, events = configure(), make_events(20)
    vendor.failures = [500, 503]
    with start_worker(site.app, perform_ping_check=False, loglevel="ERROR"):
        for start in range(0, 20, 2):
            delivery.record(events[start : start + 2])
        assert vendor.wait_for(lambda vendor: len(vendor.taken) == 20)
    assert vendor.taken == dict.fromkeys(uuids(events), 1)
    counts = delivery.counts()
    # Page and worker are one process here: what was handed over was accepted again.
    assert (counts.accepted - counts.handed_over, counts.delivered, counts.pending) == (20, 20, 0)


# -- a Celery that runs tasks at once


def test_eager_tasks_are_delivered_in_place(configure, site, vendor):  # noqa: F811
    """With task_always_eager, as tests of a site have it, there is no queue and no retry."""
    site.app.conf.task_always_eager = True
    delivery = configure()
    delivery.record(make_events(2))
    assert delivery.counts() == DeliveryCounts(accepted=2, delivered=2)
    vendor.status = 500
    delivery.record(make_events(3))
    assert delivery.counts() == DeliveryCounts(accepted=5, delivered=2, dropped={"failed": 3})


# -- a broker that fails


def test_broker_that_is_down_costs_events_and_no_time(configure, site, dead_broker, caplog):
    """Without a fallback they are dropped as broker; one line says so, another that it is over."""
    caplog.set_level(logging.INFO, "django_moe_personalize")
    delivery = configure()
    site.app.conf.broker_url = dead_broker
    start = time.monotonic()
    for _ in range(5):
        delivery.record(make_events(2))
    assert time.monotonic() - start < SOON / 2
    assert delivery.counts() == DeliveryCounts(accepted=10, dropped={"broker": 10})
    assert messages(caplog) == [
        ("ERROR", "The queue takes no events (OperationalError): until it does they are dropped")
    ]
    site.app.conf.broker_url = "memory://"
    delivery._breaker.after_fork()
    delivery.record(make_events(2))
    delivery.record(make_events(2))
    assert messages(caplog)[1:] == [("INFO", "The queue takes events again")]
    assert delivery.counts().handed_over == 4


def test_broker_that_hangs_holds_two_pages_and_no_more(configure, site, silent_broker, caplog):
    """Each is held for publish_timeout at most; those that follow do not try."""
    delivery = configure(publish_timeout=QUICK)
    site.app.conf.broker_url = silent_broker
    seconds = []
    for _ in range(5):
        start = time.monotonic()
        delivery.record(make_events(1))
        seconds.append(time.monotonic() - start)
    assert all(QUICK / 2 < each < QUICK * 4 for each in seconds[:2])
    assert sum(seconds[2:]) < QUICK / 2
    assert delivery.counts().dropped == {"broker": 5}


def test_one_page_at_a_time_asks_whether_the_broker_is_back(configure, site, dead_broker):
    """After a while the next page tries; its message is the proof."""
    delivery = configure()
    delivery._breaker._open_seconds = 0.01
    site.app.conf.broker_url = dead_broker
    for _ in range(2):
        delivery.record(make_events(1))
    assert delivery._breaker.state == "open"
    site.app.conf.broker_url = "memory://"
    until = time.monotonic() + SOON
    while delivery._breaker.state != "closed" and time.monotonic() < until:
        delivery.record(make_events(1))
        time.sleep(0.001)
    assert delivery.counts().handed_over == len(site.take_out()) == 1


def test_connection_that_died_idle_costs_nothing(configure, site, dead_broker):
    """A new one is tried in its place, once, and the other old ones are closed."""
    delivery = configure()
    for _ in range(2):
        connection = Celery(broker=dead_broker, set_as_current=False).connection_for_write()
        connection.transport_options = {"max_retries": 0}
        delivery._links._idle.append(Link(connection))
    delivery.record(make_events(2))
    assert delivery.counts() == DeliveryCounts(accepted=2, handed_over=2)
    assert len(find_idle(delivery)) == 1


def test_connection_that_took_the_time_is_not_replaced(configure, site, silent_broker):
    """A page that has waited for an old connection does not wait for a new one as well."""
    delivery = configure(publish_timeout=QUICK)
    site.app.conf.broker_url, well = silent_broker, site.app.conf.broker_url
    delivery._links._idle.append(Link(delivery._connect()))
    site.app.conf.broker_url = well
    delivery.record(make_events(2))
    assert delivery.counts() == DeliveryCounts(accepted=2, dropped={"broker": 2})


# -- the fallback


def test_fallback_takes_what_the_broker_does_not(configure, site, dead_broker, caplog):
    """The events are the fallback's from there on; the counts are of both, and always add up."""
    delivery = configure(fallback=backend("immediate.ImmediateDelivery"))
    delivery.record(make_events(1))
    site.app.conf.broker_url = dead_broker
    delivery.close()
    delivery.record(make_events(3))
    assert messages(caplog)[0][1].endswith("until it does they are handed to the fallback")
    assert delivery.counts() == DeliveryCounts(accepted=4, delivered=3, handed_over=1)


def test_fallback_is_flushed_and_closed(configure, site, dead_broker, vendor):  # noqa: F811
    """A fallback that holds events sends them when the delivery is told to."""
    delivery = configure(fallback=backend("thread.ThreadDelivery", interval=600.0, exit_timeout=SOON))
    site.app.conf.broker_url = dead_broker
    delivery.record(make_events(2))
    assert delivery.counts() == DeliveryCounts(accepted=2, pending=2)
    assert delivery.flush(SOON) == DeliveryCounts(accepted=2, delivered=2)
    delivery.record(make_events(3))
    delivery.close()
    assert vendor.taken.total() == 5


@pytest.mark.django_db
def test_moe_deliver_sends_what_the_fallback_has_in_its_outbox(configure, site, dead_broker, vendor):  # noqa: F811
    """The outbox of a fallback is emptied as one that stands alone."""
    delivery = configure(fallback=backend("database.DatabaseDelivery"))
    site.app.conf.broker_url = dead_broker
    delivery.record(make_events(3))
    assert delivery.counts() == DeliveryCounts(accepted=3, pending=3)
    call_command("moe_deliver", verbosity=0)
    assert vendor.taken.total() == 3


def test_fallback_that_keeps_nothing_shows_its_reasons_beside_ours(configure, site, dead_broker, vendor):  # noqa: F811
    """Reasons of both are added."""
    delivery = configure(max_attempts=1, fallback=backend("immediate.ImmediateDelivery"))
    vendor.status = 500
    site.app.conf.broker_url = dead_broker
    delivery.record(make_events(2))
    deliver(Message(make_events(3)).write())
    assert delivery.counts() == DeliveryCounts(accepted=5, dropped={"failed": 2, "attempts": 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"publish_timeout": 0}, "publish_timeout must be above 0, not 0"),
        ({"max_attempts": 0}, "max_attempts must be at least 1, not 0"),
        ({"fallback": "dummy"}, "fallback must be as DELIVERY is: a dict"),
        ({"fallback": {"PATH": "x"}}, 'fallback must be as DELIVERY is: "BACKEND" and "OPTIONS"'),
        ({"fallback": {"BACKEND": "dummy"}}, "fallback must be as DELIVERY is: a dotted path"),
        ({"fallback": backend("missing.Delivery")}, r'\["fallback"\]\["BACKEND"\].*cannot be imported'),
        ({"fallback": backend("dummy.DummyDelivery", x=1)}, r'\["fallback"\]\["OPTIONS"\]'),
        ({"publish": 1}, "publish_timeout"),
    ],
)
def test_mistakes_in_the_options_say_what_is_valid(configure, options, message):
    """They are found at the start, those of the fallback too."""
    with pytest.raises(ConfigurationError, match=message):
        configure(**options)


def test_a_library_that_is_missing_is_named_with_its_extra(configure, monkeypatch):
    """The mend is a command to type."""
    monkeypatch.delitem(sys.modules, "django_moe_personalize.delivery.celery")
    monkeypatch.setitem(sys.modules, "celery", None)
    with pytest.raises(ConfigurationError, match=r'pip install "django-moe-personalize\[celery\]"'):
        configure()


def test_hand_over_is_the_subclass_to_write():
    """The base alone has no queue."""
    delivery = queued.QueuedDelivery(
        fallback=backend("dummy.DummyDelivery"), timeout=1, max_attempts=1, backoff=1, max_backoff=1, pause=1
    )
    delivery.record(make_events(1))
    assert isinstance(delivery.fallback, DummyDelivery)
    assert delivery.counts() == DeliveryCounts(accepted=1, delivered=1)
    with pytest.raises(NotImplementedError):
        delivery.hand_over("")
