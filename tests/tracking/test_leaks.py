"""The leak detector finds content that a cache of the site shows to another visitor."""

import logging
from io import BytesIO
from types import ModuleType

import pytest
from django.core.cache import cache
from django.http import FileResponse, HttpResponse, JsonResponse
from django.template import engines
from django.urls import include, path
from django.views.decorators.cache import cache_page
from django.views.decorators.gzip import gzip_page

from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.testing import override_personalize
from django_moe_personalize.tracking import leaks
from django_moe_personalize.types import LeakError
from tests import site
from tests.conftest import build_request
from tests.pages import text
from tests.site import TAGS, show

PRIVATE = "private, no-store"


def keep(request, source=TAGS):
    """Render tags once, and keep the HTML for all visitors, as a hand-written cache does."""
    return cache.get_or_set("hero", lambda: show(request, source).content.decode())


def fragment(request):
    return show(request, "<nav>Shop</nav>{{ hero|safe }}", hero=keep(request))


def whole_page(request):
    return HttpResponse(keep(request), headers={"Cache-Control": "public, max-age=60", "X-Accel-Expires": "300"})


def own_tags_too(request):
    return show(request, TAGS + "{{ hero|safe }}", hero=keep(request))


def marks(request):
    return HttpResponse(keep(request, "{% load moe_personalize %}{% experience 'hero-banner' %}x{% endexperience %}"))


def error_page(request):
    return HttpResponse(keep(request), status=500)


def as_json(request):
    return JsonResponse({"html": keep(request)})


def fragment_tag(request):
    source = "{% load cache %}{% cache 60 hero %}{% include part %}{% endcache %}"
    return show(request, source, part=engines["django"].from_string(TAGS))


def stream(request):
    html = keep(request).encode()
    middle = html.find(b"moe.") + 7
    return site.stream(request, lambda: html[:middle], lambda: html[middle:])


def one_object(request):
    if "sent" not in vars(one_object):
        one_object.sent = HttpResponse(request.personalization.identity.customer_id)
    return one_object.sent


VIEWS = [fragment, whole_page, own_tags_too, marks, as_json, fragment_tag]


def echo(request):
    values = [request.get_full_path(), *request.GET.values(), *request.POST.values()]
    return HttpResponse(" ".join(values), headers={"Cache-Control": "public"})


@gzip_page
def compressed(request):
    # Django adds up to 100 random bytes, and compresses only what becomes shorter.
    return HttpResponse(fragment(request).content + b" " * 1000)


@pytest.fixture
def routes(settings, upstream):
    module = ModuleType("leaking_routes")
    views = [*VIEWS, one_object, error_page, stream, echo, compressed, cache_page(60)(fragment)]
    names = [*(view.__name__ for view in views[:-1]), "stored"]
    module.urlpatterns = [path(f"{name}/", view, name=name) for name, view in zip(names, views, strict=True)]
    module.urlpatterns += [path("moe/", include("django_moe_personalize.urls"))]
    module.urlpatterns += [path("file/", lambda request: FileResponse(BytesIO(b"moe.0123456789ab")))]
    module.urlpatterns += [path("__debug__/", include(([path("history/", whole_page)], "djdt")))]
    settings.ROOT_URLCONF = module


@pytest.fixture
def production():
    """Don't raise LeakError, as in production."""
    with leaks.is_strict.override(False):
        yield


def find_errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


@pytest.mark.parametrize("mode", ["render", "visible", "web_sdk"])
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)
def test_page_of_the_second_visitor(view, mode, visit, routes, production, caplog):
    """The pages of other visitors are private, and one error for the route says what to do. The first page is right."""
    # In the mode "render", an experience without a link has neither a token nor a mark.
    is_found = view is not marks or mode != "render"
    with override_personalize(IMPRESSIONS=mode):
        assert visit(f"/{view.__name__}/").headers["Cache-Control"] == PRIVATE
        assert find_errors(caplog) == []
        for _ in range(3):
            visit.forget_cookies()
            response = visit(f"/{view.__name__}/")
            if is_found:
                assert response.headers["Cache-Control"] == PRIVATE
                assert "X-Accel-Expires" not in response.headers
    errors = find_errors(caplog)
    assert len(errors) == is_found
    assert all(f"route {view.__name__} " in error and "HTML without personalization tags" in error for error in errors)


