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
    if "uvicorn" not in sys.modules or threading.current_thread() is not threading.main_thread():
        return
    if not hasattr(signal, "pthread_sigmask"):
        # Windows, where no process manager sends the signal.
        return
    handler = signal.getsignal(signal.SIGTERM)
    if handler is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _close_and_die)
    elif any(kind.__module__.partition(".")[0] == "uvicorn" for kind in _find_classes(handler)):
        _close_at_exit(handler)


def _find_classes(handler: Any) -> tuple[type, ...]:
    """Return the classes of the object whose method is the handler."""
    return type(getattr(handler, "__self__", None)).__mro__


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
