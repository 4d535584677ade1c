"""The click redirect and the beacon, used by a browser and by an attacker."""

import json
import re
import time
import uuid
from urllib.parse import quote, urlencode

import pytest
from django.contrib.auth.models import User
from django.core import signing
from django.test import Client, RequestFactory

from django_moe_personalize import views
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.moengage.types import Action, Event
from django_moe_personalize.testing import override_experiences, override_personalize
from django_moe_personalize.tracking import Token, read_token, tokens
from django_moe_personalize.tracking.watchdog import get_watchdog
from django_moe_personalize.visitor.identity import read_anonymous_cookie
from tests.pages import BROWSER
from tests.processes import use_shared_cache  # noqa: F401 - a fixture

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
    """Give every visitor a hero with a button, and return the counts."""
    with override_experiences({"hero-banner": {"Title": "Hello"}}) as seen:
        yield seen


@pytest.fixture
def customer_id(shown, visit):
    visit("/read/")
    request = RequestFactory().get("/")
    request.COOKIES["moe_id"] = visit.client.cookies["moe_id"].value
    return read_anonymous_cookie(request)


@pytest.fixture
def token(customer_id):
    """Return the token of a mark of this visitor, for the elements ``buy`` and ``""``."""
    event = Event(Action.SHOWN, customer_id, {**CONTEXT, "moe_offering_ids": "1"}, int(time.time()))
    return Token.build(event, elements=("buy", ""))


def post(visit, body, content_type="text/plain;charset=UTF-8", **options):
    """Send a body to the beacon and check its answer, which is always the same."""
    response = visit("/moe/beacon/", method="post", data=body, content_type=content_type, **options)
    assert (response.status_code, response.content) == (204, b"")


def send(visit, *reports, **options):
    """Send a beacon as the script does."""
    post(visit, json.dumps({"events": reports}), **options)


def count(shown):
    """Return the numbers of impressions and clicks that arrived."""
    entries = shown.engine.ledger.entries()
    return tuple(len([e for e in entries if e.action == action.value]) for action in (Action.SHOWN, Action.CLICKED))


def test_beacon_counts_an_impression_and_a_click(shown, visit, token):
    """The token of a mark stands for its impression and for a click on each of its elements."""
    text = token.sign()
    send(visit, ["impression", text], ["click", text, "buy"], ["click", text, ""])
    assert count(shown) == (1, 2)
    elements = {entry.element: entry for entry in shown.engine.ledger.entries() if entry.action == Action.CLICKED.value}
    assert elements.keys() == {"buy", ""}
    assert "moe_offering_ids" not in elements["buy"].attributes


@pytest.mark.parametrize(
    ("mode", "agent", "counted"), [("web_sdk", BROWSER, 2), ("visible", BROWSER, 0), ("web_sdk", "Googlebot", 0)]
)
def test_page_without_the_web_sdk(visit, monkeypatch, mode, agent, counted):
    """A page reports to the watchdog, up to the limit of the process. No visitor has to be known."""
    monkeypatch.setattr(views, "MAX_REPORTS_A_MINUTE", 2)
    with override_personalize(IMPRESSIONS=mode):
        for body in (["missing", "web_sdk"], ["missing", "web_sdk"], ["missing"], ["missing", "web_sdk"]):
            send(visit, body, ["missing", "web_sdk", "x"], headers={"User-Agent": agent})
        assert get_watchdog()._without_sdk == counted


def test_replay_counts_nothing(shown, visit, token):
    """The events of a repeated beacon have the same UUIDs, and a repeated report in a beacon makes no second event."""
    text = token.sign()
    for _ in range(3):
        send(visit, ["impression", text], ["impression", text], ["click", text, "buy"])
    assert count(shown) == (1, 1)
    assert get_delivery().counts().accepted == 6


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
    """An altered report gets the same answer as a genuine one."""
    if isinstance(report, list):
        report = [part.replace("TOKEN", token.sign()) if isinstance(part, str) else part for part in report]
    send(visit, report)
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
    """The beacon answers 204 to everything."""
    post(visit, body, **options)
    assert count(shown) == (0, 0)


