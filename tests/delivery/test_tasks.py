"""TasksDelivery: a page enqueues one task, with Django's tasks or their backport."""

import time
from importlib.util import find_spec
from unittest import mock

import pytest
from django.db import DatabaseError
from django.utils.module_loading import import_string

from django_moe_personalize import tasks as package_tasks
from django_moe_personalize.delivery import tasks
from django_moe_personalize.delivery.base import DeliveryCounts
from django_moe_personalize.delivery.queued import Message
from tests.delivery.events import make_events, uuids
from tests.delivery.vendor import SOON

FRAMEWORK = "django.tasks" if find_spec("django.tasks") else "django_tasks"
DUMMY = f"{FRAMEWORK}.backends.dummy.DummyBackend"

DummyBackend = tasks.import_module(f"{FRAMEWORK}.backends.dummy").DummyBackend


class PromptBackend(DummyBackend):
    supports_defer = False


@pytest.fixture
def build(configure, settings):
    def build(path=DUMMY, **options):
        settings.TASKS = {"default": {"BACKEND": DUMMY}, "events": {"BACKEND": path}}
        return configure("tasks.TasksDelivery", backend="events", backoff=100.0, **options)

    return build


def take_out():
    """Return message and delay in seconds of each enqueued task, and empty the queue."""
    results = tasks.deliver.using(backend="events").get_backend().results
    found = [(result.args[0], result.task.run_after) for result in results]
    results.clear()
    return [(text, due and due.timestamp() - time.time()) for text, due in found]


def test_a_page_is_one_task(build):
    """All events of a page are enqueued together, and count as handed over. An async page hops to the sync thread."""
    delivery, events = build(), make_events(3)
    assert delivery.uses_database
    delivery.record(events)
    assert take_out() == [(Message(events).write(), None)]
    assert delivery.counts() == delivery.flush() == DeliveryCounts(accepted=3, handed_over=3)


def test_a_worker_delivers(build, vendor):
    """Workers find the task by its path. It sends each event once."""
    delivery, events = build(), make_events(3)
    tasks.deliver.call(Message(events).write())
    assert tasks.deliver.module_path == "django_moe_personalize.delivery.tasks.deliver"
    assert vendor.taken == dict.fromkeys(uuids(events), 1)
    assert delivery.counts() == DeliveryCounts(accepted=3, delivered=3)


def test_a_failure_is_enqueued_again_for_later(build, vendor):
    """Failed events wait in the queue, not in the worker."""
    delivery, events = build(), make_events(3)
    vendor.status = 429
    vendor.headers = {"Retry-After": "120"}
    tasks.deliver.call(Message(events).write())
    ((text, wait),) = take_out()
    assert Message.read(text) == Message(events, attempts=1)
    assert 115 < wait <= 120
    assert delivery.counts() == DeliveryCounts(accepted=3, handed_over=3)


def test_a_backend_without_delays_keeps_its_worker_waiting(build, vendor, monkeypatch):
    """The worker waits for a limited time, then the events are in the queue again."""
    monkeypatch.setattr(tasks, "_MAX_SLEEP_SECONDS", 0.2)
    build(f"{__name__}.PromptBackend", pause=100.0)
    vendor.status = 401
    start = time.monotonic()
    tasks.deliver.call(Message(make_events(1)).write())
    assert 0.2 <= time.monotonic() - start < SOON
    assert [wait for _, wait in take_out()] == [None]


def test_a_backend_that_runs_tasks_at_once_delivers_in_place(build, vendor):
    """The page itself sends the events, doesn't retry, and drops failed events."""
    delivery = build(f"{FRAMEWORK}.backends.immediate.ImmediateBackend")
    delivery.record(make_events(2))
    assert delivery.counts() == DeliveryCounts(accepted=2, delivered=2)
    vendor.status = 500
    delivery.record(make_events(3))
    assert delivery.counts() == DeliveryCounts(accepted=5, delivered=2, dropped={"failed": 3})
    assert len(vendor.calls) == 2


@pytest.mark.parametrize(
    ("path", "error", "is_deleted"), [("", None, True), ("", DatabaseError, True), ("x", None, False)]
)
def test_finished_task_leaves_no_row(path, error, is_deleted):
    """The row of a finished task has a customer id, so the worker deletes the row. Rows of other tasks stay."""
    result = mock.Mock()
    result.task.module_path = path or tasks.deliver.module_path
    result.db_result.delete.side_effect = error
    tasks.import_module(f"{FRAMEWORK}.signals").task_finished.send(DummyBackend, task_result=result)
    assert result.db_result.delete.called is is_deleted


@pytest.mark.django_db
def test_the_outbox_task_is_one_of_djangos_tasks(build, configure, vendor):
    """deliver_outbox.enqueue() enqueues the task. A worker finds the task by its path, and drains the outbox."""
    build()
    package_tasks.deliver_outbox.enqueue(max_seconds=5.0)
    backend_used = tasks.deliver_outbox.get_backend()
    ((path, told),) = [(result.task.module_path, result.kwargs) for result in backend_used.results]
    backend_used.results.clear()
    assert import_string(path) is tasks.deliver_outbox
    configure("database.DatabaseDelivery").record(make_events(3))
    assert tasks.deliver_outbox.call(**told) == vendor.taken.total() == 3
