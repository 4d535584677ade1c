"""A bounded pool of threads whose work a caller can abandon."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class PoolBusy(RuntimeError):
    """All threads of a pool are busy, so the pool didn't accept the work."""


class WorkerPool:
    """A bulkhead: at most ``max_workers`` daemon threads, whose work a caller can abandon.

    A thread starts when it is first needed, serves one call after another, and ends after ``idle_seconds`` without
    work. A call that hangs keeps its thread busy, but doesn't keep the process from exiting.
    """

    def __init__(self, max_workers: int, *, name: str, idle_seconds: float = 30.0) -> None:
        self._max_workers = max_workers
        self._name = name
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._threads = 0
        self.in_flight = 0
        """How many calls are accepted and not over yet."""

    def submit(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn(*args, **kwargs)`` in a thread of the pool and return its future.

        Raises PoolBusy, without waiting, if ``max_workers`` calls are in flight or the system has no thread left.
        Callbacks added to the future run in the pool's thread: keep them short.
        """
        with self._lock:
            if self.in_flight >= self._max_workers:
                raise PoolBusy(f"{self._name}: all {self._max_workers} workers are busy")
            self.in_flight += 1
            needs_thread = self._threads < self.in_flight
            self._threads += needs_thread
        if needs_thread:
            try:
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
            except RuntimeError as error:
                with self._lock:
                    self.in_flight -= 1
                    self._threads -= 1
                raise PoolBusy(f"{self._name}: no thread could be started") from error
        future: Future[T] = Future()
        self._jobs.put((future, partial(fn, *args, **kwargs)))
        return future

    def offer(self, fn: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Run ``fn(*args, **kwargs)`` in the background and return True; False if all threads are busy."""
        try:
            self.submit(fn, *args, **kwargs)
        except PoolBusy:
            return False
        return True

    def _work(self) -> None:
        """Run jobs until none has come for ``idle_seconds``."""
        while True:
            try:
                self._run(*self._jobs.get(timeout=self._idle_seconds))
            except queue.Empty:
                with self._lock:
                    # Otherwise a job for this thread is on its way.
                    if self._threads > self.in_flight:
                        self._threads -= 1
                        return

    def _run(self, future: Future[Any], call: Callable[[], Any]) -> None:
        """Run one job and put its outcome into the future."""
        result, error = None, None
        try:
            if future.set_running_or_notify_cancel():
                result = call()
        except BaseException as caught:
            error = caught
        # Before the caller learns the outcome, because it may submit again at once.
        with self._lock:
            self.in_flight -= 1
        try:
            if error is not None:
                future.set_exception(error)
            elif not future.cancelled():
                future.set_result(result)
        finally:
            # A cycle otherwise: the future holds the error, its traceback holds this frame, and the frame the future.
            del future, call, result, error
