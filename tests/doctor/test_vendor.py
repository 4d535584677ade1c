"""The doctor's findings about MoEngage: the server, its responses, and the time of a fetch."""

import json
import re
import socket
import time
from email.utils import formatdate
from types import SimpleNamespace

import pytest
from django.test import override_settings

from django_moe_personalize.conf import get_settings
from django_moe_personalize.doctor import vendor as examined
from django_moe_personalize.doctor.vendor import describe_end
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.testing import override_personalize
from tests.doctor.conftest import KEY, SHORT, diagnose, find
from tests.fetching.asking import ask
from tests.fetching.warm_vendor import VISITOR
from tests.loopback import Exchange, Loopback, build_head
from tests.moengage.test_connections import find_closed_port
from tests.wire import LONG, break_off

CREDENTIALS = {"SANDBOX": False, "WORKSPACE_ID": "SHOP", "API_KEY": KEY}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"SANDBOX": True}, "The sandbox in each process answers, so nothing is sent to MoEngage."),
        (
            {"SANDBOX": True, "BASE_URL": "http://127.0.0.1:9/v1"},
            "The site calls a sandbox in BASE_URL, at 127.0.0.1, for the workspace in its file.",
        ),
        (
            {"DATA_CENTER": "03", **CREDENTIALS},
            "The site calls MoEngage's data center 03, at sdk-03.moengage.com, for the workspace SHOP.",
        ),
        (
            {"BASE_URL": "https://proxy.example/v1", **CREDENTIALS, "WORKSPACE_ID": "SHOP_DEBUG"},
            "The site calls the server in BASE_URL, at proxy.example, for the workspace SHOP_DEBUG, a test workspace.",
        ),
    ],
)
def test_server_and_workspace(given, words):
    """The finding names the host and the workspace, and no key."""
    with override_settings(MOE_PERSONALIZE=given):
        assert describe_end(get_settings()) == words


def test_vendor_that_works(vendor):
    """The findings count the experiences, and give the times of a first and a second fetch."""
    found = diagnose()
    assert find("4 active, 1 paused, 1 scheduled (answered in ", found)[0] == "ok"
    state, text = find("on a new connection", found)
    assert state == "ok"
    assert "A fetch of 4 keys took" in text
    assert vendor.server.connections == 2
    fetches = [received for received in vendor.server.received if received.target.endswith("/fetch")]
    assert [json.loads(fetch.body).keys() for fetch in fetches] == [{"experience_key"}] * 2


