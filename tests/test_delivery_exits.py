"""Whose SIGTERM is waited for, and whose is left alone; real servers end in tests/services/test_delivery_exit.py."""

import signal
import subprocess
import sys
import threading

from django_moe_personalize.delivery import exits
from django_moe_personalize.delivery.exits import close_before_sigterm
from tests.delivery_vendor import SOON


def ignore(number, frame):
    """Be somebody's handler."""


def test_default_signal_closes_first_and_is_raised_again(monkeypatch):
    """What uvicorn puts back and raises is ours: it closes, and leaves the rest to the default."""
    called = []
    monkeypatch.setitem(sys.modules, "uvicorn", sys)
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        close_before_sigterm(lambda: called.append("closed"))
        monkeypatch.setattr(signal, "raise_signal", called.append)
        signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert called == ["closed", signal.SIGTERM]


def test_signals_of_other_servers_and_threads_are_left_alone(monkeypatch):
    """Nobody's handler is replaced but uvicorn's, and only in the main thread, where Python allows it."""
    monkeypatch.setitem(sys.modules, "uvicorn", sys)
    handler = signal.signal(signal.SIGTERM, ignore)
    close_before_sigterm(print)
    thread = threading.Thread(target=close_before_sigterm, args=(print,))
    thread.start()
    thread.join(SOON)
    assert signal.signal(signal.SIGTERM, handler) is ignore


def test_windows_has_no_signal_to_wait_for(monkeypatch):
    """Where signals cannot be put off, uvicorn's handler is left as it is."""
    monkeypatch.setitem(sys.modules, "uvicorn", sys)
    monkeypatch.delattr(signal, "pthread_sigmask")
    monkeypatch.setattr(exits, "_find_kinds", lambda handler: (type("Server", (), {"__module__": "uvicorn"}),))
    handler = signal.signal(signal.SIGTERM, ignore)
    close_before_sigterm(print)
    assert signal.signal(signal.SIGTERM, handler) is ignore


CAPTURED = """
import signal, sys
import uvicorn
from django_moe_personalize.delivery.exits import close_before_sigterm

server = uvicorn.Server(uvicorn.Config("nowhere:app"))
signal.signal(signal.SIGTERM, server.handle_exit)
close_before_sigterm(lambda: print("closed", server.should_exit, flush=True))
signal.raise_signal(signal.SIGTERM)
# What uvicorn does when its requests are finished.
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.raise_signal(signal.SIGTERM)
print("the end", flush=True)
"""


def test_signal_that_uvicorn_has_taken_waits_until_all_is_closed():
    """Where uvicorn's own handler is there already, it still stops the server; then all is closed, then the end."""
    process = subprocess.run([sys.executable, "-c", CAPTURED], capture_output=True, text=True, timeout=60, check=False)
    assert (process.stdout, process.returncode) == ("the end\nclosed True\n", -signal.SIGTERM), process.stderr


class Server:
    """What uvicorn's handler is a method of."""

    __module__ = "uvicorn.server"

    def __init__(self):
        self.seen = []

    def handle_exit(self, number, frame):
        """Note that the signal came."""
        self.seen.append("stopped")


def test_signal_is_put_off_before_uvicorn_is_told(monkeypatch):
    """The signal is blocked first; at the end all is closed first, and only then may the signal end the process."""
    server, last = Server(), []
    monkeypatch.setitem(sys.modules, "uvicorn", sys)
    monkeypatch.setattr(signal, "pthread_sigmask", lambda how, which: server.seen.append((how, which)))
    monkeypatch.setattr(exits.atexit, "register", lambda *call: last.insert(0, call))
    handler = signal.signal(signal.SIGTERM, server.handle_exit)
    try:
        close_before_sigterm(ignore)
        signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert server.seen == [(signal.SIG_BLOCK, {signal.SIGTERM}), "stopped"]
    assert last == [(ignore,), (signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGTERM})]
