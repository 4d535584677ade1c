"""A call in two steps that goes wrong: whole or not at all, promptly, and without a secret in its errors."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable

import pytest

from django_moe_personalize.exceptions import APIError, InvalidResponseError, TransportError
from django_moe_personalize.moengage.answers import MAX_BYTES
from django_moe_personalize.moengage.messages import NotTakenError, Request
from tests.error_reports import describe_report
from tests.loopback import Exchange, build_head
from tests.wire import FETCH, LONG, SECRET, Wire, break_off, receive, wait_until

IN_CHUNKS = build_head("200 OK", {"Transfer-Encoding": "chunked"})
PROMPTLY = LONG / 2
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
BIG = b" " * (MAX_BYTES + 1)


def fail(wire: Wire, kind: type[APIError]) -> APIError:
    """Return the failure that an exchange ends with, promptly; the next call works on another connection."""
    connections = wire.server.connections
    with pytest.raises(APIError) as caught:
        receive(wire.ask())
    assert type(caught.value) is kind
    assert not wire.is_kept()
    assert wire.warm().body == b"warm"
    assert wire.server.connections == connections + 1
    return caught.value


@pytest.mark.parametrize("die", [Exchange.close, Exchange.reset], ids=lambda die: die.__name__)
def test_a_connection_that_died_idle_may_be_asked_again(die, build_wire):
    """The server gave it up as the request was on its way: nothing was answered, so nothing was taken."""
    assert "closed an idle connection" in str(fail(build_wire(die), NotTakenError))


def test_a_connection_that_is_half_closed():
    """A server that says it will send nothing more has not taken the request either."""
    with Wire(Exchange.half_close) as wire:
        fail(wire, NotTakenError)


def test_a_connection_that_ends_while_it_is_sent_on(build_wire):
    """The server is gone and says so in the middle of a large request: it was not sent."""
    wire = build_wire(Exchange.hang)
    exchange = wire.transport.reserve()
    wire.server.drop_connections()
    assert not exchange.send(Request("POST", "/big", body=b" " * 20_000_000))
    exchange.release()
    assert wire.warm().body == b"warm"
    assert wire.server.connections == 2


def test_a_connection_that_takes_no_more(build_wire):
    """A server that reads nothing is not waited for; half a request is never finished by another."""
    wire = build_wire(lambda exchange: (exchange.reply(b"{}"), exchange.hang(), exchange.close()))
    receive(wire.ask())
    exchange = wire.transport.reserve()
    start = time.monotonic()
    assert not exchange.send(Request("POST", "/big", body=b" " * 20_000_000))
    assert time.monotonic() - start < PROMPTLY
    assert wire.warm().body == b"warm"
    assert wire.server.connections == 2


@pytest.mark.parametrize("end", [Exchange.close, Exchange.reset], ids=lambda end: end.__name__)
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"HTTP/1.1 2", id="in-the-status"),
        pytest.param(CONTINUE, id="after-a-continue"),
        pytest.param(CONTINUE + b"HTTP/1.1 20", id="in-the-second-status"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nada@example.com is", id="in-the-headers"),
        pytest.param(build_head("200 OK", {"Content-Length": "9"}), id="before-the-body"),
        pytest.param(build_head("200 OK", {"Content-Length": "9"}) + b"{}", id="in-the-body"),
        pytest.param(IN_CHUNKS, id="before-a-chunk"),
        pytest.param(IN_CHUNKS + b"9", id="in-a-size"),
        pytest.param(IN_CHUNKS + b"9\r\n{}", id="in-a-chunk"),
        pytest.param(IN_CHUNKS + b"2\r\n{}\r\n", id="between-chunks"),
    ],
)
def test_half_an_answer_is_none(data, end, build_wire):
    """What breaks off is a TransportError."""
    error = fail(build_wire(break_off(data, end)), TransportError)
    assert "no whole answer from MoEngage" in str(error)
    assert "ada@example.com" not in describe_report(error)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"SSH-2.0-OpenSSH\r\n\r\n", id="not-http"),
        pytest.param(b"HTTP/1.1 999999 OK\r\n\r\n", id="no-status"),
        pytest.param(b"HTTP/3.0 200 OK\r\n\r\n", id="another-version"),
        pytest.param(b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", id="no-header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"A" * 70_000, id="a-header-that-never-ends"),
        pytest.param(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200, id="headers-that-never-end"),
        pytest.param(b"H" * 70_000, id="a-status-that-never-ends"),
        pytest.param(CONTINUE * 100_000, id="continues-that-never-end"),
        pytest.param(IN_CHUNKS + b"xyz\r\n", id="no-size"),
        pytest.param(IN_CHUNKS + b"1" * 70_000, id="a-size-that-never-ends"),
    ],
)
def test_what_cannot_be_an_answer_is_not_waited_for(data, build_wire):
    """Nonsense fails at once, though the connection stays open."""
    fail(build_wire(break_off(data, Exchange.hang)), TransportError)


@pytest.mark.parametrize(
    ("data", "end"),
    [
        pytest.param(build_head("200 OK", {"Content-Length": str(10**12)}), Exchange.hang, id="announced"),
        pytest.param(build_head("200 OK", {"Content-Length": str(len(BIG))}) + BIG, Exchange.hang, id="length"),
        pytest.param(IN_CHUNKS + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BIG), BIG), Exchange.hang, id="chunk"),
        pytest.param(IN_CHUNKS + b"400\r\n%b\r\n" % (b" " * 1024) * 2000, Exchange.hang, id="chunks"),
        pytest.param(IN_CHUNKS + b"8\r\n        \r\n" * 200_000, Exchange.hang, id="tiny-chunks"),
        pytest.param(build_head("200 OK", {}) + BIG, Exchange.close, id="until-the-end"),
        pytest.param(build_head("200 OK", {}) + BIG * 2, Exchange.hang, id="without-an-end"),
        pytest.param(
            build_head("200 OK", {"Content-Encoding": "gzip", "Connection": "close"}) + gzip.compress(BIG),
            Exchange.close,
            id="gzip",
        ),
    ],
)
def test_an_answer_above_the_limit_is_refused(data, end, build_wire):
    """One byte more than 1 MiB is an InvalidResponseError, however it comes."""
    error = fail(build_wire(break_off(data, end)), InvalidResponseError)
    assert str(error) == "MoEngage's answer is larger than 1048576 bytes"


@pytest.mark.parametrize("body", [b"{}", gzip.compress(b"{}")[:-9]], ids=["not", "half"])
def test_an_answer_that_is_not_compressed_as_it_says(body, build_wire):
    """It cannot be used; the connection is in order."""
    wire = build_wire(lambda exchange: exchange.reply(body, headers={"Content-Encoding": "gzip"}))
    for _ in range(2):
        with pytest.raises(InvalidResponseError, match="not one whole gzip stream"):
            receive(wire.ask())
    assert wire.server.connections == 1


@pytest.mark.parametrize(
    "behave",
    [
        pytest.param(Exchange.reset, id="reset"),
        pytest.param(break_off(build_head("200 OK", {"Content-Length": "99"}) + b"Wanda", Exchange.close), id="half"),
        pytest.param(break_off(IN_CHUNKS + b"99\r\nWanda", Exchange.close), id="half-chunk"),
        pytest.param(break_off(IN_CHUNKS + b"Wanda\r\n", Exchange.hang), id="no-size"),
        pytest.param(lambda exchange: exchange.reply(b"Wanda" * MAX_BYTES), id="oversize"),
        pytest.param(break_off(b"Wanda\r\n\r\n", Exchange.close), id="not-http"),
        pytest.param(break_off(b"HTTP/1.1 200 OK\r\nWanda\r\n\r\n", Exchange.close), id="no-header"),
        pytest.param(lambda exchange: exchange.reply(b"Wanda", headers={"Content-Encoding": "gzip"}), id="not-gzip"),
    ],
)
def test_an_error_report_shows_no_secret_and_nobody(behave: Callable[[Exchange], None], build_wire):
    """Along the whole chain, messages and locals hold neither the key nor the visitor nor the answer."""
    exchange = build_wire(behave).ask()
    with pytest.raises((TransportError, InvalidResponseError)) as caught:
        receive(exchange)
    shown = describe_report(caught.value)
    assert "seconds = " in shown
    assert not [secret for secret in (SECRET, "czNjcmV0", "Wanda") if secret in shown]
    assert FETCH.body.decode() not in repr(exchange)


def test_an_exchange_that_failed_stays_over(build_wire):
    """Releasing it afterwards takes the connection from nobody."""
    wire = build_wire(Exchange.close)
    exchange = wire.ask()
    with pytest.raises(NotTakenError):
        receive(exchange)
    wire.warm()
    exchange.release()
    wait_until(wire.is_kept)
    assert wire.server.connections == 2
