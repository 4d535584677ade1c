"""The end of a process on SIGTERM: what it holds has to be sent first.

Most servers turn the signal into an exit, and ``atexit`` does the rest. uvicorn finishes its
requests, puts the handler back that it found, and raises the signal again: by default the process
dies there and then.
"""

from __future__ import annotations

import atexit
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


def close_before_sigterm(close: Callable[[], None]) -> None:
    """Let ``close`` run when uvicorn stops for SIGTERM, and the process end by that signal all the same.

    To be called in the main thread, before the server runs or while it does; anywhere else, and
    under any other server, it does nothing.
    """
    if "uvicorn" not in sys.modules or threading.current_thread() is not threading.main_thread():
        return
    if not hasattr(signal, "pthread_sigmask"):
        # Windows, where nothing sends the signal either.
        return
    handler = signal.getsignal(signal.SIGTERM)
    if handler is signal.SIG_DFL:
        _close_when_raised(close)
    elif any(kind.__module__.partition(".")[0] == "uvicorn" for kind in _find_kinds(handler)):
        _close_at_exit(close, handler)


def _find_kinds(handler: Any) -> tuple[type, ...]:
    """Return the classes of the object whose method a handler is."""
    return type(getattr(handler, "__self__", None)).__mro__


def _close_when_raised(close: Callable[[], None]) -> None:
    """Be what uvicorn finds, puts back, and raises the signal for."""

    def die(number: int, frame: FrameType | None) -> None:
        close()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    signal.signal(signal.SIGTERM, die)


def _close_at_exit(close: Callable[[], None], handler: Any) -> None:
    """Make the signal that uvicorn raises wait for the end of Python: uvicorn runs, and found nobody's handler."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        handler(number, frame)

    signal.signal(signal.SIGTERM, stop)
    # The last to be registered is the first to run.
    atexit.unregister(close)
    atexit.register(signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGTERM})
    atexit.register(close)
