"""django CMS with its page cache and placeholder cache, which are on by default: no visitor gets another's content."""

import json

import pytest

from tests.sites.cached_sites import TAGS, VIEW_AS, VISITORS, answer, configure, preview
from tests.sites.settings import CMS, CMS_MIDDLEWARE, OURS, VISITOR_MIDDLEWARE


@pytest.mark.parametrize("page", ["template", "plugin", "template-and-plugin", "uncached-plugin"])
def test_personalized_page(answers, page):
    """The tag in a template and the tag in a plugin show each visitor the visitor's own content, in a private page."""
    for visitor in VISITORS:
        found = answers[f"{page} {visitor}"]
        assert f"For {visitor}" in found["text"]
        assert "/moe/click/moe." in found["text"]
        assert "private" in found["control"]
        assert "max-age=60" not in found["control"]
        assert found["cookie"]


def test_page_without_tags_is_stored(answers):
    """django CMS still stores all other pages."""
    first, second = (answers[f"plain {visitor}"] for visitor in VISITORS)
    assert first["text"] == second["text"]
    assert "max-age=60" in second["control"]
    assert not second["cookie"]


def test_stored_plugin_is_found(answers):
    """If a site's own cache stores a plugin, the second visitor's page is private, and an error names the route."""
    first, second = (answers[f"kept {visitor}"] for visitor in VISITORS)
    assert "For ada" in second["text"]
    assert "private, no-store" in second["control"]
    assert not first["errors"]
    assert len(second["errors"]) == 1
    assert "route pages-details-by-slug has a token, mark or cookie" in second["errors"][0]


@pytest.mark.parametrize("page", ["template", "plugin", "template-and-plugin", "uncached-plugin", "plain"])
def test_no_cache_stores_a_preview(answers, page):
    """A preview shows its experiences, and leaves nothing in the caches of pages and placeholders."""
    text, stored = answers["previews"][f"/{page}/"]
    assert stored == []
    assert ("<h1>Forced</h1>" in text) == (page != "plain")
    assert "Nothing is counted or cached." in text


def main():
    page = "{% load cms_tags sekizai_tags %}{% render_block 'css' %}{% placeholder 'content' %}{% render_block 'js' %}"
    page += "</body>"
    configure(
        **CMS,
        middleware=[*VISITOR_MIDDLEWARE, *CMS_MIDDLEWARE, OURS],
        templates={
            "page.html": page,
            "tags.html": TAGS,
            "personal.html": TAGS + page,
            "text.html": "<p>{% now 'u' %}</p>",
            "kept.html": "{{ kept|safe }}",
        },
        CMS_TEMPLATES=[("page.html", "Page"), ("personal.html", "Personal")],
    )
    from cms.api import add_plugin, create_page
    from cms.plugin_base import CMSPluginBase
    from cms.plugin_pool import plugin_pool
    from django.conf import settings
    from django.contrib.auth import get_user_model
    from django.core.cache import cache
    from django.template.loader import render_to_string
    from django.test import override_settings
    from django.urls import include, path

    class Hero(CMSPluginBase):
        render_template = "tags.html"

    class UncachedHero(Hero):
        cache = False

    class Text(CMSPluginBase):
        render_template = "text.html"

    class KeptHero(Text):
        def render(self, context, instance, placeholder):
            kept = cache.get_or_set("hero", lambda: render_to_string("tags.html", {}, context["request"]))
            return {**super().render(context, instance, placeholder).flatten(), "kept": kept}

        render_template = "kept.html"

    for plugin in (Hero, UncachedHero, Text, KeptHero):
        plugin_pool.register_plugin(plugin)
    editor = get_user_model().objects.create_superuser("editor")
    pages = {
        # The leak detector looks at the first ten pages of a route, and a CMS has one route for all pages.
        "kept": ("page.html", ["KeptHero"]),
        "template": ("personal.html", []),
        "plugin": ("page.html", ["Hero"]),
        "template-and-plugin": ("personal.html", ["Hero"]),
        "uncached-plugin": ("page.html", ["UncachedHero"]),
        "plain": ("page.html", ["Text"]),
    }
    for name, (template, plugins) in pages.items():
        created = create_page(name, template, "en", created_by=editor, slug=name)
        placeholder = created.get_placeholders("en").get(slot="content")
        for plugin in plugins:
            add_plugin(placeholder, plugin, "en")
    view_as = path("view-as/", include("django_moe_personalize.contrib.view_as.urls"))
    urlpatterns.extend([path("moe/", include("django_moe_personalize.urls")), view_as, path("", include("cms.urls"))])
    answers = answer({name: f"/{name}/" for name in pages})
    with override_settings(MIDDLEWARE=[*settings.MIDDLEWARE, VIEW_AS]):
        answers["previews"] = preview(*(f"/{name}/" for name in pages))
    print(json.dumps(answers))


urlpatterns = []
if __name__ == "__main__":
    main()
