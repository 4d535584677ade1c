"""MoEngage's Web SDK is the same person as the server: its calls at sign-in, sign-out and a choice of consent."""

import pytest
from django.contrib.auth import login, logout
from django.contrib.auth.models import User
from django.http import HttpResponseRedirect
from django.urls import include, path

from django_moe_personalize.testing import override_personalize
from django_moe_personalize.visitor import Consent, Identity, build_default_consent
from tests.browser.test_web_sdk import CDN, LOADER
from tests.site import show

PAGE = (
    "{% load moe_personalize %}<!doctype html><title>page</title><script type='module' src='/loader.js'></script>"
    "<h1>{% experience_value 'hero-banner' 'Title' default='nobody' %}</h1>{% personalize_identity %}"
)
# The calls of all pages, in order.
SDK = """
const note = (...call) => localStorage.setItem("calls", JSON.stringify([...read(), call]));
const read = () => JSON.parse(localStorage.getItem("calls") || "[]");
const SDK = { track_event() {}, identifyUser: (id) => note("identifyUser", id), async destroy_session() {
  await new Promise((done) => setTimeout(done, 20));
  note("destroy_session");
} };
"""
REAL = SDK + "window.moe = () => SDK;"
CALLS = "return JSON.parse(localStorage.getItem('calls') || '[]')"
SETTLED = "return document.moeTelling && document.moeTelling.then(() => true)"


def serve_file(text):
    def serve(request):
        response = show(request, "")
        response.content, response["Content-Type"] = text(), "text/javascript"
        return response

    return serve


def page(request):
    response = show(request, PAGE)
    response["Content-Security-Policy"] = "script-src 'self' 'unsafe-inline' https://cdn.moengage.com"
    return response


def sign_in(request, pk):
    login(request, User.objects.get(pk=pk), "django.contrib.auth.backends.ModelBackend")
    return HttpResponseRedirect("/page/")


def sign_out(request):
    logout(request)
    return HttpResponseRedirect("/page/")


def choose(request, choice):
    response = HttpResponseRedirect("/page/")
    response.set_cookie("choice", choice)
    return response


def consent(request):
    allowed = request.COOKIES.get("choice") == "all"
    return build_default_consent(request) if allowed else Consent(identify=False, track=False)


vendor = {}
urlpatterns = [
    path("page/", page),
    path("sign-in/<int:pk>/", sign_in),
    path("sign-out/", sign_out),
    path("choose/<str:choice>/", choose),
    path("loader.js", serve_file(lambda: LOADER)),
    path("web-sdk.js", serve_file(lambda: vendor["loader"])),
    path("favicon.ico", serve_file(str)),
    path("moe/", include("django_moe_personalize.urls")),
]


@pytest.mark.urls(__name__)
def test_calls_of_the_vendors_loader(live_server, transactional_db, visitor, library, upstream):
    """The SDK learns of each change once, in order. Its id is the id that MoEngage gets from the server."""
    driver = visitor.driver
    upstream.echo()
    vendor["loader"] = library("@moengage/web-sdk/dist/index.js")
    driver.intercept("cdn.moengage.com", {f"{CDN}.min.latest.js": REAL})
    User.objects.bulk_create([User(pk=pk, username=str(pk)) for pk in (42, 43, 44)])
    calls = []

    def open_page(way, *expected):
        calls.extend(map(list, expected))
        driver.get(f"{live_server.url}/{way}")
        visitor.wait_until(lambda: driver.run(SETTLED))
        assert (way, driver.run(CALLS)) == (way, calls)
        return driver.run("return document.querySelector('h1').textContent")

    with override_personalize(CONSENT=f"{__name__}.consent", CACHE_TTL=0):
        open_page("page/")
        assert open_page("sign-in/42/") == "nobody"
        assert open_page("choose/all/", ("identifyUser", "42")) == "42"
        assert open_page("page/") == "42"
        assert open_page("choose/none/", ("destroy_session",)) == "nobody"
        open_page("page/")
        assert open_page("choose/all/", ("identifyUser", "42")) == "42"
        assert open_page("sign-out/", ("destroy_session",)).startswith("anon-")
        open_page("page/")
        assert open_page("sign-in/43/", ("identifyUser", "43")) == "43"
        assert open_page("sign-in/44/", ("destroy_session",), ("identifyUser", "44")) == "44"
        driver.back()
        visitor.wait_until(lambda: driver.run(SETTLED))
        assert driver.run(CALLS) == calls


