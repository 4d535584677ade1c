"""View as: the page of another visitor, for staff and for the holder of a link, and for nobody else."""

import json
from types import ModuleType

import pytest
from django.contrib.auth.models import Permission, User
from django.core.cache import caches
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import HttpResponse, JsonResponse
from django.test import Client, RequestFactory
from django.urls import include, path
from django.utils import translation
from django.views.decorators.cache import cache_page

from django_moe_personalize.contrib.view_as import view as view_module
from django_moe_personalize.contrib.view_as.view import COOKIE, View
from django_moe_personalize.fetching.cache import get_cache
from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.runtime import get_runtime
from tests.pages import BROWSER, text, title
from tests.site import TAGS, show

pytestmark = pytest.mark.django_db

FRAGMENT = "{% load cache %}{% cache 60 box %}{{ own.hero.Title }}{% endcache %}"
SCRIPTS = "{% load moe_personalize %}{% experience 'hero-banner' %}{% endexperience %}{% personalize_state %}"
SCRIPTS += "{% personalize_identity %}"
HERO = {"Title": {"value": "Forced", "data_type": "string"}}
FORCED = {"forced": {"hero-banner": HERO, "hero": HERO, "promo-strip": None}}


@cache_page(60)
def shared(request):
    return page(request)


def page(request):
    return HttpResponse(text(show(request, TAGS)) + "</body>", headers={"Content-Length": "9", "Expires": "never"})


async def apage(request):
    await request.personalization.aload("hero-banner", "promo-strip")
    return page(request)


def bag(request):
    personalization = request.personalization
    personalization.load("hero-banner")
    personalization.track_impression("hero-banner")
    return JsonResponse({"id": personalization.identity.customer_id, **personalization.attributes})


def named(request):
    return show(request, FRAGMENT.replace("box", "box using='default'"), own=request.personalization)


@pytest.fixture
def site(settings, upstream):
    """Serve the site with the middleware. Give the factory of a signed view."""
    urls = ModuleType("view_as_urls")
    views = {"page/": page, "shared/": shared, "apage/": apage, "bag/": bag, "named/": named}
    views["scripts/"] = lambda request: show(request, SCRIPTS)
    views["box/"] = lambda request: show(request, FRAGMENT, own=request.personalization)
    urls.urlpatterns = [
        *(path(route, view) for route, view in views.items()),
        path("moe/", include("django_moe_personalize.urls")),
        path("as/", include("django_moe_personalize.contrib.view_as.urls")),
    ]
    settings.ROOT_URLCONF = urls
    settings.ALLOWED_HOSTS = ["*"]
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "django_moe_personalize.contrib.view_as"]
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django_moe_personalize.contrib.view_as.middleware.ViewAsMiddleware"]
    staff = [User.objects.create(pk=pk, username=f"staff{pk}", is_staff=True) for pk in (7, 8)]
    for user in staff:
        user.user_permissions.add(Permission.objects.get(codename="preview"))
    User.objects.create(pk=9, username="shopper")
    User.objects.create(pk=10, username="helper", is_staff=True)
    return lambda host="testserver", **parts: View(**{"issuer": "7", **parts}).sign(
        RequestFactory().get("/", HTTP_HOST=host)
    )


def count_stored():
    return len(get_cache(get_runtime()).memory._bodies), len(caches["default"]._cache)


def log_in(visit, pk=7):
    visit.log_in(User.objects.get(pk=pk))


@pytest.mark.parametrize("route", ["/page/", "/shared/", "/apage/"])
def test_a_preview_shows_the_view_and_leaves_nothing(site, visit, upstream, route):
    """The page shows the forced experiences and the bar. Nothing is counted, cached or set, and leaving ends it."""
    log_in(visit)
    session = visit.client.cookies["sessionid"].value
    visit.client.cookies[COOKIE] = site(**FORCED, customer_id="ada-42")
    before = count_stored()
    response = visit(route, headers={"user-agent": BROWSER})
    assert title(response) == "Forced"
    assert "as customer ada-42" in text(response)
    assert "Free returns" in text(response)
    assert response.headers["Content-Length"] == str(len(response.content))
    assert (response.headers["Cache-Control"], response.headers.get("Expires")) == ("private, no-store", None)
    assert (response.cookies, count_stored(), upstream.booked) == ({}, before, [])
    left = visit("/as/leave/", method="post", data={"next": "/page/"})
    assert (left.headers["Location"], [*left.cookies]) == ("/page/", [COOKIE])
    assert visit.client.cookies["sessionid"].value == session
    assert "moe-view-as" not in text(visit(route))


