"""The endpoints a page reports to, as a browser and as a forger uses them."""

import json
import re
import time
import uuid
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import User
from django.core import signing
from django.test import Client, RequestFactory

from django_moe_personalize import tracking, views
from django_moe_personalize.moengage.types import Action, Event
from django_moe_personalize.testing import override_experiences, override_personalize

pytestmark = pytest.mark.urls("tests.site")

CONTEXT = {
    "cid": "65ea_F_T_WP_AB_2_P_0_AU_42D",
    "experience": "Hero",
    "moe_locale_id": "0",
    "moe_variation_id": "2",
    "audience_name": "All",
    "audience_id": "42D",
}


@pytest.fixture
def shown():
    """Give every visitor a hero with a button."""
    with override_experiences({"hero-banner": {"Title": "Hello"}}) as seen:
        yield seen


def send(visit, *reports, **options):
    """Send a beacon as the script does."""
    body = json.dumps({"events": reports})
    return visit("/moe/beacon/", method="post", data=body, content_type="text/plain;charset=UTF-8", **options)


@pytest.fixture
def token(shown, visit):
    """Return a mark's token of this visitor for the elements ``buy`` and ``""``."""
    visit("/read/")
    customer_id = shown_customer(visit)
    event = Event(Action.SHOWN, customer_id, {**CONTEXT, "offerings": [{"moe_offering_id": "1"}]}, int(time.time()))
    return tracking.Token.build(event, elements=("buy", ""))


def shown_customer(visit):
    """Return the anonymous id that this visitor's cookie holds."""
    from django_moe_personalize.visitor.identity import _SALT

    request = RequestFactory().get("/")
    request.COOKIES["moe_id"] = visit.client.cookies["moe_id"].value
    return request.get_signed_cookie("moe_id", salt=_SALT)


def count(shown):
    """Return how many impressions and clicks the ledger has."""
    entries = shown.engine.ledger.entries()
    return tuple(len([e for e in entries if e.action == action.value]) for action in (Action.SHOWN, Action.CLICKED))


def test_beacon_counts_an_impression_and_a_click(shown, visit, token):
    """A mark's token stands for its impression and for a click on each of its elements."""
    text = token.sign()
    assert send(visit, ["impression", text], ["click", text, "buy"], ["click", text, ""]).status_code == 204
    assert count(shown) == (1, 2)
    elements = {entry.element: entry for entry in shown.engine.ledger.entries() if entry.action == Action.CLICKED.value}
    assert elements.keys() == {"buy", ""}
    assert "offerings" not in elements["buy"].attributes


def test_replay_counts_nothing(shown, visit, token):
    """However often a beacon comes back, it is the same events."""
    text = token.sign()
    for _ in range(3):
        send(visit, ["impression", text], ["impression", text], ["click", text, "buy"])
    assert count(shown) == (1, 1)


@pytest.mark.parametrize(
    "report",
    [
        ["click", "TOKEN", "another"],
        ["click", "TOKEN"],
        ["nonsense", "TOKEN", "buy"],
        ["click", "TOKENx", "buy"],
        ["click", "", "buy"],
        ["click", "\ud800", "buy"],
        ["click", 7, "buy"],
        ["click", "TOKEN", 7],
        "TOKEN",
        None,
        {},
    ],
    ids=repr,
)
def test_forged_reports_count_nothing(shown, visit, token, report):
    """An altered report is taken like any other and counts nothing."""
    text = token.sign()
    if isinstance(report, list):
        report = [part.replace("TOKEN", text) if isinstance(part, str) else part for part in report]
    assert send(visit, report).status_code == 204
    assert count(shown) == (0, 0)


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (b"", {}),
        (b"\xff", {}),
        (b"[]", {}),
        (b'{"events": 7}', {}),
        (b'{"events": [', {}),
        (b"[" * 10_000, {}),
        (b'{"x": "' + b"x" * 17_000 + b'"}', {}),
        (b"{}", {"headers": {"Sec-Fetch-Site": "cross-site"}}),
        (b"{}", {"headers": {"User-Agent": "somebot/1.0"}}),
    ],
    ids=["empty", "bytes", "list", "number", "cut", "deep", "long", "cross-site", "robot"],
)
def test_any_beacon_gets_the_same_answer(shown, visit, body, options):
    """A beacon is answered 204 and nothing else, whatever it holds."""
    response = visit("/moe/beacon/", method="post", data=body, content_type="text/plain", **options)
    assert (response.status_code, response.content) == (204, b"")
    assert count(shown) == (0, 0)


