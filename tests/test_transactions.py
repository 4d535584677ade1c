"""The site's transactions stay usable after a failed query that the package handles."""

from contextlib import contextmanager

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Group
from django.core.cache import caches
from django.db import DatabaseError, IntegrityError, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpResponse
from django.test import RequestFactory, override_settings
from django.utils import timezone
from django.utils.functional import SimpleLazyObject

from django_moe_personalize import api
from django_moe_personalize.delivery.base import BaseDelivery
from django_moe_personalize.delivery.queued import QueuedDelivery
from django_moe_personalize.exceptions import TransportError
from django_moe_personalize.fetching import flight, upstream
from django_moe_personalize.fetching.resolve import Answer, follow_up
from django_moe_personalize.fetching.shared import add_to_count
from django_moe_personalize.models import OutboxEvent
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import get_runtime, protect_transactions
from django_moe_personalize.signals import breaker_changed, events_delivered, events_dropped, fetch_failed
from django_moe_personalize.types import Experience
from django_moe_personalize.visitor import NO_VISITOR, agather_visitor, gather_visitor
from tests.conftest import settle
from tests.delivery.events import make_events
from tests.processes import filled

pytestmark = pytest.mark.django_db


def break_transaction(*args, **kwargs):
    """Fail in a block without a savepoint. Django then refuses further queries, as PostgreSQL does."""
    with transaction.atomic(savepoint=False):
        Group.objects.bulk_create([Group(name="twice"), Group(name="twice")])


class BrokenDelivery(BaseDelivery):
    uses_database = True
    take = break_transaction


def list_groups():
    """Return the stored rows. In a broken transaction this fails."""
    return list(Group.objects.order_by("pk").values_list("name", flat=True))


def test_savepoint_is_made_before_the_first_query(django_assert_num_queries):
    """Without a query the context costs nothing, and an inner context makes its savepoint after the outer one."""
    with django_assert_num_queries(0), protect_transactions():
        pass
    with django_assert_num_queries(5) as queries, protect_transactions(), protect_transactions():
        Group.objects.create(name="a")
    words = [query["sql"].split()[0] for query in queries]
    assert words == ["SAVEPOINT", "SAVEPOINT", "INSERT", "RELEASE", "RELEASE"]


@pytest.mark.parametrize("error", [IntegrityError, ValueError])
def test_error_in_the_context(error):
    """The caller gets the error. The rows of the context are gone, also those in the site's own inner blocks.

    The functions that wait for the commit of these rows are gone too.
    """

    @protect_transactions()
    def run():
        with transaction.atomic():
            Group.objects.create(name="lost")
            transaction.on_commit(break_transaction)
        with pytest.raises(IntegrityError):
            protect_transactions()(break_transaction)()
        assert list_groups() == ["before", "lost"]
        if error is IntegrityError:
            break_transaction()
        raise ValueError

    Group.objects.create(name="before")
    transaction.on_commit(print)
    with pytest.raises(error):
        run()
    assert list_groups() == ["before"]
    assert [function for _, function, _ in connection.run_on_commit] == [print]


def test_error_that_the_context_has_handled(monkeypatch):
    """The transaction returns to the savepoint, whether Django or only the database knows that it is broken."""
    with protect_transactions(), pytest.raises(IntegrityError):
        break_transaction()
    assert list_groups() == []

    def refuse(savepoint):
        monkeypatch.undo()
        raise DatabaseError("current transaction is aborted")

    with protect_transactions():
        Group.objects.create(name="lost")
        monkeypatch.setattr(connection, "savepoint_commit", refuse)
    assert list_groups() == []


@pytest.mark.django_db(transaction=True)
def test_lost_transaction(monkeypatch, django_assert_num_queries):
    """If the savepoint is gone too, the block of the site is rolled back. Outside a transaction nothing changes."""

    def refuse(savepoint):
        raise DatabaseError("the connection is closed")

    with transaction.atomic():
        Group.objects.create(name="before")
        monkeypatch.setattr(connection, "savepoint_rollback", refuse)
        with pytest.raises(IntegrityError):
            protect_transactions()(break_transaction)()
        assert connection.needs_rollback
        monkeypatch.undo()
    with django_assert_num_queries(1), protect_transactions():
        assert list_groups() == []


