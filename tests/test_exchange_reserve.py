"""Which connections can be reserved for a call in two steps, and that nobody gets another's answer."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from django_moe_personalize.moengage.messages import Request
from django_moe_personalize.moengage.pools import TimedHTTPConnection, TimedHTTPPool
from django_moe_personalize.moengage.transport import RequestsTransport
from django_moe_personalize.resilience import Deadline
from tests.loopback import Exchange, Loopback
from tests.wire import FETCH, LONG, receive, wait_until

REPOSITORY = Path(__file__).parent.parent


def echo(exchange: Exchange) -> None:
    """Answer with what was asked."""
    exchange.reply(exchange.received.body)


# -- no connection to reserve


def test_nothing_to_reserve_before_the_first_call():
    """A connection would have to be made."""
    with Loopback(echo) as server:
        assert RequestsTransport(server.url).reserve() is None
    assert server.connections == 0


def test_nothing_to_reserve_behind_a_proxy():
    """Through a proxy every call takes one step."""
    with Loopback(echo) as proxy:
        transport = RequestsTransport("http://127.0.0.1:9/v1", proxies={"http": f"http://127.0.0.1:{proxy.port}"})
        assert transport.send(FETCH, deadline=Deadline(LONG)).body == FETCH.body
        assert transport.reserve() is None
        transport.close()


@pytest.mark.parametrize("maxsize", [1, 4])
def test_nothing_to_reserve_when_all_are_in_use(maxsize, build_wire):
    """A connection serves one exchange at a time."""
    wire = build_wire(echo, pool_maxsize=maxsize)
    exchange = wire.ask()
    assert wire.transport.reserve() is None
    assert receive(exchange).body == FETCH.body
    assert wire.is_kept()


def test_connection_that_is_one_too_many(build_wire, caplog):
    """What a rush of pages needed besides is closed, which is nothing to warn of."""
    wire = build_wire(echo, pool_maxsize=1)
    exchange = wire.ask()
    wire.warm()
    assert receive(exchange).body == FETCH.body
    assert exchange.fileno() == -1
    assert wire.is_kept()
    wire.warm()
    assert wire.server.connections == 2
    assert caplog.records == []


def test_nothing_to_reserve_after_closing(build_wire):
    """Closing forgets the kept connections, and the one that is out when it comes back."""
    wire = build_wire(echo)
    exchange = wire.ask()
    wire.transport.close()
    assert wire.transport.reserve() is None
    assert receive(exchange).body == FETCH.body
    assert wire.transport.reserve() is None
    wire.warm()
    assert wire.server.connections == 2


def test_closing_while_another_thread_reserves(build_wire):
    """Whoever has the connection at that moment gets the answer, and nobody has it afterwards."""
    wire = build_wire(echo)

    def close_once(frame: object, _event: str, _argument: object) -> None:
        if frame.f_code.co_name == "take_warm":
            sys.setprofile(None)
            wire.transport.close()

    sys.setprofile(close_once)
    exchange = wire.transport.reserve()
    assert sys.getprofile() is None
    assert exchange.send(FETCH)
    assert receive(exchange).body == FETCH.body
    assert not wire.is_kept()


def test_nothing_to_reserve_from_a_closed_pool():
    """It closes under whoever holds it, and what comes back is closed too."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pool = TimedHTTPPool("127.0.0.1", listener.getsockname()[1])
        connection = TimedHTTPConnection("127.0.0.1", listener.getsockname()[1])
        connection.connect()
        pool.give_back(None)
        pool.close()
        assert pool.take_warm() is None
        pool.give_back(connection)
        assert connection.sock is None


@pytest.mark.parametrize("end", ["drop", "reset"])
def test_nothing_to_reserve_when_the_server_went(end, build_wire):
    """A connection that is known to be dead is not handed out, and the next call makes a new one."""
    wire = build_wire(lambda exchange: (exchange.reply(b"{}"), exchange.reset()))
    if end == "reset":
        receive(wire.ask())
    else:
        wire.server.drop_connections()
    wait_until(lambda: not wire.is_kept())
    assert wire.warm().body == b"warm"
    assert wire.server.connections == 2


# -- who gets what


def test_threads_get_their_own_answers(build_wire):
    """Many threads, in one step and in two, releasing and closing: each reads the answer to its own request."""
    wire = build_wire(echo, pool_maxsize=4)

    def ask(number: int) -> bool:
        request = Request("POST", "/echo", body=f"visitor {number}".encode() * 20)
        if number % 50 == 0:
            wire.transport.close()
        exchange = wire.transport.reserve()
        if exchange is None or not exchange.send(request):
            return wire.transport.send(request, deadline=Deadline(LONG)).body == request.body
        if number % 7 == 0:
            exchange.release()
            return True
        return receive(exchange).body == request.body

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(800)))


FORKING = """
    import os, sys
    from django_moe_personalize.moengage.messages import Request
    from django_moe_personalize.moengage.transport import RequestsTransport
    from django_moe_personalize.resilience import Deadline

    url, ca_file = sys.argv[1], sys.argv[2]
    transport = RequestsTransport(url, verify=ca_file or True)

    def ask(name, is_warm=True):
        body = name.encode()
        request = Request("POST", "/echo", body=body)
        exchange = transport.reserve()
        if (exchange is not None) is not is_warm:
            print(name, exchange, file=sys.stderr)
            return True
        if exchange is None:
            return transport.send(request, deadline=Deadline(20)).body != body
        return not exchange.send(request) or exchange.receive(20.0).body != body

    failed = ask("first", is_warm=False)
    children = []
    for number in range(4):
        pid = os.fork()
        if not pid:
            os._exit(any([ask(f"child {number}, call {turn}", turn > 0) for turn in range(40)]))
        children.append(pid)
    failed |= any([ask(f"parent, call {turn}") for turn in range(40)])
    failed |= any([os.waitpid(pid, 0)[1] != 0 for pid in children])
    failed |= ask("parent, after its children ended")
    sys.exit(failed)
"""


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
def test_a_child_reserves_nothing_of_its_parents(over_tls, tls_ends):
    """After a fork each process has connections of its own, and 202 answers go where they belong."""
    with Loopback(echo, tls=tls_ends.context if over_tls else None) as server:
        program = [
            sys.executable,
            "-c",
            textwrap.dedent(FORKING),
            server.url,
            str(tls_ends.ca_file) if over_tls else "",
        ]
        done = subprocess.run(program, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(server.received) == 202
        assert server.connections == 5