def test_scripts_of_a_preview(site, visit, upstream):
    """They get the content without a token. MoEngage's Web SDK in the browser of the staff stays as it is."""
    log_in(visit)
    visit.client.cookies[COOKIE] = site(**FORCED, customer_id="ada-42")
    page = text(visit("/scripts/"))
    assert '"payload": {"Title": "Forced"}, "offerings": [], "token": null' in page
    assert "identity.js" not in page


def test_a_preview_doesnt_ask_for_what_is_off(site, visit, upstream):
    """It shows what the visitor gets. But content that the view forces is the view's own."""
    get_switch().turn(["hero-banner"], is_off=True, by="ada")
    log_in(visit)
    visit.client.cookies[COOKIE] = site(customer_id="ada-42")
    assert title(visit("/page/")) == "Welcome"
    assert {key for body in upstream.fetches for key in body["experience_key"]} == {"promo-strip"}


@pytest.mark.parametrize(
    ("name", "user", "parts"),
    [
        ("another user's", 8, {}),
        ("no account", None, {}),
        ("no staff", 9, {"issuer": "9"}),
        ("no permission", 10, {"issuer": "10"}),
        ("shared without a permission", None, {"issuer": "10", "is_shared": True}),
        ("shared by a deleted user", None, {"issuer": "99", "is_shared": True}),
        ("another site's", 7, {"host": "other.example"}),
        ("altered", 7, {}),
        ("expired", 7, {}),
        ("old fields", 7, {}),
        ("too long", 7, {"customer_id": "".join(map(str, range(4000)))}),
    ],
)
def test_a_wrong_view_gives_the_normal_page_and_a_wrong_link_a_404(site, upstream, monkeypatch, name, user, parts):
    """Neither the cookie nor the link of an attacker has any effect."""
    client = Client()
    if user is not None:
        client.force_login(User.objects.get(pk=user))
    token = site(**{**FORCED, **parts})
    if name == "altered":
        token = token[:-1] + ("A" if token[-1] != "A" else "B")
    if name == "expired":
        monkeypatch.setattr(view_module, "MAX_AGE", -1)
    if name == "old fields":
        monkeypatch.setattr(view_module, "asdict", lambda view: {"person": "ada"})
        token = site()
    link = client.get(f"/as/{token}/")
    assert client.get("/as/").status_code == (200 if user in (7, 8) else 404)
    assert (link.status_code, COOKIE in link.cookies) == (404, False)
    client.cookies[COOKIE] = token
    response = client.get("/page/")
    assert "Forced" not in text(response)
    assert "moe-view-as" not in text(response)


def test_a_colleague_without_an_account_opens_a_link(site, upstream):
    """The form makes a link. The link leads to the page, where the colleague may leave but not change."""
    client, colleague = Client(), Client()
    client.force_login(User.objects.get(pk=7))
    made = client.post("/as/", {"who": "anonymous", "forced": '{"hero-banner": {"Title": "Hi"}}', "link": 1})
    address = made.context["link"]
    response = colleague.get(address + "?next=/page/")
    assert (response.status_code, response.headers["Location"]) == (302, "/page/")
    assert response.headers["Referrer-Policy"] == "no-referrer"
    shown = colleague.get("/page/")
    assert title(shown) == "Hi"
    assert "as a new anonymous visitor" in text(shown)
    assert "Change" not in text(shown)
    assert [*colleague.cookies] == [COOKIE]
    assert colleague.get(f"/as/{site()}/").status_code == 404


def test_the_visitor_of_the_view_is_asked_for(site, upstream, settings):
    """The fetch names the customer and the attributes of the view, once for the preview and once to compare."""
    settings.MOE_PERSONALIZE = {**settings.MOE_PERSONALIZE, "ATTRIBUTES": ["tests.contrib.test_view_as.add_tier"]}
    client = Client()
    client.force_login(User.objects.get(pk=7))
    fields = {"who": "customer", "customer_id": "ada-42", "device": "Phone", "hour": 0, "day": "Monday"}
    fields |= {"campaign": "spring", "address": "1.1.1.1", "attributes": '{"tier": "gold"}', "next": "/bag/"}
    assert client.post("/as/", fields).headers["Location"] == "/bag/"
    found = client.get("/bag/?utm_source=mail").json()
    assert found == {
        "id": "ada-42",
        "USER_AGENT": "Phone",
        "USER_IP_ADDRESS": "1.1.1.1",
        "DAY_OF_THE_WEEK": "Monday",
        "TIME_OF_THE_DAY": "00",
        "utm_campaign": "spring",
        "tier": "gold",
    }
    upstream.requests.clear()
    client.get("/page/")
    assert sorted(upstream.asked) == ["7", "ada-42"]
    assert upstream.booked == []


