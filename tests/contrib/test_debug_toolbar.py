"""The panel for django-debug-toolbar, over HTTP, and request.personalization.explain()."""

import html
import json
import math
import re
from contextlib import ExitStack
from types import ModuleType

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.http import HttpResponse, StreamingHttpResponse
from django.test import Client, override_settings
from django.urls import path

from django_moe_personalize import context
from django_moe_personalize.contrib.debug_toolbar import PersonalizePanel
from django_moe_personalize.delivery.immediate import ImmediateDelivery
from django_moe_personalize.fetching.metadata import get_metadata_store
from django_moe_personalize.fetching.upstream import get_breaker
from django_moe_personalize.moengage.types import Action, ExperienceStatus
from django_moe_personalize.page import Page
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.responses import RefusedError
from django_moe_personalize.testing import override_experiences, override_personalize
from django_moe_personalize.visitor import Consent
from tests.conftest import settle
from tests.delivery.events import backend
from tests.site import TAGS, show

OTHERS = ("history.HistoryPanel", "cache.CachePanel")
PANEL = "django_moe_personalize.contrib.debug_toolbar.PersonalizePanel"


def build_urls(*patterns):
    module = ModuleType("served_page")
    module.urlpatterns = [*patterns]
    return module


@pytest.fixture
def toolbar(monkeypatch):
    """Return a function that serves a view with the toolbar."""
    monkeypatch.setattr(context, "Page", Page)
    changes = {
        "DEBUG": True,
        "DEBUG_TOOLBAR_PANELS": [*(f"debug_toolbar.panels.{name}" for name in OTHERS), PANEL],
        "DEBUG_TOOLBAR_CONFIG": {"SHOW_TOOLBAR_CALLBACK": lambda request: True, "IS_RUNNING_TESTS": False},
        "INSTALLED_APPS": [*settings.INSTALLED_APPS, "debug_toolbar"],
        "MIDDLEWARE": ["debug_toolbar.middleware.DebugToolbarMiddleware", *settings.MIDDLEWARE],
    }
    with ExitStack() as stack:
        stack.enter_context(override_settings(**changes))
        # Its models need the app.
        from debug_toolbar.store import get_store
        from debug_toolbar.toolbar import debug_toolbar_urls

        PersonalizePanel.ready()

        def serve(view, **more):
            urls = build_urls(path("page/", view, name="page"), *debug_toolbar_urls())
            stack.enter_context(override_settings(ROOT_URLCONF=urls, **more))

        yield serve
        get_store().clear()


def read_panel(client, response):
    """Return the text of the panel for the request of a response, as the toolbar's script loads it."""
    request_id = response.headers["djdt-request-id"]
    answer = client.get("/__debug__/render_panel/", {"request_id": request_id, "panel_id": "PersonalizePanel"})
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", json.loads(answer.content)["content"])))


@pytest.mark.parametrize("headers", [{}, {"HX-Request": "true"}], ids=["page", "htmx"])
def test_panel_explains_a_page(toolbar, visit, headers):
    """The panel of a page, and of a request of htmx, has the keys, the timeline, the attributes and the events."""
    toolbar(lambda request: show(request, TAGS))
    with override_experiences({"hero-banner": {"Title": "Hello"}}, ATTRIBUTES=[f"{__name__}.cart"]):
        response = visit("/page/?utm_source=mail", headers=headers)
        panel = read_panel(Client(), response)
    for text in (
        "hero-banner came 1 From the sandbox.",
        "promo-strip absent The workspace has no experience with this key. INVALID_EXPERIENCE_KEY",
        "hero-banner, promo-strip: asked; the call goes to MoEngage if",
        "The wait is over, after",
        "The response is ready: status 200, 1 events.",
        "utm_source mail the query string",
        f"cart_value 1 ATTRIBUTES: {__name__}.cart",
        f"{Action.SHOWN.value} hero-banner",
        "Circuit breaker closed",
        "Switched off nothing",
        "Delivery ImmediateDelivery: 1 accepted, 1 delivered, 0 pending",
    ):
        assert text in panel
    timing = response.headers["Server-Timing"]
    assert "CachePanel_total_time" in timing
    assert 'moe;desc="2 asked, 1 came, 0 from the cache";dur=' in timing
    assert 'moe-key1;desc="hero-banner: network, variation 1", moe-key2;desc="promo-strip: absent, ' in timing
    assert 'moe-counted;desc="1 counted", moe-breaker;desc="closed"' in timing
    assert "utm_source" in timing
    assert "mail" not in timing
    snapshot = Client().get("/__debug__/history_sidebar/", {"request_id": response.headers["djdt-request-id"]})
    assert "1 of 2 came" in json.loads(snapshot.content)["PersonalizePanel"]["button"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("is_staff", "more", "is_shown"),
    [
        (False, {}, False),
        (True, {}, True),
        (None, {}, False),
        (None, {"REMOTE_ADDR": "127.0.0.1"}, True),
        (None, {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "8.8.4.4"}, False),
    ],
    ids=["customer", "staff", "far away", "this machine", "behind a proxy"],
)
def test_panel_has_no_data_of_other_visitors(toolbar, is_staff, more, is_shown):
    """The panel never stores ids. Values it stores only of staff, and of a browser on this machine."""
    toolbar(lambda request: show(request, TAGS))
    client = Client()
    if is_staff is not None:
        client.force_login(User.objects.create(pk=4711, username="ada", is_staff=is_staff))
    headers = {"REMOTE_ADDR": "8.8.4.4", "HTTP_USER_AGENT": "Canary/1", **more}
    panel = read_panel(Client(), client.get("/page/?utm_source=canary", **headers))
    assert ("Kind: customer." in panel) == (is_staff is not None)
    assert not [text for text in ("4711", "ada", "8.8.4.4", "Canary/1") if text in panel]
    assert ("canary" in panel) == is_shown


