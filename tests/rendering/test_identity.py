"""The tag that tells MoEngage's Web SDK who the visitor is. tests/browser/test_identity.py has the calls."""

import re

import pytest
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.template import Context, TemplateSyntaxError

from django_moe_personalize.visitor import Consent, Identity
from tests.rendering.conftest import LOAD, compile_template
from tests.site import show

TAG = "{% personalize_identity %}"
SCRIPT = re.compile(
    '<script src="/static/moe_personalize/identity.js" data-key="moe_identity" '
    r'data-id="([^"]*)" data-at="\d{13}" defer></script>'
)


def name_browser(request):
    return Identity("browser-1", anonymous=True)


def fail(request):
    raise ValueError


def choose(request):
    """Grant the purposes in the user agent."""
    granted = request.META["HTTP_USER_AGENT"].split()
    return Consent(**{name: name in granted for name in ("fetch", "identify", "track")})


@pytest.fixture
def open_page(shown, visit, serve, settings, db):
    """Return a function that opens a page with the tag, and returns the id in it, or ``None`` without a script."""
    user = User.objects.create(pk=42, username="ada")

    def open_page(*, known=True, then=None, headers=(), mark="", **moe):
        settings.MOE_PERSONALIZE = settings.MOE_PERSONALIZE | moe

        def page(request):
            setattr(request, mark or "other", True)
            return HttpResponse(show(request, LOAD + TAG).content + (b"" if then is None else then(request)))

        async def apage(request):
            await request.personalization.aload()
            return page(request)

        serve(page if visit.mode == "sync" else apage)
        if known:
            visit.log_in(user)
        response = visit("/page/", headers=dict(headers))
        found = SCRIPT.fullmatch(response.content.decode())
        if found:
            assert response["Cache-Control"] == "private, no-store"
        return found[1] if found else None

    return open_page


def test_script_has_the_id_that_the_server_sends(open_page, upstream):
    assert open_page() == "42"
    assert open_page(IDENTIFY="tests.sites.test_nginx.identify", headers={"User-Agent": 'Mozilla "<ada>'}) is not None


@pytest.mark.parametrize(
    ("moe", "agent", "expected"),
    [
        ({"ANONYMOUS_ID": True}, "Mozilla", ""),
        ({"IDENTIFY": "tests.rendering.test_identity.name_browser"}, "Mozilla", ""),
        ({"IDENTIFY": "tests.rendering.test_identity.fail"}, "Mozilla", None),
        ({"ENABLED": False}, "Mozilla", None),
    ],
    ids=["anonymous", "browser", "unknown", "off"],
)
def test_visitor_who_is_not_a_known_customer(open_page, moe, agent, expected):
    """An anonymous visitor has no id. If the visitor can't be known, the script must not end the session."""
    assert open_page(known=False, headers={"User-Agent": agent}, **moe) == expected


@pytest.mark.parametrize(
    ("granted", "expected"),
    [("fetch identify track", "42"), ("fetch identify", ""), ("fetch track", ""), ("identify track", ""), ("none", "")],
)
def test_consent(open_page, granted, expected):
    """MoEngage's script identifies and tracks, so both need consent."""
    assert open_page(CONSENT="tests.rendering.test_identity.choose", headers={"User-Agent": granted}) == expected


def test_global_privacy_control(open_page):
    assert open_page(headers={"Sec-GPC": "1"}) == ""


def test_preview_changes_nothing(open_page):
    assert open_page(mark="is_preview") is None


def test_page_whose_headers_have_left(open_page):
    """Such a page can't become private any more, so it doesn't have the id."""

    def render_late(request):
        request.personalization._page._is_closed = True
        try:
            return show(request, LOAD + TAG).content
        finally:
            request.personalization._page._is_closed = False

    assert open_page(then=render_late) == "42"


def test_site_without_static_files(open_page, settings):
    settings.STATIC_URL = None
    assert open_page() is None


def test_template_without_a_request():
    assert compile_template(TAG).render(Context()) == ""
    with pytest.raises(TemplateSyntaxError, match="takes no arguments"):
        compile_template("{% personalize_identity 'hero' %}")
