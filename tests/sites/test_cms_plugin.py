"""The plugin of django CMS: an editor chooses an experience, and puts the fallback inside the plugin."""

import json
import re
from html import unescape
from unittest import mock

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.sites.cached_sites import configure
from tests.sites.settings import CMS, CMS_MIDDLEWARE, OURS, VISITOR_MIDDLEWARE

APP = "django_moe_personalize.contrib.cms"
SHOWN = {"hero-banner": 1, "promo-strip": 1}


def test_page(answers):
    """The page shows content and fallbacks, counts once, and asks in one call, now and the next time."""
    for page, number in (("page", 1), ("again", 2)):
        found = answers[page]
        assert "<h1>For &lt;you&gt;</h1>" in found["text"]
        assert "For you too" in found["text"]
        assert found["text"].count("<i>text") == 2
        assert "private, no-store" in found["control"]
        assert found["shown"] == dict.fromkeys(SHOWN, number)
        assert found["asked"] == [["gone-banner", "hero-banner", "promo-strip"]]


def test_no_query_of_our_own(answers):
    """To find the keys of a page's plugins takes no query."""
    assert len({*answers["queries"]}) == 1


def test_caches(answers):
    """django CMS stores neither the page nor the placeholder, but it stores a page without the plugin."""
    assert answers["page"]["text"] != answers["again"]["text"]
    assert answers["plain"] == answers["plain again"]
    assert answers["stored"] == [False, False, True]


@pytest.mark.parametrize("mode", ["edit", "preview", "structure", "save"])
def test_preview(answers, mode):
    """The modes of the toolbar, and the answer to a saved plugin, show the experience and count nothing."""
    shown = answers["modes"][mode]
    assert mode == "structure" or re.search(r"For (&|\\u0026)lt;you", shown["text"])
    assert shown["shown"] == answers["modes before"]
    assert "/moe/" not in shown["text"]


def test_form(answers):
    """The form offers the experiences of the workspace."""
    assert answers["form"] == ["hero-banner", "promo-strip"]
    assert "MoEngage has no experience “never-seen”" in answers["warned"]


def test_usages(answers):
    """A plugin has the id, the title and the URL of its page."""
    places = {key: place for key, place in answers["usages"] if "html" not in place}
    assert places == dict.fromkeys(("gone-banner", "hero-banner", "never-seen"), 'page 1 "club" /club/')


def test_checks(answers):
    """A plugin that shows an experience and may be stored has a warning."""
    assert answers["before"] == []
    assert sorted(hint for _, hint in answers["checks"]) == [
        "Write `cache = False` into __main__.Cached.",
        "Write `cache = False` into __main__.Hero.",
    ]
    assert {number for number, _ in answers["checks"]} == {"moe_personalize.W031"}


def test_migrations(answers):
    """The migrations of the app are complete."""
    assert "No changes detected" in answers["migrations"]


def main():
    configure(
        **{**CMS, "apps": [*CMS["apps"], APP]},
        middleware=[*VISITOR_MIDDLEWARE, *CMS_MIDDLEWARE, OURS],
        templates={
            "page.html": "{% load cms_tags sekizai_tags moe_personalize %}{% render_block 'css' %}{% cms_toolbar %}"
            "{% placeholder 'content' %}{% experience_value 'promo-strip' 'Title' %}{% render_block 'js' %}",
            "plain.html": "{% load cms_tags sekizai_tags %}{% render_block 'css' %}{% placeholder 'content' %}"
            "{% render_block 'js' %}",
            "text.html": "<i>text {% now 'u' %}</i>",
            "hero.html": "{% load moe_personalize %}{% experience 'hero-banner' %}{% endexperience %}",
            "moe_personalize/experiences/hero-banner.html": "<h1>{{ experience.Title }}</h1>",
        },
        CMS_TEMPLATES=[("page.html", "Page"), ("plain.html", "Plain")],
    )
    from cms.api import add_plugin, create_page
    from cms.plugin_base import CMSPluginBase
    from cms.plugin_pool import plugin_pool
    from django.contrib import admin
    from django.contrib.auth import get_user_model
    from django.test import Client
    from django.urls import include, path

    from django_moe_personalize.contrib.cms.cms_plugins import ExperiencePlugin
    from django_moe_personalize.testing import override_experiences

    class Text(CMSPluginBase):
        render_template = "text.html"

    class Hero(CMSPluginBase):
        render_template = "hero.html"

    class Cached(ExperiencePlugin):
        cache = True

    plugin_pool.register_plugin(Text)
    editor = get_user_model().objects.create_superuser("editor", password="editor")
    placeholders = {}
    for name, template in {"club": "page.html", "plain": "plain.html"}.items():
        page = create_page(name, template, "en", created_by=editor, slug=name)
        placeholders[name] = page.get_placeholders("en").get(slot="content")
        for key in ("gone-banner", "hero-banner", "") if name == "club" else ():
            plugin = add_plugin(placeholders[name], "ExperiencePlugin", "en", experience_key=key)
            add_plugin(placeholders[name], "Text", "en", target=plugin)
    add_plugin(placeholders["plain"], "Text", "en")
    urlpatterns.extend(
        [
            path("moe/", include("django_moe_personalize.urls")),
            path("admin/", admin.site.urls),
            path("", include("cms.urls")),
        ]
    )
    staff, visitor = Client(), Client(headers={"User-Agent": "Mozilla/5.0 (X11) Firefox/140.0"})
    staff.force_login(editor)
    promo = {"Title": "For you too", "Number": 7}
    with override_experiences({"hero-banner": {"Title": "For <you>"}, "promo-strip": promo}) as seen:
        look = build_look(seen)
        found = {"page": look(visitor.get, "/club/"), "again": look(visitor.get, "/club/")}
        found["queries"] = [count_queries(visitor) for _ in range(2)]
        with mock.patch("django_moe_personalize.contrib.cms.cms_plugins.start_fetch"):
            found["queries"].append(count_queries(visitor))
        found["stored"] = [is_stored(placeholders[name], url) for name, url in (("club", 0), ("club", "/club/"))]
        found["plain"], found["plain again"] = (look(visitor.get, "/plain/")["text"] for _ in range(2))
        found["stored"].append(is_stored(placeholders["plain"], 0))
        found["modes before"] = seen.impressions
        found["modes"] = dict(open_modes(look, staff, placeholders["club"]))
        found["form"] = open_form(staff, placeholders["club"])
        found["warned"] = save(staff, placeholders["club"], "never-seen")
        found["usages"] = list_usages()
    found["before"] = list_checks()
    plugin_pool.register_plugin(Hero)
    plugin_pool.register_plugin(Cached)
    print(json.dumps({**found, "checks": list_checks(), "migrations": find_changes()}))


