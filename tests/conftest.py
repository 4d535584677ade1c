"""Fixtures shared by the suite."""

import gc
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextvars import copy_context
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import AnonymousUser, User
from django.core.cache import caches
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, AsyncRequestFactory, Client, RequestFactory
from django.urls import path
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from django_moe_personalize.checks import settings as check_settings
from django_moe_personalize.client import get_client
from django_moe_personalize.conf import settings as conf_settings
from django_moe_personalize.context import Personalization
from django_moe_personalize.exceptions import TransportError
from django_moe_personalize.fetching.upstream import get_background, get_pool
from django_moe_personalize.log import Outage
from django_moe_personalize.moengage.client import PersonalizeClient
from django_moe_personalize.moengage.http1 import Request, Response
from django_moe_personalize.resilience import Deadline, WorkerPool
from django_moe_personalize.runtime import Runtime, reset_runtimes
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.transport import SandboxTransport
from django_moe_personalize.sandbox.workspace import load_workspace
from tests.fetching.warm_vendor import fill_pool, heard, submitted, vendor  # noqa: F401 - fixtures
from tests.pages import title
from tests.processes import SOON
from tests.services.echo import build_answer
from tests.site import TAGS, show
from tests.virtual_time import Clock
from tests.wire import LONG, build_wire, tls_ends  # noqa: F401 - fixtures among them

# A busy machine is slow, which asyncio's debug mode writes into every log that a test reads.
logging.getLogger("asyncio").setLevel(logging.ERROR)

# One environment of the matrix tries a hundred examples of everything, the others thirty. A busy machine is slow.
patience = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
hypothesis_settings.register_profile("default", **patience)
hypothesis_settings.register_profile("matrix", max_examples=30, **patience)
hypothesis_settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()
"""The pools of this process, also those of dropped runtimes: their threads could write into the next test's cache."""
_pools_lock = threading.Lock()


def _build_pool(build: Callable[[Runtime], WorkerPool], runtime: Runtime) -> WorkerPool:
    pool = build(runtime)
    with _pools_lock:
        _pools.add(pool)
    return pool


for _part in (get_pool, get_background):
    _part._build = partial(_build_pool, _part._build)


def pytest_collection_finish() -> None:
    """Let no garbage collection look at the modules of all tests again, which takes a tenth of a second each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Run each test in a context of its own.

    Otherwise the context keeps the variables of all earlier tests, and asgiref copies them at each step between a
    thread and a loop: the thousandth test takes several times as long as the first.
    """
    test = pyfuncitem.obj
    pyfuncitem.obj = partial(copy_context().run, test)
    try:
        return (yield)
    finally:
        # The report of a failure shows the lines of the test.
        pyfuncitem.obj = test


def _find_busy_pools() -> list[WorkerPool]:
    with _pools_lock:
        return [pool for pool in _pools if pool.in_flight]


def settle() -> None:
    """Wait until the background threads have done the work that pages left to them. A thread that hangs is an error."""
    until = time.monotonic() + SOON
    while busy := _find_busy_pools():
        if time.monotonic() > until:
            # The next test doesn't wait for them.
            _pools.difference_update(busy)
            raise AssertionError(f"a call still hangs in {busy}")
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def serving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the settings as a server does: in a test run the sandbox is on by default. Stop the clock of outages."""
    for module in (conf_settings, check_settings):
        monkeypatch.setattr(module, "is_test_run", lambda: False)
    # On a slow machine an outage lasts for some seconds, which its log line tells.
    monkeypatch.setitem(Outage.__init__.__kwdefaults__, "clock", Clock())


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    """Start each test with an empty process and an empty site's cache."""
    caches["default"].clear()
    yield
    try:
        settle()
    finally:
        reset_runtimes()