def test_workspace_without_active_experiences(vendor):
    """The finding is a warning, and the doctor fetches no experience."""
    vendor.fail("200", b'{"metadata": {"count": 0, "experiences": []}}')
    found = diagnose()
    assert find("no active experience: none", found)[0] == "warning"
    assert not [text for _, text in found if "A fetch" in text]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b"{}", "MoEngage refuses the credentials (401). Copy WORKSPACE_ID"),
        (403, b"{}", "MoEngage forbids the call (403). Use a Personalize key"),
        (429, b"{}", "limits the rate of this workspace's calls (429). Raise CACHE_TTL, narrow VARY_CACHE_ON"),
        (503, b"<html>", "MoEngage itself has a failure (503). Wait."),
        (400, b'{"title": "Request Error", "description": "canary"}', "doesn't know the workspace (400). Correct"),
        (404, b"{}", "MoEngage's API doesn't answer like this (404). Correct BASE_URL"),
        (302, b"", "MoEngage's API doesn't answer like this (302). Correct BASE_URL"),
        (200, b"<html>canary</html>", "MoEngage's API doesn't answer like this (the body is wrong). Correct"),
    ],
)
def test_error_answers(vendor, status, body, words):
    """Each kind of error has an explanation and a fix, without the vendor's own words."""
    vendor.fail(status, body)
    found = diagnose()
    assert find(words, found)[0] == "problem"
    assert "canary" not in str(found)


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        (lambda exchange: exchange.hang(), f"No answer from 127.0.0.1 within {SHORT} s. Let this machine"),
        (lambda exchange: exchange.reset(), "No whole answer from 127.0.0.1 (TransportError). Try again."),
    ],
)
def test_vendor_without_a_whole_answer(vendor, behave, words):
    """A call that gets no answer ends with its time limit, and a broken answer has a finding of its own."""
    vendor.behave = behave
    assert find(words, diagnose(SHORT))[0] == "problem"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:{}/v1", "127.0.0.1 refuses connections. Start the server"),
        ("https://sdk.invalid/v1", "sdk.invalid can't be found (DNS)."),
    ],
)
def test_server_that_cannot_be_reached(url, words):
    """A port without a server has a finding of its own, and so has a name that DNS doesn't know."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = url.format(listener.getsockname()[1])
    with override_personalize(BASE_URL=url, **CREDENTIALS):
        assert find(words)[0] == "problem"


def test_unknown_certificate(tls_ends):
    """The finding gives the reason, and the option for a proxy that decrypts TLS."""
    with (
        Loopback(lambda exchange: None, tls=tls_ends.context) as server,
        override_personalize(BASE_URL=server.url, **CREDENTIALS),
    ):
        state, text = find("No TLS with 127.0.0.1: ")
    assert state == "problem"
    assert '["verify"] to its CA file' in text


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        ("407", "opened no tunnel: it answered 407 (wrong user or password)."),
        *((str(status), f"opened no tunnel: it answered {status}.") for status in (502, 503, 504)),
        (Exchange.close, "opened no tunnel: no whole response from the proxy"),
        (Exchange.hang, "did not answer in time."),
        ("refused", "(ConnectionRefusedError)."),
        ("tls", "'s certificate was refused: "),
    ],
)
def test_proxy_that_fails(behave, words, tls_ends, monkeypatch, caplog):
    """The doctor and the log name the proxy and the status, and no password. NO_PROXY is an exception."""
    kind = behave if isinstance(behave, str) else ""
    if kind:
        behave = break_off(build_head(f"{kind} No", {"Content-Length": "0"}), Exchange.close)
    with Loopback(behave, tls=tls_ends.context if kind == "tls" else None) as server:
        port = find_closed_port() if kind == "refused" else server.port
        url = f"{'https' if kind == 'tls' else 'http'}://me:{KEY}@127.0.0.1:{port}"
        options = {"trust_env": True} if kind == "407" else {"proxies": {"https": url}}
        limit = SHORT if behave is Exchange.hang else LONG
        transport = {"OPTIONS": {"connect_timeout": limit, **options}}
        monkeypatch.setenv("HTTPS_PROXY", url)
        given = {**CREDENTIALS, "BASE_URL": "https://sdk.invalid/v1", "TRANSPORT": transport}
        with override_personalize(**given):
            found = diagnose(LONG)
            for _ in range(5):
                ask(VISITOR, ["hero-banner"], deadline=Deadline(LONG))
        assert find(f", through the proxy 127.0.0.1:{port}.", found)[0] == "ok"
        state, text = find("MoEngage can't be reached: ", found)
        assert state == "problem"
        assert f"the proxy 127.0.0.1:{port}" in text
        assert words in text
        assert f"the proxy 127.0.0.1:{port}" in caplog.text
        assert caplog.text.count("Check the proxy in TRANSPORT") == 1
        assert KEY not in f"{found} {caplog.text}"
        monkeypatch.setenv("NO_PROXY", "sdk.invalid")
        with override_personalize(**given):
            found = diagnose(LONG)
        find("sdk.invalid can't be found (DNS)." if kind == "407" else "MoEngage can't be reached", found)


def test_proxy_that_forwards():
    """A proxy that forwards requests answers 407 instead of the server."""
    with Loopback(lambda exchange: exchange.reply(status="407 No")) as server:
        transport = {"OPTIONS": {"proxies": {"http": f"http://127.0.0.1:{server.port}"}}}
        with override_personalize(BASE_URL="http://127.0.0.1:9/v1", TRANSPORT=transport, **CREDENTIALS):
            words = f"the proxy 127.0.0.1:{server.port} answered 407 (wrong user or password)."
            assert find(words)[0] == "problem"


def test_server_without_tls():
    """A server that answers in plain text has a finding of its own."""
    with Loopback(lambda exchange: None) as server:
        # This answer to a TLS hello is not TLS.
        server._serve = lambda connection: (connection.sendall(b"HTTP/1.1 400 X\r\n\r\n"), connection.close())
        with override_personalize(BASE_URL=server.url.replace("http:", "https:"), **CREDENTIALS):
            assert find("No TLS with 127.0.0.1.")[0] == "problem"


@pytest.mark.parametrize(("offset", "warned"), [(0, False), (-60, True), (60, True)])
def test_wrong_clock(vendor, offset, warned):
    """A clock that differs from MoEngage's is a warning, because the times of events are wrong."""
    vendor.headers = {"Date": formatdate(time.time() - offset, usegmt=True)}
    found = [finding for finding in diagnose() if "clock" in finding[1]]
    assert [state for state, _ in found] == ["warning"] * warned
    assert not warned or re.search(rf"clock is \d\d s {'ahead of' if offset > 0 else 'behind'} MoEngage's", found[0][1])


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (0.4, 0.0, "400 ms on a new connection and 0 ms on an open one. A page waits up to 300 ms."),
        (0.4, 0.0, "such as the first page of a process, shows its fallbacks. Raise DEADLINE if that matters."),
        (0.4, 0.4, "So pages show their fallbacks until an answer is cached. Raise DEADLINE, or"),
        (0.0, 0.0, "An unknown visitor gets 3 of these experiences."),
    ],
)
def test_fetch_that_is_slower_than_a_page_waits(monkeypatch, first, second, words):
    """A fetch that takes longer than DEADLINE is a warning, on a new connection or on every connection."""
    ticks = iter([0.0, 0.0, 0.0, first, first, first + second])
    monkeypatch.setattr(examined, "time", SimpleNamespace(time=time.time, perf_counter=lambda: next(ticks)))
    with override_personalize(DEADLINE=0.3, SANDBOX=True):
        assert find(words)[0] == ("warning" if first else "ok")
