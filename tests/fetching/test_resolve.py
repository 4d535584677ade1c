"""Answering a question: batches, the circuit breaker, the signal, and stale answers."""

import threading

import pytest
from asgiref.sync import async_to_sync

from django_moe_personalize.exceptions import CircuitOpenError, DeadlineExceeded, TransportError
from django_moe_personalize.fetching.cache import ExperienceCache
from django_moe_personalize.fetching.upstream import get_breaker
from django_moe_personalize.resilience import CircuitBreaker, Deadline
from django_moe_personalize.runtime import reset_runtimes
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor import Identity, Visitor
from tests.conftest import settle
from tests.fetching.asking import Asked, ask
from tests.processes import use_shared_cache  # noqa: F401 - a fixture
from tests.virtual_time import Clock
from tests.wire import LONG, wait_until

KEYS = tuple(f"key-{number}" for number in range(60))
VISITOR = Visitor(Identity("1"), {})
PATIENT = Deadline(None)


def test_batches_are_asked_at_the_same_time(upstream):
    """Sixty keys are three calls, under way at the same time."""
    together = threading.Barrier(3, timeout=LONG)

    def answer(request):
        together.wait()
        return upstream._sandbox.send(request, deadline=PATIENT)

    upstream.answer = answer
    result = ask(VISITOR, KEYS, deadline=Deadline(2 * LONG))
    assert result.errors == []
    assert result.learned.keys() == set(KEYS)


def test_batches_without_a_free_thread(upstream, fill_pool):
    """With a full pool the caller asks for one batch after another."""
    fill_pool()
    assert ask(VISITOR, KEYS, deadline=Deadline(LONG)).errors == []
    assert len(upstream.fetches) == 3


def test_batch_that_is_late(upstream):
    """A batch that doesn't arrive in time is missing. The other batches are there."""
    upstream.hold(only=b'"key-59"')
    result = ask(VISITOR, KEYS, deadline=Deadline(1.0))
    assert [type(error) for error in result.errors] == [DeadlineExceeded]
    assert result.unanswered == KEYS[50:]


def test_batch_that_fails(upstream):
    """A batch that fails loses only its own keys."""

    def answer(request):
        if b'"key-0"' in request.body:
            raise TransportError("reset")
        return upstream._sandbox.send(request, deadline=PATIENT)

    upstream.answer = answer
    assert ask(VISITOR, KEYS, deadline=Deadline(LONG)).unanswered == KEYS[:25]


@pytest.mark.parametrize(
    ("status", "state"),
    [(307, "open"), (500, "open"), (401, "open"), (403, "open"), (400, "closed"), (413, "closed"), (429, "open")],
)
def test_responses_that_open_the_breaker(upstream, status, state):
    """Failures of MoEngage and wrong credentials open the breaker. A request that MoEngage refuses doesn't."""
    upstream.respond(status)
    for _ in range(5):
        ask(VISITOR, ["hero-banner"], deadline=Deadline(LONG))
    assert get_breaker().state == state
    if state == "open":
        upstream.requests.clear()
        (error,) = ask(VISITOR, ["hero-banner"], deadline=Deadline(LONG)).errors
        assert isinstance(error, CircuitOpenError)
        assert upstream.requests == []


def test_bug_counts_as_a_failure(upstream):
    """A call that raises an unexpected error tells the breaker too, so a probe always ends."""

    def answer(request):
        raise KeyError

    upstream.answer = answer
    for _ in range(5):
        with pytest.raises(KeyError):
            ask(VISITOR, ["hero-banner"], deadline=Deadline(LONG))
    assert get_breaker().state == "open"


def test_answer_is_in_memory_before_it_is_in_the_cache(upstream, monkeypatch):
    """The answer is in memory before the flight ends, so no page asks again during the write to the site's cache."""
    seen = []

    def write(cache, visitor, answers):
        seen.append(Asked(VISITOR, ["hero-banner"]).done)

    monkeypatch.setattr(ExperienceCache, "write", write)
    Asked(VISITOR, ["hero-banner"]).join(LONG)
    settle()
    assert seen == [True]


