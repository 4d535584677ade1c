"""What the path of a request spares itself: remembered from page to page, bounded, and never another visitor's."""

from __future__ import annotations

import os
import uuid
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpResponse
from django.test import RequestFactory
from django.utils.safestring import mark_safe

from django_moe_personalize import rendering, tracking
from django_moe_personalize.conf import get_settings
from django_moe_personalize.moengage.types import Action, Event, Experience, draw_uuid
from django_moe_personalize.rendering import headers
from django_moe_personalize.visitor import attributes, client_ip, identity
from django_moe_personalize.visitor.consent import GRANTED

YEAR = identity.ANONYMOUS_COOKIE_AGE
HOUR = 60 * 60
NOW = 2_000_000_000


def read_cookie(text, *, secure=False):
    """Return the anonymous id that a request with this cookie has; ``None`` when the cookie is nothing."""
    name = "__Host-moe_id" if secure else "moe_id"
    request = RequestFactory().get("/", secure=secure)
    request.COOKIES[name] = text
    return identity._read_cookie(request)


def mint(at=NOW):
    """Return an anonymous id and the cookie that was made for it."""
    request, response = RequestFactory().get("/"), HttpResponse()
    with mock.patch("time.time", return_value=at):
        known = identity.get_identity(request, GRANTED)
        identity.set_anonymous_cookie(request, response)
    return known.customer_id, response.cookies["moe_id"].value


@pytest.fixture(autouse=True)
def _forgetful():
    """Start each test with nothing remembered."""
    for remembered in (identity._verify_cookie, client_ip._show_peer, client_ip._parse_node, tracking._is_robot):
        remembered.cache_clear()
    for remembered in (attributes._read_pairs, rendering._escape):
        remembered.cache_clear()


def test_a_cookie_is_verified_once_an_hour():
    """The same cookie is looked up, and looked at anew in the next hour."""
    known, cookie = mint()
    with mock.patch("time.time", return_value=NOW) as clock:
        assert [read_cookie(cookie) for _ in range(3)] == [known] * 3
        assert identity._verify_cookie.cache_info()[:2] == (2, 1)
        clock.return_value += HOUR
        assert read_cookie(cookie) == known
    assert identity._verify_cookie.cache_info()[:2] == (2, 2)


def test_a_remembered_cookie_expires():
    """A cookie that was genuine a moment before its year was over is nothing an hour later."""
    known, cookie = mint()
    with mock.patch("time.time", return_value=NOW + YEAR - 1) as clock:
        assert read_cookie(cookie) == known
        clock.return_value += HOUR + 1
        assert read_cookie(cookie) is None


def test_a_forged_cookie_is_not_remembered():
    """What is not genuine takes no place from what is, beside it or under the other name."""
    known, cookie = mint()
    with mock.patch("time.time", return_value=NOW):
        assert read_cookie(cookie) == known
        for forged in (cookie[:-1], cookie + "=", cookie.upper(), cookie.replace("anon-", "anon-0"), "a:b:c"):
            assert read_cookie(forged) is None
        assert read_cookie(cookie, secure=True) is None
    assert identity._verify_cookie.cache_info().currsize == 1


def test_a_remembered_cookie_goes_with_its_secret(settings):
    """A secret that is taken away takes the cookies along that it had signed, at once."""
    known, cookie = mint()
    with mock.patch("time.time", return_value=NOW):
        assert read_cookie(cookie) == known
        settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another", [settings.SECRET_KEY]
        assert read_cookie(cookie) == known
        settings.SECRET_KEY_FALLBACKS = []
        assert read_cookie(cookie) is None


