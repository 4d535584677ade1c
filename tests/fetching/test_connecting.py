"""Pages while a connection is slow to open: the connection outlives the page, and the next page uses it."""

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from django_moe_personalize.client import get_client
from django_moe_personalize.delivery.sending import send
from django_moe_personalize.exceptions import DeadlineExceeded, TransportError
from django_moe_personalize.fetching.upstream import get_breaker, get_pool
from django_moe_personalize.moengage import connection_pool
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.moengage.types import Action, Event
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.testing import override_personalize
from tests.conftest import settle
from tests.fetching.asking import Asked, ask
from tests.fetching.warm_vendor import KEYS, VISITOR, Vendor, build_visitor
from tests.loopback import Loopback
from tests.moengage.test_connections import tunnel
from tests.pages import title
from tests.slow_line import SlowLine
from tests.wire import LONG, has_idle, wait_until

DEADLINE = 0.3
PATHS = {"sync": "/tags/", "async": "/atags/"}


class Far(Vendor):
    """A vendor over TLS, at the end of a line. ``kind`` says which step of connecting waits while it's ``held()``."""

    def __init__(self, tls, stack, monkeypatch, kind):
        super().__init__(tls)
        self._monkeypatch = monkeypatch
        stack.enter_context(self.server)
        self.line = stack.enter_context(SlowLine(self.server.port, seconds=0.08 if kind == "round-trips" else 0.0))
        url, proxies = f"https://localhost:{self.line.port}/v1", {}
        if kind == "proxy":
            proxy = stack.enter_context(Loopback(tunnel))
            self.line.target = proxy.port
            url, proxies = self.server.url, {"https": f"http://127.0.0.1:{self.line.port}"}
        self._is_dns = kind == "dns"
        self.reach(url.replace("localhost", "127.0.0.1"), verify=str(tls.ca_file), proxies=proxies)
        self.go = threading.Event()
        stack.enter_context(get_client.override(self.client))
        stack.callback(self.client.close)
        stack.callback(self.go.set)

    @contextlib.contextmanager
    def held(self):
        """Hold up connections while the context lasts."""
        look_up = socket.getaddrinfo
        if self._is_dns:
            self._monkeypatch.setattr(
                socket, "getaddrinfo", lambda *args, **options: (self.go.wait(LONG), look_up(*args, **options))[1]
            )
        elif not self.line.seconds:
            self.line.is_open.clear()
        try:
            yield
        finally:
            self.go.set()
            self.line.is_open.set()
            # has_idle() takes the connection for a moment, in which a probe would open another one.
            wait_until(lambda: self.transport._pool.idle)
            self.line.seconds = 0.0


@pytest.fixture
def build_far(tls_ends, monkeypatch):
    """Return a function that builds a far vendor."""
    with contextlib.ExitStack() as stack:
        yield lambda kind: Far(tls_ends, stack, monkeypatch, kind)
        settle()


@pytest.mark.urls("tests.site")
@pytest.mark.parametrize("kind", ["round-trips", "accept", "dns", "proxy"])
def test_connection_of_a_late_page_is_warm_for_the_second_page(visit, build_far, kind):
    """The first page shows the default after its deadline. The second page gets content on the same connection."""
    far = build_far(kind)
    with override_personalize(DEADLINE=DEADLINE), far.held():
        assert title(visit(PATHS[visit.mode])) == "Welcome"
    visit.forget_cookies()
    assert title(visit(PATHS[visit.mode])) != "Welcome"
    assert (far.line.connections, far.server.connections) == (1, 1)
    assert get_breaker().state == "closed"


def test_connection_of_a_late_response_stays_open(vendor):
    """A response that comes after the page's deadline costs no connection."""
    with override_personalize(DEADLINE=DEADLINE):
        vendor.warm()
        with vendor.hold():
            assert Asked(VISITOR, KEYS).join(LONG) == {}
        wait_until(lambda: has_idle(vendor.transport))
    assert Asked(VISITOR, KEYS).join(LONG).keys() == {*KEYS}
    assert (len(vendor.fetches), vendor.server.connections) == (2, 1)


