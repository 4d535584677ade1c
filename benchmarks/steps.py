"""STEPS: the work that one page adds, counted in bytecodes, Python calls, functions and files instead of seconds.

A busy machine doesn't change these figures. They need Python 3.12 or later. ``python -m benchmarks.steps --list``
also prints the functions. Only the thread that answers the page counts, not the thread that sends events.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any

from django.urls import path

from benchmarks import pages, site
from benchmarks.goal import Figure, Options, expect, run
from benchmarks.p02_cached_read import become_visitor
from benchmarks.p03_cold_fetch import GENEROUS
from benchmarks.upstream import Upstream, start_upstream

ROUNDS = 50
PACKAGE = "/django_moe_personalize/"

Page = Callable[[], bytes]
View = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Steps:
    """The bytecodes and calls of one page by function, averaged over ROUNDS pages."""

    bytecodes: Mapping[CodeType, float]
    calls: Mapping[CodeType, float]


def count_steps(page: Page, after: Callable[[], object]) -> Steps:
    """Call ``page`` ROUNDS times to warm up, then ROUNDS times to count; call ``after`` after each, uncounted."""
    for _ in range(ROUNDS):
        page()
        after()
    bytecodes: Counter[CodeType] = Counter()
    calls: Counter[CodeType] = Counter()
    with start_counting(bytecodes, calls) as switch:
        for _ in range(ROUNDS):
            switch(True)
            page()
            switch(False)
            after()
    for code in (count_steps.__code__, switch.__code__):
        bytecodes.pop(code, None)
        calls.pop(code, None)
    return Steps(*({code: number / ROUNDS for code, number in counter.items()} for counter in (bytecodes, calls)))


@contextmanager
def start_counting(bytecodes: Counter[CodeType], calls: Counter[CodeType]) -> Iterator[Callable[[bool], None]]:
    """Count the bytecodes and calls of this thread by function; yield the function that switches the counting."""
    monitoring, events, caller = sys.monitoring, sys.monitoring.events, threading.get_ident()
    tool = monitoring.PROFILER_ID

    def register(event: int, counter: Counter[CodeType]) -> None:
        def count(code: CodeType, offset: int) -> None:
            if threading.get_ident() == caller:
                counter[code] += 1

        monitoring.register_callback(tool, event, count)

    def switch(is_on: bool) -> None:
        monitoring.set_events(tool, events.INSTRUCTION | events.PY_START if is_on else events.NO_EVENTS)

    monitoring.use_tool_id(tool, "benchmarks.steps")
    register(events.INSTRUCTION, bytecodes)
    register(events.PY_START, calls)
    gc.collect()
    gc.disable()
    try:
        yield switch
    finally:
        switch(False)
        monitoring.free_tool_id(tool)
        gc.enable()


@dataclass(frozen=True, slots=True)
class Added:
    """The steps that a page with the package has more than the plain page."""

    plain: Steps
    ours: Steps

    @property
    def calls(self) -> float:
        """Python calls added."""
        return sum(self.ours.calls.values()) - sum(self.plain.calls.values())

    def count_places(self, *, part: str = "") -> tuple[int, int]:
        """Return how many functions and files only the page with the package runs; ``part`` of the path limits both.

        Functions that fewer than half of the pages run don't count.
        """
        functions = {
            code
            for code, calls in self.ours.calls.items()
            if calls >= 0.5 and code not in self.plain.calls and part in code.co_filename
        }
        files = {code.co_filename for code in functions} - {code.co_filename for code in self.plain.calls}
        return len(functions), len(files)

    def list_functions(self) -> Iterator[str]:
        """Yield a line for each function with other bytecodes or calls than in the plain page, most bytecodes first."""
        rows = []
        for code, bytecodes in self.ours.bytecodes.items():
            more = bytecodes - self.plain.bytecodes.get(code, 0.0)
            calls = self.ours.calls.get(code, 0.0) - self.plain.calls.get(code, 0.0)
            if more or calls:
                rows.append((more, calls, f"{code.co_filename}:{code.co_firstlineno} {code.co_qualname}"))
        for more, calls, name in sorted(rows, reverse=True):
            yield f"{more:9.1f} {calls:6.1f}  {name}"


def count_added(view: View, *, is_new: bool = False, after: Callable[[], object] = lambda: None, **meta: str) -> Added:
    """Return the steps that ``view`` adds to the plain page; ``is_new`` asks each time as another visitor."""
    found = []
    for middleware, each, content in ((site.NO_OP, pages.plain, pages.DEFAULT), (site.OURS, view, CONTENT[view])):
        with override_urls(each):
            found.append(count_steps(build_page(middleware, content, is_new=is_new, **meta), after))
    return Added(*found)


CONTENT: Mapping[View, str] = {
    pages.plain: pages.DEFAULT,
    pages.read: pages.PERSONAL,
    pages.read_and_track: pages.PERSONAL,
}


def override_urls(view: View) -> Any:
    """Give the site one route: then finding the route takes the plain page as many steps as ours."""
    from django.test import override_settings

    return override_settings(ROOT_URLCONF=(path("page/", view, name=view.__name__),))


def build_page(middleware: str, content: str, *, is_new: bool, **meta: str) -> Page:
    """Return a function that asks for the page and checks it. All pages share it, so it adds no step to any of them."""
    stack, mark = site.Site([middleware]), content.encode()

    def get() -> bytes:
        visitor = {"HTTP_X_VISITOR": site.name_visitor()} if is_new else {}
        body = stack.get("/page/", **meta, **visitor)
        expect(mark in body, f"the page is without {content!r}")
        return body

    return get


def build_figure(name: str, limit: str, added: Added) -> Figure:
    """Return the added bytecodes as the figure; its title has the calls, functions and files."""
    plain, ours = (sum(steps.bytecodes.values()) for steps in (added.plain, added.ours))
    functions, files = added.count_places()
    own_functions, own_files = added.count_places(part=PACKAGE)
    return Figure(
        what=f"bytecodes added by {name}; {added.calls:.0f} calls, {functions} functions in {files} files"
        f" (the package: {own_functions} in {own_files})",
        baseline=plain,
        ours=ours,
        difference=ours - plain,
        limit=limit,
        unit="bc",
        context={
            "calls added": added.calls,
            "functions": functions,
            "files": files,
            "the package's functions": own_functions,
            "the package's files": own_files,
        },
    )


def measure(options: Options) -> Iterator[Figure]:
    """Count each page; with ``--list``, print the functions it adds."""
    if sys.version_info < (3, 12):
        raise SystemExit(
            "Only Python 3.12 and later can count steps (sys.monitoring). Run this script with one of them."
        )
    with start_upstream() as upstream:
        for name, limit, added in count_pages(upstream):
            if options.functions:
                print(f"--- {name}: bytecodes and calls added", *added.list_functions(), sep="\n", file=sys.stderr)
            yield build_figure(name, limit, added)


def count_pages(upstream: Upstream) -> Iterator[tuple[str, str, Added]]:
    """Yield the name, the limit and the added steps of a page that reads nothing, of a warm page and of cold pages.

    Then follow warm pages that use a part of the package: these rows have no limit. The last pages are measured by
    OpenTelemetry, which can't be stopped again.
    """
    url = upstream.url("at-once")
    moe = {**site.CREDENTIALS, "BASE_URL": url, "CACHE_TTL": 3600, "CACHE_STALE_TTL": 3600}
    site.configure(moe=moe)
    yield "a page that reads nothing", "<= 120 more", count_added(pages.plain)
    yield "a warm page that tracks", "<= 1800 more", count_warm()
    with site.override_moe(**site.build_moe(url, **GENEROUS)):
        yield "a cold page", "<= 5000 more", count_cold(pages.read, upstream)
        yield "a cold page that tracks", "<= 5000 more", count_cold(pages.read_and_track, upstream)
    workspaces = {"default": {}, "outlet": {"WORKSPACE_ID": "OUTLET"}}
    with site.override_moe(**moe, WORKSPACES=workspaces, WORKSPACE="benchmarks.site.choose_workspace"):
        yield "a warm page that tracks, of one of two workspaces", "", count_warm()
    with site.override_moe(**moe), switch_off("winter-gala"):
        yield "a warm page that tracks, while another experience is switched off", "", count_warm()
    with site.override_moe(**moe), listen():
        yield "a warm page that tracks, with a receiver of the signal experience_shown", "", count_warm()
    start_otel()
    yield "a warm page that tracks, with OpenTelemetry", "<= 2000 more", count_warm()
    with site.override_moe(**site.build_moe(url, **GENEROUS)):
        yield "a cold page that tracks, with OpenTelemetry", "<= 6500 more", count_cold(pages.read_and_track, upstream)


@contextmanager
def switch_off(experience_key: str) -> Iterator[None]:
    """Switch an experience off in this process, as ``moe_switch`` does in all processes."""
    from django_moe_personalize.fetching.switch import get_switch
    from django_moe_personalize.fetching.switch_store import Entry

    get_switch().change((Entry(experience_key, True, None, "bench", 0.0),))
    yield
    get_switch().change(())


@contextmanager
def listen() -> Iterator[None]:
    """Connect a receiver that does nothing."""
    from django_moe_personalize.signals import EXPOSURE_SIGNALS, experience_shown

    def receive(**kwargs: Any) -> None:
        """Do nothing."""

    experience_shown.connect(receive)
    yield
    experience_shown.disconnect(receive)
    # As in a process that never had a receiver.
    EXPOSURE_SIGNALS.clear()


def start_otel() -> None:
    """Measure all further pages as the app ``contrib.otel`` does, with OpenTelemetry's SDK, but sample no trace."""
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from django_moe_personalize.contrib.otel import metrics, spans

    metrics.start(MeterProvider([InMemoryMetricReader()]))
    spans.start()


