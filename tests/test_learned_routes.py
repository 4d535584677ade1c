"""A route that serves all pages of a CMS: which of its pages ask for the keys that other pages needed."""

import pytest
from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.urls import path

from django_moe_personalize.planning import get_planned_keys, get_route_memory
from django_moe_personalize.testing import override_personalize
from tests.conftest import settle

asked, early = [], []
"""The paths that get_kind() was asked about, and the keys that each page knew before its view."""


def get_kind(request):
    """Return the kind of a page, as a site does with LEARN_ROUTES."""
    asked.append(request.path)
    return "offer" if request.path.startswith("/offer") else "other"


async def aget_kind(request):
    """See get_kind()."""
    return get_kind(request)


def fail(request):
    raise LookupError(request.path)


def serve(request, page):
    """Serve any page. Only offers are personalized."""
    early.append(get_planned_keys(request))
    if page.startswith("missing"):
        raise Http404
    if page.startswith("broken"):
        return HttpResponse(status=503)
    if page.startswith("stream"):
        return StreamingHttpResponse(request.personalization.get("hero-banner")["Title"] for _ in range(1))
    if page.startswith("offer"):
        return HttpResponse(request.personalization.get("hero-banner")["Title"])
    return HttpResponse("plain")


urlpatterns = [path("<path:page>", serve, name="cms")]
pytestmark = pytest.mark.urls(__name__)


@pytest.fixture(name="count_calls")
def build_counter(visit, upstream):
    """Return a function that returns how many calls pages make, each for a new visitor."""

    def count_calls(*pages, method="get"):
        before = len(upstream.fetches)
        for page in pages:
            visit.forget_cookies()
            # With another user agent, no answer comes from the cache.
            agent = f"Mozilla/5.0 (X11; Linux x86_64; rv:1{len(upstream.requests)}.0) Firefox/140.0"
            visit(page, method=method, headers={"user-agent": agent})
            settle()
        return len(upstream.fetches) - before

    return count_calls


PLAIN = ["/about/", "/missing/", "/contact/", "/missing-too/", "/about/"]


def test_plain_pages_of_a_personalized_route(count_calls):
    """After one plain page, plain pages and 404s of the route ask for nothing, and personalized pages ask early."""
    assert count_calls("/offer/") == 1
    assert count_calls(*PLAIN) == 1
    assert count_calls("/offer/", "/offer-2/") == 2
    assert early[-1] == ()
    count_calls("/offer/")
    assert early[-1] == ("hero-banner",)
    assert count_calls(*PLAIN, *PLAIN) == 0


@pytest.mark.parametrize("page", ["/broken/", "/stream/"])
def test_pages_that_say_nothing_about_their_route(count_calls, page):
    """A failing page, and a streamed page that reads while it is sent, leave the route's keys as they are."""
    count_calls("/offer/", page)
    assert count_calls("/offer-2/", "/broken/") == 2
    count_calls("/about/", method="post")
    assert count_calls("/about/") == 1


@pytest.mark.parametrize("learn", [False, f"{__name__}.get_kind", f"{__name__}.aget_kind"])
def test_learn_routes(count_calls, learn):
    """With False no route remembers keys. With a function, only pages for which it returns the same key share keys."""
    asked.clear()
    with override_personalize(LEARN_ROUTES=learn):
        assert count_calls("/offer/") == 1
        assert count_calls(*PLAIN) == 0
        assert len(asked) == (6 if learn else 0)
        assert count_calls("/offer-2/") == 1
        assert get_route_memory()._parts == ({("cms", "offer"): ("hero-banner",)} if learn else {})


@pytest.mark.parametrize(
    "path", [f"{__name__}.fail", "builtins.id", "django.http.Http404", f"{__name__}.no_such_function"]
)
def test_wrong_answers_of_the_function(count_calls, caplog, path):
    """A function that fails, or returns no string, never reaches the page. The log says so once."""
    with override_personalize(LEARN_ROUTES=path):
        assert count_calls("/offer/", *PLAIN) == 1
    (said,) = [record.getMessage() for record in caplog.records if "LEARN_ROUTES" in record.getMessage()]
    assert "so pages remember no keys" in said
