"""The outbox on SQLite: what is recorded, leased, settled, parked, erased, and how the books stay right."""

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
from django.urls import path
from django.utils import timezone

from django_moe_personalize import api
from django_moe_personalize.delivery.base import DeliveryCounts, get_delivery
from django_moe_personalize.delivery.database import DatabaseDelivery
from django_moe_personalize.delivery.deliverer import PATIENCE, Deliverer
from django_moe_personalize.delivery.outbox import Outbox, State
from django_moe_personalize.models import OutboxEvent, OutboxTally
from django_moe_personalize.moengage.types import Action, Event, Experience
from tests.delivery_vendor import SOON
from tests.test_delivery import (  # noqa: F401 - fixtures
    backend,
    heard,
    make_event,
    make_events,
    messages,
    vendor,
)
from tests.processes import in_child

pytestmark = pytest.mark.django_db

EXPERIENCE = Experience("hero", {}, {"cid": "c", "experience": "Hero"})
QUICK = {"backoff": 0.001, "max_backoff": 0.01}


def record_in_transaction(request):
    """Make a user and an impression in the view's own transaction."""
    User.objects.create(username="theirs")
    api.experiences_shown([EXPERIENCE], customer_id="42")
    return HttpResponse(str(User.objects.count()))


urlpatterns = [path("", record_in_transaction)]


@pytest.fixture
def build(vendor):  # noqa: F811
    """Give what makes a delivery of the vendor's."""
    return lambda **options: DatabaseDelivery(**QUICK | options)


@pytest.fixture
def delivery(build):
    """Give a delivery with short waits."""
    return build()


def make_due():
    """Let time pass for every pending row, and every lease run out."""
    OutboxEvent.objects.filter(state=State.PENDING).update(due_at=timezone.now() - timedelta(seconds=1))


def break_outbox():
    """Have every INSERT into the outbox fail, as a full disk does."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TRIGGER full BEFORE INSERT ON moe_personalize_outboxevent "
            "BEGIN SELECT RAISE(ABORT, 'disk full, customer-4711'); END"
        )


def mend_outbox():
    """Let INSERTs succeed again."""
    with connection.cursor() as cursor:
        cursor.execute("DROP TRIGGER full")


# -- recording


def test_recording_is_one_insert(delivery, django_assert_num_queries):
    """The events of a page are one statement, beside the savepoint, and are pending for all processes."""
    with django_assert_num_queries(3) as queries:
        delivery.record(make_events(5))
    assert [query["sql"].split()[0] for query in queries] == ["SAVEPOINT", "INSERT", "RELEASE"]
    assert DatabaseDelivery().counts() == DeliveryCounts(accepted=5, pending=5)


def test_event_comes_back_as_it_was(delivery, vendor):  # noqa: F811
    """Whatever characters and nesting a context has, and the UUID, time and platform, arrive unchanged."""
    attributes = MappingProxyType({"experience": "Ä \x00 \ud800 😀", "offerings": [{"id": "1"}]})
    event = Event(Action.CLICKED, "\ud800 ß \x00", attributes, 1_760_000_000, platform="ios")
    delivery.record([event])
    assert Event.read(OutboxEvent.objects.get().body) == event
    delivery.flush()
    action = vendor.bodies[0]["elements"][0]["actions"][0]
    assert action["moe_event_uuid"] == event.event_uuid
    assert action["attributes"] == dict(attributes)


def test_an_event_recorded_twice_is_stored_once(delivery):
    """A beacon that comes again has the same UUID, and costs neither a row nor the events beside it."""
    first, second = make_events(2)
    delivery.record([first])
    delivery.record([first, second])
    assert delivery.counts() == DeliveryCounts(accepted=2, pending=2)


def test_async_recording_shares_the_transaction_of_the_request(delivery):
    """Under ASGI the INSERT runs where the request's other queries do, not on a connection that nobody closes."""
    threads = []
    take = delivery.take

    def look(events):
        threads.append(threading.get_ident())
        take(events)

    delivery.take = look
    async_to_sync(delivery.arecord)(make_events(1))
    assert threads == [threading.get_ident()]
    assert OutboxEvent.objects.count() == 1


