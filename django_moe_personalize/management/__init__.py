"""The commands of the package, and how signals stop them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_on_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call ``stop`` on SIGTERM and SIGINT inside the ``with`` block. Outside the main thread, do nothing."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {each: signal.signal(each, lambda number, frame: stop()) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
