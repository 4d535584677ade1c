"""OpenTelemetry and Sentry see the calls to MoEngage below the page that makes them, and no visitor's data."""

import asyncio
import contextlib

import pytest
import sentry_sdk
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from django_moe_personalize.fetching.resolve import get_metadata_store
from django_moe_personalize.resilience import Deadline
from tests.conftest import settle
from tests.fetching.asking import Asked
from tests.fetching.warm_vendor import KEYS, build_visitor
from tests.wire import LONG

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)


class Otel:
    """Pages as OpenTelemetry's root spans."""

    def __enter__(self):
        exporter.clear()
        return self

    def __exit__(self, *exc_info):
        pass

    def page(self):
        return trace.get_tracer("site").start_as_current_span("page")

    def read(self):
        """Return the name, the parent's name and the data of each span but the pages."""
        spans = exporter.get_finished_spans()
        names = {span.context.span_id: span.name for span in spans}
        return [
            (span.name, span.parent and names[span.parent.span_id], dict(span.attributes))
            for span in spans
            if span.name != "page"
        ]


class Sentry(sentry_sdk.transport.Transport):
    """Pages as Sentry's transactions, of a client that only this thread uses."""

    def __init__(self, options=None):
        super().__init__(options)
        self.found = []

    def __enter__(self):
        options = {"default_integrations": False, "auto_enabling_integrations": False, "traces_sample_rate": 1.0}
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(sentry_sdk.isolation_scope())
        scope = self._stack.enter_context(sentry_sdk.new_scope())
        scope.set_client(sentry_sdk.Client("http://key@127.0.0.1:9/1", transport=self, **options))
        return self

    def __exit__(self, *exc_info):
        self._stack.close()

    def page(self):
        return sentry_sdk.start_transaction(name="page", sampled=True)

    def capture_envelope(self, envelope):
        for event in filter(None, (item.get_transaction_event() for item in envelope.items)):
            root = event["contexts"]["trace"]["span_id"]
            for span in event["spans"]:
                parent = "page" if span["parent_span_id"] == root else span["parent_span_id"]
                self.found.append((span["description"], parent, span["data"]))

    def read(self):
        return self.found


@pytest.fixture(params=[Otel, Sentry])
def tool(request):
    with request.param() as tool:
        yield tool


def ask_in_task(number):
    async def ask():
        return await Asked(build_visitor(number), KEYS).ajoin(LONG)

    return asyncio.run(ask())


@pytest.mark.parametrize("way", ["warm", "cold", "task"])
def test_call_of_a_page(tool, vendor, way):
    """The page's call is a span below the page, also if a thread makes the call."""
    for number in range(2):
        if way == "cold":
            vendor.client.close()
        with tool.page():
            found = ask_in_task(number) if way == "task" else Asked(build_visitor(number), KEYS).join(LONG)
            settle()
        assert found.keys() == {*KEYS}
    spans = tool.read()
    assert [(name.replace(vendor.server.url, ""), parent) for name, parent, _ in spans] == [
        ("POST /experiences/fetch", "page")
    ] * 2
    assert all("200" in str(data) and "visitor-" not in str(data) for *_, data in spans)
    assert all(
        not received.headers.keys() & {"traceparent", "sentry-trace", "baggage"} for received in vendor.server.received
    )


def test_call_that_fails(tool, vendor):
    """The span has the status of an error, or the kind of the failure."""
    for behave in (lambda exchange: exchange.reply(status="503 Busy"), lambda exchange: exchange.close()):
        vendor.behave = behave
        with tool.page():
            Asked(build_visitor(), KEYS).join(LONG)
            settle()
    data = [str(data) for *_, data in tool.read()]
    assert "503" in data[0]
    assert len(data) >= 2


def test_work_for_many_visitors(tool, vendor):
    """A call that no page makes has no span, so it isn't the root of a trace."""
    with tool.page():
        get_metadata_store().explain(["no-such-key"])
        settle()
    vendor.client.fetch_metadata(deadline=Deadline(LONG))
    assert tool.read() == []
