"""SIGTERM under uvicorn. Real servers end in tests/services/test_delivery_exit.py."""

import signal
import subprocess
import sys
import threading

import pytest

from django_moe_personalize.delivery import thread
from django_moe_personalize.delivery.thread import close_before_sigterm
from tests.delivery.vendor import SOON


class Server:
    """A stand-in for uvicorn's server, whose method handles signals."""

    __module__ = "uvicorn.server"

    def __init__(self):
        self.seen = []

    def handle_exit(self, number, frame):
        self.seen.append("stopped")


@pytest.fixture
def handle(monkeypatch):
    """Pretend that uvicorn is loaded. Give a function that sets the handler of SIGTERM for this test."""
    monkeypatch.setitem(sys.modules, "uvicorn", sys)
    before = signal.getsignal(signal.SIGTERM)
    yield lambda handler: signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGTERM, before)


def test_default_signal_closes_first_and_is_raised_again(handle, monkeypatch):
    """uvicorn restores our handler and raises SIGTERM. Our handler closes the runtimes, then the process ends."""
    called = []
    handle(signal.SIG_DFL)
    close_before_sigterm()
    monkeypatch.setattr(thread, "reset_runtimes", lambda: called.append("closed"))
    monkeypatch.setattr(signal, "raise_signal", called.append)
    signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert called == ["closed", signal.SIGTERM]


def test_other_servers_threads_and_systems_are_left_alone(handle, monkeypatch):
    """Only uvicorn's handler is replaced, only in the main thread, and not on Windows, which can't delay a signal."""
    handle(signal.SIG_DFL)
    other_thread = threading.Thread(target=close_before_sigterm)
    other_thread.start()
    other_thread.join(SOON)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    handle(others := lambda number, frame: None)
    close_before_sigterm()
    assert signal.getsignal(signal.SIGTERM) is others
    monkeypatch.delattr(signal, "pthread_sigmask")
    handle(uvicorns := Server().handle_exit)
    close_before_sigterm()
    assert signal.getsignal(signal.SIGTERM) == uvicorns


def test_signal_is_blocked_before_uvicorn_hears_of_it(handle, monkeypatch):
    """At exit, the runtimes are closed first. Then the signal ends the process."""
    server, hooks = Server(), []
    monkeypatch.setattr(signal, "pthread_sigmask", lambda how, which: server.seen.append((how, which)))
    monkeypatch.setattr(thread.atexit, "register", lambda *call: hooks.insert(0, call))
    handle(server.handle_exit)
    close_before_sigterm()
    signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
    assert server.seen == [(signal.SIG_BLOCK, {signal.SIGTERM}), "stopped"]
    assert hooks == [(thread.reset_runtimes,), (signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGTERM})]


CAPTURED = """
import signal, sys
import uvicorn
from django_moe_personalize.delivery import thread

server = uvicorn.Server(uvicorn.Config("nowhere:app"))
thread.reset_runtimes = lambda: print("closed", server.should_exit, flush=True)
signal.signal(signal.SIGTERM, server.handle_exit)
thread.close_before_sigterm()
signal.raise_signal(signal.SIGTERM)
# As uvicorn does after its last request.
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.raise_signal(signal.SIGTERM)
print("the end", flush=True)
"""


def test_signal_that_uvicorn_handles_waits_until_the_runtimes_are_closed():
    """uvicorn's own handler still stops the server. Then the runtimes are closed, then the process ends."""
    process = subprocess.run([sys.executable, "-c", CAPTURED], capture_output=True, text=True, timeout=60, check=False)
    assert (process.stdout, process.returncode) == ("the end\nclosed True\n", -signal.SIGTERM), process.stderr
