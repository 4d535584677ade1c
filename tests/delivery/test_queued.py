"""QueuedDelivery with a queue in a list: messages, retries and the fallback."""

import json
from functools import partial

import pytest
from django.core.management import call_command

from django_moe_personalize.delivery.base import DeliveryCounts
from django_moe_personalize.delivery.queued import Message, QueuedDelivery, find_worker
from django_moe_personalize.runtime import get_runtime
from tests.delivery.events import backend, make_event, make_events, messages
from tests.delivery.vendor import SOON


class ListDelivery(QueuedDelivery):
    """A queue in the list ``queue``, with the wait of each message, that fails when it is ``None``."""

    def __init__(self, *, fallback=None, max_attempts=5, backoff=0.0, max_backoff=0.0, pause=0.0):
        options = {"max_attempts": max_attempts, "backoff": backoff, "max_backoff": max_backoff, "pause": pause}
        super().__init__(fallback=fallback, timeout=SOON, **options)
        self.queue = []

    def hand_over(self, message, *, wait=0.0):
        if self.queue is None:
            raise OSError("down")
        self.queue.append((message, wait))

    def take_out(self):
        """Return the messages and the waits, and empty the queue."""
        found, self.queue = self.queue, []
        return [(Message.read(text), wait) for text, wait in found]


@pytest.fixture
def build(configure):
    """Configure a queue in a list as the site's delivery and return it."""
    return partial(configure, f"{ListDelivery.__module__}.{ListDelivery.__qualname__}")


def test_queue_without_an_examination(build):
    """A queue of the site's own may have nothing to tell the doctor."""
    assert list(build().find_obstacles()) == []


def test_message_is_read_as_it_was_written():
    """The events keep all their fields. The message keeps its counts, and has the events in MoEngage's JSON."""
    events = [*make_events(3), make_event("ß \x00", note=["☃", None, 0.5, {"a": True}])]
    text = Message(events, 2, 1).write()
    assert Message.read(text) == Message(events, 2, 1)
    assert [event.element for event in Message.read(text).events] == [event.element for event in events]
    assert json.loads(text)["elements"] == [json.loads(event.element) for event in events]


def test_message_of_another_release_is_read():
    """Unknown fields are ignored."""
    (event,) = make_events(1)
    told = json.loads(Message([event]).write())
    told["elements"][0]["actions"][0]["later"] = told["elements"][0]["later"] = told["later"] = True
    assert Message.read(json.dumps(told)).events == [event]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "1", "{}", '{"elements": 1}', '{"elements": [1], "attempts": 0, "pauses": 0}', '{"elements": []}',
     '{"elements": [{"actions": []}], "attempts": 0, "pauses": 0}',
     '{"elements": [{"customer_id": "1", "actions": [{"action": "X"}]}], "attempts": 0, "pauses": 0}'],
)  # fmt: skip
def test_a_foreign_message_is_dropped_with_a_log_line(build, caplog, text):
    """The worker drops an unreadable message with a log line, and continues."""
    delivery = build()
    assert delivery.work(text) is True
    assert delivery.counts() == DeliveryCounts()
    assert messages(caplog)[0][0] == "ERROR"


def test_events_that_json_cannot_express_are_dropped_with_their_page(build):
    """record() drops such events, and all other events of the page, as ``error``."""
    delivery, events = build(), make_events(2)
    events[1].attributes["what"] = object()
    delivery.record(events)
    assert delivery.counts() == DeliveryCounts(accepted=2, dropped={"error": 2})


def test_failed_events_are_handed_over_again_with_the_same_uuids(build, vendor, heard):
    """Only the failed events travel again, later, and their attempt is counted."""
    delivery, events = build(max_attempts=50, backoff=600.0, max_backoff=600.0), make_events(250)
    vendor.failures = [200, 500]
    assert delivery.work(Message(events, attempts=5).write()) is True
    ((message, wait),) = delivery.take_out()
    assert message == Message(events[100:], attempts=6)
    assert 0.0 < wait < 600.0
    assert delivery.counts() == DeliveryCounts(accepted=250, delivered=100, handed_over=150)
    assert heard == [("delivered", 100)]


def test_waits_are_random_below_a_doubling_limit(build, vendor):
    """Retries spread between zero and the limit, which doubles up to the maximum."""
    delivery = build(max_attempts=50, backoff=100.0, max_backoff=400.0)
    vendor.status = 500
    for attempts, limit in ((0, 100.0), (1, 200.0), (2, 400.0), (30, 400.0)):
        for _ in range(10):
            delivery.work(Message(make_events(1), attempts=attempts).write())
        waits = [wait for _, wait in delivery.take_out()]
        assert max(waits) <= limit
        assert limit / 20 < max(waits) - min(waits)