def test_beacon_needs_no_csrf_token(shown, visit, token):
    """sendBeacon can't send a header. The signed token replaces the CSRF token."""
    client = Client(enforce_csrf_checks=True)
    client.cookies = visit.client.cookies
    client.post("/moe/beacon/", json.dumps({"events": [["impression", token.sign()]]}), "text/plain")
    assert count(shown) == (1, 0)


def test_expired_token_counts_nothing(shown, visit, token, monkeypatch):
    """After a day a beacon counts nothing, and a link only redirects."""
    text = token.sign()
    link = Token.build(token.build_event("x"), destination="/a/").sign()
    monkeypatch.setattr(tokens, "TOKEN_MAX_AGE", -1)
    send(visit, ["impression", text])
    assert visit(f"/moe/click/{link}/").headers["Location"] == "/a/"
    assert count(shown) == (0, 0)


def test_consent_withdrawn_counts_nothing(shown, visit, token):
    """The package asks for consent again when a report arrives, and ENABLED off stops reports too."""
    text = token.sign()
    send(visit, ["impression", text], headers={"Sec-GPC": "1"})
    for changed in ({"CONSENT": "tests.site.deny_everything"}, {"ENABLED": False}):
        with override_personalize(**changed):
            send(visit, ["impression", text])
    assert count(shown) == (0, 0)


def test_replaced_secret_key(shown, visit, token, settings):
    """A page from before the change of SECRET_KEY still reports."""
    text = token.sign()
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "a new one"
    send(visit, ["impression", text])
    assert count(shown) == (1, 0)


WHOLE = list(Token.build(Event(Action.CLICKED, "x", CONTEXT, 0), destination="/a/")[:-2])


def replace_part(place, value):
    """Return the content of a token with another value at one place."""
    return [*WHOLE[:place], value, *WHOLE[place + 1 :]]


OTHER_SHAPES = [
    *(WHOLE[:count] for count in range(len(WHOLE))),
    *([*WHOLE, *more] for more in ([False], ["gone"], ["default", False])),
    *(replace_part(place, wrong) for place in range(7) for wrong in (None, 7, [[1]])),
    *(replace_part(place, wrong) for place in (0, 1, 3) for wrong in ("x", "\ud800") if (place, wrong) != (3, "x")),
    dict(zip(Token._fields, WHOLE, strict=False)),
    *(None, True, 7, "text", "", [], {}, [[]]),
]
STAMP = "moe.0123456789ab"
SALT = tokens.SALT + STAMP
OTHER_TEXTS = [
    *(signing.dumps(content, salt=SALT, compress=True) for content in OTHER_SHAPES),
    *(signing.TimestampSigner(salt=SALT).sign(text) for text in ("", "x", ".x", "W3", "é")),
    *(signing.Signer(salt=SALT).sign(text) for text in ("x", "x:-", "x:" + "z" * 400)),
]


def test_token_of_another_version(shown, visit):
    """A token that another version of the package signed is a bad token, whatever its content is."""
    for text in [STAMP + signed for signed in OTHER_TEXTS]:
        assert visit(f"/moe/click/{quote(text)}/").status_code == 400, text
        send(visit, ["impression", text], ["click", text, ""])
    assert count(shown) == (0, 0)


@pytest.mark.parametrize("text", ["x", "x:y:z", "é", "%00", "a" * 5000, ".eJ:1:x", "MARK"])
def test_bad_click_is_refused(visit, token, text):
    """A link that this site did not make is a 400, never a redirect. So is the token of a mark."""
    assert visit(f"/moe/click/{text.replace('MARK', token.sign())}/").status_code == 400


@pytest.mark.parametrize("destination", ["https://evil.example/", "//evil.example", "javascript:alert(1)"])
def test_destination_is_checked_again(visit, token, destination):
    """Even a signed destination is refused if its host isn't allowed."""
    link = Token.build(token.build_event("x"), destination=destination).sign()
    assert visit(f"/moe/click/{link}/").status_code == 400


def test_click_that_is_none(shown, visit, customer_id):
    """HEAD redirects, but counts nothing."""
    link = Token.build(Event(Action.CLICKED, customer_id, CONTEXT, 0), destination="/a/").sign()
    assert visit(f"/moe/click/{link}/", method="head").headers["Location"] == "/a/"
    assert count(shown) == (0, 0)
    assert visit(f"/moe/click/{link}/").status_code == 302
    assert count(shown) == (0, 1)