def test_connection_of_late_events_is_warm_for_the_next_attempt(build_far):
    """The sender keeps events whose connection takes too long, and sends them again on the same connection."""
    far = build_far("accept")
    events = [Event(Action.SHOWN, "visitor-1", {"cid": "hero-banner"}, int(time.time() * 1000))]
    with far.held():
        assert send(events, timeout=DEADLINE).kept == events
    assert send(events, timeout=LONG).kept == []
    assert (far.line.connections, far.server.connections) == (1, 1)


def test_many_pages_wait_for_few_connections(build_far, monkeypatch):
    """Pages that wait start no connection each, and keep no thread of the pool."""
    monkeypatch.setattr(connection_pool, "EARLY_SECONDS", LONG)
    far = build_far("accept")
    with override_personalize(DEADLINE=DEADLINE), far.held():
        for _ in range(3):
            with ThreadPoolExecutor(16) as pages:
                asked = list(pages.map(lambda number: Asked(build_visitor(number), KEYS).join(DEADLINE), range(16)))
            assert asked == [{}] * 16
            settle()
            assert not get_pool().in_flight
        assert 1 <= far.line.connections <= connection_pool.COLD_ATTEMPTS
        assert get_breaker().state == "closed"
    assert Asked(VISITOR, KEYS).join(LONG).keys() == {*KEYS}


def test_lookup_that_hangs_for_long(build_far, monkeypatch):
    """An outage of DNS opens the breaker. When DNS is back, a probe closes the breaker, without another page."""
    monkeypatch.setattr(connection_pool, "EARLY_SECONDS", 0.0)
    far = build_far("dns")
    with override_personalize(DEADLINE=DEADLINE):
        with far.held():
            with ThreadPoolExecutor(8) as pages:
                list(pages.map(lambda number: Asked(build_visitor(number), KEYS).join(DEADLINE), range(8)))
            settle()
            assert get_breaker().state == "open"
        wait_until(lambda: get_breaker().state == "closed")


def test_probe_waits_for_its_connection(build_far, monkeypatch):
    """The half-open probe may connect for longer than a page waits. Its call may not."""
    far = build_far("accept")
    with override_personalize(DEADLINE=DEADLINE):
        for _ in range(5):
            get_breaker().failure()
        get_breaker().hasten()
        with far.held():
            assert Asked(VISITOR, KEYS).join(LONG) == {}
            wait_until(lambda: far.line.connections)
            # Longer than the page's deadline.
            assert not threading.Event().wait(1.5 * DEADLINE)
            assert get_breaker().state == "half-open"
        wait_until(lambda: get_breaker().state == "closed")
    assert (far.line.connections, len(far.fetches)) == (1, 1)


@pytest.mark.parametrize("fails", ["refused", "bug"])
def test_probe_that_cannot_connect(fails, monkeypatch):
    """The breaker opens again."""
    error = TransportError("refused") if fails == "refused" else KeyError()

    class Unreachable:
        def send(self, request, *, deadline):
            raise AssertionError

        def connect(self, *, deadline):
            raise error

    client = PersonalizeClient(workspace_id="SHOP", api_key="key", transport=Unreachable())
    with get_client.override(client):
        for _ in range(5):
            get_breaker().failure()
        get_breaker().hasten()
        assert Asked(VISITOR, KEYS).join(LONG) == {}
        settle()
        assert get_breaker().state == "open"
        assert "1 failed probe" in get_breaker().reason


def test_call_after_its_deadline(upstream):
    """If the site's cache takes all the time, MoEngage isn't asked, and the breaker isn't told."""
    for _ in range(5):
        (error,) = ask(VISITOR, KEYS, deadline=Deadline(0.0)).errors
        assert isinstance(error, DeadlineExceeded)
    assert (upstream.requests, get_breaker().state) == ([], "closed")
