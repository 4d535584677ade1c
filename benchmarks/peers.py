"""The peers of P2: pages that evaluate flags in this process, and pages that call MoEngage with ``requests``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import path

from benchmarks import pages
from benchmarks.upstream import KEYS, Upstream, build_experience

PAYLOADS = {key: {n: v["value"] for n, v in build_experience(key)["payload"].items()} for key in KEYS}


def gather(request: HttpRequest) -> dict[str, str]:
    """Return the attributes of the visitor that a peer gets: as many as we send."""
    meta, now = request.META, time.gmtime()
    attributes = {
        "user_agent": meta.get("HTTP_USER_AGENT", ""),
        "ip": meta["REMOTE_ADDR"],
        "day": str(now.tm_wday),
        "hour": f"{now.tm_hour:02d}",
    }
    for pair in meta.get("QUERY_STRING", "").split("&"):
        name, _, value = pair.partition("=")
        attributes[name] = value
    return attributes


def launchdarkly(request: HttpRequest) -> HttpResponse:
    """Evaluate three flags with events on."""
    import ldclient

    builder = ldclient.Context.builder("visitor-1").anonymous(True)
    for name, value in gather(request).items():
        builder.set(name, value)
    context, client = builder.build(), ldclient.get()
    return pages._respond([client.variation(key, context, {"Title": pages.DEFAULT})["Title"] for key in KEYS])


def growthbook(request: HttpRequest) -> HttpResponse:
    """Evaluate three features."""
    from growthbook import GrowthBook

    book = GrowthBook(attributes={"id": "visitor-1", **gather(request)}, features=_FEATURES)
    return pages._respond([book.get_feature_value(key, {"Title": pages.DEFAULT})["Title"] for key in KEYS])


_FEATURES = {
    key: {
        "defaultValue": {"Title": pages.DEFAULT},
        "rules": [{"condition": {"utm_source": "mail"}, "force": PAYLOADS[key]}],
    }
    for key in KEYS
}


def waffle(request: HttpRequest) -> HttpResponse:
    """Evaluate three flags; waffle's flags are on or off and have no content."""
    from waffle import flag_is_active

    return pages._respond([f"Title of {key}" if flag_is_active(request, key) else pages.DEFAULT for key in KEYS])


def three_posts(request: HttpRequest) -> HttpResponse:
    """Call requests.post for each experience."""
    return pages._respond([title for key in KEYS for title in pages.post(request, [key])])


def one_post(request: HttpRequest) -> HttpResponse:
    """Call requests.post once for all experiences."""
    return pages._respond(pages.post(request, KEYS))


def switch(request: HttpRequest) -> HttpResponse:
    """Return the page of the contender. All contenders share one route, so finding it takes all the same time."""
    return shown[0](request)


shown: list[Callable[[HttpRequest], HttpResponse]] = [pages.plain]
"""The view of the contender that runs now."""

urlpatterns = [path("page/", switch)]


@contextmanager
def start_launchdarkly(upstream: Upstream) -> Iterator[Any]:
    """Run LaunchDarkly's client on test data; it sends its events to a local sink."""
    import ldclient
    from ldclient.config import Config
    from ldclient.integrations.test_data import TestData

    data = TestData.data_source()
    for key in KEYS:
        on = data.flag(key).variations(PAYLOADS[key], {"Title": pages.DEFAULT}).fallthrough_variation(1).on(True)
        data.update(on.if_match("utm_source", "mail").then_return(0))
    config = Config("sdk-key", update_processor_class=data, events_uri=upstream.sink, diagnostic_opt_out=True)
    ldclient.set_config(config)
    client = ldclient.get()
    try:
        yield client
    finally:
        client.close()


def prepare_waffle() -> None:
    """Create the flags in an in-memory database; waffle then reads them from the cache."""
    from django.core.management import call_command
    from waffle import get_waffle_flag_model

    call_command("migrate", verbosity=0)
    for key in KEYS:
        get_waffle_flag_model().objects.create(name=key, everyone=True)
