"""ExperienceBlock in Wagtail: an editor chooses an experience and writes the fallback in a StreamField."""

import json
import logging
import re
import threading
import time
from html import unescape
from io import StringIO
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.core.management import CommandError, call_command

from tests.documents import DOCS, read_blocks
from tests.sites.cached_sites import configure
from tests.sites.settings import OURS, VISITOR_MIDDLEWARE, WAGTAIL, create_wagtail_site

APP = "django_moe_personalize.contrib.wagtail"
HERO, GONE = {"Title": "For <you>", "Price": 7}, "gone-banner"


def test_page(answers):
    """The page shows the content in the template of its key, and fallbacks. It counts once, and asks in one call."""
    page = answers["page"]
    assert "<h1>For &lt;you&gt;</h1>" in page["text"]
    assert "<p>Own: For you too</p>" in page["text"]
    assert page["text"].count("<b>Welcome</b>") == 2
    assert page["control"] == "private, no-store"
    assert page["shown"] == {"hero-banner": 1, "promo-strip": 1}
    assert answers["again"]["shown"] == {"hero-banner": 2, "promo-strip": 2}
    assert page["asked"] == [["hero-banner", GONE, "promo-strip"]]
    assert page["asked"] == answers["again"]["asked"]
    assert page["text"] == answers["async"]
    # Another page of the route asks for its own keys only.
    assert answers["other"] == [["promo-strip"]]


def test_no_query_of_our_own(answers):
    """To find the keys of a page's blocks takes no query."""
    assert answers["queries"] == 0
    assert answers["stored"] == ["hero-banner", GONE, "hero-banner", "promo-strip"]


@pytest.mark.parametrize("preview", ["draft", "panel", "HTMLBlock", "OwnBlock"])
def test_preview(answers, preview):
    """The previews of a page and of a block show the experience, and count nothing."""
    shown = answers["previews"][preview]
    assert "For &lt;you&gt;" in shown["text"]
    assert shown["shown"] == answers["before"] == {"hero-banner": 3, "promo-strip": 4}
    assert "/moe/" not in shown["text"]
    assert preview != "draft" or shown["asked"] == [["hero-banner", GONE, "promo-strip"]]


def test_form(answers):
    """The form offers the experiences of the workspace. It doesn't wait for a MoEngage that hangs or fails."""
    forms = answers["forms"]
    assert forms["unknown"]["options"] == []
    assert forms["known"]["options"] == ["hero-banner", "promo-strip"]
    assert forms["failing"]["options"] == ["hero-banner", "promo-strip"]
    assert [forms[name]["fields"] for name in ("unknown", "known", "failing")] == [1, 1, 1]
    assert forms["saved"] == "never-seen"
    assert forms["warned"] == ["MoEngage has no experience “never-seen”, so visitors see the fallback. Check the key."]


def test_usages(answers):
    """The keys of definitions have file and line, and those of live pages have id, title and URL."""
    home = 'page 2 "Home" http://localhost/'
    places = [tuple(found) for found in answers["usages"]]
    assert {place for place in places if ".py:" not in place[1]} == {
        (key, home) for key in (GONE, "hero-banner", "promo-strip")
    }
    assert ("promo-strip", "tests/sites/blocks_site/models.py:26") in places
    assert answers["drift"].startswith("tests/sites/blocks_site/streams.py:7: The workspace has no experience 'gone-")
    assert f"(also {home})" in answers["drift"]


def test_checks(answers):
    """The checks find an app that isn't installed, and a template without the tag."""
    (template, says), (app, hint) = answers["checks"]
    assert (template, app) == ("moe_personalize.W030", "moe_personalize.E030")
    assert "The template 'plain.html' of PromoBlock" in says
    assert f"Add '{APP}' to INSTALLED_APPS" in hint


def test_migrations(answers):
    """A migration of the site has no reference to this package."""
    assert "django_moe_personalize" not in answers["migration"]
    assert "wagtail.blocks.CharBlock" in answers["migration"]


def test_documentation(answers):
    """The blocks of code in the documentation run, and their templates compile."""
    assert answers["documented"] == ["templates", "shop/blocks.py", "templates", "shop/blocks.py"]


def test_without_a_request(answers):
    """A StreamField that is shown without include_block shows its fallback, and the log says what to write."""
    assert "<b>Welcome</b>" in answers["bare"]["text"]
    assert "{% include_block page.body %}" in answers["bare"]["log"]


