"""A bounded pool of threads that a caller can abandon."""

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
    """Every worker of a pool is busy; the work was not taken."""


class _Crew:
    """The threads, the work and the counts of one pool in one process."""

    __slots__ = ("in_flight", "jobs", "lock", "threads")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self.threads = 0
        self.in_flight = 0

    def work(self, idle_seconds: float) -> None:
        """Run jobs until none has come for ``idle_seconds``."""
        while True:
            try:
                self.run(*self.jobs.get(timeout=idle_seconds))
            except queue.Empty:
                with self.lock:
                    if self.threads > self.in_flight:
                        self.threads -= 1
                        return

    def run(self, future: Future[Any], call: Callable[[], Any]) -> None:
        """Run one job and put its outcome into the future."""
        result, error = None, None
        try:
            if future.set_running_or_notify_cancel():
                result = call()
        except BaseException as caught:
            error = caught
        # Free the place before the caller learns of the outcome: it may submit again at once.
        with self.lock:
            self.in_flight -= 1
        try:
            if error is not None:
                future.set_exception(error)
            elif not future.cancelled():
                future.set_result(result)
        finally:
            # The traceback holds this frame, and the future the error: break the cycle.
            del future, call, result, error


class WorkerPool:
    """A bounded pool of daemon threads that a caller can abandon: a bulkhead.

    Threads start when they are first needed, are reused, and leave after ``idle_seconds`` without
    work. A function that hangs keeps its place until it returns, and never the process's exit.
    A forked child starts with an empty pool; futures of the parent never complete there.
    """

    def __init__(self, max_workers: int, *, name: str, idle_seconds: float = 30.0) -> None:
        self._max_workers = max_workers
        self._name = name
        self._idle_seconds = idle_seconds
        self._crew = _Crew()

    @property
    def in_flight(self) -> int:
        """How many functions are taken and not yet over."""
        return self._crew.in_flight

    def submit(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``fn(*args, **kwargs)`` on a worker at once and return its future.

        Raises PoolBusy, without waiting, when ``max_workers`` functions are in flight or the
        system gives no thread. Callbacks added to the future run on the worker: keep them short.
        """
        crew = self._crew
        with crew.lock:
            if crew.in_flight >= self._max_workers:
                raise PoolBusy(f"{self._name}: all {self._max_workers} workers are busy")
            crew.in_flight += 1
            hire = crew.threads < crew.in_flight
            crew.threads += hire
        if hire:
            self._hire(crew)
        future: Future[T] = Future()
        crew.jobs.put((future, partial(fn, *args, **kwargs)))
        return future

    def offer(self, fn: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Run ``fn(*args, **kwargs)`` beside the caller if a worker is free; return whether one was. See submit()."""
        try:
            self.submit(fn, *args, **kwargs)
        except PoolBusy:
            return False
        return True

    def _hire(self, crew: _Crew) -> None:
        try:
            threading.Thread(target=crew.work, args=(self._idle_seconds,), name=self._name, daemon=True).start()
        except RuntimeError as error:
            with crew.lock:
                crew.in_flight -= 1
                crew.threads -= 1
            raise PoolBusy(f"{self._name}: no thread could be started") from error
