"""Wagtail with wagtail-cache and its fragment tags: no visitor gets another's content.

One route of Wagtail serves all pages. Only the pages that need experiences ask for them.
"""

import json

import pytest

from tests.sites.cached_sites import TAGS, VIEW_AS, VISITORS, answer, configure, preview
from tests.sites.settings import OURS, VISITOR_MIDDLEWARE, WAGTAIL, create_wagtail_site

PLAIN = ["/about/", "/missing/", "/about/", "/missing-too/"]


@pytest.mark.parametrize("page", ["page", "decorated", "identity"])
def test_personalized_page(answers, page):
    """wagtail-cache stores neither a personalized page nor a page that shows the visitor's id."""
    texts = [answers[f"{page} {visitor}"]["text"] for visitor in VISITORS]
    for visitor, text in zip(VISITORS, texts, strict=True):
        assert (f"For {visitor}" in text and "/moe/click/moe." in text) or text.startswith("anon-")
        assert answers[f"{page} {visitor}"]["control"] == "private, no-store"
        assert answers[f"{page} {visitor}"]["cookie"]
    assert texts[0] != texts[1]


@pytest.mark.parametrize("page", ["plain-page", "plain-decorated"])
def test_page_without_tags_is_stored(answers, page):
    """wagtail-cache still stores all other pages."""
    first, second = (answers[f"{page} {visitor}"] for visitor in VISITORS)
    assert first["text"] == second["text"]
    assert not second["cookie"]


def test_stored_fragment_is_found(answers):
    """If wagtailcache stores an include, the second visitor's page is private, and an error names the route."""
    first, second = (answers[f"fragment {visitor}"] for visitor in VISITORS)
    assert "For ada" in second["text"]
    assert second["control"] == "private, no-store"
    assert not first["errors"]
    assert len(second["errors"]) == 1
    assert "route fragment has a token, mark or cookie" in second["errors"][0]


def test_cookie_of_the_visitor_is_kept(answers):
    """With WAGTAIL_CACHE_IGNORE_COOKIES off, the visitor keeps the anonymous id on the next page."""
    first, second = (answers[f"identity {visitor}"]["again"] for visitor in VISITORS)
    assert first == answers["identity ada"]["text"]
    assert second == answers["identity bob"]["text"]


@pytest.mark.parametrize(("learn", "vain"), [("True", 1), ("False", 0), ("__main__.get_page_type", 0)])
def test_plain_pages_ask_for_nothing(answers, learn, vain):
    """After a personalized page, at most one other page asks in vain. With LEARN_ROUTES no page asks in vain."""
    assert answers["calls"][learn] == {"/": 1, "plain": vain, "/sale/": 1, "plain again": 0}


@pytest.mark.parametrize("page", ["/", "/about/", "/fragment/", "/decorated/", "/plain-decorated/"])
def test_no_cache_stores_a_preview(answers, page):
    """A preview shows its experiences, and leaves no entry in the cache that the site and both libraries share."""
    text, stored = answers["previews"][page]
    assert stored == []
    assert "Forced" in text or page in ("/about/", "/plain-decorated/")


def get_page_type(request):
    """Return the type of the Wagtail page, as the documentation shows it."""
    from wagtail.models import Page

    if request.resolver_match.view_name != "wagtail_serve":
        return "page"
    (path,) = request.resolver_match.args
    found = Page.route_for_request(request, path)
    return "" if found is None else f"{found.page.specific_class.__name__} {found.page.slug == 'about'}"


def count_calls():
    """Return the numbers of calls that the pages of the site make for new visitors, by LEARN_ROUTES."""
    from django.test import Client

    from django_moe_personalize.sandbox.engine import Engine
    from django_moe_personalize.testing import override_personalize

    asked, handle = [], Engine.handle

    def count_fetch(engine, request):
        asked.extend([request.path] * (request.path == "/experiences/fetch"))
        return handle(engine, request)

    Engine.handle = count_fetch

    def count(*paths):
        asked.clear()
        for number, page in enumerate(paths):
            Client(headers={"User-Agent": f"ada {page} {number}"}).get(page)
        return len(asked)

    found = {}
    for learn in (True, False, "__main__.get_page_type"):
        with override_personalize(LEARN_ROUTES=learn):
            first = {"/": count("/"), "plain": count(*PLAIN)}
            found[str(learn)] = {**first, "/sale/": count("/sale/"), "plain again": count(*PLAIN, *PLAIN)}
    return found


def main():
    fragment = "{% load wagtail_cache %}{% wagtailcache 60 hero %}{% include part %}{% endwagtailcache %}"
    configure(
        **WAGTAIL,
        middleware=[
            "wagtailcache.cache.UpdateCacheMiddleware",
            *VISITOR_MIDDLEWARE,
            OURS,
            "wagtailcache.cache.FetchFromCacheMiddleware",
        ],
        templates={
            "wagtailcore/page.html": "{% if page.slug != 'about' %}" + TAGS + "{% else %}{% now 'u' %}{% endif %}",
            "tags.html": TAGS,
            "fragment.html": fragment,
        },
    )
    from django.conf import settings
    from django.http import HttpResponse
    from django.shortcuts import render
    from django.test import override_settings
    from django.urls import include, path
    from django.utils import timezone
    from wagtail.models import Page
    from wagtailcache.cache import cache_page

    home = create_wagtail_site(Page(title="Home", slug="home"))
    for slug in ("about", "sale"):
        home.add_child(instance=Page(title=slug, slug=slug))
    urlpatterns.extend(
        [
            path("moe/", include("django_moe_personalize.urls")),
            path("view-as/", include("django_moe_personalize.contrib.view_as.urls")),
            path("fragment/", lambda request: render(request, "fragment.html", {"part": "tags.html"}), name="fragment"),
            path("decorated/", cache_page(lambda request: render(request, "tags.html"))),
            path("plain-decorated/", cache_page(lambda request: HttpResponse(str(timezone.now())))),
            path("identity/", lambda request: HttpResponse(request.personalization.identity.customer_id)),
            path("", include("wagtail.urls")),
        ]
    )
    names = ("fragment", "decorated", "plain-decorated", "identity")
    answers = answer({"page": "/", "plain-page": "/about/", **{name: f"/{name}/" for name in names}})
    stack = list(settings.MIDDLEWARE)
    stack.insert(stack.index(OURS) + 1, VIEW_AS)
    with override_settings(MIDDLEWARE=stack):
        answers["previews"] = preview("/", "/about/", "/fragment/", "/decorated/", "/plain-decorated/")
    with override_settings(MIDDLEWARE=[*VISITOR_MIDDLEWARE, OURS]):
        print(json.dumps({**answers, "calls": count_calls()}))


urlpatterns = []
if __name__ == "__main__":
    main()
