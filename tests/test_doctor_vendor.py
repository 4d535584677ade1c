"""What ``manage.py moe_doctor`` finds out about the vendor's end: who is asked, how it answers, and how fast."""

import json
import re
import socket
import time
from email.utils import formatdate

import pytest
from django.test import override_settings

from django_moe_personalize.conf import get_settings
from django_moe_personalize.doctor.vendor import describe_end
from django_moe_personalize.testing import override_personalize
from tests.diagnosis import KEY, SHORT, ask_vendor, diagnose, find  # noqa: F401 - a fixture among them
from tests.loopback import Loopback


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"SANDBOX": True}, "The sandbox inside each process"),
        ({"SANDBOX": True, "BASE_URL": "http://127.0.0.1:9/v1"}, "A sandbox behind BASE_URL is asked, at 127.0.0.1"),
        (
            {"DATA_CENTER": "03", "WORKSPACE_ID": "SHOP", "API_KEY": KEY},
            "data centre 03 is asked, at sdk-03.moengage.com, for the workspace SHOP.",
        ),
        (
            {"BASE_URL": "https://proxy.example/v1", "WORKSPACE_ID": "SHOP_DEBUG", "API_KEY": KEY},
            "What BASE_URL names is asked, at proxy.example, for the workspace SHOP_DEBUG, a test workspace.",
        ),
    ],
)
def test_who_is_asked(given, words):
    """Host and workspace are said, the key never."""
    with override_settings(MOE_PERSONALIZE=given):
        assert words in describe_end(get_settings())


def test_a_vendor_that_works(vendor):
    """How many experiences there are, and how long it took to ask."""
    found = diagnose()
    assert find("4 active, 1 paused, 1 scheduled (asked in ", found)[0] == "ok"
    state, text = find("on a new connection", found)
    assert state == "ok"
    assert "A fetch of 4 keys took" in text
    assert vendor.server.connections == 2
    fetches = [received for received in vendor.server.received if received.target.endswith("/fetch")]
    assert [json.loads(fetch.body).keys() for fetch in fetches] == [{"experience_key"}] * 2


def test_a_workspace_without_active_experiences(vendor):
    """It works and shows nothing: a warning, and nothing to fetch."""
    vendor.fail("200", b'{"metadata": {"count": 0, "experiences": []}}')
    found = diagnose()
    assert find("no active experience: none", found)[0] == "warning"
    assert not [text for _, text in found if "A fetch" in text]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b"{}", "MoEngage refuses the credentials (401)"),
        (403, b"{}", "MoEngage forbids the call (403). The account may be suspended"),
        (429, b"{}", "too many requests (429)"),
        (503, b"<html>", "MoEngage itself fails (503)"),
        (
            400,
            b'{"title": "Request Error", "description": "canary"}',
            "does not know the workspace (400). Correct",
        ),
        (404, b"{}", "does not do so as MoEngage (404)"),
        (302, b"", "does not do so as MoEngage (302)"),
        (200, b"<html>canary</html>", "does not speak as MoEngage does"),
    ],
)
def test_answers_that_are_none(vendor, status, body, words):
    """Each kind is explained, with its mend, and without the vendor's own words."""
    vendor.fail(status, body)
    found = diagnose()
    assert find(words, found)[0] == "problem"
    assert "canary" not in str(found)


def test_a_vendor_that_hangs(vendor):
    """It is left alone after the deadline."""
    vendor.behave = lambda exchange: exchange.hang()
    started = time.monotonic()
    assert find(f"No answer from 127.0.0.1 within {SHORT} s", diagnose(SHORT))[0] == "problem"
    assert time.monotonic() - started < 5


def test_a_vendor_that_breaks_off(vendor):
    """Half an answer is told as such."""
    vendor.behave = lambda exchange: exchange.reset()
    assert find("No whole answer from 127.0.0.1 (TransportError)")[0] == "problem"


def test_nobody_listens():
    """A refused connection is told as such."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with override_personalize(BASE_URL=f"http://127.0.0.1:{port}/v1", SANDBOX=True):
        assert find("127.0.0.1 refuses connections")[0] == "problem"


def test_a_name_that_is_none():
    """A host that DNS does not know is told as such."""
    given = {"BASE_URL": "https://sdk.invalid/v1", "SANDBOX": False, "WORKSPACE_ID": "SHOP", "API_KEY": KEY}
    with override_personalize(**given):
        assert find("sdk.invalid cannot be found (DNS)")[0] == "problem"


def test_certificates_that_nobody_knows(tls_ends):
    """Why TLS failed is said, and what to do behind a proxy that opens it."""
    with Loopback(lambda exchange: None, tls=tls_ends.context) as server:
        given = {"BASE_URL": server.url, "SANDBOX": False, "WORKSPACE_ID": "SHOP", "API_KEY": KEY}
        with override_personalize(**given):
            state, text = find("No TLS with 127.0.0.1")
    assert state == "problem"
    assert "verify" in text


def test_speaking_tls_to_who_does_not():
    """A server without TLS is told as such, too."""
    with Loopback(lambda exchange: None) as server:
        # Its answer to what it takes for a request is none that TLS knows.
        server._serve = lambda connection: (connection.sendall(b"HTTP/1.1 400 X\r\n\r\n"), connection.close())
        url = server.url.replace("http:", "https:")
        with override_personalize(BASE_URL=url, SANDBOX=False, WORKSPACE_ID="SHOP", API_KEY=KEY):
            assert find("No TLS with 127.0.0.1.")[0] == "problem"


@pytest.mark.parametrize(("offset", "warned"), [(0, False), (-60, True), (60, True)])
def test_clocks_that_differ(vendor, offset, warned):
    """Events from the future are refused, so a clock that is off is worth a warning."""
    vendor.headers = {"Date": formatdate(time.time() - offset, usegmt=True)}
    found = [finding for finding in diagnose() if "clock" in finding[1]]
    assert [state for state, _ in found] == ["warning"] * warned
    assert not warned or re.search(rf"clock is [{'+' if offset > 0 else '-'}](59|60|61) s off", found[0][1])


@pytest.mark.parametrize(
    ("cold", "warm", "words"),
    [(0.4, 0.0, "first page of each process"), (0.4, 0.4, "until an answer is cached"), (0.0, 0.0, "one; a page")],
)
def test_times_beside_the_deadline(vendor, cold, warm, words):
    """What is slower than a page waits is a warning, on a new connection or on each."""

    def behave(exchange):
        if exchange.received.target.endswith("/fetch"):
            time.sleep(cold if exchange.turn == 1 else warm)
        vendor.answer(exchange)

    vendor.behave = behave
    with override_personalize(DEADLINE=0.3):
        assert find("on a new connection")[0] == ("warning" if cold else "ok")
        assert words in find("on a new connection")[1]
