"""The pages of the shop."""

from typing import Any

from django.conf.urls.i18n import i18n_patterns
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.template.response import TemplateResponse
from django.urls import include, path
from django.views.decorators.cache import cache_page
from django.views.decorators.vary import vary_on_headers
from rest_framework.response import Response
from rest_framework.views import APIView

from django_moe_personalize.decorators import personalize
from tests.sites import rest_site


class Experiences(APIView):
    """Return the experiences as JSON, for an app."""

    @personalize("hero-banner", "promo-strip")
    def get(self, request: Any) -> Response:
        """Show the banner, and count its impression."""
        hero = request.personalization.get("hero-banner")
        request.personalization.track_impression("hero-banner")
        strip = request.personalization.get("promo-strip")
        return Response({"hero": hero and hero.to_dict(), "strip": strip and strip["Text"]})


def home(request: HttpRequest) -> HttpResponse:
    """Show the whole page, or to htmx only the banner."""
    return render(request, "rest_site/home.html#hero" if request.htmx else "rest_site/home.html")  # type: ignore[attr-defined]


@personalize("hero-banner")
async def account(request: HttpRequest) -> HttpResponse:
    """Show who the visitor is to MoEngage."""
    await request.personalization.aload()  # type: ignore[attr-defined]
    return TemplateResponse(request, "rest_site/account.html")


def shell(request: HttpRequest) -> HttpResponse:
    """Show a page that is the same for everyone, and that htmx completes."""
    return render(request, "rest_site/shell.html")


def fail(request: HttpRequest) -> HttpResponse:
    """Fail after reading an experience, so that Sentry has an error to report."""
    request.personalization.get("hero-banner")  # type: ignore[attr-defined]
    raise ValueError("the site's own")


def sentry(request: HttpRequest) -> HttpResponse:
    """Return the visitors in each error and transaction that Sentry got from this process."""
    return JsonResponse({"reported": [sorted(names) for names in rest_site.reported]})


fragment = vary_on_headers("HX-Request")(home)
urlpatterns = [
    path("moe/", include("django_moe_personalize.urls")),
    path("accounts/", include("allauth.urls")),
    path("api/experiences/", Experiences.as_view()),
    path("sentry/", sentry),
    path("fail/", fail),
    path("__debug__/", include("debug_toolbar.urls")),
    *i18n_patterns(
        path("", fragment, name="home"),
        path("cached/", cache_page(600)(fragment)),
        path("account/", account),
        path("shell/", shell),
    ),
]