def test_cross_site_beacon_is_refused(shown, visit, token):
    """A page of another site cannot count with a token it has found."""
    text = token.sign()
    send(visit, ["impression", text], headers={"Sec-Fetch-Site": "cross-site"})
    assert count(shown) == (0, 0)
    send(visit, ["impression", text], headers={"Sec-Fetch-Site": "same-origin"})
    assert count(shown) == (1, 0)


def test_beacon_of_another_visitor_counts_nothing(shown, visit, token):
    """A token belongs to the visitor it was made for."""
    visit.forget_cookies()
    send(visit, ["impression", token.sign()])
    assert count(shown) == (0, 0)


def test_beacon_needs_no_csrf_token(shown, visit, token):
    """sendBeacon cannot send a header, and the signed token is what stands in for it."""
    client = Client(enforce_csrf_checks=True)
    client.cookies = visit.client.cookies
    client.post("/moe/beacon/", json.dumps({"events": [["impression", token.sign()]]}), "text/plain")
    assert count(shown) == (1, 0)


def test_expired_token_counts_nothing(shown, visit, token, monkeypatch):
    """After a day a beacon counts nothing, and a link only goes on."""
    text = token.sign()
    link = tracking.Token.build(token.build_event("x"), destination="/a/").sign()
    monkeypatch.setattr(tracking.tokens, "TOKEN_MAX_AGE", -1)
    send(visit, ["impression", text])
    assert visit(f"/moe/click/{link}/").headers["Location"] == "/a/"
    assert count(shown) == (0, 0)


def test_consent_withdrawn_counts_nothing(shown, visit, token):
    """Consent is asked again when a report comes in."""
    text = token.sign()
    send(visit, ["impression", text], headers={"Sec-GPC": "1"})
    with override_personalize(CONSENT="tests.test_pages_failures.deny_everything"):
        send(visit, ["impression", text])
    assert count(shown) == (0, 0)


def test_disabled_counts_nothing(shown, visit, token):
    """With ENABLED off nothing leaves the site."""
    with override_personalize(ENABLED=False):
        send(visit, ["impression", token.sign()])
    assert count(shown) == (0, 0)


def test_rotated_secret_key(shown, visit, token, settings):
    """A page from before the rotation of SECRET_KEY still reports."""
    text = token.sign()
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "a new one"
    send(visit, ["impression", text])
    assert count(shown) == (1, 0)


@pytest.mark.parametrize("token", ["x", "x:y:z", "é", "%00", "a" * 5000, ".eJ:1:x"])
def test_bad_click_is_refused(shown, visit, token):
    """A link that we did not make is a 400, never a redirect."""
    assert visit(f"/moe/click/{token}/").status_code == 400


def test_mark_is_no_link(shown, visit, token):
    """A mark's token has no destination, so it is no link."""
    assert visit(f"/moe/click/{token.sign()}/").status_code == 400


def test_destination_is_checked_again(shown, visit, token):
    """Even a signed destination is refused when it is none of the site's."""
    event = token.build_event("x")
    for destination in ("https://evil.example/", "//evil.example", "javascript:alert(1)"):
        link = tracking.Token.build(event, destination=destination).sign()
        assert visit(f"/moe/click/{link}/").status_code == 400


@pytest.mark.parametrize(
    "options",
    [{"method": "head"}, {"headers": {"Sec-Purpose": "prefetch"}}],
    ids=["head", "prefetch"],
)
def test_click_that_is_none(shown, visit, token, options):
    """A HEAD and a prefetch of a link go on and count nothing."""
    link = tracking.Token.build(Event(Action.CLICKED, shown_customer(visit), CONTEXT, 0), destination="/a/").sign()
    assert visit(f"/moe/click/{link}/", **options).headers["Location"] == "/a/"
    assert count(shown) == (0, 0)
    assert visit(f"/moe/click/{link}/").status_code == 302
    assert count(shown) == (0, 1)


@pytest.mark.parametrize(("path", "method"), [("/moe/click/x/", "post"), ("/moe/beacon/", "get")])
def test_other_methods(shown, visit, path, method):
    """The endpoints take the methods they are for."""
    assert visit(path, method=method).status_code == 405


