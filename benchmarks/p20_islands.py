"""P20: Django's processor time for a page with three islands behind a shared cache, against a personalized page."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any
from urllib.parse import quote

from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.urls import include, path

from benchmarks import pages, site
from benchmarks.goal import Figure, Options, expect, run
from benchmarks.timing import alternate, describe
from benchmarks.upstream import KEYS, start_upstream

VISITORS = 1000
BLOCK = 20
ROWS = [row | {"name": f"{row['name']}-{turn}"} for turn in range(10) for row in pages.ROWS]
"""120 products: a usual list."""

LIST = (
    "<ul>{% for row in rows %}<li class='{% if row.stock %}in{% else %}out{% endif %}'>"
    "{{ row.name }} <b>{{ row.price|floatformat:2 }}</b></li>{% endfor %}</ul>"
)
TAG = '{%% experience "%s" as it %%}<h2>{{ it.Title }}</h2>{%% endexperience %%}'
ISLAND = '{%% experience_island "%s" template="%s.html" %%}Welcome{%% endexperience_island %%}'


def compile_page(tag: str) -> Any:
    """Return the template of the page, with ``tag`` for each experience."""
    return engines["django"].from_string(
        "{% load moe_personalize %}" + "".join(tag.replace("%s", key) for key in KEYS).replace("%%", "%") + LIST
    )


def build_site(upstream: Any) -> site.Site:
    """Return the site with the personalized page, the public page and the package's endpoints."""
    templates = {f"{key}.html": "{% load moe_personalize %}" + TAG % key for key in KEYS}
    loader = ("django.template.loaders.cached.Loader", [("django.template.loaders.locmem.Loader", templates)])
    backend = {"BACKEND": "django.template.backends.django.DjangoTemplates", "OPTIONS": {"loaders": [loader]}}
    site.configure(moe=site.build_moe(upstream.url("at-once")), TEMPLATES=[backend], STATIC_URL="/static/")

    def show(request: HttpRequest, template: Any) -> HttpResponse:
        return HttpResponse(template.render({"rows": ROWS}, request))

    pages.urlpatterns += [
        path("personal/", show, {"template": compile_page(TAG)}),
        path("public/", show, {"template": compile_page(ISLAND)}),
        path("moe/", include("django_moe_personalize.urls")),
    ]
    return site.Site([site.OURS])


def check(ours: site.Site, visit: Callable[..., bytes]) -> str:
    """Return the query of the islands of the public page. Check the content of both pages and of the islands."""
    tokens = re.findall('data-moe-island="([^"]+)"', ours.get("/public/").decode())
    expect(len(tokens) == len(KEYS) and site.READ not in str(ours.headers), "the page isn't public")
    query = "&".join(f"island={quote(token)}" for token in tokens)
    expect(b"Title of hero-banner" in visit("/personal/"), "the personalized page has no content")
    filled = json.loads(visit("/moe/islands/", query))["islands"]
    expect(all("Title of" in filled[token] for token in tokens), f"the islands have no content: {filled}")
    return query


def measure(options: Options) -> Iterator[Figure]:
    """Call both pages and the islands in this process. Each visitor is new, so each call is a fetch."""
    with start_upstream() as upstream:
        ours = build_site(upstream)

        def visit(address: str, query: str = "") -> bytes:
            return ours.get(address, HTTP_X_VISITOR=site.name_visitor(), QUERY_STRING=query)

        query = check(ours, visit)
        rounds = alternate(
            {
                "personal": lambda: [visit("/personal/") for _ in range(BLOCK)],
                "islands": lambda: [visit("/moe/islands/", query) for _ in range(BLOCK)],
                "public": lambda: [ours.get("/public/") for _ in range(BLOCK)],
            },
            rounds=options.pick(VISITORS // BLOCK, 20),
            clock=time.process_time,
        )
        ratios = rounds.compute(lambda of: (of["islands"] + of["public"] / VISITORS) / of["personal"])
        yield Figure(
            what=f"one page with 3 islands and the islands of {VISITORS} visitors / {VISITORS} personalized pages",
            baseline=rounds.median("personal") / BLOCK * 1e6,
            ours=(rounds.median("islands") + rounds.median("public") / VISITORS) / BLOCK * 1e6,
            ratio=median(ratios),
            limit="<= 0.35",
            unit="µs",
            notes=[describe(ratios), f"a list of {len(ROWS)} products; each visitor is new"],
            context={"the page without experiences, µs": rounds.median("public") / BLOCK * 1e6},
            profile=lambda: [visit("/moe/islands/", query) for _ in range(2000)],
        )


if __name__ == "__main__":
    run("P20", measure)
