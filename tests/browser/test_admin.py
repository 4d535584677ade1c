"""The pages of the admin, on a phone and on a small laptop."""

import re

import pytest
from django.conf import settings
from django.contrib.staticfiles import finders
from django.utils import timezone

from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.models import OutboxEvent
from tests.delivery.conftest import configure, vendor  # noqa: F401 - fixtures of ``staff``
from tests.delivery.events import make_events
from tests.delivery.test_admin import LIST, admin_tables, site, staff  # noqa: F401 - fixtures

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.admin_urls")]

REASON = "ResponseError: MoEngage answered 400: Invalid Field Value " + "attributes.moe_locale_id_" * 3


OVERFLOW = "return [...document.querySelectorAll('html, .results')].map(e => e.scrollWidth - e.clientWidth)"


def save(response, folder):
    """Save a page with its styles as a file, and return its path."""

    def inline(link):
        path = link[1].removeprefix(settings.STATIC_URL)
        with open(finders.find(path)) as file:
            return f"<style>{file.read()}</style>"

    # The finders remember the apps of an earlier test, without the admin.
    finders.get_finder.cache_clear()
    page = re.sub(r'<link[^>]*? href="([^"]*\.css)"[^>]*>', inline, response.text)
    # The admin's script opens the sidebar.
    page = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    file = folder / "page.html"
    file.write_text(page.replace('<div class="main', '<div class="main shifted'))
    return file


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_list_fits_the_window(driver, staff, tmp_path, width):  # noqa: F811
    """Neither the counters nor the rows are wider than the page, and the whole UUID of an event is visible."""
    rows = [OutboxEvent.build(event, timezone.now()) for event in make_events(3)]
    for row in rows:
        row.state, row.reason = OutboxEvent.State.REFUSED, REASON
    OutboxEvent.objects.bulk_create(rows)
    page = save(staff("change_outboxevent").get(LIST), tmp_path)
    assert "moe-counters tbody" in page.read_text()
    driver.resize(width, 900)
    driver.get(page.as_uri())
    assert driver.run(OVERFLOW) == [0, 0]


@pytest.mark.parametrize("path", ["", "add/"])
def test_the_kill_switch_has_no_fault(driver, staff, tmp_path, run_axe, path):  # noqa: F811
    """The list and the form, on a phone and on a laptop."""
    get_switch().turn(["", "hero-banner"], is_off=True, by="ada")
    page = save(staff("change_switch").get("/admin/moe_personalize/switch/" + path), tmp_path)
    for width in (390, 1280):
        driver.resize(width, 900)
        driver.get(page.as_uri())
        # The head of the page is Django's, and needs its scripts.
        assert run_axe(driver, "#content") == []
        # On a phone, Django lets the table scroll, but not the page.
        assert driver.run(OVERFLOW)[0] == 0
