"""The view for health checks: what it tells, and that it needs no other service."""

from types import SimpleNamespace

import pytest
from django.urls import path

from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.delivery.thread import ThreadDelivery
from django_moe_personalize.doctor.health import health
from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.fetching.switch_store import Entry
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.testing import override_personalize
from tests.conftest import settle
from tests.delivery.events import make_events
from tests.doctor.conftest import build_backend
from tests.site import urlpatterns as pages

urlpatterns = [path("health/", health), *pages]

pytestmark = pytest.mark.urls(__name__)

THREAD = {"backend": "ThreadDelivery", "pending": 0, "oldest_seconds": None, "is_dead": False}


@pytest.fixture(autouse=True)
def database():
    """In place of the fixture of this folder: the view needs no database."""


@pytest.fixture
def thread():
    with override_personalize(
        DELIVERY=build_backend("thread.ThreadDelivery", interval=600.0, exit_timeout=0.01),
        EXPERIENCES={"*": ["hero-banner"]},
    ):
        yield


def read(visit):
    response = visit("/health/")
    assert "no-store" in response["Cache-Control"]
    return response.status_code, response.json()


def test_a_new_process_is_well(visit, thread, upstream):
    """Before its first page, too. It asks for nothing, also if EXPERIENCES names keys for all pages."""
    status, told = read(visit)
    switch = {"is_known": False, "all_off": False, "keys_off": 0}
    well = {"breaker": "closed", "fetches_fail": False, "switch": switch, "delivery": THREAD}
    assert (status, told) == (200, {"status": "ok", "workspaces": {"default": well}})
    settle()
    assert upstream.requests == []


def test_an_outage_of_moengage_keeps_the_site_in_rotation(visit, thread, upstream):
    """The breaker is open, events wait and everything is off: the site works."""
    upstream.refuse()
    for number in range(6):
        visit(f"/tags/?utm_source={number}")
    settle()
    get_switch().change((Entry("", True, None, "ada", 1.0), Entry("x", True, None, "ada", 1.0)))
    get_delivery().record(make_events(2))
    status, told = read(visit)
    told = told["workspaces"]["default"]
    assert (status, told["breaker"], told["fetches_fail"]) == (200, "open", True)
    assert told["switch"] == {"is_known": True, "all_off": True, "keys_off": 1}
    assert told["delivery"]["pending"] == 2
    assert told["delivery"]["oldest_seconds"] >= 0


def test_a_delivery_whose_thread_died_needs_a_restart(visit, thread):
    """No event would leave the process before its end."""
    delivery = get_delivery()
    assert isinstance(delivery, ThreadDelivery)
    delivery._thread = SimpleNamespace(is_alive=lambda: False)
    assert read(visit)[0] == 200
    delivery.record(make_events(1))
    status, told = read(visit)
    assert (status, told["status"]) == (503, "failing")
    delivery._thread = None


def test_conversions_whose_thread_died_need_a_restart(visit, thread):
    """Conversions have a thread of their own, and so has the fallback of a queue."""
    get_delivery().record_conversions(make_events(1))
    get_delivery()._thread = SimpleNamespace(is_alive=lambda: False)
    assert read(visit)[0] == 200
    second, get_delivery()._thread = get_delivery().second, None
    alive, second._thread = second._thread, SimpleNamespace(is_alive=lambda: False)
    assert read(visit)[0] == 503
    second._thread = alive


@pytest.mark.parametrize("name", ["database.DatabaseDelivery", "dummy.DummyDelivery", "celery.CeleryDelivery"])
def test_the_view_needs_no_database(visit, name):
    """The outbox isn't read, also if it is a fallback: a database that hangs would hang the view."""
    options = {"fallback": build_backend("database.DatabaseDelivery")} if "celery" in name else {}
    with override_personalize(DELIVERY=build_backend(name, **options)):
        status, told = read(visit)
    delivery = told["workspaces"]["default"]["delivery"]
    assert (status, delivery["backend"], delivery["oldest_seconds"]) == (200, name.partition(".")[2], None)


def test_a_process_without_a_delivery(rf):
    """The middleware builds the delivery, but the view works without it."""
    get_runtime()
    assert b'"delivery": null' in health(rf.get("/")).content
