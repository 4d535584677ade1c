"""P5: count the upstream calls of a page with 1 to 25 tags, or 60, in its template and no declared experiences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path

from benchmarks import pages, site
from benchmarks.goal import Figure, Options, expect, run
from benchmarks.upstream import Upstream, start_upstream

NUMBERS = (1, 2, 5, 10, 25)
MANY = 60
BEHAVIOR = "delay-0.040"


def write_tag(number: int) -> str:
    """Return the tag of one experience: odd numbers get one form of the tag, even numbers the other."""
    if number % 2:
        return f'{{% experience_value "tag-{number}" "Title" default="none" %}}'
    return f'{{% experience "tag-{number}" as it %}}{{{{ it.Title }}}}{{% fallback %}}none{{% endexperience %}}'


def build_templates() -> dict[str, str]:
    """Return the templates: one file with all tags, and 25 tags spread over a parent, a child and an include."""
    load = "{% load moe_personalize %}"
    templates = {
        f"{number}.html": load + "\n".join(write_tag(tag) for tag in range(number)) for number in (*NUMBERS, MANY)
    }
    parent, child, included = (
        load + "\n".join(write_tag(tag) for tag in tags) for tags in (range(9), range(9, 17), range(17, 25))
    )
    templates["base.html"] = parent + "{% block content %}{% endblock %}"
    content = f"{{% block content %}}{child}{{% include 'part.html' %}}{{% endblock %}}"
    templates["spread.html"] = "{% extends 'base.html' %}" + load + content
    templates["part.html"] = included
    return templates


def show(request: HttpRequest, name: str) -> HttpResponse:
    """Render the template called ``name``."""
    return render(request, name)


def build_urls() -> list[Any]:
    """Return one route for each page, so that no route learns from another page."""
    return [path(f"{name}/", show, {"name": name}, name=name) for name in build_templates()]


urlpatterns = [*pages.urlpatterns, *build_urls()]


def configure(upstream: Upstream) -> None:
    """Set up a site whose pages don't give up on a slow machine and don't send events."""
    loader = ("django.template.loaders.locmem.Loader", build_templates())
    backend = "django.template.backends.django.DjangoTemplates"
    options = {"loaders": [("django.template.loaders.cached.Loader", [loader])]}
    site.configure(
        moe=site.build_moe(upstream.url(BEHAVIOR), DEADLINE=5.0, IMPRESSIONS="manual"),
        ROOT_URLCONF="benchmarks.p05_calls",
        TEMPLATES=[{"BACKEND": backend, "OPTIONS": options}],
    )


def count_calls(upstream: Upstream, ours: site.Site, address: str, tags: int) -> int:
    """Return how many calls the page makes for a new visitor; the page must have all its experiences."""
    before = upstream.get_counts(BEHAVIOR)
    body = ours.check(address, "Title of tag-0", HTTP_X_VISITOR=site.name_visitor())
    expect(body.count(b"Title of tag-") == tags, f"{address} has {body.count(b'Title of tag-')} of {tags} experiences")
    after = upstream.get_counts(BEHAVIOR)
    expect(after["keys"] - before["keys"] == tags, f"{address} asked for {after['keys'] - before['keys']} keys")
    return after["fetches"] - before["fetches"]


def measure(options: Options) -> Iterator[Figure]:
    """Count the calls of the first three renderings of each page."""
    with start_upstream() as upstream:
        configure(upstream)
        ours = site.Site([site.OURS])
        found = {
            name: [count_calls(upstream, ours, f"/{name}/", tags) for _ in range(3)]
            for name, tags in [*((f"{number}.html", number) for number in NUMBERS), ("spread.html", 25)]
        }
        most = max(max(calls) for calls in found.values())
        yield Figure(
            what="upstream calls of a page with 1 to 25 tags and no declared experiences, first rendering included",
            baseline=1,
            ours=most,
            limit="<= 1",
            unit="calls",
            notes=[f"{name}: {calls}" for name, calls in found.items()],
        )
        yield from measure_many(upstream, ours)


def measure_many(upstream: Upstream, ours: site.Site) -> Iterator[Figure]:
    """Count the calls of 60 tags, and how many of them ran at the same time."""
    calls = [count_calls(upstream, ours, f"/{MANY}.html/", MANY) for _ in range(3)]
    yield Figure(what="upstream calls of a page with 60 tags", baseline=3, ours=max(calls), limit="<= 1", unit="calls")
    together = upstream.get_counts(BEHAVIOR)["most_in_flight"]
    what = "upstream calls of a page with 60 tags that run at the same time"
    yield Figure(what=what, baseline=3, ours=together, limit=">= 1", unit="calls")


if __name__ == "__main__":
    run("P5", measure)
