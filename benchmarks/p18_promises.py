"""P18: the price of a promise: a warm page that confirms its visitor and looks for leaks, against one that doesn't."""

from __future__ import annotations

import ast
import inspect
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from types import FunctionType, ModuleType
from typing import Any

from benchmarks import pages, site
from benchmarks.goal import Figure, Options, expect, run
from benchmarks.p02_cached_read import become_visitor
from benchmarks.timing import alternate, describe
from benchmarks.upstream import start_upstream

WITHOUT = "benchmarks.p18_promises.Without"
UNCONFIRMED = "benchmarks.p18_promises.Unconfirmed"
NAMES = {
    UNCONFIRMED: "with the visitor confirmed at each read / without the confirmation",
    WITHOUT: "with the leak detector / without the leak detector",
}
LIMIT = "<= 1.03"


class _Remover(ast.NodeTransformer):
    """Remove the statements in functions that use one of the ``names``."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.removed = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        kept = [each for each in node.body if not any(name in ast.unparse(each) for name in self.names)]
        self.removed += len(node.body) - len(kept)
        node.body = kept
        return node


def build_page_without(*names: str, statements: int) -> Any:
    """Return the class Page without the ``statements`` that use one of the ``names``."""
    from django_moe_personalize import page

    remover = _Remover(names)
    tree = ast.fix_missing_locations(remover.visit(ast.parse(inspect.getsource(page))))
    expect(remover.removed == statements, f"{remover.removed} statements use {names}, not {statements}")
    module = ModuleType("page_without")
    exec(compile(tree, page.__file__, "exec"), module.__dict__)  # noqa: S102 - the package's own code
    return module.Page


def Without(get_response: Callable[..., Any]) -> Any:
    """Return our middleware whose pages have no leak detector."""
    return _build_middleware(build_page_without("plan.samples", statements=1), get_response)


def Unconfirmed(get_response: Callable[..., Any]) -> Any:
    """Return our middleware whose pages never compare the visitor with the request.

    The page runs the package's own code without the comparisons in ``get``, ``read`` and ``seal``.
    """
    from django_moe_personalize import context

    source, comparison = inspect.getsource(context), 'page.known.get("user") is page.user'
    expect(source.count(comparison) == 1, f"context.py doesn't use {comparison} once")
    module = ModuleType("context_without")
    code = compile(source.replace(comparison, "page.is_read"), context.__file__, "exec")
    exec(code, module.__dict__)  # noqa: S102 - the package's own code
    return _build_middleware(build_page_without("self.user", "is_same", statements=3), get_response, module)


def _build_middleware(page: Any, get_response: Callable[..., Any], context: Any = None) -> Any:
    from django_moe_personalize import middleware

    context = context or sys.modules["django_moe_personalize.context"]
    names = {**vars(context), "Page": page}
    init = FunctionType(context.Personalization.__init__.__code__, names)
    personalization = type("Personalization", (context.Personalization,), {"__init__": init, "__slots__": ()})
    known = {**vars(middleware), "Personalization": personalization}
    call = FunctionType(middleware.PersonalizeMiddleware.__call__.__code__, known)
    return type("Other", (middleware.PersonalizeMiddleware,), {"__call__": call})(get_response)


def measure(options: Options) -> Iterator[Figure]:
    """Time and count the page that reads three experiences and counts their impressions."""
    with start_upstream() as upstream:
        moe = {**site.CREDENTIALS, "BASE_URL": upstream.url("at-once"), "CACHE_TTL": 3600, "CACHE_STALE_TTL": 3600}
        site.configure(moe=moe)
        cookie = become_visitor(site.Site([site.OURS]))
        contenders = {name: build_contender(name, cookie) for name in (UNCONFIRMED, WITHOUT, site.OURS)}
        from django_moe_personalize.delivery.base import get_delivery

        def settle(name: str = "", calls: int = 0) -> None:
            get_delivery().flush(5.0)

        rounds = alternate(contenders, rounds=options.pick(401, 101), calls=30, after=settle)
        times = {name: rounds.median(name) * 1e6 for name in contenders}
        for baseline in NAMES:
            yield build_figure("time", baseline, times, "µs", rounds)
        if sys.version_info >= (3, 12):
            from benchmarks.steps import count_steps

            steps = {name: count_steps(page, settle) for name, page in contenders.items()}
            counted = {name: sum(each.bytecodes.values()) for name, each in steps.items()}
            for baseline in NAMES:
                yield build_figure("bytecodes", baseline, counted, "bc")


def build_contender(middleware: str, cookie: str) -> Callable[[], bytes]:
    """Return a function that opens the warm page."""
    stack = site.Site([middleware])
    for _ in range(120):
        # After the first pages of the route, the detector looks at one page in 97.
        stack.check("/read_and_track/", pages.PERSONAL, HTTP_COOKIE=cookie)
        time.sleep(0.001)
    return lambda: stack.get("/read_and_track/", HTTP_COOKIE=cookie)


def build_figure(what: str, baseline: str, found: dict[str, float], unit: str, rounds: Any = None) -> Figure:
    """Return the figure of our page against the page without the promise."""
    ratios = rounds.ratio(site.OURS, baseline) if rounds else []
    return Figure(
        what=f"{what} of a warm page {NAMES[baseline]}",
        baseline=found[baseline],
        ours=found[site.OURS],
        ratio=median(ratios) if ratios else None,
        limit=LIMIT,
        unit=unit,
        notes=[describe(ratios)] if ratios else [],
    )


if __name__ == "__main__":
    run("P18", measure)