def count_warm() -> Added:
    """Count three experiences from the process's memory, read in a view and tracked, for a visitor with a cookie."""
    from django_moe_personalize.delivery.base import get_delivery

    cookie = become_visitor(site.Site([site.OURS]))
    # Events that pile up would make some pages wake the sender for a full batch.
    return count_added(pages.read_and_track, after=lambda: get_delivery().flush(5.0), HTTP_COOKIE=cookie)


def count_cold(view: View, upstream: Upstream) -> Added:
    """Count one fetch over a connection that is open already, each time for another visitor."""
    from django_moe_personalize.delivery.base import get_delivery
    from django_moe_personalize.visitor.attributes import QUERY_COOKIE

    # The visitors arrived with another page, which set the cookie with the campaign.
    cookie = f"{QUERY_COOKIE}=utm_source:mail&utm_medium:email&utm_campaign:winter"
    with override_urls(view):
        # The first page of a route doesn't know yet which experiences it needs: P5 counts its calls.
        build_page(site.OURS, pages.PERSONAL, is_new=True)()
        before = upstream.get_counts("at-once")["fetches"]
        added = count_added(view, is_new=True, after=lambda: get_delivery().flush(5.0), HTTP_COOKIE=cookie)
        asked = upstream.get_counts("at-once")["fetches"] - before
    expect(asked == 2 * ROUNDS, f"{2 * ROUNDS} cold pages made {asked} upstream calls")
    return added


if __name__ == "__main__":
    run("STEPS", measure, can_list=True)