TEMPLATES = {
    "blocks_site/blocks_page.html": "{% load wagtailcore_tags moe_personalize %}<title>{{ page.title }}</title>"
    "{% include_block page.body %}{% experience_value 'promo-strip' 'Title' %}",
    "promo.html": "{% load moe_personalize %}{% experience self.experience_key as promo %}<p>Own: {{ promo.Title }}</p>"
    "{% endexperience %}",
    "moe_personalize/experiences/hero-banner.html": "<h1>{{ experience.Title }}</h1>",
    "block_preview.html": "{% load wagtailcore_tags %}{% include_block bound_block %}",
    "own.html": "{% load moe_personalize %}{% experience_value 'hero-banner' 'Title' %}",
    "plain.html": "{{ self.fallback }}",
    "row.html": "{% load wagtailcore_tags %}{% for cell in self.cells %}{% include_block cell %}{% endfor %}",
    "bare.html": "{{ page.body }}",
}


def build_body():
    fallback = [{"type": "html", "value": "<b>Welcome</b>"}]
    hero, gone = ({"experience_key": key, "fallback": fallback} for key in ("hero-banner", GONE))
    cells = [{"type": "item", "value": value, "id": "1"} for value in (gone, {**hero, "experience_key": ""}, hero)]
    return json.dumps(
        [
            {"type": "experience", "value": hero},
            {"type": "row", "value": {"cells": cells}},
            {"type": "promo", "value": {"experience_key": "promo-strip", "fallback": []}},
        ]
    )


def main():
    configure(
        **{**WAGTAIL, "apps": [*WAGTAIL["apps"], "wagtail.search", APP, "tests.sites.blocks_site"]},
        middleware=[*VISITOR_MIDDLEWARE, OURS],
        templates=TEMPLATES,
    )
    from django.contrib.auth import get_user_model
    from django.db import connection
    from django.shortcuts import render
    from django.test import AsyncClient, Client
    from django.test.utils import CaptureQueriesContext
    from django.urls import include, path

    from django_moe_personalize.contrib.wagtail.content import find_stored_keys
    from django_moe_personalize.testing import override_experiences
    from tests.sites.blocks_site.models import BlocksPage

    home = create_wagtail_site(BlocksPage(title="Home", slug="home", body=build_body()))
    home.add_child(instance=BlocksPage(title="Other", slug="other"))
    home.add_child(instance=BlocksPage(title="draft", slug="draft", body=build_body(), live=False))
    urlpatterns.extend(
        [
            path("moe/", include("django_moe_personalize.urls")),
            path("bare/", lambda request: render(request, "bare.html", {"page": home})),
            path("admin/", include("wagtail.admin.urls")),
            path("", include("wagtail.urls")),
        ]
    )
    get_user_model().objects.create_superuser("editor", password="editor")
    editor, visitor = Client(), Client(headers={"User-Agent": "Mozilla/5.0 (X11) Firefox/140.0"})
    editor.login(username="editor", password="editor")
    with override_experiences({"hero-banner": HERO, "promo-strip": {"Title": "For you too"}}) as seen:
        look = build_look(seen)
        found = {"page": look(visitor, "/"), "again": look(visitor, "/")}
        found["other"] = look(visitor, "/other/")["asked"]
        with CaptureQueriesContext(connection) as queries:
            found["stored"] = find_stored_keys(home)
        found["queries"] = len(queries)
        found["async"] = async_to_sync(AsyncClient(headers=visitor.headers).get)("/").content.decode()
        found["before"] = seen.impressions
        found["previews"] = dict(open_previews(look, editor, home))
        found["forms"] = open_forms(seen, editor, home)
        with mock.patch.object(logging.getLogger("django_moe_personalize"), "handle") as log:
            found["bare"] = {**look(visitor, "/bare/"), "log": log.call_args[0][0].getMessage()}
        found["usages"], found["drift"] = list_usages(), run_drift()
    found["documented"] = list(run_the_documentation())
    print(json.dumps({**found, **run_the_checks(), "migration": write_migration()}))