@pytest.mark.urls(__name__)
def test_failing_insert_costs_the_page_nothing_but_its_events(settings, heard, caplog):  # noqa: F811
    """In the view's own transaction: 200, its own queries intact, the loss counted, nobody named in the log."""
    settings.MOE_PERSONALIZE = {"SANDBOX": True, "DELIVERY": backend("database.DatabaseDelivery")}
    break_outbox()
    with transaction.atomic():
        response = Client().get("/")
    assert (response.status_code, response.text) == (200, "1")
    assert User.objects.filter(username="theirs").exists()
    assert get_delivery().counts() == DeliveryCounts(accepted=1, dropped={"error": 1})
    assert heard == [("error", 1)]
    (line,) = messages(caplog)
    assert "4711" not in line[1]


@pytest.mark.django_db(transaction=True)
def test_losses_reach_the_books_of_all_with_the_next_event(delivery, monkeypatch):
    """What one process could not store, the others learn when the database works again, if only at a second try."""
    break_outbox()
    delivery.record(make_events(3))
    assert DatabaseDelivery().counts() == DeliveryCounts()
    mend_outbox()
    enter_loss = Outbox.enter_loss
    monkeypatch.setattr(Outbox, "enter_loss", None)
    delivery.record(make_events(1))
    monkeypatch.setattr(Outbox, "enter_loss", enter_loss)
    assert delivery.counts() == DeliveryCounts(accepted=4, dropped={"error": 3}, pending=1)
    delivery.record(make_events(1))
    for each in (delivery, DatabaseDelivery()):
        assert each.counts() == DeliveryCounts(accepted=5, dropped={"error": 3}, pending=2)


@pytest.mark.django_db(transaction=True)
def test_losses_are_not_undone_with_somebody_elses_transaction(delivery):
    """They wait for an event that is recorded outside of any."""
    delivery.record([make_event(b_id=object())])
    with contextlib.suppress(KeyError), transaction.atomic():
        delivery.record(make_events(1))
        raise KeyError
    assert delivery.counts() == DeliveryCounts(accepted=1, dropped={"error": 1})
    delivery.record(make_events(1))
    assert DatabaseDelivery().counts() == DeliveryCounts(accepted=2, dropped={"error": 1}, pending=1)


def test_an_event_that_is_no_json_is_counted(delivery):
    """What cannot be written is dropped when it is recorded."""
    delivery.record([make_event(b_id=object())])
    assert delivery.counts() == DeliveryCounts(accepted=1, dropped={"error": 1})


def test_losses_are_each_process_own(delivery):
    """A forked child does not enter its parent's losses a second time."""
    delivery.drop(2, "error")
    assert in_child(lambda: delivery._lost == 1 or delivery._lost == 0)
    assert delivery._lost == 2


# -- delivering


def test_delivered_events_leave_the_table_and_stay_counted(delivery, vendor, heard):  # noqa: F811
    """Each event arrives once; no row, and so nothing personal, is left."""
    events = make_events(250)
    delivery.record(events)
    assert delivery.flush(SOON) == DeliveryCounts(accepted=250, delivered=250)
    assert vendor.taken == {event.event_uuid: 1 for event in events}
    assert not OutboxEvent.objects.exists()
    assert list(OutboxTally.objects.values_list("outcome", "count")) == [("delivered", 250)]
    assert heard == [("delivered", 100), ("delivered", 100), ("delivered", 50)]


def test_sending_is_outside_any_transaction(delivery, vendor, django_assert_num_queries):  # noqa: F811
    """While MoEngage is asked, the lease is there for others to see, and no transaction of ours is open."""
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
    """A lease that others cannot see yet is none."""
    delivery.record(make_events(1))
    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        delivery.flush()


def test_one_poison_event_among_100_is_parked_alone(delivery, vendor, heard):  # noqa: F811
    """99 are delivered, one is parked with the vendor's reason and without the customer's name."""
    events = make_events(100)
    vendor.poison = {events[37].event_uuid}
    delivery.record(events)
    assert delivery.flush() == DeliveryCounts(accepted=100, delivered=99, dropped={"refused": 1})
    (row,) = OutboxEvent.objects.all()
    assert (str(row.event_uuid), row.state, row.lease) == (events[37].event_uuid, State.REFUSED, None)
    assert row.reason == "ResponseError: MoEngage answered 400: Invalid Field Value no"
    assert sorted(heard) == [("delivered", 99), ("refused", 1)]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("customer ann@example.com is no customer", "customer ... is no customer"),
        ("\x00 in «Hero ☃😀»", r"\x00 in \xabHero \u2603\U0001f600\xbb"),
        ("ann@example.community", "ann@example.community"),
    ],
)
def test_reason_does_not_name_the_customer(delivery, vendor, said, kept):  # noqa: F811
    """The vendor may quote the id; what is kept does not, and is text that every database takes."""
    event = make_event("ann@example.com")
    vendor.poison, vendor.description = {event.event_uuid}, said
    delivery.record([event])
    delivery.flush()
    assert OutboxEvent.objects.get().reason.endswith(f"Invalid Field Value {kept}")


