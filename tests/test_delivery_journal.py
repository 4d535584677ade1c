"""The journal of CeleryDelivery on Redis: what a worker took and is not done with is queued again, and once only."""

import json
import logging
import threading
import time
from base64 import b64decode
from types import SimpleNamespace

import pytest
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Reject
from kombu import Exchange, Queue
from kombu.asynchronous.timer import Timer
from redis import Redis

from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.delivery import celery as ours
from django_moe_personalize.delivery.base import DeliveryCounts, get_delivery
from django_moe_personalize.delivery.celery import Sweeping, deliver
from django_moe_personalize.delivery.journal import Entry, Journal
from django_moe_personalize.delivery.queued import Message
from django_moe_personalize.signals import events_delivered
from tests.delivery_vendor import SOON
from tests.loopback_redis import LoopbackRedis
from tests.test_delivery import backend, make_events, messages, vendor  # noqa: F401 - fixtures among them
from tests.test_delivery_celery import NAME, QUICK, configure, dead_broker, site, uuids  # noqa: F401

AT_ONCE = 1e-6
"""Seconds after which a message that no worker was done with counts as lost."""


@pytest.fixture
def redis(site):  # noqa: F811
    """Run a Redis that is the site's broker."""
    with LoopbackRedis() as redis:
        site.app.conf.broker_url = redis.url
        yield redis
        site.app.conf.broker_url = "memory://"


@pytest.fixture
def delivery(redis, configure):  # noqa: F811
    """Give the site's delivery, for which what was not done with at once is lost."""
    delivery = configure(recovery=AT_ONCE)
    yield delivery
    delivery.close()


def pop(redis, queue=b"celery"):
    """Take a message off the list, as the BRPOP of a worker does, and return what calls the task with it."""
    message = json.loads(redis.data[queue].pop())
    args, kwargs, _ = json.loads(b64decode(message["body"]))
    return lambda: deliver(*args, **kwargs)


def read_queue(redis, queue=b"celery"):
    """Return the messages in the queue, the next last."""
    bodies = [json.loads(b64decode(json.loads(each)["body"])) for each in redis.data.get(queue, ())]
    return [Message.read(args[0]) for args, _, _ in bodies]


def read_journal(redis, queue="celery", prefix=""):
    """Return the messages in the journal, in the order in which they are due."""
    base = f"{prefix}{{moe_personalize.{queue}}}"
    held, due = redis.data.get(f"{base}.messages".encode(), {}), redis.data.get(f"{base}.due".encode(), {})
    assert set(held) - {b"journal"} == set(due)
    return [Message.read(held[key].decode()) for key in sorted(due, key=due.get)]


def sweep(redis, delivery):
    """Look for what is lost, at a moment when it is this worker's turn."""
    redis.ends.clear()
    return delivery.sweep()


# -- what is lost


def test_a_message_that_nobody_has_any_more_comes_again(delivery, redis, vendor):  # noqa: F811
    """A worker killed after it took the message off the list, and before it noted it, loses nothing."""
    events = make_events(3)
    delivery.record(events)
    pop(redis)
    assert read_queue(redis) == []
    sweep(redis, delivery)
    assert read_queue(redis) == [Message(events)]
    pop(redis)()
    assert vendor.taken == dict.fromkeys(uuids(events), 1)
    assert (read_queue(redis), read_journal(redis)) == ([], [])
    assert delivery.counts() == DeliveryCounts(accepted=6, delivered=3, handed_over=3)


def test_what_waits_in_the_queue_is_not_multiplied(delivery, redis):
    """However late the workers are, a backlog stays as long as it is."""
    for _ in range(3):
        delivery.record(make_events(1))
    pop(redis)
    for _ in range(3):
        sweep(redis, delivery)
    assert (len(read_queue(redis)), len(read_journal(redis))) == (2, 3)


def test_a_message_is_queued_again_once_in_a_while(configure, redis, monkeypatch):  # noqa: F811
    """It counts as lost ``recovery`` seconds after it was queued, and again as long after that."""
    clock = SimpleNamespace(time=lambda: now, sleep=time.sleep)
    monkeypatch.setattr(ours, "time", clock)
    delivery, now, found = configure(recovery=60.0), 1000.0, []
    delivery.record(make_events(1))
    pop(redis)
    for seconds in (59.0, 2.0, 58.0, 3.0):
        now += seconds
        sweep(redis, delivery)
        found.append(len(read_queue(redis)))
        redis.data[b"celery"].clear()
    assert found == [0, 1, 0, 1]