@pytest.mark.parametrize(("path", "method"), [("/moe/click/x/", "post"), ("/moe/beacon/", "get")])
def test_other_methods_are_refused(visit, path, method):
    """Each endpoint answers only to its own methods."""
    assert visit(path, method=method).status_code == 405


def test_tokens_tell_nothing_personal():
    """Neither the text nor the repr of a token names the visitor."""
    customer_id = "customer-4711"
    token = Token.build(Event(Action.SHOWN, customer_id, CONTEXT, 0))
    text = token.sign()
    assert customer_id not in json.dumps(signing.loads(text[16:], salt=tokens.SALT + text[:16]))
    assert re.fullmatch(r"[\w.:-]+", text)
    shown = repr(read_token(text))
    assert not any(part in shown for part in ("42D", token.binding))
    assert token.event_uuid in shown


@pytest.mark.django_db
def test_click_after_login_belongs_to_the_customer(shown, visit):
    """The link of a customer counts for the customer."""
    visit.log_in(User.objects.create(pk=1, username="ada"))
    page = visit("/tags/").content.decode()
    assert visit(re.search(r'href="([^"]+)"', page)[1]).status_code == 302
    assert {entry.customer_id for entry in shown.engine.ledger.entries()} == {"1"}


def test_more_beacons_than_a_person_sends(shared, shown, visit, token, monkeypatch):
    """Above the limit of a minute, the beacons of a visitor count nothing and get the same answer."""
    monkeypatch.setattr(views, "MAX_REPORTS_A_MINUTE", 2)
    now = time.time() // 60 * 60 - 120
    monkeypatch.setattr(time, "time", lambda: now)
    texts = [token._replace(event_uuid=str(uuid.uuid4())).sign() for _ in range(4)]
    for text in texts:
        send(visit, ["impression", text])
    assert count(shown) == (2, 0)
    monkeypatch.setattr(time, "time", lambda: now + 60)
    send(visit, ["impression", texts[3]])
    assert count(shown) == (3, 0)


def test_forged_beacons_use_up_nobody_s_limit(shared, shown, visit, token, monkeypatch):
    """Beacons without a genuine token don't count toward the limit."""
    monkeypatch.setattr(views, "MAX_REPORTS_A_MINUTE", 1)
    for _ in range(3):
        send(visit, ["impression", token.sign() + "x"])
    send(visit, ["impression", token.sign()])
    assert count(shown) == (1, 0)


def test_limit_with_a_failing_cache(shown, visit, token, settings):
    """If the cache fails, beacons still count."""
    settings.CACHES = {"default": {"BACKEND": "tests.broken_cache.BrokenCache"}}
    send(visit, ["impression", token.sign()])
    assert count(shown) == (1, 0)


@pytest.mark.parametrize("content_type", ["text/plain", "application/json", "application/octet-stream", ""])
def test_content_type_of_json(shown, visit, token, content_type):
    """JSON is read with any content type."""
    send(visit, ["impression", token.sign()], content_type=content_type)
    assert count(shown) == (1, 0)


def read_form_first(get_response):
    """Be a middleware of the site that reads every form."""

    def middleware(request):
        assert request.POST is not None
        return get_response(request)

    return middleware


@pytest.mark.parametrize("before", [[], [f"{__name__}.read_form_first"]], ids=["unread", "read"])
@pytest.mark.parametrize("is_multipart", [False, True])
def test_form(shown, visit, token, settings, is_multipart, before):
    """A form has the reports as JSON in its field ``events``, even if a middleware has read it."""
    settings.MIDDLEWARE = [*before, *settings.MIDDLEWARE]
    # The visit that brought the token has loaded the middleware.
    visit.client.handler._middleware_chain = None
    data = {"events": json.dumps([["impression", token.sign()], ["click", token.sign(), "buy"]])}
    if is_multipart:
        visit("/moe/beacon/", method="post", data=data)
    else:
        post(visit, urlencode(data), "application/x-www-form-urlencoded")
    assert count(shown) == (1, 1)


@pytest.mark.parametrize(
    ("content_type", "body"),
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
def test_form_that_is_none(shown, visit, content_type, body):
    """A broken form gets the same answer as any other."""
    post(visit, body, content_type)
    assert count(shown) == (0, 0)
