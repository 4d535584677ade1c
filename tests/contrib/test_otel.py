"""The metrics and spans for OpenTelemetry, with its SDK. tests/sites/test_otel.py exports them from whole sites."""

import os
import time
from contextlib import ExitStack, nullcontext
from datetime import UTC, datetime
from functools import partial

import pytest
from opentelemetry import sdk, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from django_moe_personalize import api, runtime
from django_moe_personalize.client import get_client, get_data_client
from django_moe_personalize.contrib.otel import apps, metrics, spans
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.fetching.cache import get_cache
from django_moe_personalize.fetching.upstream import get_breaker
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.testing import override_personalize
from tests import brands
from tests.conftest import settle
from tests.delivery.events import backend, make_event, make_events
from tests.documents import read, read_rows, read_section, read_words
from tests.fetching.asking import Asked
from tests.fetching.warm_vendor import KEYS, Vendor, build_visitor
from tests.pages import BROWSER, title
from tests.processes import use_shared_cache  # noqa: F401 - the fixture shared
from tests.wire import LONG, wait_until

EVENTS = "moe_personalize.events"
MISSES = "moe_personalize.deadline.misses"
pytestmark = pytest.mark.urls("tests.site")
LISTS = "tests.delivery.test_queued.ListDelivery"


class Otel:
    """The metrics and spans of this test."""

    def __init__(self):
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], shutdown_on_exit=False)
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))

    def page(self):
        return self.tracers.get_tracer("site").start_as_current_span("page")

    def read_spans(self):
        """Return the name, the parent's name and the attributes of the spans of the package."""
        found = self.exporter.get_finished_spans()
        names = {span.context.span_id: span.name for span in found}
        return [(span.name, names[span.parent.span_id], dict(span.attributes)) for span in found if span.name != "page"]

    def read_metrics(self):
        """Return the metrics by name."""
        data = self.reader.get_metrics_data()
        return {m.name: m for r in (data.resource_metrics if data else ()) for s in r.scope_metrics for m in s.metrics}

    def read(self, name, *attributes):
        """Return the values of a metric, or the counts of a histogram, by the values of these attributes."""
        metric = self.read_metrics().get(name)
        points = metric.data.data_points if metric else ()
        values = {
            tuple(point.attributes.get(each, "") for each in attributes): getattr(point, "count", None) or point.value
            for point in points
        }
        return {key: value for key, value in values.items() if value}


@pytest.fixture
def otel(monkeypatch):
    """Start the instrumentation, for this test alone."""
    otel = Otel()
    for part in (get_client, get_data_client, get_cache, get_delivery):
        monkeypatch.setattr(part, "_build", part._build)
    monkeypatch.setattr(metrics, "get_meter", lambda *args: otel.meters.get_meter("test"))
    for module in (trace, spans):
        monkeypatch.setattr(module, "get_tracer", lambda *args: otel.tracers.get_tracer("test"))
    apps._start.cache_clear()
    for _ in range(2):
        apps.OpenTelemetryConfig(apps.OpenTelemetryConfig.name, apps).ready()
    yield otel
    otel.meters.shutdown()
    otel.tracers.shutdown()


@pytest.fixture
def vendor(settings):
    """Run MoEngage as a real HTTP server, and let the site use it."""
    vendor = Vendor()
    with vendor.server:
        changes = {"BASE_URL": vendor.server.url, "DELIVERY": backend("dummy.DummyDelivery")}
        settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | changes
        yield vendor
        vendor.go_on.set()
        settle()
        vendor.client.close()


@pytest.mark.parametrize("is_warm", [True, False], ids=["two steps", "pool"])
def test_request(otel, vendor, submitted, is_warm):
    """Each request has one duration with its outcome, and one span below the page, also if a thread makes the call."""
    replies = [lambda e: vendor.reply(e), lambda e: e.reply(status="503 Busy"), lambda e: e.close()]
    for number, vendor.behave in enumerate(replies):
        get_client().close()
        if is_warm:
            get_client().connect(deadline=Deadline(LONG))
        with otel.page() if number else nullcontext():
            submitted.clear()
            Asked(build_visitor(number), KEYS).join(LONG)
            # If the server closes an idle connection, a thread asks again.
            assert (submitted[:1] == ["_run"]) is (not is_warm or number == 2)
            settle()
    found = otel.read("moe_personalize.request.duration", "operation", "http.response.status_code", "error.type")
    assert found.pop(("fetch", "200", "")) == found.pop(("fetch", "503", "503")) == 1
    assert found
    assert {key[:2] for key in found} == {("fetch", "")}
    calls = [each for each in otel.read_spans() if each[:2] == ("POST /experiences/fetch", "page")]
    assert len(calls) == 1 + sum(found.values())
    assert calls[0][2]["http.response.status_code"] == 503
    assert "visitor-" not in f"{calls} {otel.read_metrics()}"
    assert "RequestsTransport" in repr(get_client())


