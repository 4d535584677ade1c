"""Send pending events before SIGTERM ends a process under uvicorn.

Most servers turn the signal into a normal exit, so ``atexit`` is enough. uvicorn finishes its requests, restores
the handler that it found, and raises the signal again. By default this kills the process at once.
"""

from __future__ import annotations

import atexit
import signal
import sys
import threading
from types import FrameType
from typing import Any

from django_moe_personalize.runtime import reset_runtimes


def close_before_sigterm() -> None:
    """Close the runtimes when uvicorn stops for SIGTERM. The process still ends by that signal.

    Call it in the main thread, before uvicorn runs or while it runs. Otherwise, and under any other server, it
    does nothing.
    """
    is_main = threading.current_thread() is threading.main_thread()
    # Windows, where no process manager sends the signal, has no pthread_sigmask.
    if "uvicorn" not in sys.modules or not is_main or not hasattr(signal, "pthread_sigmask"):
        return
    handler = signal.getsignal(signal.SIGTERM)
    if handler is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _close_and_die)
        return
    # The server, if the handler is one of its methods.
    server = getattr(handler, "__self__", None)
    if any(kind.__module__.partition(".")[0] == "uvicorn" for kind in type(server).__mro__):
        _close_at_exit(handler)


def _close_and_die(number: int, frame: FrameType | None) -> None:
    """Handle the signal that uvicorn raises again: this is the handler that it found and restored."""
    reset_runtimes()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _close_at_exit(handler: Any) -> None:
    """Delay the signal that uvicorn raises until Python exits: uvicorn runs already, and will restore the default."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
        handler(number, frame)

    signal.signal(signal.SIGTERM, stop)
    # atexit runs its hooks in reverse order: first close, then let the signal through.
    atexit.register(signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGTERM})
    atexit.register(reset_runtimes)