def test_failing_follow_up_keeps_no_database_connection(upstream, monkeypatch):
    """The thread always closes its database connections."""
    closed = []
    monkeypatch.setattr("django_moe_personalize.fetching.flight.close_old_connections", lambda: closed.append(1))
    monkeypatch.setattr(ExperienceCache, "write", lambda *args: 1 / 0)
    assert Asked(VISITOR, ["hero-banner"]).join(LONG).keys() == {"hero-banner"}
    settle()
    assert closed == [1]


def test_stale_answers_show_while_they_are_refreshed(upstream):
    """After CACHE_TTL a page shows the old answer at once, and a thread fetches the new one."""
    with override_personalize(CACHE_TTL=0):
        Asked(VISITOR, ["hero-banner"]).join(LONG)
        settle()
        asked = Asked(VISITOR, ["hero-banner"])
        assert asked.done
        assert asked.join(0.0).keys() == {"hero-banner"}
        settle()
    assert len(upstream.fetches) == 2


def test_stale_answers_from_the_cache_show_when_the_vendor_hangs(upstream, shared):
    """At the deadline, pages show stale answers, even a page that stops waiting before the thread ends."""
    with override_personalize(CACHE_TTL=0):
        Asked(VISITOR, ["hero-banner"]).join(LONG)
        settle()
        # As in another process, the answer is in the cache and not in memory.
        reset_runtimes()
        upstream.hold()
        asked = Asked(VISITOR, ["hero-banner"])
        wait_until(lambda: asked.flight.known)
        assert asked.join(0.01).keys() == {"hero-banner"}
        assert async_to_sync(asked.ajoin)(0.01).keys() == {"hero-banner"}


def test_full_pool_shows_memory(upstream, fill_pool):
    """With a full pool pages show stale content, or their defaults, at once."""
    Asked(VISITOR, ["hero-banner"]).join(LONG)
    settle()
    fill_pool()
    assert Asked(VISITOR, ["hero-banner", "promo-strip"]).join(0.0).keys() == {"hero-banner"}
    assert Asked(Visitor(Identity("2"), {}), ["hero-banner"]).join(0.0) == {}


@pytest.fixture
def clock():
    """Give the clock of the breaker."""
    return Clock()


@pytest.fixture
def breaker(upstream, clock):
    """Give the process's breaker: open, with a probe after five seconds."""
    with get_breaker.override(CircuitBreaker(clock=clock, draw=lambda: 0.0)) as breaker:
        for _ in range(5):
            breaker.failure()
        yield breaker


def test_page_is_never_the_probe(upstream, breaker, clock):
    """The page shows its default at once, and a thread makes the probe, once."""
    for seconds in (0, 6):
        clock.now += seconds
        assert Asked(VISITOR, ["hero-banner"]).join(LONG) == {}
        settle()
        assert len(upstream.fetches) == (seconds > 0)
    assert breaker.state == "closed"
    assert Asked(VISITOR, ["hero-banner"]).join(LONG).keys() == {"hero-banner"}


def test_failed_probe(upstream, breaker, clock):
    """A failed probe opens the breaker again."""
    upstream.respond(500)
    clock.now += 6
    Asked(VISITOR, ["hero-banner"]).join(LONG)
    settle()
    assert (len(upstream.fetches), breaker.state) == (1, "open")


def test_task_may_make_the_probe(breaker, clock):
    """No page waits for a task's own call."""
    assert ask(VISITOR, ["hero-banner"], deadline=Deadline(LONG)).unanswered == ("hero-banner",)
    clock.now += 6
    assert ask(VISITOR, ["hero-banner"], deadline=Deadline(LONG)).experiences.keys() == {"hero-banner"}
    assert breaker.state == "closed"