def test_sandbox_in_this_process(otel):
    """The sandbox in this process also has durations, also of conversions."""
    Asked(build_visitor(), KEYS).join(LONG)
    settle()
    api.track_event("customer-1", "Order placed")
    found = otel.read("moe_personalize.request.duration", "operation", "workspace")
    assert found == {("fetch", "default"): 1, ("conversions", "default"): 1}


def test_conversions(otel, vendor):
    """A conversion that waits counts as a pending event with its age."""
    with override_personalize(DELIVERY=backend("thread.ThreadDelivery", interval=600.0)):
        api.track_event("customer-1", "Order placed", at=datetime(2026, 1, 1, tzinfo=UTC))
        assert otel.read(f"{EVENTS}.pending") == {(): 1}
        (age,) = otel.read(f"{EVENTS}.oldest.age").values()
        assert age > 0
        get_delivery().flush()
        assert otel.read("moe_personalize.request.duration", "operation") == {("conversions",): 1}
        assert otel.read(f"{EVENTS}.delivered") == {(): 1}


def test_page(otel, visit, vendor):
    """A page counts its lookup in memory, and has a span for its events."""
    for _ in range(2):
        with otel.page():
            assert title(visit("/tags/", headers={"user-agent": BROWSER})) != "Welcome"
    assert otel.read("moe_personalize.cache.lookups", "level", "result") == {
        ("memory", "miss"): 1,
        ("memory", "hit"): 1,
    }
    deliver = ("moe_personalize.deliver", "page", {"workspace": "default", "moe_personalize.count": 2})
    assert otel.read_spans().count(deliver) == 2
    assert otel.read("moe_personalize.breaker.state", "state") == {("closed",): 1}


def test_stale_answer(otel, vendor):
    """A stale answer is a lookup of its own kind."""
    with override_personalize(CACHE_TTL=0):
        for _ in range(2):
            Asked(build_visitor(), KEYS).join(LONG)
            settle()
        assert otel.read("moe_personalize.cache.lookups", "result") == {("miss",): 1, ("stale",): 1}


def test_late_page(otel, visit, vendor):
    """A fetch is late once, whether the deadline of the call or of a page ends first. Before, the number is 0."""
    with override_personalize(DEADLINE=0.05), vendor.hold():
        get_delivery()
        assert [point.value for point in otel.read_metrics()[MISSES].data.data_points] == [0]
        assert title(visit("/tags/")) == "Welcome"
        settle()
        assert otel.read(MISSES) == {(): 1}
        first = Asked(build_visitor(), KEYS)
        for asked in (first, Asked(build_visitor(), KEYS), first):
            asked.join(0.0)
        settle()
        assert otel.read(MISSES) == {(): 2}


def test_shared_cache(otel, shared, vendor):
    """The round trips to a cache that processes share are lookups, and spans of the page, also in a thread."""
    for _ in range(2):
        with otel.page():
            Asked(build_visitor(), KEYS).join(LONG)
            settle()
        get_cache().memory.__init__()
    cache = [(name.rpartition(".")[2], parent) for name, parent, _ in otel.read_spans() if ".cache." in name]
    assert sorted(cache) == [("read", "page"), ("read", "page"), ("write", "page"), ("write", "page")]
    found = otel.read("moe_personalize.cache.lookups", "level", "result")
    assert found == {("memory", "miss"): 2, ("shared", "miss"): 1, ("shared", "hit"): 1}
    Asked(build_visitor(2), KEYS).join(LONG)
    settle()
    assert len(otel.read_spans()) == len(cache) + 1


@pytest.mark.parametrize("name", ["thread.ThreadDelivery", "database.DatabaseDelivery"])
@pytest.mark.django_db(transaction=True)
def test_events(otel, vendor, name):
    """Events are pending, with the age of the oldest event, until they are delivered. Each kind has its counters."""
    options = {"interval": 600.0} if name == "thread.ThreadDelivery" else {}
    with override_personalize(DELIVERY=backend(name, **options)):
        delivery = get_delivery()
        assert otel.read(f"{EVENTS}.pending") == otel.read(f"{EVENTS}.oldest.age") == {}
        delivery.record(make_events(3))
        of = (name.rpartition(".")[2],)
        assert otel.read(f"{EVENTS}.accepted", "delivery") == otel.read(f"{EVENTS}.pending", "delivery") == {of: 3}
        (age,) = otel.read(f"{EVENTS}.oldest.age").values()
        assert 0 < age <= time.time() - 1_760_000_000
        delivery.erase("2")
        delivery.flush()
        assert otel.read(f"{EVENTS}.delivered", "delivery") == {of: 2}
        assert otel.read(f"{EVENTS}.dropped", "reason", "workspace") == {("erased", "default"): 1}
        assert otel.read(f"{EVENTS}.pending") == otel.read(f"{EVENTS}.oldest.age") == {}


