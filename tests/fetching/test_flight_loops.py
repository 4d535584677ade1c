"""Flights in event loops, which may end at any moment, and in processes that fork."""

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from django_moe_personalize.testing import override_personalize
from tests.conftest import settle
from tests.fetching.asking import Asked
from tests.fetching.warm_vendor import KEYS, SOON, VISITOR, build_visitor
from tests.loopback import Loopback
from tests.wire import LONG, wait_readable, wait_until

REPOSITORY = Path(__file__).parents[2]


async def start_reading(count=1, seconds=LONG):
    """Return tasks that wait for one answer, and the flight. The first task reads."""
    asked = [Asked(VISITOR, KEYS) for _ in range(count)]
    tasks = [asyncio.create_task(one.ajoin(seconds)) for one in asked]
    await asyncio.sleep(0)
    assert asked[0].flight._turn.locked()
    return tasks, asked[0].flight


@pytest.mark.parametrize("way", ["cancelled", "timeout"])
def test_task_that_is_cancelled(vendor, heard, submitted, way):
    """The loop stops watching the connection, and a thread reads the answer for later pages."""

    async def read():
        (task,), flight = await start_reading(seconds=LONG if way == "cancelled" else 0.01)
        fileno = flight._exchange.fileno()
        if way == "cancelled":
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() == (way == "cancelled")
        assert not asyncio.get_running_loop().remove_reader(fileno)

    with vendor.hold():
        asyncio.run(read())
    settle()
    assert Asked(VISITOR, KEYS).done
    assert vendor.has_idle_connection()
    assert (heard, submitted) == (["success"], ["_read_on"])


def test_one_task_of_several_is_cancelled(vendor):
    """The other tasks still get the answer."""

    async def read():
        (first, *others), _ = await start_reading(3)
        first.cancel()
        await asyncio.wait([first])
        vendor.go_on.set()
        return await asyncio.gather(*others)

    with vendor.hold():
        assert [answer.keys() for answer in asyncio.run(read())] == [{"hero-banner"}] * 2
    assert len(vendor.fetches) == 1


def test_response_that_arrives_as_the_task_is_cancelled(vendor):
    """The response and the timeout may come in the same step of the event loop. The loop reports no error."""
    errors = []

    async def read():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: errors.append(context))
        with vendor.hold():
            (task,), flight = await start_reading()
        # The loop stands still until the response has arrived.
        wait_readable(flight._exchange)
        loop.call_soon(task.cancel)
        await asyncio.wait([task])
        await asyncio.sleep(0)
        return task.cancelled()

    assert asyncio.run(read())
    assert errors == []


@pytest.mark.parametrize("end", ["cancelled", "closed"])
def test_loop_that_stands_still(vendor, submitted, caplog, end):
    """A stopped event loop delays other pages until their deadlines at most, and then keeps no thread."""
    loop = asyncio.new_event_loop()
    with override_personalize(DEADLINE=SOON), vendor.hold():
        vendor.warm()
        asked, other = Asked(VISITOR, KEYS), Asked(VISITOR, KEYS)
        task = loop.create_task(asked.ajoin(LONG))
        loop.run_until_complete(asyncio.sleep(0))
        assert other.join(0.01) == {}
        settle()
        assert not asked.done
        if end == "cancelled":
            task.cancel()
            loop.run_until_complete(asyncio.wait([task]))
        loop.close()
        # asyncio reports a task that is destroyed while it is pending.
        task._log_destroy_pending = False
        del task
        gc.collect()
        settle()
    assert asked.done
    assert submitted[0] == "_read_on"
    assert "can't watch sockets" not in caplog.text


def test_answer_after_the_loop_is_closed(vendor, caplog):
    """A page whose loop has ended leaves nothing that fails when the answer comes to the flight's thread."""
    vendor.transport.close()
    with vendor.hold():
        asked = Asked(VISITOR, KEYS)
        assert asyncio.run(asked.ajoin(0.01)) == {}
    settle()
    assert asked.done
    assert [record for record in caplog.records if record.name == "concurrent.futures"] == []


@pytest.mark.parametrize("error", [NotImplementedError, ValueError], ids=lambda error: error.__name__)
def test_loop_that_cannot_watch_sockets(vendor, submitted, caplog, error):
    """If the event loop can't watch sockets, threads read for its pages. The log tells this once."""

    class Loop(asyncio.SelectorEventLoop):
        def add_reader(self, *args):
            raise error

    async def read():
        return [await Asked(build_visitor(number), KEYS).ajoin(LONG) for number in range(2)]

    with asyncio.Runner(loop_factory=Loop) as runner:
        answers = runner.run(read())
    assert [answer.keys() for answer in answers] == [{"hero-banner"}] * 2
    assert submitted == ["_read_on"] * 2
    assert caplog.text.count("can't watch sockets") == 1


def test_two_loops_share_one_call(vendor, submitted):
    """Async pages in several threads, each with its own loop, get the answer that one of them reads."""
    with ThreadPoolExecutor(2) as pool, vendor.hold():
        asked = [Asked(VISITOR, KEYS) for _ in range(2)]
        answers = [pool.submit(asyncio.run, one.ajoin(LONG)) for one in asked]
        wait_until(asked[0].flight._turn.locked)
        vendor.go_on.set()
        assert [answer.result().keys() for answer in answers] == [{"hero-banner"}] * 2
    assert (len(vendor.fetches), submitted) == (1, [])


FORKING = """
    import os, sys
    import django
    django.setup()
    from django_moe_personalize.client import get_client
    from django_moe_personalize.moengage.client import PersonalizeClient
    from django_moe_personalize.moengage.transport import RequestsTransport
    from tests.fetching.asking import Asked
    from tests.fetching.warm_vendor import build_visitor

    def ask(number):
        answer = Asked(build_visitor(number), ["hero"]).join(20.0)
        return not answer or answer["hero"]["Title"] != f"visitor-{number}"

    transport = RequestsTransport(sys.argv[1], verify=sys.argv[2] or True)
    with get_client.override(PersonalizeClient(workspace_id="W", api_key="k", transport=transport)):
        failed = ask(0)
        # A page of the parent has sent its request and not read the response.
        pending = Asked(build_visitor(1), ["hero"])
        children = []
        for child in range(1, 4):
            pid = os.fork()
            if not pid:
                os._exit(any([ask(child * 1000 + number) for number in range(20)]))
            children.append(pid)
        failed |= pending.join(20.0)["hero"]["Title"] != "visitor-1"
        failed |= any([ask(100 + number) for number in range(20)])
        failed |= any([os.waitpid(pid, 0)[1] != 0 for pid in children])
        failed |= ask(200)
    sys.exit(failed)
"""


@pytest.mark.parametrize("over_tls", [False, True], ids=["plain", "tls"])
def test_fork_with_an_idle_connection(over_tls, tls_ends):
    """Parent and children of a warm process get each visitor's own answers, each process over its own connection."""

    def name(exchange):
        customer = exchange.received.body.split(b'"customer_id":"')[1].split(b'"')[0]
        exchange.reply(b'{"experiences": {"hero": {"payload": {"Title": "%b"}}}}' % customer)

    with Loopback(name, tls=tls_ends.context if over_tls else None) as server:
        program = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(FORKING), server.url]
        program.append(str(tls_ends.ca_file) if over_tls else "")
        environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
        options = {"cwd": REPOSITORY, "env": environment, "capture_output": True, "text": True, "timeout": 100}
        done = subprocess.run(program, check=False, **options)
        assert (done.returncode, done.stderr) == (0, "")
        assert (len(server.received), server.connections) == (83, 4)