def test_a_retry_is_late_when_its_wait_is_over(configure, redis, vendor, monkeypatch):  # noqa: F811
    """A message that waits is not lost."""
    clock = SimpleNamespace(time=lambda: now, sleep=time.sleep)
    monkeypatch.setattr(ours, "time", clock)
    delivery, now = configure(recovery=60.0, pause=100.0, max_backoff=100.0), 1000.0
    vendor.status = 401
    delivery.record(make_events(1))
    pop(redis)()
    pop(redis)
    now += 159.0
    sweep(redis, delivery)
    assert read_queue(redis) == []
    now += 2.0
    sweep(redis, delivery)
    assert [message.pauses for message in read_queue(redis)] == [1]


def test_sweep_takes_the_oldest_and_not_all_at_once(delivery, redis, monkeypatch):
    """A worker is held up for a moment only; the rest follows when these have been taken."""
    monkeypatch.setattr(ours, "_SWEEP_LIMIT", 2)
    events = make_events(3)
    for event in events:
        delivery.record([event])
    redis.data[b"celery"].clear()
    sweep(redis, delivery)
    assert [message.events for message in read_queue(redis)] == [[events[1]], [events[0]]]


def test_one_worker_sweeps_for_all(delivery, redis):
    """Who comes second in the same few seconds leaves it to the first."""
    delivery.record(make_events(1))
    pop(redis)
    assert sweep(redis, delivery)
    redis.data[b"celery"].clear()
    assert delivery.sweep()
    assert read_queue(redis) == []


def test_claim_leaves_out_what_was_struck_meanwhile_and_loses_nothing(redis):
    """A sweeper killed after it has claimed leaves the messages to the next one."""
    with Redis.from_url(redis.url) as client:
        journal = Journal(client, "q")
        for key in "ab":
            journal.write(key, f"message {key}", due=1.0)
        keys = journal.find_overdue(2.0, 10)
        journal.strike("a")
        ((entry, message),) = journal.claim(keys, 5.0)
        assert (entry.key, entry.queue, message) == ("b", "q", "message b")
        assert (journal.find_overdue(4.0, 10), journal.find_overdue(6.0, 10)) == ([], [b"b"])
        assert len(journal) == 1


def test_a_message_that_redis_lost_alone_is_looked_for_no_more(redis):
    """Where a part of the journal is gone, the rest does not wait for it for ever."""
    with Redis.from_url(redis.url) as client:
        journal = Journal(client, "q")
        for key in "ab":
            journal.write(key, f"message {key}", due=1.0)
        client.hdel("{moe_personalize.q}.messages", "a")
        assert [message for _, message in journal.claim(journal.find_overdue(2.0, 10), 5.0)] == ["message b"]
        assert len(journal) == 1


# -- what is done with


@pytest.mark.parametrize(
    ("status", "attempts"), [(200, 0), (400, 0), (500, 0)], ids=["delivered", "refused", "given up"]
)
def test_what_is_done_with_is_struck(configure, redis, vendor, status, attempts):  # noqa: F811
    """Delivered, refused or given up: nothing of it comes again."""
    delivery, vendor.status = configure(recovery=AT_ONCE, max_attempts=1), status
    delivery.record(make_events(2))
    pop(redis)()
    sweep(redis, delivery)
    assert (read_journal(redis), read_queue(redis)) == ([], [])
    assert delivery.counts().pending == 0


def test_a_retry_takes_the_place_of_its_message(delivery, redis, vendor):  # noqa: F811
    """There is one message a page in the journal, and always the newest."""
    events = make_events(2)
    delivery.record(events)
    vendor.status = 500
    for attempts in (1, 2):
        pop(redis)()
        assert read_journal(redis) == read_queue(redis) == [Message(events, attempts)]


def test_a_message_that_comes_again_when_it_is_done_with_is_skipped(delivery, redis, vendor):  # noqa: F811
    """A worker killed between its work and its acknowledgement, or a copy of what was late, costs no call."""
    delivery.record(make_events(2))
    work = pop(redis)
    work()
    work()
    assert len(vendor.calls) == 1
    assert delivery.counts() == DeliveryCounts(accepted=4, delivered=2, handed_over=2)