def test_tokens_tell_nothing_personal(token):
    """Who the visitor is cannot be read from a token."""
    customer_id = "customer-4711"
    event = Event(Action.SHOWN, customer_id, CONTEXT, 0)
    text = tracking.Token.build(event).sign()
    assert customer_id not in json.dumps(signing.loads(text, salt=tracking._SALT))
    assert re.fullmatch(r"[\w.:-]+", text)
    assert "42D" not in repr(tracking.read_token(text))


@pytest.mark.django_db
def test_click_after_login_belongs_to_the_customer(shown, visit):
    """A customer's link counts for the customer."""
    visit.log_in(User.objects.create(pk=1, username="ada"))
    page = visit("/tags/").content.decode()
    assert visit(re.search(r'href="([^"]+)"', page)[1]).status_code == 302
    assert {entry.customer_id for entry in shown.engine.ledger.entries()} == {"1"}


@pytest.fixture
def shared(settings, tmp_path):
    """Use a cache that processes share."""
    settings.CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": str(tmp_path)}
    }


def test_more_beacons_than_a_person_sends(shared, shown, visit, token, monkeypatch):
    """Past the limit of a minute nothing of this visitor is counted, and the answer is the same."""
    monkeypatch.setattr(views, "MAX_REPORTS_A_MINUTE", 2)
    now = time.time() // 60 * 60 - 120
    monkeypatch.setattr(time, "time", lambda: now)
    texts = [token._replace(event_uuid=str(uuid.uuid4())).sign() for _ in range(4)]
    assert [send(visit, ["impression", text]).status_code for text in texts] == [204] * 4
    assert count(shown) == (2, 0)
    monkeypatch.setattr(time, "time", lambda: now + 60)
    send(visit, ["impression", texts[3]])
    assert count(shown) == (3, 0)


def test_forged_beacons_use_up_nobody_s_limit(shared, shown, visit, token, monkeypatch):
    """What counts nothing is not counted against the visitor either."""
    monkeypatch.setattr(views, "MAX_REPORTS_A_MINUTE", 1)
    for _ in range(3):
        send(visit, ["impression", token.sign() + "x"])
    send(visit, ["impression", token.sign()])
    assert count(shown) == (1, 0)


def test_limit_without_a_cache(shown, visit, token, settings):
    """A cache that fails lets beacons through."""
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    send(visit, ["impression", token.sign()])
    assert count(shown) == (1, 0)


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "application/octet-stream", ""])
def test_type_of_the_body(shown, visit, token, kind):
    """JSON is read whatever it is said to be."""
    body = json.dumps({"events": [["impression", token.sign()]]})
    visit("/moe/beacon/", method="post", data=body, content_type=kind)
    assert count(shown) == (1, 0)


def read_form_first(get_response):
    """Be a middleware of the site that looks into every form."""

    def middleware(request):
        assert request.POST is not None
        return get_response(request)

    return middleware


@pytest.mark.parametrize("before", [[], [f"{__name__}.read_form_first"]], ids=["unread", "read"])
@pytest.mark.parametrize("multipart", [False, True])
def test_form(shown, visit, token, settings, multipart, before):
    """A form has the reports as JSON in its field ``events``, whoever has read it before."""
    settings.MIDDLEWARE = [*before, *settings.MIDDLEWARE]
    data = {"events": json.dumps([["impression", token.sign()], ["click", token.sign(), "buy"]])}
    options = {} if multipart else {"content_type": "application/x-www-form-urlencoded"}
    response = visit("/moe/beacon/", method="post", data=data if multipart else urlencode(data), **options)
    assert (response.status_code, response.content) == (204, b"")
    assert count(shown) == (1, 1)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/x-www-form-urlencoded", b"events=7"),
        ("application/x-www-form-urlencoded", b"events=%FF"),
        ("application/x-www-form-urlencoded", b"other=1"),
        ("application/x-www-form-urlencoded", b"&a=1" * 2000),
        ("application/x-www-form-urlencoded; charset=latin-1", b"events=[]"),
        ("multipart/form-data", b"events=[]"),
        ("multipart/form-data; boundary=x", b"--x\r\n\xff"),
    ],
)
def test_form_that_is_none(shown, visit, kind, body):
    """A broken form is answered like any other."""
    response = visit("/moe/beacon/", method="post", data=body, content_type=kind)
    assert (response.status_code, response.content) == (204, b"")