def test_panel_outside_the_middleware(toolbar):
    """Without the middleware the panel says so."""
    toolbar(
        lambda request: HttpResponse("<body></body>"), MIDDLEWARE=["debug_toolbar.middleware.DebugToolbarMiddleware"]
    )
    response = Client().get("/page/")
    assert "didn't pass PersonalizeMiddleware" in read_panel(Client(), response)
    assert "moe;" not in response.headers["Server-Timing"]


def test_panel_of_a_stream(toolbar):
    """A streamed response counts after the panel is made, and a page without personalization has no steps."""
    toolbar(lambda request: StreamingHttpResponse([b"x"]))
    response = Client().get("/page/")
    assert "asked for no experience" in read_panel(Client(), response)


def explain(view=lambda request: show(request, TAGS), **options):
    """Return the facts of a page by key, and the other facts."""
    seen = {}

    def page(request):
        response = view(request)
        seen.update(request.personalization.explain())
        return response

    with override_settings(ROOT_URLCONF=build_urls(path("page/", page, name="page"))):
        response = Client().get("/page/", **options)
    return {each["key"]: (each["state"], each["reason"]) for each in seen.get("experiences", ())}, seen, response


def deny(request):
    return Consent(fetch=False)


ABSENT = ("absent", "USER_NOT_IN_SEGMENT")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"ENABLED": False}, ("absent", "ENABLED")), ({"CONSENT": f"{__name__}.deny"}, ("absent", "CONSENT"))],
)
def test_reasons_of_the_site(changes, expected):
    """A key may be absent because of a setting or because of the visitor's consent."""
    view = lambda request: [request.personalization.get("hero-banner"), show(request, TAGS)][1]  # noqa: E731
    with override_personalize(**changes, EXPERIENCES={"*": ["hero-banner"]}):
        assert explain(view)[0]["hero-banner"] == expected


def test_page_that_knows_nothing_yet():
    """A page that reads nothing has no visitor, and stays public."""
    keys, facts, response = explain(lambda request: HttpResponse())
    assert (keys, facts["visitor"]["kind"], facts["attributes"]) == ({}, "not known yet", [])
    assert "Cache-Control" not in response.headers


def test_page_that_has_not_asked_is_explained():
    """A key that the visitor's page knows and hasn't asked for is "not asked". A page with a visitor is private."""
    view = lambda request: HttpResponse(request.personalization.consent)  # noqa: E731
    with override_personalize(EXPERIENCES={"page": ["hero-banner"], "other": ["x"]}):
        keys, facts, response = explain(view)
    assert keys["hero-banner"][0] in ("came", "waiting")
    assert facts["visitor"]["kind"] == "new anonymous browser"
    assert "no-store" in response.headers["Cache-Control"]


