"""DatabaseDelivery on SQLite: recording, sending, retries and the counters."""

import contextlib
import threading
from datetime import timedelta
from types import MappingProxyType

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone

from django_moe_personalize import api
from django_moe_personalize.delivery.base import DeliveryCounts
from django_moe_personalize.delivery.database import DatabaseDelivery
from django_moe_personalize.delivery.outbox import Outbox, State
from django_moe_personalize.models import OutboxCounter, OutboxEvent
from django_moe_personalize.moengage.types import Action, Event, Experience
from tests.delivery.conftest import make_due
from tests.delivery.events import make_event, make_events, messages
from tests.delivery.vendor import SOON

pytestmark = pytest.mark.django_db


@contextlib.contextmanager
def full_disk():
    """Let every INSERT into the outbox fail while the context lasts."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TRIGGER full BEFORE INSERT ON moe_personalize_outboxevent "
            "BEGIN SELECT RAISE(ABORT, 'disk full, customer-4711'); END"
        )
        yield
        cursor.execute("DROP TRIGGER full")


def test_recording_is_one_insert(delivery, django_assert_num_queries):
    """Besides the savepoint, a page records its events with one statement. All processes see the events as pending."""
    with django_assert_num_queries(3) as queries:
        delivery.record(make_events(5))
    assert [query["sql"].split()[0] for query in queries] == ["SAVEPOINT", "INSERT", "RELEASE"]
    assert DatabaseDelivery().counts() == DeliveryCounts(accepted=5, pending=5)


def test_event_comes_back_as_it_was(delivery, vendor):
    """UUID, time, platform and attributes arrive unchanged, with all characters and nested values."""
    attributes = MappingProxyType({"experience": "Ä \x00 \ud800 😀", "offerings": [{"id": "1"}]})
    event = Event(Action.CLICKED, "\ud800 ß \x00", attributes, 1_760_000_000, platform="ios")
    delivery.record([event])
    assert Event.read(OutboxEvent.objects.get().body) == event
    delivery.flush()
    action = vendor.bodies[0]["elements"][0]["actions"][0]
    assert action["moe_event_uuid"] == event.event_uuid
    assert action["attributes"] == dict(attributes)


def test_an_event_recorded_twice_is_stored_once(delivery):
    """A repeated beacon has the same UUID: it adds no row, and the events next to it are stored."""
    first, second = make_events(2)
    delivery.record([first])
    delivery.record([first, second])
    assert delivery.counts() == DeliveryCounts(accepted=2, pending=2)


def test_async_recording_shares_the_transaction_of_the_request(delivery):
    """Under ASGI the INSERT runs in the thread of the request's other queries, on a connection that Django closes."""
    threads = []
    take = delivery.take

    def look(events):
        threads.append(threading.get_ident())
        take(events)

    delivery.take = look
    async_to_sync(delivery.arecord)(make_events(1))
    assert threads == [threading.get_ident()]
    assert OutboxEvent.objects.count() == 1


def test_failing_insert_costs_the_page_only_its_events(configure, serve, heard, caplog):
    """In the view's transaction: status 200, its own rows are stored, the loss is counted, no customer is logged."""

    def view(request):
        User.objects.create(username="theirs")
        api.experiences_shown([Experience("hero", {}, {"cid": "c", "experience": "Hero"})], customer_id="42")
        return HttpResponse(str(User.objects.count()))

    serve(view)
    delivery = configure("database.DatabaseDelivery")
    with full_disk(), transaction.atomic():
        response = Client().get("/page/")
    assert (response.status_code, response.text) == (200, "1")
    assert User.objects.filter(username="theirs").exists()
    assert delivery.counts() == DeliveryCounts(accepted=1, dropped={"error": 1})
    assert heard == [("error", 1)]
    (line,) = messages(caplog)
    assert "4711" not in line[1]


@pytest.mark.django_db(transaction=True)
def test_losses_reach_the_shared_counters_with_the_next_event(delivery, monkeypatch):
    """When the database works again, the process adds its losses to the shared counters, if need be at a second try."""
    with full_disk():
        delivery.record(make_events(3))
        assert DatabaseDelivery().counts() == DeliveryCounts()
    with monkeypatch.context() as context:
        context.setattr(Outbox, "add_loss", None)
        delivery.record(make_events(1))
    assert delivery.counts() == DeliveryCounts(accepted=4, dropped={"error": 3}, pending=1)
    delivery.record(make_events(1))
    for each in (delivery, DatabaseDelivery()):
        assert each.counts() == DeliveryCounts(accepted=5, dropped={"error": 3}, pending=2)


@pytest.mark.django_db(transaction=True)
def test_a_rollback_of_the_caller_does_not_undo_losses(delivery):
    """The process adds its losses to the counters with the next event that it records outside a transaction."""
    delivery.record([make_event(b_id=object())])
    with contextlib.suppress(KeyError), transaction.atomic():
        delivery.record(make_events(1))
        raise KeyError
    assert delivery.counts() == DeliveryCounts(accepted=1, dropped={"error": 1})
    delivery.record(make_events(1))
    assert DatabaseDelivery().counts() == DeliveryCounts(accepted=2, dropped={"error": 1}, pending=1)


def test_delivered_events_leave_the_table_and_stay_counted(delivery, vendor, heard):
    """Each event arrives once. No row with personal data is left."""
    events = make_events(250)
    delivery.record(events)
    assert delivery.flush(SOON) == DeliveryCounts(accepted=250, delivered=250)
    assert vendor.taken == {event.event_uuid: 1 for event in events}
    assert not OutboxEvent.objects.exists()
    assert list(OutboxCounter.objects.values_list("outcome", "count")) == [("delivered", 250)]
    assert heard == [("delivered", 100), ("delivered", 100), ("delivered", 50)]


