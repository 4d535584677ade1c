"""What a request costs of the processor that is ours, told apart from what a busy machine and Django take."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from django.core.cache import caches
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import re_path

from django_moe_personalize.fetching.cache import get_cache
from django_moe_personalize.fetching.local_cache import LocalCache
from tests.conftest import settle

LIMIT = 0.010
"""Seconds of the processor; a usual request takes a fiftieth of it."""

TRIES = 10
PAUSE = 0.05
"""Seconds more before each try than before the last: what else the machine does comes and goes."""

OURS = "django_moe_personalize."


def answer(request: HttpRequest) -> HttpResponse:
    """Answer as a page without personalization does; with sessions or languages a site reads the cookies."""
    return HttpResponse(f"plain, {len(request.COOKIES)} cookies")


urlpatterns = [re_path("", answer)]


class Meter:
    """Takes the processor time of all threads, less what the sandbox takes to answer, which is no part of a site.

    Not the time on the clock, which on a shared machine is others'. A collection of garbage, or
    another thread's work, is in it too, so that what is over the limit is tried again: slow is what
    is slow every time, with no visitor in memory, and by more than a site without us.
    """

    def __init__(self) -> None:
        self.costs: list[float] = []
        self.repeated = 0
        self._aside = 0.0

    def set_aside(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a function whose own time does not count."""

        def timed(argument: Any) -> Any:
            began = time.thread_time()
            try:
                return function(argument)
            finally:
                self._aside += time.thread_time() - began

        return timed

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Add what is done inside to the costs."""
        began = time.process_time() - self._aside
        yield
        self.costs.append(time.process_time() - self._aside - began)

    def find_excess(self, ask: Callable[[], object]) -> float:
        """Return the least that ``ask``, which measures one request, takes, less what it takes without us."""
        self.repeated += 1
        whole = self._find_least(ask)
        if whole <= LIMIT:
            return whole
        others = [path for path in _list_middleware() if not path.startswith(OURS)]
        with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=others):
            # The very least: what it takes without us must not be said to be more than it is.
            return whole - self._find_least(ask, enough=0.0)

    def _find_least(self, ask: Callable[[], object], *, enough: float = LIMIT) -> float:
        """Return the least of some tries, the last of which took ``enough``; each finds nothing remembered."""
        known = len(self.costs)
        for attempt in range(TRIES):
            time.sleep(attempt * PAUSE)
            _forget_all()
            with _uncollected():
                ask()
            if self.costs[-1] <= enough:
                break
        tried, self.costs[known:] = self.costs[known:], []
        return min(tried)

    def describe(self) -> str:
        """Say what requests cost."""
        ranked = sorted(self.costs)
        median, rare = (ranked[int(share * len(ranked))] * 1000 for share in (0.5, 0.999))
        return (
            f"processor time with Django's: {median:.2f} ms, of 999 in 1000 at most {rare:.1f} ms, "
            f"{self.repeated} over {LIMIT * 1000:.0f} ms and repeated"
        )


def _list_middleware() -> list[str]:
    from django.conf import settings

    return list(settings.MIDDLEWARE)


def _forget_all() -> None:
    settle()
    caches["default"].clear()
    get_cache().memory = LocalCache()
    for name, module in list(sys.modules.items()):
        if name.startswith(OURS):
            for attribute, value in vars(module).items():
                # What is got once a process is no memory of requests.
                if hasattr(value, "cache_clear") and not attribute.startswith("get_"):
                    value.cache_clear()


@contextmanager
def untraced() -> Iterator[None]:
    """Keep out what measures the tests: it takes most of the time, and says nothing that other tests do not."""
    tracer, tracer_of_new_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    # Under ASGI a request has a thread of its own for what is synchronous.
    threading.settrace(cast(Any, None))
    try:
        yield
    finally:
        threading.settrace(cast(Any, tracer_of_new_threads))
        sys.settrace(tracer)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the collector out."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