def test_two_who_have_the_same_message_in_hand_hand_one_over(delivery, redis, vendor):  # noqa: F811
    """Copies of a late message do not each have a successor: their number does not grow."""
    delivery.record(make_events(1))
    work = pop(redis)
    vendor.status = 500
    vendor.hang.clear()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert vendor.wait_for(lambda vendor: vendor.arrived == 3)
    vendor.hang.set()
    for thread in threads:
        thread.join(SOON)
    assert read_queue(redis) == read_journal(redis) == [Message(read_queue(redis)[0].events, 1)]
    counts = delivery.counts()
    assert (counts.accepted, counts.handed_over, counts.pending) == (4, 4, 0)


def test_a_message_without_an_entry_is_delivered(delivery, redis, vendor):  # noqa: F811
    """As it was queued before there was a journal, and retries are noted from there on."""
    vendor.failures = [500]
    events = make_events(1)
    deliver(Message(events).write())
    assert read_journal(redis) == [Message(events, 1)]
    pop(redis)()
    assert (vendor.taken.total(), read_journal(redis)) == (1, [])


@pytest.mark.parametrize("later", [False, True], ids=["empty", "another"])
def test_a_journal_that_is_lost_takes_no_message_with_it(delivery, redis, vendor, later):  # noqa: F811
    """What is in the queue is sent, and sent again, though a Redis that was short of memory threw the journal away."""
    delivery.record(make_events(1))
    work = pop(redis)
    for key in [key for key in redis.data if key.startswith(b"{moe")]:
        del redis.data[key]
    if later:
        delivery.record(make_events(1))
        pop(redis)()
    vendor.failures = [500]
    work()
    assert len(read_journal(redis)) == 1
    pop(redis)()
    assert vendor.taken.total() == 1 + later


def test_what_is_recorded_beside_the_work_succeeds_no_message(delivery, redis, vendor):  # noqa: F811
    """An event that a receiver of a signal records is another page's: both are kept."""
    vendor.failures = [200, 500]

    def receive(**kwargs):
        delivery.record(make_events(2))

    delivery.record(make_events(101))
    work = pop(redis)
    events_delivered.connect(receive)
    try:
        work()
    finally:
        events_delivered.disconnect(receive)
    assert sorted(len(message.events) for message in read_journal(redis)) == [1, 2]


def test_a_message_of_a_queue_that_is_no_more_the_tasks_is_struck_there(delivery, redis, site, vendor):  # noqa: F811
    """After the task was given a queue of its own, what was under way finds its entry, and retries move over."""
    delivery.record(make_events(1))
    site.app.conf.task_routes = {ours.TASK: {"queue": "moe"}}
    del site.app.amqp
    vendor.failures = [500]
    pop(redis)()
    assert read_journal(redis) == []
    assert len(read_journal(redis, "moe")) == 1
    pop(redis, b"moe")()
    assert (vendor.taken.total(), read_journal(redis, "moe")) == (1, [])


# -- a Redis that fails in between


def test_a_page_whose_message_is_noted_and_not_queued_has_its_fallback(configure, redis, vendor):  # noqa: F811
    """What the fallback has is struck from the journal: it is not sent twice."""
    delivery = configure(recovery=AT_ONCE, fallback=backend("immediate.ImmediateDelivery"))
    redis.refused.add("LPUSH")
    delivery.record(make_events(1))
    assert delivery.counts() == DeliveryCounts(accepted=1, delivered=1)
    assert read_journal(redis) == []


def test_a_page_is_held_no_longer_though_its_message_was_noted(configure, redis):  # noqa: F811
    """A Redis that hangs after the first of two steps is not asked for a third; the message is sent later."""
    delivery = configure(recovery=AT_ONCE, publish_timeout=QUICK)
    redis.silent.add("LPUSH")
    start = time.monotonic()
    delivery.record(make_events(1))
    assert QUICK / 2 < time.monotonic() - start < QUICK * 2
    assert delivery.counts() == DeliveryCounts(accepted=1, dropped={"broker": 1})
    assert len(read_journal(redis)) == 1


def test_a_retry_that_is_noted_and_not_queued_is_handed_over(delivery, redis, vendor):  # noqa: F811
    """The journal has it, so the message it succeeds is done with; the sweep queues it."""
    delivery.record(make_events(1))
    vendor.failures = [500]
    redis.refused.add("LPUSH")
    pop(redis)()
    assert delivery.counts() == DeliveryCounts(accepted=2, handed_over=2)
    redis.refused.clear()
    sweep(redis, delivery)
    pop(redis)()
    assert vendor.taken.total() == 1


