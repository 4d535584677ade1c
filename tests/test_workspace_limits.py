"""Workspaces where a page is not alone: a request without a workspace, and processes and threads of the site's own."""

from django.http import HttpResponse
from django.template import engines
from django.test import Client
from django.urls import include, path
from django.views.decorators.cache import cache_control

from django_moe_personalize import api
from django_moe_personalize.context import get_page
from django_moe_personalize.context.explain import explain_page
from django_moe_personalize.runtime import get_runtime
from tests.test_workspaces import brands, choose, get  # noqa: F401 - the first two are fixtures


def test_api_of_a_request_without_a_workspace(brands, choose, settings):  # noqa: F811
    """A call that names no workspace does nothing. It never works for the default workspace instead."""
    choose(lambda request: "gone")

    def view(request):
        result = api.fetch_experiences(["hero-banner"], customer_id="c-1")
        assert ([*result.experiences], api.fetch_experiences_meta().experiences) == ([], ())
        api.track_event("c-1", "Order placed")
        api.experiences_shown([api.fetch_experience("hero-banner", workspace="outlet")], customer_id="c-1")
        return HttpResponse()

    settings.ROOT_URLCONF = type("URLs", (), {"urlpatterns": [path("", view)]})
    assert Client().get("/").status_code == 200
    assert [(brand.fetched, brand.events) for brand in brands] == [([], []), (["nobody"], [])]


def test_island_of_a_request_without_a_workspace(brands, choose, settings):  # noqa: F811
    """The page is private. Otherwise a CDN would keep the fallback for all visitors, longer than the failure lasts."""
    page = "{% load moe_personalize %}{% experience_island 'hero-banner' %}Welcome{% endexperience_island %}"

    @cache_control(public=True, max_age=300)
    def view(request):
        return HttpResponse(engines["django"].from_string(page).render({}, request))

    patterns = [path("", view), path("moe/", include("django_moe_personalize.urls"))]
    settings.ROOT_URLCONF = type("URLs", (), {"urlpatterns": patterns})
    assert "public" in Client().get("/")["Cache-Control"]
    choose(lambda request: "gone")
    response = Client().get("/")
    assert (response.text, response["Cache-Control"]) == ("Welcome", "private, no-store")


def test_panel_outside_of_the_workspace(brands, settings):  # noqa: F811
    """The debug toolbar, around all other middleware, explains a page by the settings and cookies of its workspace."""
    client = Client()
    get(client, "outlet", "/?utm_source=mail")
    found = explain_page(get_page(get(client, "outlet").wsgi_request))
    origins = {attribute["name"]: attribute["origin"] for attribute in found["attributes"]}
    assert (found["workspace"], origins["utm_source"]) == (
        "outlet",
        "the cookie moe_query_outlet, from an earlier page of the session",
    )
    assert get_runtime().name == "default"