def identify(request):
    return Identity(request.COOKIES["user"]) if request.COOKIES.get("user") else None


@pytest.fixture
def open_page(visitor):
    """Return a function that opens a page as this user, with these scripts before the tag."""
    visitor.use("render", IDENTIFY=f"{__name__}.identify")

    def open_page(user, *scripts, head="", body=""):
        for number, script in enumerate(scripts):
            visitor.site.put_file(f"{number}.js", script.encode())
            head += f'<script src="/{number}.js" defer></script>'
        visitor.driver.get(visitor.site.put("blank", ""))
        visitor.run(f"document.cookie = 'user={user}'")
        for name in ("page", "next"):
            link = "<a href=/next id=go hx-boost=true>go</a>"
            visitor.site.put(name, f"<main>{name}</main>{link}{{% personalize_identity %}}{body}", head=head)
        visitor.driver.get(f"{visitor.site.url}/page")

    return open_page


pytestmark = pytest.mark.urls("tests.browser.site")
STUB = "window.Moengage = { destroy_session() { throw 1; } };"


def test_sdk_that_comes_late_or_never(visitor, open_page):
    """A stub without identifyUser gets no call. If the SDK never comes, the next page tries again."""
    quick = (
        "const wait = setTimeout; window.setTimeout = (act, time, more) => wait(act, time === 250 ? 5 : time, more);"
    )
    quick = "window.waits = 0; " + quick.replace("=> wait", "=> waits++ + wait")
    open_page("ada", STUB, quick)
    visitor.wait_until(lambda: visitor.run("return waits") >= 120)
    assert visitor.run("return [document.moeTelling, localStorage.length]") == [None, 0]
    open_page("ada", STUB + SDK + "setTimeout(() => (window.Moengage = SDK), 300);")
    visitor.wait_until(lambda: visitor.run(CALLS) == [["identifyUser", "ada"]])


def test_sdk_counts_for_the_new_person(visitor, open_page):
    """The SDK reports no impression before it knows who sees the experience."""
    visitor.use("web_sdk", IDENTIFY=f"{__name__}.identify")
    sdk = SDK + "SDK.personalize = { trackImpression: () => note('trackImpression') }; window.Moengage = SDK;"
    for shown, user in enumerate(["ada", "bob", "bob"], start=1):
        open_page(user, sdk, body="{% experience 'hero' %}<p>x</p>{% endexperience %}")
        visitor.wait_until(lambda shown=shown: visitor.run(CALLS).count(["trackImpression"]) == shown)
    calls = visitor.run(CALLS)
    ada, bob = ["identifyUser", "ada"], ["identifyUser", "bob"]
    assert calls == [ada, ["trackImpression"], ["destroy_session"], bob, ["trackImpression"], ["trackImpression"]]


def test_browser_without_storage(visitor, open_page):
    """The SDK learns of each page, and of the sign-out in the same document."""
    blocked = "const keep = localStorage; Object.defineProperty(self, 'localStorage', { get() { throw 1; } });"
    blocked += SDK.replace("localStorage", "keep") + "window.Moengage = SDK;"
    open_page("ada", blocked)
    visitor.wait_until(lambda: visitor.run(SETTLED))
    open_page("ada", blocked)
    visitor.wait_until(lambda: visitor.run(SETTLED))
    visitor.driver.get(visitor.site.put("blank", ""))
    assert visitor.run(CALLS) == [["identifyUser", "ada"]] * 2


@pytest.mark.parametrize("name", ["turbo", "htmx"])
def test_copies_of_pages(visitor, library, open_page, name):
    """A page of a library counts as a page. An old copy from its history doesn't sign the customer in again."""
    file = {"turbo": "@hotwired/turbo/dist/turbo.es2017-umd.js", "htmx": "htmx.org/dist/htmx.js"}[name]
    open_page("ada", library(file), SDK + "window.Moengage = SDK;")
    visitor.wait_until(lambda: visitor.run(CALLS) == [["identifyUser", "ada"]])
    visitor.run("document.cookie = 'user='")
    visitor.click("#go")
    visitor.wait_until(lambda: visitor.run("return document.querySelector('main').textContent") == "next")
    calls = [["identifyUser", "ada"], ["destroy_session"]]
    visitor.wait_until(lambda: visitor.run(CALLS) == calls)
    visitor.driver.back()
    visitor.wait_until(lambda: visitor.run("return document.querySelector('main').textContent") == "page")
    visitor.wait_until(lambda: visitor.run(SETTLED))
    assert visitor.run(CALLS) == calls
