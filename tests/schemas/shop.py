"""The schemas of a shop, and its pages."""

from typing import Any, Literal

from django.http import HttpResponse
from django.template import engines
from django.urls import path

from django_moe_personalize.decorators import personalize
from django_moe_personalize.schemas import ExperienceSchema, Url


class Link(ExperienceSchema):
    CtaUrl: Url = "/sale/"


class Hero(Link):
    key = "hero-banner"
    Title: str
    Theme: Literal["noon", "night"] = "noon"
    Rank: int | None = None
    Price: float = 1
    IsNew: bool = False
    Tags: list[str] = []
    Sizes: dict[str, int] = {}
    Extra: Any = ""


TEMPLATE = engines["django"].from_string(
    "{% load moe_personalize %}{% experience key as hero %}{{ hero.Title }} {{ hero.CtaUrl }}{% fallback %}no"
    '{% endexperience %}|{% experience "hero-banner" as hero %}{{ hero.CtaUrl }}{% fallback %}no{% endexperience %}|'
    '{% experience_value "hero-banner" "CtaUrl" default="/" %}|{% experience_value "other" "Title" default="-" %}'
)


def read(request):
    hero = request.personalization.get(Hero)
    assert (Hero in request.personalization) is (hero is not None)
    return HttpResponse(f"{hero.Title} {hero.CtaUrl} {hero['CtaUrl']} {hero.experience_key}" if hero else "none")


def index(request):
    return HttpResponse(request.personalization[Hero].Title)


@personalize(Hero)
async def aread(request):
    hero = await request.personalization.aget(Hero)
    assert hero is request.personalization.get(Hero)
    return HttpResponse(f"{hero.Title} {hero.CtaUrl}" if hero else "none")


async def undeclared(request):
    before = request.personalization.get(Hero)
    return HttpResponse(f"{before} {(await request.personalization.aget(Hero)).Title}")


def tags(request):
    return HttpResponse(TEMPLATE.render({"key": "hero-banner"}, request))


urlpatterns = [path(f"{view.__name__}/", view) for view in (read, index, aread, undeclared, tags)]
__all__ = ["Hero", "Link"]
