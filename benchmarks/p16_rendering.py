"""P16: rendering three experience tags, against plain template variables with the same content."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.test import RequestFactory

from benchmarks import site
from benchmarks.goal import Figure, Options, expect, run
from benchmarks.timing import alternate, describe
from benchmarks.upstream import KEYS, start_upstream
from django_moe_personalize.middleware import PersonalizeMiddleware

# Without the three values it takes about 17 µs to render.
PAGE = """<!doctype html><title>{{ title }}</title>
<nav>{% if user_name %}{{ user_name }}{% else %}Sign in{% endif %}</nav>
<main><h1>%s</h1><p>%s</p><aside>%s</aside></main>"""

VALUES = [f'{{% experience_value "{key}" "Title" %}}' for key in KEYS]
BLOCKS = [f'{{% experience "{key}" as it %}}{{{{ it.Title }}}}{{% endexperience %}}' for key in KEYS]
VARIABLES = ["{{ hero.Title }}", "{{ promo.Title }}", "{{ loyalty.Title }}"]
NAMES = ("hero", "promo", "loyalty")


def compile_page(values: list[str]) -> Any:
    """Return the template of the page with ``values`` in its three places."""
    page = PAGE
    for value in values:
        page = page.replace("%s", value, 1)
    return engines["django"].from_string("{% load moe_personalize %}" + page)


def render_in_view(measure: Callable[[HttpRequest], Any]) -> Any:
    """Call ``measure`` in a view, with a request that has its experiences already; return its result."""
    found: list[Any] = []

    def view(request: HttpRequest) -> HttpResponse:
        request.personalization.prefetch(*KEYS)
        for key in KEYS:
            expect(key in request.personalization, f"{key} is missing")
        found.append(measure(request))
        return HttpResponse()

    PersonalizeMiddleware(view)(RequestFactory().get("/", headers={"X-Visitor": "renderer"}))
    return found[0]


def build_contenders(request: HttpRequest) -> dict[str, Callable[[], str]]:
    """Return a render function for each form of the template; all render the same page."""
    page = request.personalization
    content = {name: dict(page[key].payload) for name, key in zip(NAMES, KEYS, strict=True)}
    contenders: dict[str, Callable[[], str]] = {}
    for name, values, context in (
        ("variables", VARIABLES, content),
        ("tags", VALUES, {}),
        ("blocks", BLOCKS, {}),
        ("without the three", ["", "", ""], {}),
    ):
        template = compile_page(values)
        contenders[name] = lambda template=template, context=context: template.render(
            {"title": "Shop", "user_name": "Ada", **context}, request
        )
    expected = contenders["variables"]()
    expect("<h1>Title of hero-banner</h1>" in expected, f"the content is missing: {expected}")
    for name in ("tags", "blocks"):
        expect(contenders[name]() == expected, f"the {name} render another page: {contenders[name]()}")
    return contenders


def measure(options: Options) -> Iterator[Figure]:
    """Time rendering alone, once without impressions and once with IMPRESSIONS=render."""
    with start_upstream() as upstream:
        moe = site.build_moe(upstream.url("at-once"))
        site.configure(moe={**moe, "IMPRESSIONS": "manual"})
        yield render_in_view(lambda request: time_rendering(request, options, "not counted"))
        with site.override_moe(**moe):
            counted = render_in_view(lambda request: time_rendering(request, options, "counted"))
        expect(upstream.get_counts("at-once")["fetches"] == 2, "rendering called the upstream")
        yield counted


def time_rendering(request: HttpRequest, options: Options, how: str) -> Figure:
    """Return the time of the tags against the time of the variables."""
    contenders = build_contenders(request)
    rounds = alternate(contenders, rounds=options.pick(301, 101))
    ratios = rounds.ratio("tags", "variables")
    names = {"blocks": "{% experience %} with {{ it.Title }}, µs", "without the three": "without the values, µs"}
    return Figure(
        what=f"time of 3 experience_value tags / of 3 plain variables, impressions {how}",
        baseline=rounds.median("variables") * 1e6,
        ours=rounds.median("tags") * 1e6,
        ratio=median(ratios),
        limit="<= 0.8",
        unit="µs",
        notes=[describe(ratios), "only the first rendering in a page makes an impression; P9 has its cost"],
        context={shown: rounds.median(name) * 1e6 for name, shown in names.items()},
        profile=lambda: [contenders["tags"]() for _ in range(20_000)],
    )


if __name__ == "__main__":
    run("P16", measure)
