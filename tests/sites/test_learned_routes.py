"""Wagtail, in which one route serves all pages: only the pages that need experiences ask for them."""

import json

import pytest

from tests.sites.cached_sites import COMMON, TAGS, configure, run_site

PLAIN = ["/about/", "/missing/", "/about/", "/missing-too/"]


@pytest.fixture(scope="module")
def calls():
    """Give the numbers of calls that the pages of the site make."""
    return run_site(__name__)


@pytest.mark.parametrize(("learn", "vain"), [("True", 1), ("False", 0), ("__main__.get_page_type", 0)])
def test_plain_pages_ask_for_nothing(calls, learn, vain):
    """After a personalized page, at most one other page asks in vain. With LEARN_ROUTES no page asks in vain."""
    assert calls[learn] == {"/": 1, "plain": vain, "/sale/": 1, "plain again": 0}


def get_page_type(request):
    """Return the type of the Wagtail page, as the documentation shows it."""
    from wagtail.models import Page

    if request.resolver_match.view_name != "wagtail_serve":
        return "page"
    (path,) = request.resolver_match.args
    found = Page.route_for_request(request, path)
    return "" if found is None else f"{found.page.specific_class.__name__} {found.page.slug == 'about'}"


def main():
    """Count the calls of new visitors."""
    configure(
        apps=[
            *("wagtail.users", "wagtail.sites", "wagtail.documents", "wagtail.images", "wagtail.admin", "wagtail"),
            *("modelcluster", "taggit"),
        ],
        middleware=[*COMMON, "django_moe_personalize.middleware.PersonalizeMiddleware"],
        templates={"wagtailcore/page.html": "{% if page.slug != 'about' %}" + TAGS + "{% endif %}"},
        WAGTAIL_SITE_NAME="Shop",
        WAGTAILADMIN_BASE_URL="http://testserver",
    )
    from django.test import Client
    from django.urls import include, path
    from wagtail.models import Page

    from django_moe_personalize.sandbox.engine import Engine
    from django_moe_personalize.testing import override_personalize

    home = Page.objects.get(slug="home")
    for slug in ("about", "sale"):
        home.add_child(instance=Page(title=slug, slug=slug))
    urlpatterns.extend([path("moe/", include("django_moe_personalize.urls")), path("", include("wagtail.urls"))])
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
    print(json.dumps(found))


urlpatterns = []
if __name__ == "__main__":
    main()