def test_sending_is_outside_any_transaction(delivery, vendor, django_assert_num_queries):
    """During the call to MoEngage, other deliverers see the lease, and the calling deliverer has no transaction."""
    delivery.record(make_events(1))
    depth = len(connection.savepoint_ids)
    seen = []
    send = delivery.send

    def look(events, **options):
        seen.append((len(connection.savepoint_ids), Outbox().lease(10, 60.0).rows))
        return send(events, **options)

    delivery.send = look
    delivery.flush()
    assert seen == [(depth, [])]


@pytest.mark.django_db(transaction=True)
def test_flush_inside_a_transaction_is_refused(delivery):
    """Other deliverers couldn't see the lease yet."""
    delivery.record(make_events(1))
    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        delivery.flush()


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("customer ann@example.com is no customer", "customer ... is no customer"),
        ("\x00 in «Hero ☃😀»", r"\x00 in \xabHero \u2603\U0001f600\xbb"),
        ("ann@example.community", "ann@example.community"),
    ],
)
def test_a_poison_event_is_parked_alone(delivery, vendor, heard, said, kept):
    """The other events arrive. The stored reason doesn't name the customer, and every database can store its text."""
    event = make_event("ann@example.com")
    vendor.poison, vendor.description = {event.event_uuid}, said
    delivery.record([*make_events(5), event])
    assert delivery.flush() == DeliveryCounts(accepted=6, delivered=5, dropped={"refused": 1})
    row = OutboxEvent.objects.get()
    assert (str(row.event_uuid), row.state, row.lease) == (event.event_uuid, State.REFUSED, None)
    assert row.reason == f"ResponseError: MoEngage answered 400: Invalid Field Value {kept}"
    assert sorted(heard) == [("delivered", 5), ("refused", 1)]


def test_a_row_without_an_event_is_parked(delivery, vendor):
    """An unreadable body doesn't stop the events after it."""
    delivery.record(make_events(4))
    bodies = ["[", "[]", '{"action":"other"}', '{"actions":[]}', '{"actions":[{"action":"other"}]}', None]
    delivery.record(make_events(2))
    for row, body in zip(OutboxEvent.objects.order_by("pk"), bodies, strict=True):
        OutboxEvent.objects.filter(pk=row.pk).update(body=body or row.body)
    assert delivery.flush() == DeliveryCounts(accepted=6, delivered=1, dropped={"refused": 5})
    assert set(OutboxEvent.objects.values_list("reason", flat=True)) == {"The row contains no event."}


def test_failures_are_retried_with_the_same_uuid(delivery, vendor):
    """Each row of a failed batch is due again at its own time, with one attempt more."""
    vendor.failures = [500, 503]
    events = make_events(10)
    delivery.record(events)
    before = timezone.now()
    assert delivery.deliver_batch().kept == events
    rows = list(OutboxEvent.objects.all())
    assert {(row.state, row.attempts, row.lease) for row in rows} == {(State.PENDING, 1, None)}
    assert len({row.due_at for row in rows}) > 5
    assert all(before <= row.due_at <= timezone.now() + timedelta(seconds=0.01) for row in rows)
    make_due()
    delivery.flush()
    make_due()
    assert delivery.flush() == DeliveryCounts(accepted=10, delivered=10)
    assert vendor.taken == {event.event_uuid: 1 for event in events}


def test_flush_waits_for_retry_after_but_not_beyond_its_timeout(delivery, vendor):
    """No event of the batch is due earlier than MoEngage asked. After a 429 other due events wait too."""
    vendor.status, vendor.headers = 429, {"Retry-After": "30"}
    delivery.record(make_events(150))
    before = timezone.now()
    assert delivery.flush(timeout=0.1).pending == 150
    assert len(vendor.calls) == 1
    due = OutboxEvent.objects.filter(attempts=1).values_list("due_at", flat=True)
    assert min(due) >= before + timedelta(seconds=30)
    assert len(due) == 100


def test_events_are_parked_after_the_last_attempt(build_outbox, vendor, heard):
    """With a limit, an event that fails too often is parked with the reason."""
    delivery = build_outbox(max_attempts=2)
    vendor.status = 500
    delivery.record(make_events(1))
    for _ in range(2):
        make_due()
        delivery.deliver_batch()
    assert delivery.counts() == DeliveryCounts(accepted=1, dropped={"attempts": 1})
    row = OutboxEvent.objects.get()
    assert (row.attempts, row.reason) == (2, "ServerError: MoEngage answered 500")
    assert heard == [("attempts", 1)]


def test_wrong_credentials_pause_with_one_loud_line(delivery, vendor, caplog):
    """The deliverer makes no further call, and counts no attempt. The events are due when the credentials work."""
    vendor.failures = [401]
    delivery.record(make_events(250))
    assert delivery.flush().pending == 250
    assert len(vendor.calls) == 1
    assert [level for level, _ in messages(caplog)] == ["ERROR"]
    assert set(OutboxEvent.objects.values_list("attempts", "lease")) == {(0, None)}
    assert delivery.flush() == DeliveryCounts(accepted=250, delivered=250)


def test_the_database_is_the_routers_or_the_named_one(settings):
    """A site's router may choose the database of the outbox; ``using`` overrides it."""
    settings.DATABASE_ROUTERS = [type("Router", (), {"db_for_write": lambda self, model, **hints: "events"})()]
    assert DatabaseDelivery().outbox.alias == "events"
    assert DatabaseDelivery(using="default").outbox.alias == "default"