class Upstream:
    """MoEngage in a test: the sandbox, with a record of its requests and failures to order."""

    def __init__(self) -> None:
        self.engine = Engine(load_workspace())
        self.requests: list[Request] = []
        self.answer: Callable[[Request], Response] | None = None
        self._sandbox = SandboxTransport(self.engine)
        self._held: list[threading.Event] = []

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        """See Transport.send()."""
        self.requests.append(request)
        if self.answer is not None:
            return self.answer(request)
        return self._sandbox.send(request, deadline=deadline)

    def close(self) -> None:
        """See Transport.close()."""

    def forget(self) -> None:
        """Forget the requests so far, and those that pages have left to the background threads."""
        settle()
        self.requests.clear()

    def hold(self, only: bytes = b"") -> Callable[[], None]:
        """Answer no request whose body has ``only`` in it, until the returned function is called."""
        released = threading.Event()
        self._held.append(released)

        def answer(request: Request) -> Response:
            if only in request.body:
                released.wait(LONG)
            return self._sandbox.send(request, deadline=Deadline(None))

        self.answer = answer
        return released.set

    def release(self) -> None:
        """Answer all requests that are held."""
        for event in self._held:
            event.set()

    def refuse(self) -> None:
        """Fail every call from now on, as a network does that is down."""

        def answer(request: Request) -> Response:
            raise TransportError("refused")

        self.answer = answer

    def respond(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Answer every call from now on in this way."""
        self.answer = lambda request: Response(status, headers, body)

    def echo(self) -> None:
        """Answer each fetch from now on with the customer's id as the content."""

        def answer(request: Request) -> Response:
            is_fetch = request.path == "/experiences/fetch"
            answer = build_answer(json.loads(request.body)) if is_fetch else {"status": "success"}
            return Response(200, {}, json.dumps(answer).encode())

        self.answer = answer

    @property
    def asked(self) -> list[str]:
        """The customers of the fetches so far."""
        return [body.get("identifiers", {}).get("customer_id") for body in self.fetches]

    @property
    def booked(self) -> list[str]:
        """The customers of the events so far, one for each event."""
        bodies = [json.loads(r.body) for r in self.requests if r.path == "/experiences/events"]
        return [one["customer_id"] for body in bodies for one in body["elements"] for _ in one["actions"]]

    @property
    def fetches(self) -> list[dict[str, Any]]:
        """The bodies of the fetches so far."""
        return [json.loads(r.body) for r in self.requests if r.path == "/experiences/fetch"]

    def count(self, experience_key: str) -> tuple[int, int]:
        """Return the impressions and clicks of an experience."""
        counts = self.engine.ledger.counts().get(experience_key)
        return (counts.impressions, counts.clicks) if counts else (0, 0)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    """Give the MoEngage that pages talk to."""
    end = Upstream()
    workspace = end.engine.workspace
    client = PersonalizeClient(workspace_id=workspace.workspace_id, api_key=workspace.api_key, transport=end)
    with get_client.override(client):
        yield end
        end.release()
        settle()


def build_request(factory: type[RequestFactory] | type[AsyncRequestFactory] = RequestFactory) -> HttpRequest:
    """Return a request as the middleware leaves it."""
    request = factory().get("/")
    request.user = AnonymousUser()
    request.personalization = Personalization(request)
    return request


class Visit:
    """One visitor's browser, over WSGI or ASGI: ``visit(path, **options)`` is a GET."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.client = Client() if mode == "sync" else AsyncClient()

    def __call__(self, path: str, *, method: str = "get", **options: Any) -> HttpResponse:
        call = getattr(self.client, method)
        return call(path, **options) if self.mode == "sync" else async_to_sync(call)(path, **options)

    def log_in(self, user: Any) -> None:
        self.client.force_login(user)

    def forget_cookies(self) -> None:
        """Become another visitor."""
        self.client.cookies.clear()


@pytest.fixture(params=["sync", "async"])
def visit(request: pytest.FixtureRequest) -> Visit:
    """Give a visitor of the site, once over WSGI and once over ASGI."""
    return Visit(request.param)


@pytest.fixture
def serve(settings: Any) -> Callable[[Callable[..., Any]], None]:
    """Return a function that serves a view as ``/page/``."""

    def install(view: Callable[..., Any]) -> None:
        module = ModuleType("served_page")
        module.urlpatterns = [path("page/", view, name="page")]
        settings.ROOT_URLCONF = module

    return install


@pytest.fixture
def ask(upstream, visit, serve):
    """Return a function that opens a page whose route is known, and returns the response and the page's visitor."""
    User.objects.bulk_create([User(pk=10, username="ada"), User(pk=20, username="bob"), User(pk=30, username="cy")])
    upstream.echo()

    def ask(view, user=None, query=""):
        serve(lambda request: show(request, TAGS))
        visit("/page/")
        visit.forget_cookies()
        serve(view)
        if user is not None:
            visit.log_in(User.objects.get(pk=user))
        upstream.forget()
        response = visit("/page/" + query)
        return response, title(response)

    return ask
