"""Ways in which a process ends. Real servers and queues end in tests/services/test_delivery_exit.py."""

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from django_moe_personalize import runtime
from django_moe_personalize.delivery import exits
from django_moe_personalize.delivery.base import DeliveryCounts
from tests.delivery.events import make_events
from tests.delivery.vendor import SOON, run_script
from tests.processes import in_child


@pytest.mark.parametrize(
    ("way", "code", "later"),
    [
        ("return", 0, 0),
        ("exit", 0, 0),
        ("error", 1, 0),
        ("interrupt", -signal.SIGINT, 0),
        ("SIGTERM", -signal.SIGTERM, 0),
        ("SIGHUP", -signal.SIGHUP, 0),
        ("exec", 0, 0),
        ("thread", 0, 1),
        ("atexit", 0, 1),
        ("os.fork", 0, 10),
        ("fork", 0, 40),
        ("forkserver", 0, 20),
        ("spawn", 0, 20),
    ],
)
def test_a_process_delivers_its_events_before_it_ends(vendor, way, code, later):
    """The script delivers 120 events, and its threads, functions and children deliver the later ones: each once."""
    returncode, errors, _ = run_script(vendor, way, 120)
    assert (returncode, vendor.taken.total(), len(vendor.taken)) == (code, 120 + later, 120 + later), errors


class Server:
    """A stand-in for uvicorn's server, whose method handles signals."""

    __module__ = "uvicorn.server"

    def __init__(self):
        self.seen = []

    def handle_exit(self, number, frame):
        self.seen.append("stopped")


@pytest.fixture(params=[signal.SIGTERM, signal.SIGHUP])
def number(request):
    """Give a signal, and restore its handler after the test."""
    before = signal.getsignal(request.param)
    yield request.param
    signal.signal(request.param, before)


@pytest.fixture
def closed(monkeypatch):
    """Collect what happens instead of the end of this process."""
    called = []
    monkeypatch.setattr(exits, "close_deliveries", lambda: called.append("closed"))
    monkeypatch.setattr(signal, "raise_signal", called.append)
    return called


def test_a_signal_without_a_handler_closes_first_and_is_raised_again(number, closed):
    """The deliveries are closed, then the signal ends the process, as without the package."""
    signal.signal(number, signal.SIG_DFL)
    exits._handle_signals()
    signal.getsignal(number)(number, None)
    assert signal.getsignal(number) is signal.SIG_DFL
    assert closed == ["closed", number]


def test_a_signal_in_gevents_hub_is_handled_in_a_greenlet(number, closed, monkeypatch):
    """The hub can't wait, so the handler returns to the hub and continues in a new greenlet."""
    hub, spawned = object(), []
    current = [hub]
    gevent = SimpleNamespace(getcurrent=current.pop, get_hub=lambda: hub, spawn=lambda *call: spawned.append(call))
    monkeypatch.setitem(sys.modules, "gevent", gevent)
    exits._close_and_die(number, None)
    assert closed == []
    gevent.getcurrent = object
    ((call, *arguments),) = spawned
    call(*arguments)
    assert closed == ["closed", number]


@pytest.mark.parametrize("case", ["handler", "uWSGI", "mod_wsgi", "another thread", "Windows"])
def test_other_handlers_servers_threads_and_systems_are_left_alone(case, number, build, monkeypatch):
    """Only the default handler and uvicorn's are replaced, only in the main thread, and only where Python sees them."""
    handler = signal.SIG_DFL
    if case == "handler":
        handler = lambda number, frame: None  # noqa: E731 - compared below
    elif case == "Windows":
        monkeypatch.delattr(signal, "pthread_sigmask")
        handler = Server().handle_exit
    elif case != "another thread":
        monkeypatch.setitem(sys.modules, case.lower(), SimpleNamespace())
    signal.signal(number, handler)
    if case == "another thread":
        other = threading.Thread(target=build)
        other.start()
        other.join(SOON)
    else:
        exits._handle_signals()
    assert signal.getsignal(number) == handler