def build_look(seen):
    """Return a function that makes a request and returns its text, and the calls and counts so far."""
    handle, asked = seen.engine.handle, []

    def watch(request):
        if request.path.endswith("/fetch"):
            asked.append(sorted(json.loads(request.body)["experience_key"]))
        return handle(request)

    seen.engine.handle = watch

    def look(request, *arguments):
        asked.clear()
        response = request(*arguments)
        text, control = response.content.decode(), response.headers.get("Cache-Control")
        return {"text": text, "control": control, "shown": seen.impressions, "asked": list(asked)}

    return look


def count_queries(visitor):
    with CaptureQueriesContext(connection) as queries:
        visitor.get("/club/")
    return len(queries)


def is_stored(placeholder, url):
    from cms.cache.page import get_page_cache
    from cms.cache.placeholder import get_placeholder_cache
    from django.test import RequestFactory

    request = RequestFactory().get(url or "/")
    if url:
        return get_page_cache(request) is not None
    return get_placeholder_cache(placeholder, "en", 1, request) is not None


def open_modes(look, staff, placeholder):
    from cms.toolbar.utils import get_object_edit_url, get_object_preview_url, get_object_structure_url

    for mode, get_url in zip(
        ("edit", "preview", "structure"),
        (get_object_edit_url, get_object_preview_url, get_object_structure_url),
        strict=True,
    ):
        yield mode, look(staff.get, get_url(placeholder.source, "en"))
    yield "save", look(staff.post, find_form(placeholder, 1), {"experience_key": "hero-banner"})


def find_form(placeholder, number):
    from django.urls import reverse

    plugin = placeholder.get_plugins("en").filter(plugin_type="ExperiencePlugin")[number]
    return reverse("admin:cms_placeholder_edit_plugin", args=[plugin.pk]) + "?cms_path=/club/"


def open_form(staff, placeholder):
    text = unescape(staff.get(find_form(placeholder, 0)).content.decode())
    return re.findall(r'<option value="([a-z-]+)"', text.partition("<datalist")[2].partition("</datalist")[0])


def save(staff, placeholder, key):
    text = staff.post(find_form(placeholder, 2), {"experience_key": key}).content.decode()
    return json.loads(re.search(r'id="data-bridge"[^>]*>(.*?)</script>', text, re.DOTALL)[1])["messages"][0]["message"]


def list_usages():
    from django_moe_personalize.checks.usages import find_usages

    return [(usage.experience_key, usage.place) for usage in find_usages()]


def list_checks():
    from django.core.checks import run_checks

    return [(m.id, m.hint) for m in run_checks(tags=["moe_personalize"]) if m.id.endswith("W031")]


def find_changes():
    from io import StringIO

    from django.core.management import call_command
    from django.test import override_settings

    output = StringIO()
    with override_settings(MIGRATION_MODULES={}):
        call_command("makemigrations", "moe_personalize_cms", dry_run=True, stdout=output)
    return output.getvalue()


urlpatterns = []
if __name__ == "__main__":
    main()