def build_look(seen):
    """Return a function that opens a page and returns its text, and the calls and counts so far."""
    handle, asked = seen.engine.handle, []

    def watch(request):
        if request.path.endswith("/fetch"):
            asked.append(json.loads(request.body)["experience_key"])
        return handle(request)

    seen.engine.handle = watch

    def look(client, url):
        asked.clear()
        response = client.get(url)
        text, control = response.content.decode(), response.headers.get("Cache-Control")
        return {"text": text, "control": control, "shown": seen.impressions, "asked": list(asked)}

    return look


def open_previews(look, editor, home):
    from django.urls import reverse
    from wagtail.blocks import Block

    yield "draft", look(editor, reverse("wagtailadmin_pages:view_draft", args=[home.pk]))
    preview = reverse("wagtailadmin_pages:preview_on_edit", args=[home.pk])
    assert editor.post(preview, build_form("hero-banner")).json()["is_valid"]
    yield "panel", look(editor, preview)
    blocks = {type(block).__name__: key for key, block in Block.definition_registry.items()}
    for name in ("HTMLBlock", "OwnBlock"):
        yield name, look(editor, f"{reverse('wagtailadmin_block_preview')}?id={blocks[name]}")


def build_form(key):
    return {
        **{"title": "Home", "slug": "home", "body-count": 1, "body-0-deleted": "", "body-0-order": 0},
        **{"body-0-type": "experience", "body-0-value-experience_key": key, "body-0-value-fallback-count": 0},
        **{"comments-TOTAL_FORMS": 0, "comments-INITIAL_FORMS": 0},
    }


def open_forms(seen, editor, home):
    """Open the form before the experiences are known, then while MoEngage hangs and fails. Save an unknown key."""
    from django.urls import reverse

    from django_moe_personalize.fetching.metadata import get_metadata_store

    url, forms, hangs = reverse("wagtailadmin_pages:edit", args=[home.pk]), {}, threading.Event()
    store, handle = get_metadata_store(), seen.engine.handle

    def open_form():
        text = unescape(unescape(editor.get(url).content.decode()))
        options = re.findall(r"<option value=\W*([a-z-]+)", text.partition("<datalist")[2].partition("</datalist")[0])
        return {"options": options, "fields": text.count("list=")}

    store._experiences, store._until = (), 0
    seen.engine.handle = lambda request: [hangs.wait(60), handle(request)][1]
    forms["unknown"] = open_form()
    hangs.set()
    while not store._experiences:
        time.sleep(0.01)
    forms["known"] = open_form()
    seen.engine.handle = lambda request: 1 / 0
    store._until = 0
    forms["failing"] = open_form()
    seen.engine.handle = handle
    saved = editor.post(url, build_form("never-seen"))
    assert saved.status_code == 302
    forms["warned"] = re.findall(r"MoEngage has no[^<]+key\.", editor.get(saved.url).content.decode())
    home.refresh_from_db()
    forms["saved"] = home.get_latest_revision_as_object().body[0].value["experience_key"]
    return forms


def list_usages():
    from django_moe_personalize.checks.usages import find_usages

    return [(usage.experience_key, usage.place) for usage in find_usages()]


def run_drift():
    output = StringIO()
    with pytest.raises(CommandError, match="1 problem"):
        call_command("moe_experiences", "--check", stdout=output, stderr=output)
    return output.getvalue()


def run_the_documentation():
    from django.template import engines

    for block in read_blocks(DOCS / "howto/wagtail.md"):
        if block.file == "shop/blocks.py":
            exec(block.code, {"__name__": "shop.blocks"})  # noqa: S102 - the repository's own documents
            yield block.file
        elif block.language == "html+django":
            engines["django"].from_string(block.code)
            yield "templates"


def run_the_checks():
    from django.core.checks import run_checks
    from django.test import override_settings

    from tests.sites.blocks_site.models import PromoBlock

    def check():
        return [(m.id, m.msg + m.hint) for m in PromoBlock().check() if m.id.startswith("moe_")]

    assert check() == []
    assert not [message for message in run_checks() if message.id.startswith("moe_personalize.W03")]
    PromoBlock._meta_class.template = "plain.html"
    found = check()
    with override_settings(INSTALLED_APPS=[]):
        return {"checks": found + check()}


def write_migration():
    from django.db.migrations.writer import MigrationWriter

    from tests.sites.blocks_site.models import BlocksPage

    return MigrationWriter.serialize(BlocksPage._meta.get_field("body"))[0]


urlpatterns = []
if __name__ == "__main__":
    main()