@pytest.mark.parametrize("debug", [True, False])
def test_leak_raises_in_tests_and_with_debug(debug, visit, routes, settings):
    """Each page with a leak raises a LeakError that names the route."""
    settings.DEBUG = debug
    visit("/fragment/")
    for _ in range(2):
        visit.forget_cookies()
        with pytest.raises(LeakError, match="route fragment has a token, mark or cookie of another page view"):
            visit("/fragment/")
    assert visit("/error_page/").headers["Cache-Control"] == PRIVATE


def test_leak_raises_nothing_in_production(monkeypatch):
    """Outside of tests, without DEBUG, a leak doesn't raise."""
    monkeypatch.delattr("django.test.utils._TestState.saved_data")
    assert not leaks.is_strict()


def test_stream(visit, routes, production, caplog):
    """A token is found between two pieces of a stream. From then on the streams of the route are private."""
    visit("/as_json/")
    found = visit("/stream/")
    assert "Cache-Control" not in found.headers
    assert "moe." in text(found)
    assert "route stream " in find_errors(caplog)[0]
    assert visit("/stream/").headers["Cache-Control"] == PRIVATE


def test_view_that_returns_one_response_object(visit, routes, production, caplog):
    """Only the first visitor gets the cookie with the first visitor's anonymous id."""
    vars(one_object).pop("sent", None)
    assert "moe_id" in visit("/one_object/").cookies
    visit.forget_cookies()
    assert "moe_id" not in visit("/one_object/").cookies
    assert "route one_object " in find_errors(caplog)[0]


def test_page_from_the_site_cache(visit, routes, settings, production, caplog):
    """A page with a leak is found when Django's cache returns it, before Django knows the route."""
    ours = "django_moe_personalize.middleware.PersonalizeMiddleware"
    visit("/fragment/")
    settings.MIDDLEWARE = [
        ours,
        *(f"django.middleware.cache.{name}CacheMiddleware" for name in ("Update", "FetchFrom")),
    ]
    visit = type(visit)(visit.mode)
    for _ in range(2):
        assert visit("/fragment/").headers["Cache-Control"] == PRIVATE
    cache.set("gone", HttpResponse(keep(None)))
    settings.MIDDLEWARE = [ours, "tests.tracking.test_leaks.answer"]
    assert type(visit)(visit.mode)("/gone/").headers["Cache-Control"] == PRIVATE
    assert [error.split()[5] for error in find_errors(caplog)] == ["fragment", "(none)"]


def answer(get_response):
    """Return a kept page for an address without a route."""
    return lambda request: cache.get("gone")


def test_what_is_no_leak(visit, routes, production, caplog):
    """The address and form of the page, the debug toolbar, a compressed page and a file stay as they are."""
    token = text(visit("/fragment/")).partition("/click/")[2].partition("/")[0]
    assert token.startswith("moe.")
    for next_url in (token, token.replace(".", "%2E"), token.replace("m", "%6d"), "%ed%a0%80" + token):
        assert visit(f"/echo/?next={next_url}").headers["Cache-Control"] == "public"
    assert visit("/echo/", method="post", data={"next": token}).headers["Cache-Control"] == "public"
    assert visit("/__debug__/history/").headers["Cache-Control"] == "public, max-age=60"
    assert "Cache-Control" not in visit("/compressed/", headers={"Accept-Encoding": "gzip"}).headers
    assert "moe." in text(visit("/file/"))
    assert not find_errors(caplog)


def test_pages_that_are_looked_at(visit, routes, production, monkeypatch):
    """In production, the detector looks at the first ten pages of a route and then at one in 97."""
    looked = []
    monkeypatch.setattr(
        "django_moe_personalize.tracking.find_leak", lambda *args: looked.append(1) or leaks.find_leak(*args)
    )
    numbers = [visit("/echo/") and len(looked) for _ in range(211)]
    assert [number for number in range(1, 211) if numbers[number] > numbers[number - 1]] == [*range(1, 10), 106, 203]
    # A process remembers a limited number of routes.
    monkeypatch.setattr(leaks, "MAX_ROUTES", 1)
    visit("/fragment/")
    assert list(get_runtime().samples) == ["fragment"]


def test_tracker_outlives_its_request(upstream):
    """A tracker still signs a link after the request is gone."""
    request = build_request()
    tracker = request.personalization._page.tracker
    del request
    assert tracker.get_stamp() == tracker.get_stamp()
