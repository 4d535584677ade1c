"""Nobody sees another visitor's content on sites of third-party packages, served over HTTP, with caches in Redis."""

import pytest

from tests.sites.browsing import (
    ANONYMOUS,
    STAFF,
    USERS,
    Browser,
    browse_together,
    count_impressions,
    find_cached,
    find_foreign,
)

REST = ["/en/", "/de/", "/en/cached/", "/en/account/", "/en/shell/", "/api/experiences/", "/fail/", "/en/missing/"]
WAGTAIL = ["/en/", "/de/", "/en/sale/", "/en/club/", "/en/about/", "/en/missing/"]
CMS = ["/en/", "/en/sale/", "/en/club/", "/en/about/", "/en/about/?footer=1", "/en/missing/"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "server", "paths", "sign_in", "field", "staff", "database"),
    [
        ("cms", "gunicorn", CMS, "/login/", "username", "cms-toolbar", 5),
        ("wagtail", "gunicorn", WAGTAIL, "/admin/login/", "username", "", 4),
        ("rest", "gunicorn", REST, "/accounts/login/", "login", "djDebug", 1),
        ("rest", "uvicorn", REST, "/accounts/login/", "login", "djDebug", 2),
    ],
)
def test_each_visitor_gets_only_own_content(
    start_site, redis_url, sandbox, pages, name, server, paths, sign_in, field, staff, database
):
    """Users, an editor and anonymous visitors browse at the same time. Each gets and is counted for own content.

    ``staff`` is a text that only the pages of the staff have.
    """
    workers = 2 if server == "gunicorn" else 1
    told = {"redis_url": redis_url, "sandbox": sandbox, "database": database}
    site = start_site(f"tests.sites.{name}_site", server=server, workers=workers, **told)
    browsers = [Browser(site, visitor) for visitor in (*USERS, *STAFF, *ANONYMOUS)]
    for browser in browsers[: -len(ANONYMOUS)]:
        browser.sign_in(sign_in, field)
    before = count_impressions(sandbox)
    browse_together(browsers, paths, pages)
    assert find_foreign(browsers) == []
    assert find_cached(redis_url, database, browsers) == []
    sees = {browser.name for browser in browsers if any(staff in answer for answer in browser.answers)}
    assert sees == {*STAFF} if staff else sees
    assert all(browser.shown > len(browser.answers) / 4 for browser in browsers)
    counted = count_impressions(sandbox) - before
    shown = {browser.name: browser.shown for browser in browsers}
    assert {name: counted[name] for name in USERS} == {name: shown[name] for name in USERS}
    assert counted.total() == sum(shown.values()), (counted, shown)
    assert "django_moe_personalize" not in site.read_log()


def test_each_report_to_sentry_is_about_one_visitor(start_site, redis_url, sandbox):
    """An error or a transaction of one visitor's page has nothing of another visitor."""
    site = start_site("tests.sites.rest_site", redis_url=redis_url, sandbox=sandbox, database=3)
    browsers = [Browser(site, name) for name in ANONYMOUS]
    browse_together(browsers, ["/fail/", "/en/"], 40)
    reported = browsers[0].open("/sentry/").json()["reported"]
    assert len(reported) >= 40
    assert {name for names in reported for name in names} == {*ANONYMOUS}
    assert all(len(names) <= 1 for names in reported)
