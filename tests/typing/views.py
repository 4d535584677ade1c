"""A site's views: mypy checks them, nothing runs them."""

from typing import Any, Literal, assert_type

from django.http import HttpRequest, HttpResponse
from django.views.generic import TemplateView

from django_moe_personalize.context import Personalization
from django_moe_personalize.decorators import personalize
from django_moe_personalize.mixins import PersonalizeMixin
from django_moe_personalize.schemas import ExperienceSchema, Url
from django_moe_personalize.types import Experience, Offering


class PersonalizedRequest(HttpRequest):
    """A request after the middleware, as a site annotates it."""

    personalization: Personalization


@personalize("hero-banner", "promo-strip")
def home(request: HttpRequest) -> HttpResponse:
    """Show a decorated view."""
    return HttpResponse()


@personalize("hero-banner")
async def ahome(request: HttpRequest) -> HttpResponse:
    """Show a decorated asynchronous view."""
    return HttpResponse()


@personalize("recommendations")
def product(request: HttpRequest, pk: int, *, preview: bool = False) -> HttpResponse:
    """Show a decorated view with its own arguments."""
    return HttpResponse()


class Category(PersonalizeMixin, TemplateView):
    """Show a class-based view."""

    experiences = ["hero-banner"]


async def decorated_views_keep_their_types(request: HttpRequest) -> None:
    """Show that the decorator keeps the signature of a view, sync or async."""
    assert_type(home(request), HttpResponse)
    assert_type(await ahome(request), HttpResponse)
    assert_type(product(request, 7, preview=True), HttpResponse)
    product(request, "7")  # type: ignore[arg-type]


def read(request: PersonalizedRequest) -> None:
    """Show a sync view that reads experiences."""
    personalization = request.personalization
    assert_type(personalization["hero-banner"], Experience)
    assert_type(personalization.get("hero-banner"), Experience | None)
    assert_type("hero-banner" in personalization, bool)
    assert_type(len(personalization), int)
    for key in personalization:
        assert_type(key, str)
    personalization.prefetch("hero-banner", "promo-strip")
    if hero := personalization.get("hero-banner"):
        assert_type(hero["Title"], Any)
        assert_type(hero.offerings, tuple[Offering, ...])
        personalization.track_impression("hero-banner")
        personalization.track_click("hero-banner", element="cta")


async def aread(request: PersonalizedRequest) -> None:
    """Show an async view that reads experiences."""
    await request.personalization.aprefetch("hero-banner", "promo-strip")
    assert_type(await request.personalization.aget("hero-banner"), Experience | None)


class HeroBanner(ExperienceSchema):
    """Show a schema."""

    key = "hero-banner"
    Title: str
    CtaUrl: Url = "/sale/"
    Theme: Literal["noon", "night"] = "noon"
    Rank: int | None = None


class Link(ExperienceSchema):
    """Show a base for schemas."""

    CtaUrl: Url = 3  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]


@personalize(HeroBanner, "promo-strip")
def typed(request: PersonalizedRequest) -> HttpResponse:
    """Show a view that reads an experience by its schema."""
    hero = request.personalization[HeroBanner]
    assert_type(hero, HeroBanner)
    assert_type(hero.Title, str)
    assert_type(hero.CtaUrl, str)
    assert_type(hero.Rank, int | None)
    assert_type(request.personalization.get(HeroBanner), HeroBanner | None)
    assert_type(request.personalization.get(HeroBanner, "none"), HeroBanner | str)
    print(hero.Headline)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    return HttpResponse(hero.Title)


async def atyped(request: PersonalizedRequest, experience: Experience) -> None:
    """Show an async read by a schema, and an experience of the API."""
    assert_type(await request.personalization.aget(HeroBanner), HeroBanner | None)
    assert_type(HeroBanner.parse(experience), HeroBanner | None)
