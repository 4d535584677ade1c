"""Batches, the breaker and the signal of a fetch."""

import threading

import pytest

from django_moe_personalize import fetch, signals
from django_moe_personalize.exceptions import CircuitOpenError, DeadlineExceeded, ResponseError, TransportError
from django_moe_personalize.fetch import ask, get_breaker
from django_moe_personalize.identity import Identity
from django_moe_personalize.resilience import Deadline, PoolBusy
from django_moe_personalize.visitor import Visitor

KEYS = tuple(f"key-{number}" for number in range(60))
VISITOR = Visitor(Identity("1"), {})


def test_batches_are_asked_beside_each_other(upstream):
    """Sixty keys are three calls that are under way at the same time."""
    together = threading.Barrier(3, timeout=10)

    def answer(request):
        together.wait()
        return upstream._sandbox.send(request, deadline=Deadline(10))

    upstream.answer = answer
    result = ask(VISITOR, KEYS, deadline=Deadline(20))
    assert result.errors == []
    assert result.learned.keys() == set(KEYS)


def test_batches_without_a_free_thread(upstream, monkeypatch):
    """When the pool is busy the batches follow one another."""

    def busy(*args):
        raise PoolBusy("busy")

    monkeypatch.setattr(fetch.get_pool(), "submit", busy)
    assert ask(VISITOR, KEYS, deadline=Deadline(10)).errors == []
    assert len(upstream.fetches) == 3


def test_batch_that_is_late(upstream):
    """A batch that does not come in time is missing, the others are there."""
    released = threading.Event()

    def answer(request):
        if b'"key-59"' in request.body:
            released.wait(20)
        return upstream._sandbox.send(request, deadline=Deadline(10))

    upstream.answer = answer
    result = ask(VISITOR, KEYS, deadline=Deadline(0.3))
    released.set()
    assert [type(error) for error in result.errors] == [DeadlineExceeded]
    assert result.unanswered == KEYS[50:]


def test_batch_that_fails(upstream):
    """One failing batch loses its own keys alone."""

    def answer(request):
        if b'"key-0"' in request.body:
            raise TransportError("reset")
        return upstream._sandbox.send(request, deadline=Deadline(10))

    upstream.answer = answer
    result = ask(VISITOR, KEYS, deadline=Deadline(10))
    assert result.unanswered == KEYS[:25]


@pytest.mark.parametrize(
    ("status", "state"),
    [(500, "open"), (401, "open"), (403, "open"), (400, "closed"), (413, "closed"), (429, "closed")],
)
def test_what_opens_the_breaker(upstream, status, state):
    """Failures of the vendor and of the credentials open it; a question it does not like does not."""
    upstream.respond(status)
    for _ in range(5):
        ask(VISITOR, ["hero-banner"], deadline=Deadline(10))
    assert get_breaker().state == state


def test_bug_counts_as_a_failure(upstream):
    """What nobody foresaw is no success, so that a probe is never left unreported."""

    def answer(request):
        raise KeyError

    upstream.answer = answer
    for _ in range(5):
        with pytest.raises(KeyError):
            ask(VISITOR, ["hero-banner"], deadline=Deadline(10))
    assert get_breaker().state == "open"


def test_open_breaker_asks_nothing(upstream):
    """While it is open the error says that nobody was asked."""
    for _ in range(5):
        get_breaker().failure()
    [error] = ask(VISITOR, ["hero-banner"], deadline=Deadline(10)).errors
    assert isinstance(error, CircuitOpenError)
    assert upstream.requests == []


def test_signal_tells_every_failure(upstream):
    """fetch_failed comes for each page that got nothing, with the error and the keys."""
    heard = []

    def listen(sender, error, experience_keys, **kwargs):
        heard.append((type(error), experience_keys))

    signals.fetch_failed.connect(listen)
    try:
        upstream.respond(400)
        for _ in range(2):
            fetch.start_fetch(VISITOR, ["hero-banner"]).result(10)
            from tests.conftest import settle

            settle()
    finally:
        signals.fetch_failed.disconnect(listen)
    assert heard == [(ResponseError, ("hero-banner",))] * 2


def test_repr_tells_nothing_of_the_visitor():
    """Neither identity nor attributes are in the repr."""
    assert "4711" not in repr(Visitor(Identity("customer-4711"), {"USER_AGENT": "4711"}))
