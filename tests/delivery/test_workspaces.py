"""The deliveries of several workspaces: their messages, forks, exits and pages of the admin."""

import os
import time

import pytest
from celery.exceptions import Reject
from django.contrib.auth.models import User
from django.db import connection

from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.delivery import celery as ours
from django_moe_personalize.delivery import exits, tasks
from django_moe_personalize.delivery.base import DeliveryCounts, get_delivery
from django_moe_personalize.delivery.outbox import Outbox
from django_moe_personalize.delivery.queued import Message
from django_moe_personalize.delivery.sending import mark_withdrawal
from django_moe_personalize.delivery.thread import ThreadDelivery
from django_moe_personalize.models import OutboxEvent
from django_moe_personalize.runtime import get_runtime, use_workspace
from tests.delivery.events import backend, make_events
from tests.delivery.test_admin import LIST, admin_tables, read_counters, site, staff  # noqa: F401 - fixtures among them
from tests.delivery.test_celery import site as celery_site  # noqa: F401 - a fixture
from tests.delivery.test_celery import take_out
from tests.delivery.vendor import SOON


@pytest.fixture
def configure(vendor, settings):
    """Give the site the workspaces "default" and "outlet", and return the delivery of the latter."""

    def configure(name, **options):
        given = vendor.settings(DELIVERY=backend(name, **options))
        settings.MOE_PERSONALIZE = {**given, "WORKSPACES": {"default": {}, "outlet": {}}}
        return get_delivery(get_runtime("outlet"))

    return configure


def count(name):
    return get_delivery(get_runtime(name)).counts()


def test_message_of_celery_names_its_workspace(configure, celery_site, monkeypatch, caplog):  # noqa: F811
    """A worker sends a message for its own workspace. A message of an unknown workspace stays in the queue."""
    delivery = configure("celery.CeleryDelivery")
    delivery.record(make_events(2))
    get_delivery().record(make_events(1))
    (text, message, _), (_, other, _) = take_out(celery_site)
    # Celery's first part of a body has the arguments.
    assert [b'"outlet"' in each.body for each in (message, other)] == [True, False]
    ours.deliver(text, "outlet")
    assert count("outlet") == DeliveryCounts(accepted=4, delivered=2, handed_over=2)
    assert count("default") == DeliveryCounts(accepted=1, handed_over=1)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(Reject):
        ours.deliver(text, "gone")
    assert "A message stays in the queue: " in caplog.text
    celery_site.conf.task_always_eager = True
    delivery.record(make_events(1))
    assert count("outlet").delivered == 3


def test_task_of_django_names_its_workspace(configure, settings):
    """A task has the name as its argument. A task of an unknown workspace fails, and the queue keeps it."""
    framework = tasks._FRAMEWORK
    settings.TASKS = {"default": {"BACKEND": f"{framework}.backends.dummy.DummyBackend"}}
    configure("tasks.TasksDelivery").record(make_events(2))
    (result,) = tasks.deliver.get_backend().results
    text, name = result.args
    assert name == "outlet"
    tasks.deliver.call(text, name)
    assert count("outlet") == DeliveryCounts(accepted=4, delivered=2, handed_over=2)
    with pytest.raises(ConfigurationError, match="gone"):
        tasks.deliver.call(Message(make_events(1)).write(), "gone")
    assert tasks.deliver_outbox.call(1.0, "outlet") == 0


def test_child_keeps_the_workspace(configure):
    """After a fork the delivery of a workspace sends for it, with the runtime of the child."""
    delivery = configure("thread.ThreadDelivery")
    before, delivery.runtime.is_of_parent = delivery.runtime, True
    delivery.start_in_child()
    assert delivery.runtime.name == "outlet"
    assert get_runtime("outlet") is before


def test_deliveries_end_at_the_same_time(configure, monkeypatch):
    """The time of all deliveries starts at once, so a process ends no later with several workspaces than with one."""
    deliveries = [configure("thread.ThreadDelivery", interval=600.0), get_delivery()]
    began = []
    monkeypatch.setattr(ThreadDelivery, "close", lambda self: began.append([each._exit for each in deliveries]))
    exits.close_deliveries()
    assert None not in began[0]


@pytest.mark.django_db
@pytest.mark.urls("tests.admin_urls")
@pytest.mark.usefixtures("site")
def test_admin_shows_the_workspaces(configure, client):
    """The list and the counters have the workspace, the list can be filtered, and an action covers all workspaces."""
    configure("database.DatabaseDelivery").record(make_events(2))
    get_delivery().record(make_events(1))
    client.force_login(User.objects.create_superuser("admin"))
    response = client.get(LIST)
    counters = read_counters(response)
    assert (counters["default: pending"], counters["outlet: pending"]) == ("1", "2")
    assert response.text.count('<td class="field-workspace">outlet</td>') == 2
    assert client.get(f"{LIST}?workspace=outlet").context["cl"].result_count == 2
    OutboxEvent.objects.update(state=OutboxEvent.State.REFUSED)
    chosen = list(OutboxEvent.objects.values_list("pk", flat=True))
    client.post(LIST, {"action": "send_again", "_selected_action": chosen})
    assert [count(name).pending for name in ("default", "outlet")] == [1, 2]


@pytest.mark.django_db
def test_postgresql_follows_the_index(monkeypatch):
    """PostgreSQL gets a setting for the transaction, without which it would sort all rows of a workspace."""
    executed = []
    monkeypatch.setattr(connection, "vendor", "postgresql")
    with connection.execute_wrapper(lambda run, query, *more: executed.append(query)):
        Outbox().follow_index()
    assert executed == ["SET LOCAL enable_bitmapscan = off"]


def test_delivery_works_for_its_own_workspace(configure):
    """A caller of another workspace, as one that reads the counts, neither builds nor sends events for its own."""
    delivery, events, seen = configure("thread.ThreadDelivery", interval=600.0), make_events(1), []

    class Events(list):
        def __len__(self):
            seen.append(get_runtime().name)
            return super().__len__()

    with use_workspace("outlet"):
        mark_withdrawal(events[0].customer_id)
    assert delivery.send(events, timeout=SOON).withdrawn == events
    assert get_delivery().send(events, timeout=SOON).delivered == events
    delivery.record(Events(make_events(1)))
    assert delivery.counts().pending == 1
    assert set(seen) == {"outlet"}


def test_page_that_forks(configure):
    """The child of a page works for the page's workspace, with a runtime of its own."""
    configure("dummy.DummyDelivery")
    with use_workspace("outlet"):
        before = get_runtime()
        if not (child := os.fork()):
            os._exit(0 if get_runtime().name == "outlet" and get_runtime() is not before else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert get_runtime() is before