def test_the_middleware_belongs_below_the_other(site, upstream, settings, caplog):
    """In the wrong order, the page is the normal page, and the log says what to do."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE[:2], settings.MIDDLEWARE[3], settings.MIDDLEWARE[2]]
    client = Client()
    client.force_login(User.objects.get(pk=7))
    client.cookies[COOKIE] = site(**FORCED)
    assert "Forced" not in text(client.get("/page/"))
    assert "directly below" in caplog.text


def add_tier(request):
    return {"tier": "silver"}


def test_an_old_page_counts_nothing_while_the_preview_is_on(site, upstream):
    """A link of the real visitor's page redirects, but its click doesn't count."""
    client = Client(headers={"user-agent": BROWSER})
    client.force_login(User.objects.get(pk=7))
    link = text(client.get("/page/")).partition('href="')[2].partition('"')[0]
    client.cookies[COOKIE] = site()
    assert client.get(link).headers["Location"] == "/sale/"
    assert upstream.count("hero-banner")[1] == 0
    del client.cookies[COOKIE]
    client.get(link)
    assert upstream.count("hero-banner")[1] == 1


def test_fragments_stay_as_they_are(site, upstream, settings):
    """The tag {% cache %} stores nothing of a preview, whatever cache it uses."""
    backend = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    settings.CACHES = {"default": backend, "template_fragments": {**backend, "LOCATION": "fragments"}}
    client = Client()
    client.force_login(User.objects.get(pk=7))
    client.cookies[COOKIE] = site(**FORCED)
    caches["template_fragments"].clear()
    assert text(client.get("/box/")) == "Forced"
    assert len(caches["template_fragments"]._cache) == 0
    assert text(client.get("/named/")) == ""


@pytest.mark.parametrize("case", ["fails", "no consent", "off"])
def test_a_preview_without_answers_shows_defaults(site, upstream, settings, case, monkeypatch):
    """A failing MoEngage, a visitor who can't be known, and ENABLED give the default page, with the bar."""
    changes = {"IDENTIFY": "tests.contrib.test_view_as.fail"} if case == "no consent" else {"ENABLED": case != "off"}
    settings.MOE_PERSONALIZE = {**settings.MOE_PERSONALIZE, **changes}
    if case == "fails":
        upstream.refuse()
    client = Client()
    client.force_login(User.objects.get(pk=7))
    client.cookies[COOKIE] = site()
    response = client.get("/page/")
    assert title(response) == "Welcome"
    assert "moe-view-as" in text(response)
    assert client.get("/moe/beacon/").status_code == 405
    assert client.get("/as/", {"next": "//evil.example"}).context["path"] == "/"


def fail(request):
    raise LookupError


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"who": "customer"}, "Enter the id"),
        ({"attributes": "[1]"}, "that MoEngage accepts"),
        ({"attributes": '{"USER_AGENT": "x"}'}, "that MoEngage accepts"),
        ({"forced": "[1]"}, "a payload for each experience key"),
        ({"forced": '{"hero-banner": "no such"}'}, "Write one of: '1', "),
        ({"forced": '{"nothing": "1"}'}, "no variation"),
        ({"file": b"{"}, "has no JSON object"),
        ({"file": b" " * 70_000}, "64 KiB"),
        ({"forced": json.dumps({"x": {"T": "".join(map(str, range(4000)))}})}, "too long"),
    ],
)
def test_the_form_names_each_mistake(site, fields, problem):
    """The form stays open, and sets no cookie."""
    client = Client()
    client.force_login(User.objects.get(pk=7))
    if "file" in fields:
        fields = {"file": SimpleUploadedFile("answer.json", fields["file"])}
    response = client.post("/as/", {"who": "self", **fields})
    assert problem in text(response)
    assert COOKIE not in response.cookies


def test_the_form_takes_recorded_answers_and_variations(site, upstream):
    """A recorded answer, a variation of the sandbox and an absent experience are all forced."""
    variation = upstream.engine.workspace.definitions["promo-strip"].contents[0].variations[0]
    answer = {"experiences": {"hero-banner": {"payload": HERO, "experience_context": {}}}}
    client = Client()
    client.force_login(User.objects.get(pk=7))
    assert client.get("/as/").status_code == 200
    forced = json.dumps({"promo-strip": variation.variation_id, "other": None})
    file = SimpleUploadedFile("answer.json", json.dumps(answer).encode())
    assert client.post("/as/", {"who": "self", "forced": forced, "file": file}).status_code == 302
    response = client.get("/page/")
    assert title(response) == "Forced"
    assert variation.payloads[""]["Text"]["value"] in text(response)
    assert "as yourself" in text(response)
    client.post("/as/", {"who": "self", "forced": json.dumps({"hero-banner": {"Picks": [{"dp_offering_id": "tent"}]}})})
    with translation.override("de"):
        bar = text(client.get("/page/"))
    assert "<b>Picks</b>: tent<" in bar
    assert '<section class="moe-view-as" lang="de"' in bar
    assert "<td>dieselbe</td>" in bar
