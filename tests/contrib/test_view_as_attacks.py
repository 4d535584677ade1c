"""View as under attack: hostile input, code of the site that counts by itself, browsers that ask early."""

import json

import pytest
from django.contrib.auth.models import User
from django.core.cache import caches
from django.http import HttpResponse, JsonResponse
from django.test import Client
from django.urls import include, path
from django.views.decorators.http import etag

from django_moe_personalize import api
from django_moe_personalize.contrib.view_as.view import COOKIE
from django_moe_personalize.visitor import Consent
from tests.contrib.test_view_as import FORCED, HERO, count_stored, site  # noqa: F401 - a fixture among them
from tests.pages import BROWSER, title
from tests.site import TAGS, show

pytestmark = pytest.mark.django_db

DEEP = "[" * 100_000
HALF = '{"hero-banner": {"Title": "\\ud800"}}'


@pytest.fixture
def staff(site, upstream):  # noqa: F811 - the fixture
    """Return the client of a member of staff whose preview is on."""
    client = Client(headers={"user-agent": BROWSER})
    client.force_login(User.objects.get(pk=7))
    client.cookies[COOKIE] = site(**FORCED, customer_id="ada-42")
    return client


@pytest.fixture
def visit_view(staff, settings):
    """Return the function that visits a view during the preview."""

    def visit_view(view, **headers):
        settings.ROOT_URLCONF.urlpatterns.append(path("view/", view))
        return staff.get("/view/", headers=headers)

    return visit_view


@pytest.mark.parametrize("field", ["forced", "attributes"])
@pytest.mark.parametrize("value", [DEEP, "1" * 5000, HALF, '{"\\udfff": {"T": "x"}}', '{"x": {"T": 1e999}}', "{"])
def test_hostile_json_is_refused(staff, field, value):
    """The form names the problem of JSON that Python, a cookie or a page can't hold."""
    response = staff.post("/as/", {"who": "self", field: value})
    assert response.context["form"].errors[field] == ["Enter a valid JSON."]
    assert COOKIE not in response.cookies


@pytest.mark.parametrize("value", ["null", '{"hero-banner": "absent", "promo-strip": null}', ""])
def test_no_experience_has_two_names(staff, value):
    """The text "absent" makes an experience absent, as null does. An empty field forces nothing."""
    assert staff.post("/as/", {"who": "anonymous", "forced": value}).status_code == 302
    assert (title(staff.get("/page/")) == "Welcome") == ("absent" in value)


def test_the_form_shows_the_view_that_is_on(staff):
    """A member of staff who sends the form unchanged gets the same view."""
    fields = {"who": "customer", "customer_id": "ada-42", "hour": "7", "day": "Monday", "campaign": "spring"}
    fields |= {"attributes": '{"tier": "gold"}', "forced": '{"hero-banner": {"Title": "Grüße"}, "promo-strip": null}'}
    staff.post("/as/", fields)
    before = staff.cookies[COOKIE].value.partition(":")[0]
    form = staff.get("/as/").context["form"]
    assert staff.post("/as/", {field.name: field.value() or "" for field in form}).status_code == 302
    assert staff.cookies[COOKIE].value.partition(":")[0] == before


def test_hostile_content_is_text(visit_view, staff, site):  # noqa: F811 - the fixture
    """Markup in a payload, a key or a customer id is text, on the page and in the bar."""
    bad = '"></td><script>x</script>'
    hero = {**HERO, bad: {"value": bad, "data_type": "string"}, "Title": {"value": bad, "data_type": "string"}}
    staff.cookies[COOKIE] = site(customer_id=bad, forced={bad: HERO, "hero-banner": hero})
    response = visit_view(lambda request: HttpResponse(show(request, TAGS).content + b"</body>"))
    assert b"<script>x" not in response.content
    assert response.content.count(b"&lt;script&gt;x") == 6


@pytest.mark.parametrize(
    ("content", "charset", "target", "shown"),
    [
        ("<!doctype html><p>No end", "utf-8", "", True),
        ("<HTML><BODY>x</BODY></HTML>", "utf-8", "", True),
        ("<li>a part for htmx</li>", "utf-8", "empty", False),
        ("<h1>A small page</h1>", "utf-8", "document", True),
        ("<body>x</body>", "ascii", "", True),
        ("", "utf-8", "document", False),
    ],
)
def test_every_whole_page_has_the_bar(visit_view, content, charset, target, shown):
    """The bar needs no end tag in small letters, and no Unicode. A part of a page has no bar."""

    def view(request):
        request.personalization.get("hero-banner")
        request.moe_view_as.forced["hero-banner"]["Title"]["value"] = "é"
        return HttpResponse(content, charset=charset)

    response = visit_view(view, sec_fetch_dest=target)
    assert (b"moe-view-as" in response.content) == shown
    assert response.content.endswith(b"</BODY></HTML>") == ("BODY" in content)


class LazyNonce:
    """A nonce that only str() makes, as in Django 6.0 and later."""

    def __bool__(self):
        return False

    def __str__(self):
        return "n0nce"


@pytest.mark.parametrize("name", ["_csp_nonce", "csp_nonce"])
def test_the_bar_has_the_nonce_of_a_strict_policy(visit_view, name):
    """A page that uses no nonce gets one, so that its policy allows the bar."""

    def view(request):
        setattr(request, name, LazyNonce())
        return HttpResponse("<body></body>")

    assert visit_view(view).content.count(b'nonce="n0nce"') == 2


