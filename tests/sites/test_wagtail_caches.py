"""Wagtail with wagtail-cache and its fragment tags: no visitor gets another's content."""

import pytest

from tests.sites.cached_sites import COMMON, TAGS, VISITORS, answer, configure, run_site


@pytest.fixture(scope="module")
def answers():
    """Give the answers of the site."""
    return run_site(__name__)


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


def main():
    """Serve the site's pages."""
    import re

    import django.utils.cache

    # wagtail-cache 3.0 imports this expression, which Django 6.1 doesn't have.
    django.utils.cache.cc_delim_re = re.compile(r"\s*,\s*")
    fragment = "{% load wagtail_cache %}{% wagtailcache 60 hero %}{% include part %}{% endwagtailcache %}"
    configure(
        apps=[
            *("wagtail.users", "wagtail.sites", "wagtail.documents", "wagtail.images", "wagtail.admin", "wagtail"),
            *("wagtailcache", "modelcluster", "taggit"),
        ],
        middleware=[
            "wagtailcache.cache.UpdateCacheMiddleware",
            *COMMON,
            "django_moe_personalize.middleware.PersonalizeMiddleware",
            "wagtailcache.cache.FetchFromCacheMiddleware",
        ],
        templates={
            "wagtailcore/page.html": "{% if page.slug == 'home' %}" + TAGS + "{% else %}{% now 'u' %}{% endif %}",
            "tags.html": TAGS,
            "fragment.html": fragment,
        },
        WAGTAIL_SITE_NAME="Shop",
        WAGTAILADMIN_BASE_URL="http://testserver",
        WAGTAIL_CACHE_IGNORE_COOKIES=False,
    )
    from django.http import HttpResponse
    from django.shortcuts import render
    from django.urls import include, path
    from django.utils import timezone
    from wagtail.models import Page
    from wagtailcache.cache import cache_page

    home = Page.objects.get(slug="home")
    home.add_child(instance=Page(title="About", slug="about"))
    urlpatterns.extend(
        [
            path("moe/", include("django_moe_personalize.urls")),
            path("fragment/", lambda request: render(request, "fragment.html", {"part": "tags.html"}), name="fragment"),
            path("decorated/", cache_page(lambda request: render(request, "tags.html"))),
            path("plain-decorated/", cache_page(lambda request: HttpResponse(str(timezone.now())))),
            path("identity/", lambda request: HttpResponse(request.personalization.identity.customer_id)),
            path("", include("wagtail.urls")),
        ]
    )
    names = ("fragment", "decorated", "plain-decorated", "identity")
    answer({"page": "/", "plain-page": "/about/", **{name: f"/{name}/" for name in names}})


urlpatterns = []
if __name__ == "__main__":
    main()