def test_what_is_remembered_is_bounded():
    """No visitor can fill the memory, neither with many values nor with long ones."""
    for number in range(1200):
        request = RequestFactory().get("/", headers={"User-Agent": f"Browser/{number}"})
        request.META["QUERY_STRING"] = f"utm_source=mail-{number}"
        assert tracking.is_counted(request)
        assert attributes.read_query(request.META, ["utm_source"]) == {"utm_source": f"mail-{number}"}
        peer = f"198.41.{number // 256}.{number % 256}"
        assert client_ip.get_client_ip({"REMOTE_ADDR": peer}, (), "full") == peer
        assert rendering._escape(f"{number}<") == f"{number}&lt;"
    for remembered in (tracking._is_robot, attributes._read_pairs, client_ip._show_peer, rendering._escape):
        assert remembered.cache_info().currsize == remembered.cache_info().maxsize == 1024


def test_what_is_long_is_read_and_not_remembered():
    """A value that no browser sends is treated like any other, and leaves nothing behind."""
    robot = RequestFactory().get("/", headers={"User-Agent": "x" * 600 + " Googlebot/2.1"})
    assert not tracking.is_counted(robot)
    query = {"QUERY_STRING": "a=" + "x" * 300 + "&utm_source=mail"}
    assert attributes.read_query(query, ["utm_source"]) == {"utm_source": "mail"}
    assert client_ip.parse_address("1" * 65) is None
    tracker = tracking.PageTracker(None)
    assert rendering.render_value(tracker, Experience("hero", {}), "<" * 3000) == "&lt;" * 3000
    for remembered in (tracking._is_robot, attributes._read_pairs, client_ip._parse_node, rendering._escape):
        assert remembered.cache_info().currsize == 0


def test_a_remembered_query_is_each_requests_own():
    """Who changes what was read changes it for nobody else."""
    query = {"QUERY_STRING": "utm_source=mail"}
    attributes.read_query(query, ["utm_source"])["utm_source"] = "forged"
    assert attributes.read_query(query, ["utm_source"]) == {"utm_source": "mail"}
    assert attributes.read_query(query, ["utm_medium"]) == {}


def test_a_safe_text_is_not_taken_for_an_equal_one():
    """What says that it is HTML stays HTML, and what does not is escaped, whichever comes first."""
    tracker, experience = tracking.PageTracker(None), Experience("hero", {})
    for _ in range(2):
        assert rendering.render_value(tracker, experience, "<b>") == "&lt;b&gt;"
        assert rendering.render_value(tracker, experience, mark_safe("<b>")) == "<b>"


def test_a_vary_of_the_page_is_kept():
    """Cookie is added to what the page varies on already, and stands alone where it does not."""
    response, bare = HttpResponse(headers={"Vary": "Accept-Language"}), HttpResponse()
    headers.seal_response(response, get_settings())
    headers.seal_response(bare, get_settings())
    assert (response.headers["Vary"], bare.headers["Vary"]) == ("Accept-Language, Cookie", "Cookie")


def test_uuids_are_random_and_of_version_4():
    """Each is the usual form of a UUID v4 (RFC 9562), and no two are the same."""
    drawn = [draw_uuid() for _ in range(500)]
    assert all(str(uuid.UUID(text)) == text and uuid.UUID(text).version == 4 for text in drawn)
    assert {uuid.UUID(text).variant for text in drawn} == {uuid.RFC_4122}
    assert len({*drawn, Event(Action.SHOWN, "42", {}, 0).event_uuid}) == 501


def test_a_forked_child_draws_other_uuids():
    """Parent and child share no randomness."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writing, draw_uuid().encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 36).decode() != draw_uuid()
    os.close(reading)
    os.close(writing)


def test_no_events_are_no_work():
    """Nothing to hand over is handed over to nobody, in either way."""
    with mock.patch.object(tracking.page, "get_delivery") as asked:
        tracking.record([])
        async_to_sync(tracking.arecord)([])
    assert not asked.called


def test_a_token_tells_nobody_who_it_is_about():
    """Neither binding nor context is in the repr."""
    token = tracking.Token.build(Event(Action.SHOWN, "customer-4711", {"cid": "secret"}, 0))
    assert token.binding not in repr(token)
    assert "secret" not in repr(token)
    assert token.event_uuid in repr(token)