def test_retry_after_is_obeyed_within_the_longest_wait(build, vendor):
    """A retry waits for MoEngage's Retry-After, but not longer than max_backoff."""
    delivery = build(max_backoff=300.0)
    vendor.status = 429
    for asked, expected in (("120", 120), ("86400", 300)):
        vendor.headers = {"Retry-After": asked}
        delivery.work(Message(make_events(1)).write())
        ((_, wait),) = delivery.take_out()
        assert wait == expected


def test_the_last_attempt_drops_with_a_log_line(build, vendor, caplog):
    """Events are not sent forever. Dropped events are counted and logged."""
    delivery = build(max_attempts=3)
    vendor.status = 500
    assert delivery.work(Message(make_events(4), attempts=2).write()) is True
    assert delivery.counts() == DeliveryCounts(accepted=4, dropped={"attempts": 4})
    delivery.work(Message(make_events(1), attempts=2).write())
    vendor.status = 200
    delivery.work(Message(make_events(1)).write())
    assert messages(caplog)[1::2] == [
        ("ERROR", "Events fail too often (ServerError: MoEngage answered 500). They are dropped after 3 attempts."),
        ("ERROR", "Events are delivered again after 0 s (5 failed)."),
    ]
    assert delivery.take_out() == []


def test_wrong_credentials_lose_nothing_and_are_logged_once(build, vendor, caplog):
    """Wrong credentials count no attempt, each wait is twice as long, and the log has one error."""
    delivery = build(max_attempts=2, pause=100.0, max_backoff=250.0)
    vendor.status = 401
    message, waits = Message(make_events(2), attempts=1), []
    for _ in range(4):
        delivery.work(message.write())
        ((message, wait),) = delivery.take_out()
        waits.append(wait)
    assert waits == [100.0, 200.0, 250.0, 250.0]
    assert message.attempts == 1
    assert [level for level, _ in messages(caplog)] == ["ERROR"]
    vendor.status = 200
    delivery.work(message.write())
    assert delivery.counts().delivered == vendor.taken.total() == 2


@pytest.mark.parametrize("name", ["dummy.DummyDelivery", "missing.Delivery"])
def test_a_queue_is_emptied_after_a_change_of_delivery(settings, vendor, name):
    """A worker sends the messages in the queue, even if DELIVERY names another delivery by now."""
    settings.MOE_PERSONALIZE = vendor.settings(DELIVERY=backend(name))
    worker = find_worker(ListDelivery, get_runtime())
    worker.work(Message(make_events(2)).write())
    assert worker.runtime is get_runtime()
    assert vendor.taken.total() == 2


def test_the_fallback_takes_what_the_queue_does_not(build, vendor, caplog):
    """The fallback also takes the retries of a worker. The delivery's counters include the counters of the fallback."""
    delivery = build(fallback=backend("immediate.ImmediateDelivery"))
    delivery.record(make_events(1))
    delivery.queue = None
    delivery.record(make_events(3))
    assert "Until it works, events go to the fallback." in messages(caplog)[0][1]
    assert delivery.counts() == DeliveryCounts(accepted=4, delivered=3, handed_over=1)
    vendor.failures = [500]
    delivery.work(Message(make_events(2)).write())
    assert delivery.counts() == DeliveryCounts(accepted=6, delivered=5, handed_over=1)
    vendor.status = 500
    delivery.record(make_events(2))
    delivery.work(Message(make_events(3), attempts=4).write())
    dropped = {"failed": 2, "attempts": 3}
    assert delivery.counts() == DeliveryCounts(accepted=11, delivered=5, dropped=dropped, handed_over=1)


def test_the_fallback_is_flushed_and_closed(build, vendor):
    """A fallback that holds events sends them when the delivery is flushed or closed, with the same client."""
    delivery = build(fallback=backend("thread.ThreadDelivery", interval=600.0, exit_timeout=SOON))
    assert delivery.fallback.runtime is delivery.runtime
    delivery.queue = None
    delivery.record(make_events(2))
    assert delivery.counts() == DeliveryCounts(accepted=2, pending=2)
    assert delivery.flush(SOON) == DeliveryCounts(accepted=2, delivered=2)
    delivery.record(make_events(3))
    delivery.close()
    assert vendor.taken.total() == 5


@pytest.mark.django_db
def test_moe_deliver_sends_the_outbox_of_a_fallback(build, vendor):
    """The command finds this outbox like that of the site's own delivery."""
    delivery = build(fallback=backend("database.DatabaseDelivery"))
    delivery.queue = None
    delivery.record(make_events(3))
    assert delivery.counts() == DeliveryCounts(accepted=3, pending=3)
    call_command("moe_deliver", verbosity=0)
    assert vendor.taken.total() == 3


def test_hand_over_is_left_to_the_subclass(build):
    """The base class has no queue."""
    with pytest.raises(NotImplementedError):
        QueuedDelivery.hand_over(build(), "")
