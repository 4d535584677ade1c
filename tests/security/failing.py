"""Views that fail, each inside or after another step of the package. They hold no canaries themselves."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.urls import include, path

from django_moe_personalize import api
from django_moe_personalize.decorators import personalize
from tests import site
from tests.security import canary_values

READ = "{% load moe_personalize %}{% experience 'hero-banner' as hero %}{{ hero.Title }}"


def fail() -> None:
    raise RuntimeError("the site's own")


def render(request: HttpRequest, source: str) -> HttpResponse:
    return HttpResponse(engines["django"].from_string(source).render({"fail": fail}, request))


@personalize("hero-banner", "promo-strip")
def after_reading(request: HttpRequest) -> HttpResponse:
    """Fail after reading all data of the visitor."""
    page = request.personalization  # type: ignore[attr-defined]
    hero, asked, visitor = page.get("hero-banner"), page.attributes, page.identity  # noqa: F841 - in the report
    del asked
    fail()
    return HttpResponse()


async def after_reading_async(request: HttpRequest) -> HttpResponse:
    hero = await request.personalization.aget("hero-banner")  # type: ignore[attr-defined]  # noqa: F841
    fail()
    return HttpResponse()


def missing_key(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.personalization["no-such-experience"])  # type: ignore[attr-defined]


def in_experience(request: HttpRequest) -> HttpResponse:
    return render(request, READ + "{{ fail }}{% endexperience %}")


def in_click_url(request: HttpRequest) -> HttpResponse:
    return render(request, READ + "{% click_url hero fail %}{% endexperience %}")


def in_default(request: HttpRequest) -> HttpResponse:
    return render(request, "{% load moe_personalize %}{% experience_value 'hero-banner' 'None' default=fail %}")


def in_api(request: HttpRequest) -> HttpResponse:
    api.fetch_experiences(
        ["hero-banner"],
        customer_id=canary_values.CUSTOMER,
        user_identifiers={"u_em": canary_values.MAIL},
        attributes={"cart": canary_values.CART},
    )
    return HttpResponse()


def in_erasing(request: HttpRequest) -> HttpResponse:
    api.erase(customer_id=canary_values.CUSTOMER)
    return HttpResponse()


_READING = (after_reading, after_reading_async, missing_key, in_experience, in_click_url, in_default)
VIEWS: dict[str, Any] = {view.__name__: view for view in (*_READING, in_api, in_erasing)}
urlpatterns = [
    path("moe/", include("django_moe_personalize.urls")),
    *(path(f"{name}/", view) for name, view in VIEWS.items()),
    *site.urlpatterns,
]