def test_an_answer_that_is_lost_is_no_message_that_is_lost(delivery, redis, vendor):  # noqa: F811
    """Where the connection ends after a retry was noted, it is noted once more, under the same key, and queued."""
    events = make_events(1)
    delivery.record(events)
    vendor.failures = [500]
    redis.cut.add("EXEC")
    pop(redis)()
    assert read_queue(redis) == read_journal(redis) == [Message(events, 1)]


def test_a_message_that_stays_with_the_broker_stays_in_the_journal(delivery, redis, vendor, monkeypatch):  # noqa: F811
    """Where a retry cannot be noted, the message it would succeed is not done with."""
    monkeypatch.setattr(ours, "_KEEP_SECONDS", 0.0)
    events = make_events(1)
    delivery.record(events)
    work = pop(redis)
    vendor.status = 500
    redis.refused.add("EXEC")
    with pytest.raises(Reject):
        work()
    redis.refused.clear()
    assert read_journal(redis) == [Message(events)]


@pytest.mark.parametrize("command", ["HMGET", "EXEC"], ids=["to find", "to strike"])
def test_a_worker_that_cannot_ask_the_journal_sends_all_the_same(delivery, redis, vendor, command):  # noqa: F811
    """At worst a message is sent twice, with the same UUIDs."""
    delivery.record(make_events(1))
    work = pop(redis)
    redis.refused.add(command)
    work()
    assert vendor.taken.total() == 1
    redis.refused.clear()
    assert len(read_journal(redis)) == (command == "EXEC")


def test_a_worker_whose_broker_has_no_journal_sends_all_the_same(delivery, redis, site, vendor):  # noqa: F811
    """After a site has moved from Redis, what is left there is sent."""
    delivery.record(make_events(1))
    work = pop(redis)
    delivery.close()
    site.app.conf.broker_url = "memory://"
    work()
    assert vendor.taken.total() == 1


def test_a_sweep_that_fails_is_said_once(delivery, redis, caplog):
    """It is tried again, and when it works the next failure is said again."""
    redis.refused.add("SET")
    for _ in range(3):
        assert sweep(redis, delivery)
    (line,) = messages(caplog)
    assert line[0] == "WARNING"
    assert "ResponseError" in line[1]
    redis.refused.clear()
    sweep(redis, delivery)
    redis.refused.add("SET")
    sweep(redis, delivery)
    assert messages(caplog) == [line, line]


def test_what_is_queued_again_is_said(delivery, redis, caplog):
    """An operator sees in a worker's log that one was killed."""
    caplog.set_level(logging.INFO, "django_moe_personalize")
    delivery.record(make_events(1))
    pop(redis)
    sweep(redis, delivery)
    assert messages(caplog) == [("INFO", "1 messages that no worker was done with in time are queued again")]


# -- whose journal it is


def test_keys_have_the_prefix_of_the_sites(configure, redis, site):  # noqa: F811
    """Sites that share a Redis by prefixes share no journal, and neither do sites with queues of their own."""
    site.app.conf.broker_transport_options = {"global_keyprefix": "shop:"}
    delivery = configure(recovery=AT_ONCE)
    delivery.record(make_events(1))
    delivery.close()
    assert len(read_journal(redis, prefix="shop:")) == 1
    assert {key[:5] for key in redis.data} == {b"shop:"}


@pytest.mark.parametrize(
    ("route", "name", "known"),
    [
        (None, "celery", 1),
        ({"queue": "moe"}, "moe", 1),
        ({"exchange": "known", "routing_key": "x"}, "known", 2),
        ({"exchange": Exchange("known"), "routing_key": "x"}, "known", 2),
        ({"exchange": "unknown", "routing_key": "x"}, "unknown", 0),
    ],
)
def test_the_journal_is_that_of_where_the_task_is_routed(delivery, redis, site, route, name, known):  # noqa: F811
    """It has the name of the queue, or of the exchange; where no queue is known, nothing is queued again."""
    site.app.conf.task_queues = [Queue("celery"), Queue("a", Exchange("known")), Queue("b", Exchange("known"))]
    site.app.conf.task_routes = route and {ours.TASK: route}
    del site.app.amqp
    delivery.record(make_events(1))
    assert len(read_journal(redis, name)) == 1
    assert len(ours._find_destination()[1]) == known
    for key in [key for key, held in redis.data.items() if isinstance(held, list)]:
        redis.data[key].clear()
    sweep(redis, delivery)
    # It is asked for the messages only when they are to be queued.
    assert redis.asked["HMGET"] == (known > 0)
    assert sum(len(held) for held in redis.data.values() if isinstance(held, list)) == (known == 1)


