"""Fixtures that render templates as pages of a site."""

from types import ModuleType

import pytest
from django.http import HttpResponse
from django.template import Engine
from django.template.loader import render_to_string
from django.urls import include, path

from django_moe_personalize.testing import override_experiences

HERO = {"Title": "Hello", "Body": "<b>bold</b><script>alert(1)</script>", "Evil": "javascript:alert(1)"}
HERO |= {"Zero": 0, "Url": "/s/?a=1&b=2"}
OFFERS = [
    {
        "dp_offering_id": f"offer-{n}",
        "offering_content": {"type": "json", "payload": {"title": f"Offer {n}"}},
        "offering_context": {"moe_offering_id": f"offer-{n}"},
    }
    for n in (1, 2)
]
LOAD = "{% load moe_personalize %}"
TEMPLATES = {
    "base.html": LOAD + "{% experience 'hero' as h %}[{{ h.Title }}]{% endexperience %}{% block main %}{% endblock %}",
    "piece.html": LOAD + "{% experience 'hero' as h %}<{{ h.Title }}>{% endexperience %}",
}


def compile_template(source):
    """Return the compiled template, without a site."""
    library = "django_moe_personalize.templatetags.moe_personalize"
    return Engine(libraries={"moe_personalize": library}).from_string(LOAD + source)


@pytest.fixture
def shown():
    with override_experiences({"hero": HERO, "offers": {"Title": "For you", "offerings": OFFERS}}) as seen:
        yield seen


@pytest.fixture
def render(shown, visit, settings):
    """Return a function that visits a page with this template and returns its text."""

    def render(source, *, with_urls=True, headers=(), **context):
        templates = TEMPLATES | {"page.html": source if "extends" in source else LOAD + source}
        loader = ("django.template.loaders.locmem.Loader", templates)
        options = {"loaders": [("django.template.loaders.cached.Loader", [loader])]}
        settings.TEMPLATES = [settings.TEMPLATES[0] | {"APP_DIRS": False, "OPTIONS": options}]
        settings.ROOT_URLCONF = urls = ModuleType("urls_of_one_test")
        urls.urlpatterns = [
            path("page/", lambda request: HttpResponse(render_to_string("page.html", context, request)))
        ]
        if with_urls:
            urls.urlpatterns += [path("moe/", include("django_moe_personalize.urls"))]
        return visit("/page/", headers=dict(headers)).content.decode()

    return render
