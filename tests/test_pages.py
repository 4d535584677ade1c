"""Whole pages by WSGI and ASGI: what they ask for, for which visitor, and what they show."""

import pytest
from django.http import HttpResponse
from django.test import Client

from django_moe_personalize.page import Page
from django_moe_personalize.testing import override_personalize
from tests.conftest import Visit, settle
from tests.pages import title
from tests.site import tags

pytestmark = pytest.mark.urls("tests.site")

BOTH = ["hero-banner", "promo-strip"]


def list_calls(upstream):
    return [sorted(body["experience_key"]) for body in upstream.fetches]


def test_page_without_personalization_is_unchanged(visit, upstream, settings):
    """A page without personalization makes no call, needs no database, and has the same bytes as before."""
    with_us = visit("/plain/")
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "moe_personalize" not in name]
    without_us = type(visit)(visit.mode)("/plain/")
    assert (with_us.status_code, with_us.content) == (without_us.status_code, without_us.content)
    assert dict(with_us.headers) == dict(without_us.headers)
    assert not with_us.cookies
    assert upstream.requests == []


@pytest.mark.parametrize("path", ["/read/", "/aread/"])
def test_view_reads_an_undeclared_key(visit, upstream, path):
    """A view that reads request.personalization needs nothing else."""
    assert visit(path).content.decode() != "default"
    assert len(upstream.fetches) == 1


@pytest.mark.parametrize(
    "path", ["/tags/", "/atags/", "/class/", "/method/", "/hidden/", "/ahidden/", "/rest/", "/configured/"]
)
def test_keys_travel_in_one_call(visit, upstream, path):
    """Keys of a decorator or mixin, seen by the middleware or not, and keys of a template that nothing declares."""
    assert title(visit(path)) != "Welcome"
    assert list_calls(upstream) == [BOTH]


def read_early(get_response):
    """A middleware of the site."""

    def middleware(request):
        request.personalization.get("hero-banner")
        return get_response(request)

    return middleware


def test_middleware_that_reads_an_experience(upstream, settings):
    """Before the view, the page asks only for the other keys of the route."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.read_early"]
    for number in range(2):
        assert title(Client().get("/tags/", headers={"User-Agent": f"Mozilla/5.0 Firefox/{number}"})) != "Welcome"
        settle()
    assert list_calls(upstream) == [["hero-banner"], ["promo-strip"]] * 2


@pytest.mark.parametrize("path", ["/tags/", "/atags/", "/hidden/", "/ahidden/"])
def test_decorator_starts_only_calls_that_the_middleware_has_not(visit, upstream, monkeypatch, path):
    """If the middleware has read the view's keys, the decorator does nothing."""
    started, start = [], Page._start
    monkeypatch.setattr(Page, "_start", lambda *args: (started.append(args[2]), start(*args))[1])
    visit(path)
    assert started == [tuple(BOTH)]


@pytest.mark.parametrize(
    ("path", "experiences"),
    [
        ("/configured/", {"configured": BOTH}),
        ("/configured/", {"*": BOTH}),
        ("/shop/home/", {"shop:home": ["hero-banner"], "*": ["promo-strip"]}),
        ("/shop/home/", {"shop:*": ["hero-banner"], "shop:home": BOTH}),
        ("/undeclared/", {"undeclared": BOTH}),
    ],
    ids=["name", "everywhere", "both", "namespace", "async"],
)
def test_configured_keys_travel_in_one_call(visit, upstream, path, experiences):
    """The keys of EXPERIENCES are there before the view runs if it's an async view, which can't wait."""
    with override_personalize(EXPERIENCES=experiences):
        assert title(visit(path)) != "Welcome"
    assert list_calls(upstream) == [BOTH]


def test_route_is_learned(upstream):
    """Keys that only the view's code knows are asked one by one on its first page, and in one call later."""
    for _ in range(2):
        Client().get("/one-by-one/")
    assert list_calls(upstream) == [["hero-banner"], ["promo-strip"], BOTH]


def test_template_response_of_an_async_view(visit, upstream):
    """The middleware fetches the template's keys before Django renders the template, so no tag shows its default."""
    assert title(visit("/atemplate-response/")) != "Welcome"
    assert len(upstream.fetches) == 1


def test_tag_never_blocks_the_event_loop(upstream, caplog):
    """A tag whose key nothing declares shows its default and logs why. The route learns the key."""
    visit = Visit("async")
    assert title(visit("/undeclared/")) == "Welcome"
    assert "'hero-banner' was read in async code before its response arrived" in caplog.text
    assert upstream.fetches == []
    assert title(visit("/undeclared/")) != "Welcome"
    assert len(upstream.fetches) == 1


def show_flatpage(get_response):
    """Render a page in place of a 404, as Django's flatpages do."""

    def middleware(request):
        return tags(request) if get_response(request).status_code == 404 else HttpResponse()

    return middleware


def show_maintenance(get_response):
    return tags


@pytest.mark.parametrize("name", ["show_flatpage", "show_maintenance"])
@pytest.mark.parametrize("is_below", [True, False])
def test_page_of_a_middleware(visit, upstream, settings, caplog, name, is_below):
    """Below PersonalizeMiddleware it shows experiences and is private. Above, the log says once what to move."""
    before = settings.MIDDLEWARE[:-1]
    ours, theirs = settings.MIDDLEWARE[-1], f"{__name__}.{name}"
    settings.MIDDLEWARE = [*before, ours, theirs] if is_below else [*before, theirs, ours]
    responses = [visit("/no/such/page/") for _ in range(2)]
    assert all((title(response) != "Welcome") is is_below for response in responses)
    assert all(("private" in response.headers.get("Cache-Control", "")) is is_below for response in responses)
    said = [record.getMessage() for record in caplog.records if record.name == "django_moe_personalize"]
    assert [text for text in said if "middleware that renders" in text] == ([] if is_below else said)
    assert len(said) == (0 if is_below else 1)


def test_template_that_reads_an_attribute_of_the_mapping(visit, upstream):
    """``identity`` may also be a key, so the page asks for it until the metadata says that there is no such key."""
    for _ in range(2):
        assert visit("/panel/").content.decode() == "True"
        settle()
    # The two calls of the first page are under way at the same time.
    assert sorted(list_calls(upstream)) == [["hero-banner"], ["identity"]]
