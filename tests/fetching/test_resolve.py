"""Batches, the breaker and the signal of a fetch."""

import threading
import time

import pytest
from asgiref.sync import async_to_sync

from django_moe_personalize import signals
from django_moe_personalize.exceptions import CircuitOpenError, DeadlineExceeded, ResponseError, TransportError
from django_moe_personalize.fetching.cache import ExperienceCache
from django_moe_personalize.fetching.upstream import get_breaker, get_pool
from django_moe_personalize.resilience import Deadline, PoolBusy
from django_moe_personalize.resilience.breaker import CircuitBreaker
from django_moe_personalize.runtime import reset_runtimes
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor.gather import Visitor
from django_moe_personalize.visitor.identity import Identity
from tests.conftest import settle
from tests.fetching.asking import Asked, ask

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

    monkeypatch.setattr(get_pool(), "submit", busy)
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
    [(307, "open"), (500, "open"), (401, "open"), (403, "open"), (400, "closed"), (413, "closed"), (429, "open")],
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
            Asked(VISITOR, ["hero-banner"]).join(10)
            settle()
    finally:
        signals.fetch_failed.disconnect(listen)
    assert heard == [(ResponseError, ("hero-banner",))] * 2


def test_repr_tells_nothing_of_the_visitor():
    """Neither identity nor attributes are in the repr."""
    assert "4711" not in repr(Visitor(Identity("customer-4711"), {"USER_AGENT": "4711"}))


def test_thousand_identical_misses_are_one_call(upstream):
    """Whoever asks the same at the same time shares one question, however many they are."""
    released = threading.Event()
    sandbox = upstream._sandbox

    def answer(request):
        released.wait(10)
        return sandbox.send(request, deadline=Deadline(10))

    upstream.answer = answer
    questions = [Asked(VISITOR, ["hero-banner"]) for _ in range(1000)]
    assert not any(question.done for question in questions)
    released.set()
    answers = [question.join(10) for question in questions]
    assert all(answer.keys() == {"hero-banner"} for answer in answers)
    assert len(upstream.fetches) == 1


def test_nobody_asks_again_while_the_cache_is_written(upstream, monkeypatch):
    """Between the answer and the site's cache, a page finds it in memory."""
    seen = []

    def write(cache, visitor, answers):
        seen.append(Asked(VISITOR, ["hero-banner"]).done)

    monkeypatch.setattr(ExperienceCache, "write", write)
    Asked(VISITOR, ["hero-banner"]).join(10)
    settle()
    assert seen == [True]


def test_memory_answers_at_once(upstream, monkeypatch):
    """What this process knows needs no thread, no cache and no waiting."""
    Asked(VISITOR, ["hero-banner"]).join(10)
    settle()
    monkeypatch.setattr(get_pool(), "submit", None)
    question = Asked(VISITOR, ["hero-banner"])
    assert question.done
    assert question.join(0.0).keys() == {"hero-banner"}
    assert async_to_sync(question.ajoin)(0.0) == question.join(0.0)


def test_stale_answers_show_while_they_are_refreshed(upstream):
    """After CACHE_TTL a page shows what is known, at once, and the next one what the vendor says now."""
    with override_personalize(CACHE_TTL=0):
        Asked(VISITOR, ["hero-banner"]).join(10)
        settle()
        question = Asked(VISITOR, ["hero-banner"])
        assert question.done
        assert question.join(0.0).keys() == {"hero-banner"}
        settle()
    assert len(upstream.fetches) == 2


def test_stale_answers_from_the_cache_show_when_the_vendor_hangs(upstream):
    """What the cache had when the vendor was asked is shown at the deadline, though the page gives up first."""
    released = threading.Event()
    with override_personalize(CACHE_TTL=0):
        Asked(VISITOR, ["hero-banner"]).join(10)
        settle()
        # Another process has it in the cache they share, not in its memory.
        reset_runtimes()
        upstream.answer = lambda request: released.wait(20)
        question = Asked(VISITOR, ["hero-banner"])
        until = time.monotonic() + 10
        while question.flight.known is None and time.monotonic() < until:
            time.sleep(0.001)
        assert question.join(0.01).keys() == {"hero-banner"}
        assert async_to_sync(question.ajoin)(0.01).keys() == {"hero-banner"}
        released.set()
        settle()


def test_full_bulkhead_shows_what_memory_has(upstream, monkeypatch):
    """Past the bulkhead a page shows stale content, or its default, at once."""
    Asked(VISITOR, ["hero-banner"]).join(10)
    settle()

    def busy(*args):
        raise PoolBusy("busy")

    monkeypatch.setattr(get_pool(), "submit", busy)
    assert Asked(VISITOR, ["hero-banner", "promo-strip"]).join(0.0).keys() == {"hero-banner"}
    assert Asked(Visitor(Identity("2"), {}), ["hero-banner"]).join(0.0) == {}


class Clock:
    """Seconds that the test moves."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    """Give the clock of the breaker."""
    return Clock()


@pytest.fixture
def breaker(upstream, clock):
    """Give the process's breaker: open, and due for a probe after five seconds."""
    with get_breaker.override(CircuitBreaker(clock=clock, draw=lambda: 0.0)) as breaker:
        for _ in range(5):
            breaker.failure()
        yield breaker


def test_page_is_never_the_probe(upstream, breaker, clock):
    """When the breaker is due for a probe, the page shows its default and a thread makes the probe, once."""
    assert Asked(VISITOR, ["hero-banner"]).join(10) == {}
    settle()
    assert upstream.fetches == []
    clock.now = 6.0
    assert Asked(VISITOR, ["hero-banner"]).join(10) == {}
    settle()
    assert len(upstream.fetches) == 1
    assert breaker.state == "closed"
    assert Asked(VISITOR, ["hero-banner"]).join(10).keys() == {"hero-banner"}


def test_failed_probe_opens_again(upstream, breaker, clock):
    """A probe that fails opens the breaker for longer."""
    upstream.respond(500)
    clock.now = 6.0
    Asked(VISITOR, ["hero-banner"]).join(10)
    settle()
    assert (len(upstream.fetches), breaker.state) == (1, "open")


def test_task_may_be_the_probe(breaker, clock):
    """A task's own call may be the probe, since no page waits for it."""
    assert ask(VISITOR, ["hero-banner"], deadline=Deadline(10)).unanswered == ("hero-banner",)
    clock.now = 6.0
    assert ask(VISITOR, ["hero-banner"], deadline=Deadline(10)).experiences.keys() == {"hero-banner"}
    assert breaker.state == "closed"


def test_answers_cannot_be_changed(upstream):
    """A page that would change what others are shown fails the first time, not when it comes from memory."""
    for _ in range(2):
        experience = Asked(VISITOR, ["hero-banner"]).join(10)["hero-banner"]
        settle()
        with pytest.raises(TypeError):
            experience.payload["Title"] = "mine"