def test_signal_is_blocked_before_uvicorn_hears_of_it(number, monkeypatch):
    """At exit, the deliveries are closed first. Then the signal ends the process."""
    server, hooks = Server(), []
    monkeypatch.setattr(signal, "pthread_sigmask", lambda how, which: server.seen.append((how, which)))
    monkeypatch.setattr(exits.atexit, "register", lambda *call: hooks.insert(0, call))
    signal.signal(number, server.handle_exit)
    exits._handle_signals()
    signal.getsignal(number)(number, None)
    assert server.seen == [(signal.SIG_BLOCK, {number}), "stopped"]
    assert hooks[:2] == [(exits._end,), (signal.pthread_sigmask, signal.SIG_UNBLOCK, {number})]


CAPTURED = """
import signal, sys
import uvicorn
from django_moe_personalize.delivery import exits

server = uvicorn.Server(uvicorn.Config("nowhere:app"))
exits.close_deliveries = lambda: print("closed", server.should_exit, flush=True)
signal.signal(signal.SIGTERM, server.handle_exit)
exits._handle_signals()
signal.raise_signal(signal.SIGTERM)
# As uvicorn does after its last request.
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.raise_signal(signal.SIGTERM)
print("the end", flush=True)
"""


def test_signal_that_uvicorn_handles_waits_until_the_deliveries_are_closed():
    """uvicorn's own handler still stops the server. Then the deliveries are closed, then the process ends."""
    process = subprocess.run([sys.executable, "-c", CAPTURED], capture_output=True, text=True, timeout=60, check=False)
    assert (process.stdout, process.returncode) == ("the end\nclosed True\n", -signal.SIGTERM), process.stderr


def test_exec_that_fails_leaves_a_process_that_delivers(configure, vendor):
    """The events are sent before the other program would replace the process. Later events get a new delivery."""
    delivery = configure("thread.ThreadDelivery", interval=600.0)
    delivery.record(make_events(2))
    with pytest.raises(FileNotFoundError):
        os.execv("/nowhere/program", ["program"])  # noqa: S606 - there is no such program
    assert vendor.taken.total() == 2
    assert delivery.counts() == DeliveryCounts(accepted=2, delivered=2)
    assert configure("thread.ThreadDelivery") is not delivery


def test_a_child_forgets_the_events_of_its_parent(build, vendor):
    """A child that still holds the parent's delivery sends its own events before os._exit(), and only these."""
    delivery = build()
    parents, children = make_events(2), make_events(3)
    delivery.record(parents)

    def record():
        delivery.record(children)
        return delivery.counts() == DeliveryCounts(accepted=3, pending=3)

    assert in_child(record)
    assert vendor.taken == {event.event_uuid: 1 for event in children}
    assert delivery.flush(SOON) == DeliveryCounts(accepted=2, delivered=2)


@pytest.mark.parametrize("pid", ["parent", "child"])
def test_uwsgi_calls_our_hooks_after_the_sites_hooks(pid, monkeypatch):
    """uWSGI has one function for each hook. Our hook for forks does nothing in a process that didn't fork."""
    called = []
    uwsgi = SimpleNamespace(atexit=lambda: called.append("site"))
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    monkeypatch.setattr(os, "register_at_fork", lambda **hooks: None)
    runtime.chain_uwsgi_hook("atexit", lambda: called.append("ours"))
    runtime.call_in_children(lambda: called.append("forked"))
    uwsgi.atexit()
    if pid == "child":
        monkeypatch.setattr(os, "getpid", lambda: -1)
    uwsgi.post_fork_hook()
    assert called == ["site", "ours", *(["forked"] if pid == "child" else [])]


@pytest.mark.parametrize("is_patched", [True, False])
def test_gevent_gets_its_thread_for_lookups_early(is_patched, monkeypatch):
    """With gevent's threads, the first event starts the real thread that looks names up."""
    spawned = []
    monkey = SimpleNamespace(is_module_patched=lambda name: is_patched)
    pool = SimpleNamespace(spawn=spawned.append)
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    monkeypatch.setitem(sys.modules, "gevent", SimpleNamespace(get_hub=lambda: SimpleNamespace(threadpool=pool)))
    exits.start_lookup_thread()
    assert len(spawned) == is_patched