def test_reasons_of_moengage(upstream):
    """Without a sandbox in this process, the metadata tells why a key is absent."""
    upstream.respond(200, b'{"experiences": {}}')
    with override_personalize(CACHE_TTL=60):
        assert explain()[0]["hero-banner"] == ABSENT
        settle()
        store = get_metadata_store()
        store._until = store._not_before = math.inf
        for statuses, reason in [
            ({}, "INVALID_EXPERIENCE_KEY"),
            ({"hero-banner": ExperienceStatus.PAUSED}, "EXPERIENCE_NOT_ACTIVE"),
            ({"hero-banner": ExperienceStatus.ACTIVE}, ABSENT[1]),
        ]:
            store._statuses = statuses
            assert explain()[0]["hero-banner"] == ("absent", reason)


def test_failures(upstream):
    """A failed fetch, then an open circuit breaker, are the reasons of absent keys."""
    upstream.refuse()
    assert explain()[0]["hero-banner"] == ("absent", "FAILED")
    for _ in range(5):
        get_breaker().failure()
    keys, facts, _ = explain()
    assert keys["hero-banner"] == ("absent", "BREAKER")
    assert (facts["breaker"]["state"], facts["breaker"]["fetches_fail"]) == ("open", True)


def test_deadline(upstream):
    """An answer that comes too late isn't on the page. Before its deadline, the page waits."""
    release = upstream.hold()

    def prefetch(request):
        request.personalization.prefetch("hero-banner")
        return HttpResponse()

    assert explain(prefetch)[0]["hero-banner"] == ("waiting", "")
    with override_personalize(DEADLINE=0.1):
        keys, facts, _ = explain()
    # A busy machine may end the call before the page waits.
    assert keys["hero-banner"] in (("absent", "DEADLINE"), ("absent", "FAILED"))
    assert facts["waited"] > 0
    release()


def cart(request):
    return {"cart_value": "1"}


def broken(*arguments):
    raise ValueError


def test_origins_of_attributes():
    """Each attribute of the site names its function, and a stored parameter names its cookie."""
    names = [f"{__name__}.{name}" for name in ("cart", "broken")]
    with override_personalize(ATTRIBUTES=names):
        _, facts, _ = explain(HTTP_COOKIE="moe_query=utm_source:mail")
    origins = {each["name"]: each["origin"] for each in facts["attributes"]}
    assert origins["cart_value"] == f"ATTRIBUTES: {names[0]}"
    assert origins["utm_source"] == "the cookie moe_query, from an earlier page of the session"


def test_timeline_of_the_cache_and_of_consent(toolbar):
    """The timeline says that the memory of the process had the answers, or that consent forbids the fetch."""
    toolbar(lambda request: show(request, TAGS))
    client = Client()
    client.get("/page/")
    panel = read_panel(Client(), client.get("/page/"))
    assert "Known before the view: hero-banner" in panel
    assert "answered at once from the memory of this process" in panel
    assert "From the cache." in panel
    with override_personalize(CONSENT=f"{__name__}.deny"):
        panel = read_panel(Client(), client.get("/page/"))
    assert "consent or identity doesn't allow it" in panel


def test_answer_that_came_after_the_page():
    """If the cache has the answer by now, the page was too early."""
    seen = {}

    def view(request):
        response = show(request, TAGS)
        page = request.personalization._page
        page._answers["hero-banner"] = None
        seen.update(page.visitor.attributes)
        return response

    assert explain(view)[0]["hero-banner"] == ("absent", "DEADLINE")
    assert seen


def test_not_asked():
    """The page knows a key from its template or the settings, and hasn't asked for it yet."""

    def view(request):
        request.personalization._page._expected = ("later",)
        return HttpResponse(request.personalization.consent)

    assert explain(view)[0]["later"] == ("not asked", "")


def test_sandbox_that_refuses(monkeypatch):
    """If the sandbox can't explain its decision, the page is explained nevertheless."""

    def refuse(*arguments):
        raise RefusedError(400, "Bad Request", "wrong")

    monkeypatch.setattr(Engine, "explain", refuse)
    # The counters of an outbox are a query, so the page doesn't show them.
    monkeypatch.setattr(ImmediateDelivery, "uses_database", True)
    with override_experiences({}):
        keys, facts, _ = explain()
    assert (keys["hero-banner"], facts["delivery"]) == (ABSENT, {"backend": "ImmediateDelivery"})


def test_queue_with_an_outbox():
    """The counters of an outbox are a query, also if it is the fallback of a queue."""
    queue = backend("tests.delivery.test_queued.ListDelivery", fallback=backend("database.DatabaseDelivery"))
    with override_experiences({}, DELIVERY=queue):
        assert explain()[1]["delivery"] == {"backend": "ListDelivery"}