def test_a_row_that_holds_no_event_is_parked(delivery, vendor):  # noqa: F811
    """A body that cannot be read does not stop those behind it."""
    delivery.record(make_events(4))
    bodies = ["[", "[]", '{"action":"other"}', '{"actions":[]}', '{"actions":[{"action":"other"}]}', None]
    delivery.record(make_events(2))
    for row, body in zip(OutboxEvent.objects.order_by("pk"), bodies, strict=True):
        OutboxEvent.objects.filter(pk=row.pk).update(body=body or row.body)
    assert delivery.flush() == DeliveryCounts(accepted=6, delivered=1, dropped={"refused": 5})
    assert set(OutboxEvent.objects.values_list("reason", flat=True)) == {"The row holds no event."}


def test_failures_are_retried_with_the_same_uuid(delivery, vendor):  # noqa: F811
    """A batch that failed is due again, later and each row at its own time, and counted as an attempt."""
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


def test_retry_after_is_respected(delivery, vendor):  # noqa: F811
    """No event of the batch is due before the vendor wants to hear of it."""
    vendor.failures, vendor.headers = [429], {"Retry-After": "7"}
    delivery.record(make_events(2))
    before = timezone.now()
    delivery.deliver_batch()
    assert min(OutboxEvent.objects.values_list("due_at", flat=True)) >= before + timedelta(seconds=7)
    assert delivery.deliver_batch() is None


def test_flush_waits_as_long_as_the_vendor_asks_but_not_beyond_its_timeout(delivery, vendor):  # noqa: F811
    """A deliverer leaves MoEngage alone after a 429, also with other events that are due."""
    vendor.status, vendor.headers = 429, {"Retry-After": "30"}
    delivery.record(make_events(150))
    assert delivery.flush(timeout=0.1).pending == 150
    assert len(vendor.calls) == 1


def test_who_drains_once_gives_up(delivery, vendor):  # noqa: F811
    """After some failures in a row it leaves the others for later."""
    vendor.status = 500
    delivery.record(make_events(1000))
    outcome = Deliverer(delivery).drain()
    assert outcome.error.status == 500
    assert len(vendor.calls) == PATIENCE


def test_events_are_parked_after_the_last_attempt(build, vendor, heard):  # noqa: F811
    """With a limit, an event that fails too often is parked with the reason; without one it never is."""
    delivery = build(max_attempts=2)
    vendor.status = 500
    delivery.record(make_events(1))
    for _ in range(2):
        make_due()
        delivery.deliver_batch()
    assert delivery.counts() == DeliveryCounts(accepted=1, dropped={"attempts": 1})
    row = OutboxEvent.objects.get()
    assert (row.attempts, row.reason) == (2, "ServerError: MoEngage answered 500")
    assert heard == [("attempts", 1)]


def test_wrong_credentials_pause_with_one_loud_line(delivery, vendor, caplog):  # noqa: F811
    """Nothing more is asked, no attempt is counted, and the events are due as soon as somebody has mended it."""
    vendor.failures = [401]
    delivery.record(make_events(250))
    assert delivery.flush().pending == 250
    assert len(vendor.calls) == 1
    assert [level for level, _ in messages(caplog)] == ["ERROR"]
    assert set(OutboxEvent.objects.values_list("attempts", "lease")) == {(0, None)}
    assert delivery.flush() == DeliveryCounts(accepted=250, delivered=250)


# -- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 101}, "batch_size must be from 1 to 100, not 101"),
        ({"max_attempts": 0}, "max_attempts must be at least 1, or None for no limit, not 0"),
        ({"lease": 0.5}, "lease must be at least 1 second, not 0.5"),
        ({"using": "other"}, "using must be one of default, not 'other'"),
    ],
)
def test_wrong_options_say_what_is_valid(options, message):
    """A mistake is a ValueError at start-up."""
    with pytest.raises(ValueError, match=message):
        DatabaseDelivery(**options)


def test_the_database_is_the_routers_or_the_one_named(settings):
    """A site's router may put the outbox elsewhere; ``using`` overrules it."""
    settings.DATABASE_ROUTERS = [type("Router", (), {"db_for_write": lambda self, model, **hints: "events"})()]
    assert DatabaseDelivery().outbox.alias == "events"
    assert DatabaseDelivery(using="default").outbox.alias == "default"