HERO = Experience("hero", {}, {"cid": "c", "experience": "Hero"})
PATH = f"{__name__}.break_transaction"


def close_connections():
    """Close this thread's connections. Django's own close() leaves connections to databases in memory open."""
    for each in connections.all(initialized_only=True):
        BaseDatabaseWrapper.close(each)


@pytest.mark.parametrize(
    "moe",
    [
        {"CONSENT": PATH},
        {"IDENTIFY": PATH},
        {"ATTRIBUTES": [PATH]},
        {"LEARN_ROUTES": PATH},
        {"DELIVERY": {"BACKEND": f"{__name__}.BrokenDelivery"}},
        {"CACHE": "broken"},
    ],
    ids=lambda moe: next(iter(moe)),
)
def test_views_writes_survive(serve, visit, settings, moe, monkeypatch):
    """A page whose hook, delivery, cache or receiver breaks the transaction stores the rows of its view."""

    def page(request):
        with transaction.atomic():
            Group.objects.create(name="before")
            request.personalization.get("hero-banner")
            api.experiences_shown([HERO], customer_id="42")
            add_to_count("pages", 1, 60.0)
            Group.objects.create(name="after")
        return HttpResponse()

    serve(page)
    settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | moe
    table = {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "no_table"}
    with override_settings(CACHES={**settings.CACHES, "broken": table}), broken_receiver(events_dropped):
        monkeypatch.setattr(caches["broken"], "incr", break_transaction)
        for module in (flight, upstream):
            monkeypatch.setattr(module, "close_old_connections", close_connections)
        assert visit("/page/").status_code == 200
        settle()
    assert list_groups() == ["before", "after"]


def test_autocommit_off(monkeypatch):
    """Without autocommit, the first query of a connection opens a transaction. The context protects it too."""
    made, other = [], connection.copy("other")
    other.settings_dict = {**other.settings_dict, "AUTOCOMMIT": False}
    monkeypatch.setattr(connections, "all", lambda **kwargs: [other])
    # SQLite makes no savepoint here.
    monkeypatch.setattr(other, "savepoint", lambda: made.append("savepoint"))
    with protect_transactions(), other.cursor() as cursor:
        cursor.execute("SELECT 1")
    close_connections()
    assert made == ["savepoint"]


@contextmanager
def broken_receiver(signal):
    signal.connect(break_transaction)
    yield
    signal.disconnect(break_transaction)


def test_receivers_in_the_pages_thread():
    """A delivery may call its receivers in the page's thread, and so do fetches if all threads are busy."""
    with broken_receiver(events_delivered):
        BaseDelivery().count_delivered(1)
    assert list_groups() == []
    runtime, answer = get_runtime(), Answer()
    answer.errors.append(TransportError("refused"))
    with broken_receiver(fetch_failed):
        follow_up(upstream.Question(runtime, NO_VISITOR, ("hero",), Deadline(1.0)), answer)
    assert list_groups() == []
    pools = upstream.get_pool(runtime), upstream.get_background(runtime)
    with broken_receiver(breaker_changed), filled(pools[0]), filled(pools[1]):
        for _ in range(10):
            upstream.get_breaker(runtime).failure(0)
    assert list_groups() == []


@pytest.mark.parametrize("gather", [gather_visitor, async_to_sync(agather_visitor)], ids=["sync", "async"])
@pytest.mark.parametrize("identify", ["", PATH])
def test_visitor_that_cannot_be_read(settings, gather, identify):
    """Reading the user, or a hook under ASGI, breaks the transaction of the thread. The page asks nothing."""
    settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | {"IDENTIFY": identify}
    request = RequestFactory().get("/")
    request.user = SimpleLazyObject(break_transaction)
    assert gather(request, timezone.now()) is NO_VISITOR
    assert list_groups() == []


class BrokenQueue(QueuedDelivery):
    uses_database = True
    hand_over = break_transaction


def test_fallback_of_a_queue():
    """The fallback stores the events in the same transaction."""
    outbox = {"BACKEND": "django_moe_personalize.delivery.database.DatabaseDelivery"}
    delivery = BrokenQueue(fallback=outbox, timeout=1, max_attempts=1, backoff=1, max_backoff=1, pause=1)
    delivery.record(make_events(2))
    assert OutboxEvent.objects.count() == 2
