"""Questions in two steps away from the thread that asked: in event loops, and in processes that fork."""

import asyncio
import itertools
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from django_moe_personalize.testing import override_personalize
from tests.conftest import settle
from tests.fetching.asking import Asked
from tests.fetching.warm_vendor import build_visitor
from tests.loopback import Loopback
from tests.wire import LONG, wait_readable, wait_until

REPOSITORY = Path(__file__).parents[2]
KEYS = ("hero-banner",)
VISITOR = build_visitor()
SOON = 0.2
MARGIN = 0.75


# -- event loops


def test_event_loop_goes_on(vendor, submitted):
    """While a vendor takes a second everything else of the process runs, and no thread waits."""

    async def beat(beats):
        while True:
            await asyncio.sleep(0.005)
            beats.append(time.monotonic())

    async def read():
        beats = [time.monotonic()]
        heart = asyncio.create_task(beat(beats))
        answer = await Asked(VISITOR, KEYS).ajoin(LONG)
        heart.cancel()
        return answer, beats

    vendor.behave = lambda exchange: (time.sleep(1.0), vendor.reply(exchange))
    answer, beats = asyncio.run(read())
    assert answer.keys() == {"hero-banner"}
    assert beats[-1] - beats[0] > MARGIN
    assert max(after - before for before, after in itertools.pairwise(beats)) < MARGIN
    assert submitted == []


@pytest.mark.parametrize("way", ["cancelled", "timeout"])
def test_task_that_is_cancelled(vendor, heard, submitted, way):
    """The loop no longer watches the connection, and a thread reads the answer for whoever comes."""

    async def read():
        question = Asked(VISITOR, KEYS)
        fileno = question.flight._exchange.fileno()
        task = asyncio.create_task(question.ajoin(LONG if way == "cancelled" else SOON / 4))
        await asyncio.sleep(SOON / 2)
        if way == "cancelled":
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() == (way == "cancelled")
        assert not asyncio.get_running_loop().remove_reader(fileno)

    with vendor.hold():
        asyncio.run(read())
    settle()
    assert Asked(VISITOR, KEYS).done
    assert vendor.is_kept()
    assert (heard, submitted) == (["success"], ["_read_on"])


def test_one_task_of_several_is_cancelled(vendor):
    """The others get the answer all the same."""

    async def read():
        tasks = [asyncio.create_task(Asked(VISITOR, KEYS).ajoin(LONG)) for _ in range(3)]
        await asyncio.sleep(SOON / 4)
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        vendor._go_on.set()
        return await asyncio.gather(*tasks[1:])

    with vendor.hold():
        assert [answer.keys() for answer in asyncio.run(read())] == [{"hero-banner"}] * 2
    assert len(vendor.fetches) == 1


def test_answer_that_comes_as_the_task_is_cancelled(vendor):
    """Both at once is no error of the loop."""

    async def read():
        loop = asyncio.get_running_loop()
        errors = []
        loop.set_exception_handler(lambda loop, context: errors.append(context))
        with vendor.hold():
            question = Asked(VISITOR, KEYS)
            task = asyncio.create_task(question.ajoin(LONG))
            await asyncio.sleep(SOON / 4)
        # The loop stands still until the answer is there, so that it finds both in one go.
        wait_readable(question.flight._exchange)
        loop.call_soon(task.cancel)
        await asyncio.wait([task])
        await asyncio.sleep(SOON / 4)
        return task.cancelled(), errors

    assert asyncio.run(read()) == (True, [])


def test_event_loop_that_stands_still_keeps_no_thread(vendor, submitted):
    """A loop that nobody runs any more holds the answer up until the deadline, and no thread any longer."""
    loop = asyncio.new_event_loop()
    with override_personalize(DEADLINE=1.0), vendor.hold():
        vendor.warm()
        question, other = Asked(VISITOR, KEYS), Asked(VISITOR, KEYS)
        task = loop.create_task(question.ajoin(LONG))
        loop.run_until_complete(asyncio.sleep(SOON / 4))
        start = time.monotonic()
        assert other.join(SOON / 4) == {}
        settle()
        assert time.monotonic() - start < 1.0 + MARGIN
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
        settle()
    loop.close()
    assert submitted[0] == "_read_on"
    assert question.done


@pytest.mark.parametrize("error", [NotImplementedError, ValueError], ids=lambda error: error.__name__)
def test_event_loop_that_cannot_watch_sockets(vendor, submitted, caplog, error):
    """A thread reads instead, and the log says so once."""

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


def test_poll_takes_in_what_has_come(vendor, submitted):
    """It says whether the answer is there, waits for nothing, and does nothing once it is."""
    with vendor.hold():
        question = Asked(VISITOR, KEYS)
        assert not question.poll()
    vendor.wait_for_answers(1)
    wait_until(question.poll)
    assert question.poll()
    assert question.join(0.0).keys() == {"hero-banner"}
    assert Asked(VISITOR, KEYS).poll()
    assert submitted == []


# -- forks


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

    transport = RequestsTransport(sys.argv[1])
    with get_client.override(PersonalizeClient(workspace_id="W", api_key="k", transport=transport)):
        failed = ask(0)
        # Before the fork a page has asked and not read.
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
    sys.exit(failed)
"""


def test_fork_with_a_kept_connection(tmp_path):
    """Parent and children of a warm process get 82 answers, each visitor their own, over a connection each."""

    def name(exchange):
        customer = exchange.received.body.split(b'"customer_id":"')[1].split(b'"')[0]
        exchange.reply(b'{"experiences": {"hero": {"payload": {"Title": "%b"}}}}' % customer)

    with Loopback(name) as server:
        program = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(FORKING), server.url]
        environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
        options = {"cwd": REPOSITORY, "env": environment, "capture_output": True, "text": True, "timeout": 60}
        done = subprocess.run(program, check=False, **options)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(server.received) == 82
        assert server.connections == 4