def test_the_page_in_the_browser_is_not_used(visit_view):
    """A view whose content hasn't changed answers with the preview, not that the browser's old page is right."""
    view = etag(lambda request: "same")(lambda request: show(request, TAGS))
    response = visit_view(view, if_none_match='"same"')
    assert (response.status_code, title(response)) == (200, "Forced")


def test_code_of_the_site_counts_nothing(visit_view, upstream):
    """The API and request.personalization record nothing during a preview. After it, they record again."""
    found = api.fetch_experience("hero-banner", customer_id="ada-42")

    def view(request):
        request.personalization.track_click("hero-banner", element="cta")
        api.experiences_shown([found], customer_id="ada-42")
        api.experience_clicked(found, customer_id="ada-42")
        return HttpResponse()

    visit_view(view)
    assert upstream.booked == []
    api.experience_clicked(found, customer_id="ada-42")
    assert len(upstream.booked) == 1


def test_the_json_endpoint_leaves_nothing(staff, settings, upstream):
    """The endpoint gives the view's experiences without tokens, and stores no count and no cookie."""
    settings.ROOT_URLCONF.urlpatterns.append(path("json/", include("django_moe_personalize.contrib.json")))
    caches["default"].clear()
    before = count_stored()
    response = staff.get("/json/experiences/?key=hero-banner&key=promo-strip")
    found = response.json()["experiences"]
    assert (found["hero-banner"]["payload"]["Title"], found["promo-strip"]) == ("Forced", None)
    assert found["hero-banner"]["token"] is None
    assert (count_stored(), response.cookies, upstream.booked) == (before, {}, [])


@pytest.mark.parametrize("headers", [{"sec-purpose": "prefetch;prerender"}, {"purpose": "prefetch"}, None])
def test_a_link_needs_a_person(site, upstream, headers):  # noqa: F811 - the fixture
    """A prefetch, or the HEAD request of a chat program, doesn't turn the preview on."""
    link = f"/as/{site(is_shared=True)}/"
    response = Client().get(link, headers=headers) if headers else Client().head(link)
    assert (response.status_code, response.cookies) == (404, {})
    assert Client().get(link).status_code == 302


@pytest.mark.parametrize("change", ["permission", "is_active", "is_staff", "deleted"])
def test_a_link_ends_with_its_issuer(site, upstream, change):  # noqa: F811 - the fixture
    """A link, and a preview that is on, end when the issuer may preview no more."""
    link, colleague, issuer = f"/as/{site(**FORCED, is_shared=True)}/", Client(), User.objects.get(pk=7)
    colleague.get(link)
    assert title(colleague.get("/page/")) == "Forced"
    if change == "permission":
        issuer.user_permissions.clear()
    elif change == "deleted":
        issuer.delete()
    else:
        User.objects.filter(pk=7).update(**{change: False})
    assert Client().get(link).status_code == 404
    assert title(colleague.get("/page/")) != "Forced"


def test_a_customer_opens_a_link(site, upstream):  # noqa: F811 - the fixture
    """A customer who opens a link stays signed in, and a form of the site works. Leaving restores all cookies."""
    client = Client(headers={"user-agent": BROWSER})
    client.force_login(User.objects.get(pk=9))
    client.get("/page/")
    before, session = {name: each.value for name, each in client.cookies.items()}, dict(client.session)
    client.get(f"/as/{site(**FORCED, is_shared=True)}/")
    booked = len(upstream.booked)
    for _ in range(2):
        assert title(client.get("/page/?utm_source=mail")) == "Forced"
        assert client.post("/page/", headers={"x-requested-with": "XMLHttpRequest"}).status_code == 200
    client.post("/as/leave/")
    assert {name: each.value for name, each in client.cookies.items() if each.value} == before
    assert (dict(client.session), len(upstream.booked)) == (session, booked)


@pytest.mark.parametrize(("consent", "asked"), [("grant", ["anon-" + 32 * "0"]), ("refuse", []), ("hide", [None])])
def test_the_colleague_keeps_the_consent(site, upstream, settings, consent, asked):  # noqa: F811 - the fixture
    """A view of "yourself" asks as the visitor allows. New visitors share one id, because no cookie keeps an id."""
    settings.MOE_PERSONALIZE = {**settings.MOE_PERSONALIZE, "CONSENT": f"{__name__}.{consent}"}
    client = Client()
    client.cookies[COOKIE] = site(is_shared=True, forced={"promo-strip": None})
    client.get("/page/")
    assert sorted({*upstream.asked}, key=str) == asked


def grant(request):
    return Consent()


def refuse(request):
    return Consent(fetch=False, identify=False, track=False)


def hide(request):
    return Consent(identify=False)


@pytest.mark.parametrize("fails", [False, True])
def test_a_preview_explains_itself(visit_view, upstream, fails):
    """explain() has the view's visitor, says what is forced, and why another experience is absent."""

    def view(request):
        request.personalization.load("hero-banner", "promo-strip", "no-such-key")
        return JsonResponse(request.personalization.explain())

    if fails:
        upstream.refuse()
    found = json.loads(visit_view(view).content)
    assert (found["visitor"]["customer_id"], found["counted"]) == ("ada-42", [])
    states = {each["key"]: (each["state"], each["reason"]) for each in found["experiences"]}
    assert (states["hero-banner"], states["promo-strip"]) == (("came", "FORCED"), ("absent", "FORCED"))
    assert states["no-such-key"] == ("absent", "FAILED" if fails else "USER_NOT_IN_SEGMENT")
