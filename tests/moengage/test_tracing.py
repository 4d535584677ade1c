"""Spans, with tools that only count. tests/sites/test_tracing.py has the real tools."""

import sys
from types import SimpleNamespace

import pytest

from django_moe_personalize.moengage.http1 import Request
from django_moe_personalize.moengage.transport import start_span
from tests.wire import receive

REQUEST = Request("POST", "/experiences/fetch", headers={"Authorization": "secret"}, body=b"Wanda")


class Tool:
    """A module of a tracing tool, whose every function writes down its call."""

    SpanKind = SimpleNamespace(CLIENT="client")
    StatusCode = SimpleNamespace(ERROR="error")

    def __init__(self, name, calls, fails):
        self._name = name
        self._calls = calls
        self._fails = fails

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self._calls.append((f"{self._name}.{name}", args, kwargs))
            if name == self._fails:
                raise RuntimeError
            return self

        return call


@pytest.fixture
def install(monkeypatch):
    """Return a function that installs both tools and returns the list of their calls."""

    def install(fails=""):
        calls = []
        monkeypatch.setitem(sys.modules, "opentelemetry.trace", Tool("otel", calls, fails))
        monkeypatch.setitem(sys.modules, "sentry_sdk", Tool("sentry", calls, fails))
        return calls

    return install


@pytest.mark.parametrize(
    ("outcome", "otel", "sentry"),
    [
        (200, ["set_attribute", "end"], "set_http_status"),
        (503, ["set_attribute", "set_status", "end"], "set_http_status"),
        ("TransportError", ["set_attribute", "set_status", "end"], "set_status"),
    ],
)
def test_span(install, outcome, otel, sentry):
    """Each tool gets one span with the method, the URL and the outcome, and nothing of the visitor."""
    calls = install()
    start_span(REQUEST, "https://sdk-01.moengage.com/v1")(outcome)
    names = [name for name, *_ in calls]
    last = [*(f"otel.{name}" for name in otel), f"sentry.{sentry}", "sentry.finish"]
    assert names[-len(last) :] == last
    assert names.count("otel.start_span") == names.count("sentry.start_child") == 1
    assert "https://sdk-01.moengage.com/v1/experiences/fetch" in str(calls)
    assert "secret" not in str(calls)
    assert "Wanda" not in str(calls)


@pytest.mark.parametrize("fails", ["get_current_span", "start_span", "start_child", "end", "finish"])
def test_tool_that_fails(install, fails):
    """A tool that fails doesn't disturb the call or the other tool."""
    calls = install(fails)
    if (end := start_span(REQUEST, "")) is not None:
        end(200)
    assert (end is None) == (fails == "get_current_span")
    assert calls


def test_no_current_span(monkeypatch):
    """Without a current span, or without a tool, a call starts no span."""
    span = SimpleNamespace(is_recording=lambda: False)
    assert start_span(REQUEST, "") is None
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", SimpleNamespace(get_current_span=lambda: span))
    assert start_span(REQUEST, "") is None
    monkeypatch.setitem(sys.modules, "sentry_sdk", SimpleNamespace(get_current_span=lambda: None))
    assert start_span(REQUEST, "") is None


def test_span_of_an_exchange(build_wire):
    """The span ends once: with the status of the response, or with the error of a caller that leaves."""
    wire = build_wire(lambda exchange: exchange.reply(b"{}"))
    outcomes = []
    for end in (receive, lambda exchange: exchange.abandon()):
        exchange = wire.start()
        exchange.end_span = outcomes.append
        end(exchange)
        exchange.release()
    assert outcomes == [200, "DeadlineExceeded"]
