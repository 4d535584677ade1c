"""Close the deliveries of a process before the process ends, in each way in which Python code can still run.

``atexit`` covers a process that ends normally. These processes end without ``atexit``:

- Children that end with ``os._exit``: those of ``multiprocessing`` and granian, the workers of RQ and Celery.
- A process that replaces itself with another program (``os.execv``), for example to load changed code.
- A process without a handler for SIGTERM or SIGHUP: a command, waitress, cheroot, a child that its parent terminates.
- uvicorn, which raises SIGTERM again after its last request, and uWSGI with gevent.

A process that gets SIGKILL or crashes runs no more code.
"""

from __future__ import annotations

import atexit
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from django_moe_personalize.conf import ConfigurationError
from django_moe_personalize.runtime import call_in_children, chain_uwsgi_hook, reset_runtimes, start_ending

if TYPE_CHECKING:
    from django_moe_personalize.delivery.thread import ThreadDelivery

NO_THREADS = "uWSGI runs this process without threads, so events are sent only when the process ends"
THREADS_HINT = "Give uWSGI the option enable-threads (or threads), or choose another DELIVERY."

_deliveries: WeakSet[ThreadDelivery] = WeakSet()
"""The deliveries that hold events in memory."""

_hooks_are_set = False


def close_at_exit(delivery: ThreadDelivery) -> None:
    """Close ``delivery`` before this process ends.

    Only a call in the main thread can set signal handlers. A server's main thread builds the middleware, which builds
    the delivery.
    """
    global _hooks_are_set
    _deliveries.add(delivery)
    if threading.current_thread() is threading.main_thread():
        _handle_signals()
    if not _hooks_are_set:
        _hooks_are_set = True
        atexit.register(_end)
        chain_uwsgi_hook("atexit", close_deliveries)
        call_in_children(_start_in_child)
        for name in ("_exit", "execv", "execve"):
            setattr(os, name, _close_before(getattr(os, name)))


def start_lookup_thread() -> None:
    """Under gevent, start a real thread for DNS lookups now, because Python starts no new thread at its end."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        sys.modules["gevent"].get_hub().threadpool.spawn(int)


def close_deliveries() -> None:
    """Close all deliveries of this process, at the same time: a site with several workspaces has several."""
    found = list(_deliveries)
    for delivery in found:
        delivery.start_closing()
    for delivery in found:
        delivery.close()


def _end() -> None:
    start_ending()
    close_deliveries()


def _start_in_child() -> None:
    for delivery in list(_deliveries):
        # A delivery may belong to a workspace that the settings have no longer. It must not stop the others.
        with suppress(ConfigurationError):
            delivery.start_in_child()


def _close_before(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def close_first(*args: Any, **kwargs: Any) -> Any:
        try:
            close_deliveries()
            call(*args, **kwargs)
        finally:
            # Without such a program, os.execv() raises an error, and the process goes on with a new delivery.
            reset_runtimes()

    return close_first


def _handle_signals() -> None:
    """Let SIGTERM and SIGHUP close the deliveries first, if they would end this process immediately."""
    # These servers handle signals in C, and Python doesn't know about it.
    if "uwsgi" in sys.modules or "mod_wsgi" in sys.modules:
        return
    for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
        handler = signal.getsignal(number)
        if handler is signal.SIG_DFL:
            signal.signal(number, _close_and_die)
        elif _is_uvicorns(handler):
            _delay(number, handler)


def _close_and_die(number: int, frame: FrameType | None) -> None:
    """Close the deliveries, then let the signal end the process. uvicorn raises SIGTERM again, for this handler."""
    gevent = sys.modules.get("gevent")
    if gevent is not None and gevent.getcurrent() is gevent.get_hub():
        # The hub switches between the greenlets, so it can't wait for one.
        gevent.spawn(_close_and_die, number, None)
        return
    close_deliveries()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _is_uvicorns(handler: Any) -> bool:
    # If the handler is a method of uvicorn's server, this is the server. Windows has no pthread_sigmask.
    server = getattr(handler, "__self__", None)
    kinds = type(server).__mro__ if hasattr(signal, "pthread_sigmask") else ()
    return any(kind.__module__.partition(".")[0] == "uvicorn" for kind in kinds)


def _delay(number: int, handler: Any) -> None:
    """Delay a signal until Python ends. uvicorn will restore the default handler, which ends the process."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        handler(number, frame)

    signal.signal(number, stop)
    # atexit calls these functions in reverse order: it closes the deliveries, and then lets the signal through.
    atexit.register(signal.pthread_sigmask, signal.SIG_UNBLOCK, {number})
    atexit.register(_end)


def runs_without_threads() -> bool:
    """Whether this process runs under uWSGI without threads, as uWSGI does by default."""
    try:
        options = import_module("uwsgi").opt
    except ImportError:
        return False
    said = options.get("enable-threads", b"false")
    return "threads" not in options and said in (False, b"false", b"0", b"no", b"off")
