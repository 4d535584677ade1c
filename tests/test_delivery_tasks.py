"""TasksDelivery: a page is one task of Django's tasks, or of their backport."""

import asyncio
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
from asgiref.sync import sync_to_async

from django_moe_personalize.conf import Backend, ConfigurationError
from django_moe_personalize.conf.backends import load_backend
from django_moe_personalize.delivery import tasks
from django_moe_personalize.delivery.base import DeliveryCounts, get_delivery
from django_moe_personalize.delivery.queued import Message, get_worker
from tests.test_delivery import backend, make_events, messages, vendor  # noqa: F401 - fixtures among them

FRAMEWORK = "django.tasks" if find_spec("django.tasks") else "django_tasks"
DUMMY = f"{FRAMEWORK}.backends.dummy.DummyBackend"
IMMEDIATE = f"{FRAMEWORK}.backends.immediate.ImmediateBackend"

DummyBackend = tasks.import_module(f"{FRAMEWORK}.backends.dummy").DummyBackend


class BrokenBackend(DummyBackend):
    """A queue whose store is down."""

    def enqueue(self, task, args, kwargs):
        raise OSError("down")


class PromptBackend(DummyBackend):
    """A queue that knows no later."""

    supports_defer = False


@pytest.fixture
def configure(vendor, settings):  # noqa: F811
    """Configure the site's tasks and its delivery, and return that."""

    def configure(path=DUMMY, **options):
        settings.TASKS = {"default": {"BACKEND": DUMMY}, "events": {"BACKEND": path}}
        told = {"backend": "events", "backoff": 100.0, **options}
        settings.MOE_PERSONALIZE = vendor.settings(DELIVERY=backend("tasks.TasksDelivery", **told))
        return get_delivery()

    return configure


def take_out():
    """Return what was enqueued: for each task its message and the seconds until it is due; forget it."""
    results = tasks.deliver.using(backend="events").get_backend().results
    found = [(result.args[0], result.task.run_after) for result in results]
    results.clear()
    return [(text, due and due.timestamp() - time.time()) for text, due in found]


def test_a_page_is_one_task(configure):
    """What a page recorded is enqueued together, and counts as handed over."""
    delivery, events = configure(), make_events(3)
    delivery.record(events)
    assert take_out() == [(Message(events).write(), None)]
    assert delivery.counts() == delivery.flush() == DeliveryCounts(accepted=3, handed_over=3)


def test_async_pages_enqueue_in_the_thread_of_sync_code(configure):
    """The database connections used are those that Django closes."""
    delivery, threads = configure(), []
    delivery.hand_over = lambda message, wait: threads.append(threading.current_thread())

    async def page():
        await delivery.arecord(make_events(1))
        return await sync_to_async(threading.current_thread)()

    assert asyncio.run(page()) is threads[0]


def test_a_worker_delivers(configure, vendor):  # noqa: F811
    """The task is found by its path, as workers find it, and sends the events once."""
    delivery, events = configure(), make_events(3)
    tasks.deliver.call(Message(events).write())
    assert tasks.deliver.module_path == "django_moe_personalize.delivery.tasks.deliver"
    assert vendor.taken == dict.fromkeys([event.event_uuid for event in events], 1)
    assert delivery.counts() == DeliveryCounts(accepted=3, delivered=3)


def test_a_failure_is_enqueued_again_for_later(configure, vendor):  # noqa: F811
    """The same events wait in the queue, not in the worker."""
    delivery, events = configure(), make_events(3)
    vendor.status = 429
    vendor.headers = {"Retry-After": "120"}
    tasks.deliver.call(Message(events).write())
    ((text, wait),) = take_out()
    assert Message.read(text) == Message(events, attempts=1)
    assert 115 < wait <= 120
    assert delivery.counts() == DeliveryCounts(accepted=3, handed_over=3)


def test_a_backend_that_knows_no_later_keeps_its_worker_waiting(configure, vendor, monkeypatch):  # noqa: F811
    """For a bounded time, and then the events are in the queue again."""
    monkeypatch.setattr(tasks, "_MAX_SLEEP_SECONDS", 0.2)
    configure(f"{__name__}.PromptBackend", pause=100.0)
    vendor.status = 401
    start = time.monotonic()
    tasks.deliver.call(Message(make_events(1)).write())
    assert 0.2 <= time.monotonic() - start < 2.0
    assert [wait for _, wait in take_out()] == [None]


def test_a_backend_that_runs_tasks_at_once_delivers_in_place(configure, vendor):  # noqa: F811
    """There is no queue, and no retry: what fails is dropped."""
    delivery = configure(IMMEDIATE)
    delivery.record(make_events(2))
    assert delivery.counts() == DeliveryCounts(accepted=2, delivered=2)
    vendor.status = 500
    delivery.record(make_events(3))
    assert delivery.counts() == DeliveryCounts(accepted=5, delivered=2, dropped={"failed": 3})
    assert len(vendor.calls) == 2


def test_what_cannot_be_enqueued_is_dropped_or_the_fallbacks(configure, vendor, caplog):  # noqa: F811
    """A queue that is down costs events a reason and one line, or nothing with a fallback."""
    path = f"{__name__}.BrokenBackend"
    delivery = configure(path)
    delivery.record(make_events(2))
    delivery.record(make_events(1))
    assert delivery.counts() == DeliveryCounts(accepted=3, dropped={"broker": 3})
    assert messages(caplog) == [("ERROR", "The queue takes no events (OSError): until it does they are dropped")]
    delivery = configure(path, fallback=backend("immediate.ImmediateDelivery"))
    delivery.record(make_events(2))
    assert delivery.counts() == DeliveryCounts(accepted=2, delivered=2)


def test_a_retry_that_cannot_be_enqueued_is_the_fallbacks(configure, vendor):  # noqa: F811
    """A worker's queue that is down loses nothing either."""
    delivery = configure(f"{__name__}.BrokenBackend", fallback=backend("dummy.DummyDelivery"))
    vendor.status = 500
    tasks.deliver.call(Message(make_events(2)).write())
    assert delivery.counts() == DeliveryCounts(accepted=2, delivered=2)


def test_an_alias_that_there_is_not_is_found_at_the_start(configure):
    """The message names it."""
    with pytest.raises(ConfigurationError, match="backend 'nowhere' cannot be used"):
        configure(backend="nowhere")


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch):
    """Where Django has no tasks the mend is a command to type."""
    monkeypatch.delitem(sys.modules, "django_moe_personalize.delivery.tasks")
    monkeypatch.setitem(sys.modules, "django_tasks", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r'pip install "django-moe-personalize\[tasks\]"'):
        load_backend("DELIVERY", Backend("django_moe_personalize.delivery.tasks.TasksDelivery"))


def test_threads_that_begin_at_once_share_a_stand_in():
    """A worker whose site has another delivery keeps one set of books, however many threads it has."""
    barrier = threading.Barrier(2, timeout=10)

    class Meeting(tasks.TasksDelivery):
        def __init__(self):
            barrier.wait()
            super().__init__()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(get_worker, [Meeting, Meeting])
    assert first is second
    assert get_worker(Meeting) is first