@pytest.mark.parametrize(
    "told", [backend("dummy.DummyDelivery"), backend("missing.Delivery")], ids=["other", "mistake"]
)
def test_a_site_that_delivers_otherwise_is_swept_until_nothing_is_left(delivery, redis, settings, vendor, told):  # noqa: F811
    """After DELIVERY has changed nothing in the journal is forgotten, and after that nobody looks any more."""
    delivery.record(make_events(1))
    settings.MOE_PERSONALIZE = vendor.settings(DELIVERY=told)
    worker = ours.get_worker(ours.CeleryDelivery)
    assert worker is not delivery
    assert sweep(redis, worker)
    pop(redis)()
    assert not sweep(redis, worker)
    worker.close()


def test_a_fallback_is_looked_after_as_the_delivery_itself(redis, settings, vendor):  # noqa: F811
    """A worker of the queue that another delivery falls back to sends with that one's options, and looks for good."""
    fallback = backend("celery.CeleryDelivery", recovery=AT_ONCE)
    settings.MOE_PERSONALIZE = vendor.settings(DELIVERY=backend("tasks.TasksDelivery", fallback=fallback))
    worker = ours.get_worker(ours.CeleryDelivery)
    assert worker is get_delivery().fallback
    assert sweep(redis, worker)
    worker.close()


@pytest.mark.parametrize("broker", ["memory://", "amqp://127.0.0.1:1//"])
def test_other_brokers_have_no_journal(configure, site, broker):  # noqa: F811
    """They take a message back from a worker that is killed; nobody looks, nor connects."""
    site.app.conf.broker_url = broker
    assert not configure().sweep()


def test_recovery_must_be_a_time(configure):  # noqa: F811
    """A mistake in the options is found at the start."""
    with pytest.raises(ConfigurationError, match="recovery must be above 0, not 0"):
        configure(recovery=0)


# -- the worker that looks


def turn(timer):
    """Do what the timer has for now."""
    for _, entry in timer:
        if entry is None:
            return
        timer.apply_entry(entry)


@pytest.fixture
def consumer(monkeypatch):
    """Give a worker's consumer with a timer that is always due."""
    monkeypatch.setattr(ours, "_SWEEP_SECONDS", 0.01)
    return SimpleNamespace(timer=Timer())


def test_a_worker_looks_while_it_is_connected(delivery, redis, consumer):
    """It begins when it has a connection, ceases when that is lost, and begins again with the next."""
    step = Sweeping(consumer)
    step.stop(consumer)
    for lost in (1, 2):
        step.start(consumer)
        delivery.record(make_events(1))
        pop(redis)
        until = time.monotonic() + SOON
        while not read_queue(redis) and time.monotonic() < until:
            turn(consumer.timer)
        assert len(read_queue(redis)) == lost
        redis.data[b"celery"].clear()
        step.stop(consumer)
        asked = redis.asked.total()
        time.sleep(0.02)
        turn(consumer.timer)
        assert redis.asked.total() == asked


def test_a_worker_without_a_journal_looks_once(configure, site, consumer):  # noqa: F811
    """RabbitMQ's worker has nothing to do there."""
    configure()
    Sweeping(consumer).start(consumer)
    until = time.monotonic() + SOON
    while len(consumer.timer) and time.monotonic() < until:
        turn(consumer.timer)
    assert len(consumer.timer) == 0


def test_each_worker_of_the_site_looks(configure, site):  # noqa: F811
    """The step is there in a worker that has found our task."""
    configure()
    with start_worker(site.app, perform_ping_check=False, loglevel="ERROR") as worker:
        assert any(isinstance(step, Sweeping) for step in worker.consumer.steps)


def test_entry_is_what_travels_with_the_message(delivery, redis):
    """Key, queue and name of the journal, as JSON has them."""
    delivery.record(make_events(1))
    (body,) = [json.loads(b64decode(json.loads(each)["body"])) for each in redis.data[b"celery"]]
    entry = Entry(*body[1]["entry"])
    assert entry.queue == "celery"
    assert redis.data[b"{moe_personalize.celery}.messages"][b"journal"] == entry.name.encode()
    assert get_delivery() is delivery
