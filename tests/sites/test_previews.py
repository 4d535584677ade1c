"""An editor's previews show the editor's content, count nothing and set no cookie."""

import re
import sqlite3

import pytest

from tests.services.serving import ask_sandbox
from tests.sites.browsing import Browser, find_csrf_token

WAGTAIL_FORM = {
    "title": "Home",
    "slug": "home",
    "body-count": 1,
    "body-0-deleted": "",
    "body-0-order": 0,
    "body-0-type": "banner",
    "body-0-value-fallback": "Changed",
    "comments-TOTAL_FORMS": 0,
    "comments-INITIAL_FORMS": 0,
}


def open_wagtail_previews(editor):
    """Open the draft of the home page, an earlier revision of it, and the panel beside the form."""
    home = re.search(r"/admin/pages/(\d+)/", editor.open("/admin/").text)[1]
    yield editor.open(f"/admin/pages/{home}/view_draft/")
    form = editor.open(f"/admin/pages/{home}/edit/")
    data = {**WAGTAIL_FORM, "csrfmiddlewaretoken": find_csrf_token(form.text)}
    panel = f"/admin/pages/{home}/edit/preview/"
    assert editor.session.post(editor.site.url + panel, data).json()["is_valid"]
    yield editor.open(panel)


def open_cms_previews(editor):
    """Open a page in the modes of django CMS's toolbar."""
    database = sqlite3.connect(editor.site.folder / "site.sqlite3")
    query = "SELECT t.id, c.id FROM django_content_type t, cms_pagecontent c WHERE t.model = ? AND c.title = ?"
    kind, content = database.execute(query, ("pagecontent", "Sale")).fetchone()
    database.close()
    for mode in ("edit", "preview", "structure"):
        yield editor.open(f"/en/admin/cms/placeholder/object/{kind}/{mode}/{content}/")


@pytest.mark.parametrize(
    ("module", "sign_in", "open_previews", "database"),
    [
        ("tests.sites.wagtail_site", "/admin/login/", open_wagtail_previews, 6),
        ("tests.sites.cms_site", "/login/", open_cms_previews, 7),
    ],
)
def test_previews_count_nothing(start_site, redis_url, sandbox, module, sign_in, open_previews, database):
    """No impression, no link that counts, no anonymous cookie; the published page has all three."""
    site = start_site(module, redis_url=redis_url, sandbox=sandbox, database=database)
    editor = Browser(site, "edith")
    editor.sign_in(sign_in)
    before = ask_sandbox(sandbox, "ledger")["counts"]
    shown = []
    for preview in open_previews(editor):
        shown.append("edith-hero" in preview.text)
        assert preview.status_code == 200
        assert "moe_id" not in preview.headers.get("Set-Cookie", "")
        assert "/moe/c" not in preview.text
    assert shown[:2] == [True, True]
    assert ask_sandbox(sandbox, "ledger")["counts"] == before
    published = editor.open("/en/")
    assert "/moe/c" in published.text
    assert "moe_id" in editor.session.cookies
    assert ask_sandbox(sandbox, "ledger")["counts"] != before