@pytest.mark.django_db
def test_events_of_a_queue_that_fails(otel, vendor):
    """The queue and its fallback have values of their own, and none of them ever falls."""
    with override_personalize(DELIVERY=backend(LISTS, fallback=backend("database.DatabaseDelivery"))):
        get_delivery().record(make_events(3))
        get_delivery().queue = None
        get_delivery().record([make_event()])
        queue, outbox = ("ListDelivery",), ("DatabaseDelivery",)
        assert otel.read(f"{EVENTS}.accepted", "delivery") == {queue: 3, outbox: 1}
        assert otel.read(f"{EVENTS}.handed_over", "delivery") == {queue: 3}
        assert otel.read(f"{EVENTS}.pending", "delivery") == {outbox: 1}


def test_child_of_a_fork(otel, upstream):
    """A child counts from 0, and its parent doesn't count what the child does."""
    get_delivery().record(make_events(2))
    child = os.fork()
    if not child:
        is_right = otel.read(f"{EVENTS}.accepted") == {}
        get_delivery().record(make_events(5))
        os._exit(0 if is_right and otel.read(f"{EVENTS}.accepted") == {(): 5} else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert otel.read(f"{EVENTS}.accepted") == {(): 2}


def test_workspaces(otel, visit, settings):
    """Each workspace has its own values and its own spans."""
    with ExitStack() as stack:
        found = [stack.enter_context(brands.Brand(name)) for name in brands.BRANDS]
        brands.configure(settings, found)
        for number in range(3):
            name = brands.BRANDS[number == 0]
            with otel.page():
                title(visit("/", headers={"x-brand": name, "x-customer": str(number), "user-agent": BROWSER}))
        brands.flush()
        settle()
        each = {("outlet",): 1, ("default",): 2}
        for metric in ("cache.lookups", "events.accepted", "events.delivered"):
            assert otel.read(f"moe_personalize.{metric}", "workspace") == each
        fetches = otel.read("moe_personalize.request.duration", "workspace", "operation")
        assert (fetches["outlet", "fetch"], fetches["default", "fetch"]) == (1, 2)
        spans = [attributes["workspace"] for name, _, attributes in otel.read_spans() if "deliver" in name]
        assert spans == ["outlet", "default", "default"]
        assert otel.read("moe_personalize.breaker.state", "workspace", "state") == {
            ("outlet", "closed"): 1,
            ("default", "closed"): 1,
        }


def test_tools_that_fail(otel, visit, vendor, monkeypatch, settings):
    """A page goes on if the database, a meter or a tracer fails. The other metrics have values."""
    settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | {"DELIVERY": backend("database.DatabaseDelivery")}
    with otel.page():
        monkeypatch.setattr(sdk.metrics.Histogram, "record", None)
        monkeypatch.setattr(sdk.trace.Tracer, "start_span", None)
        assert title(visit("/tags/")) != "Welcome"
    assert otel.read(f"{EVENTS}.pending") == {}
    assert otel.read("moe_personalize.breaker.state", "state") == {("closed",): 1}


def test_end_of_a_process(otel, upstream, monkeypatch):
    """The last export of a process has the events that the process delivered at its end."""
    monkeypatch.setattr(runtime, "_process", runtime._Process())
    with override_personalize(DELIVERY=backend("thread.ThreadDelivery", interval=600.0)):
        get_delivery().record(make_events(2))
        assert otel.read(f"{EVENTS}.delivered") == {}
        runtime._end()
        assert otel.read(f"{EVENTS}.delivered") == {(): 2}


def test_nothing_is_built_for_a_metric(otel):
    """A process without pages has no values but zeros."""
    get_runtime()
    assert set(otel.read_metrics()) == {"moe_personalize.cache.lookups", MISSES}
    assert get_breaker.find() is get_delivery.find() is get_client.find() is None


@pytest.mark.django_db
def test_metrics_are_those_of_the_documents(otel, visit, shared, vendor):
    """The reference has each metric with its kind, unit and attributes, and each span."""
    with override_personalize(DELIVERY=backend("thread.ThreadDelivery", interval=600.0)):
        with otel.page():
            visit("/tags/", headers={"user-agent": BROWSER})
            settle()
        get_delivery().record(make_events(1))
        get_delivery().erase("0")
        vendor.behave = lambda exchange: exchange.reply(status="503 Busy")
        Asked(build_visitor(), KEYS).join(LONG)
        wait_until(partial(otel.read, "moe_personalize.request.duration", "error.type"))
        found = {
            name: (m.unit, {each for point in m.data.data_points for each in point.attributes})
            for name, m in otel.read_metrics().items()
        }
        text = read("reference/metrics.md")
        rows = read_rows(read_section(text, "## Metrics"), "metric", "kind", "unit", "attributes", "counts")
        assert {read_words(row[0])[0]: (read_words(row[2])[0], set(read_words(row[3]))) for row in rows} == found
        others = {"GET /experiences/metadata", "POST /experiences/events", "POST /event/…"}
        named = {read_words(row[0])[0] for row in read_rows(text, "span", "kind", "when")}
        assert named == others.union(name for name, _, _ in otel.read_spans())
        reasons = read_rows(read("reference/delivery.md"), "reason", "when")
        assert [read_words(reason)[0] for reason, _ in reasons] == list(metrics.REASONS)
