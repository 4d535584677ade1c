"""Visitors with recognizable data (canaries), and a site whose pages show all data that was sent to MoEngage.

If the page of one visitor has the data of another, a page cache, a fragment, the package's caches, a connection, a
thread or the event loop has leaked it.
"""

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import AsyncClient, Client
from django.urls import include, path
from django.views.decorators.cache import cache_page

from django_moe_personalize.decorators import personalize
from django_moe_personalize.moengage.transport import Request, Response
from django_moe_personalize.testing import override_personalize

OURS = "django_moe_personalize.middleware.PersonalizeMiddleware"
UPDATE = "django.middleware.cache.UpdateCacheMiddleware"
FETCH = "django.middleware.cache.FetchFromCacheMiddleware"
CONDITIONAL = "django.middleware.http.ConditionalGetMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
USERS = "tests.security.canaries.take_users"

STACKS = {
    "no site cache": [CONDITIONAL, SESSIONS, USERS, OURS],
    "site cache outside": [CONDITIONAL, UPDATE, SESSIONS, USERS, OURS, FETCH],
    "site cache inside": [CONDITIONAL, SESSIONS, USERS, OURS, UPDATE, FETCH],
    "ours innermost": [UPDATE, CONDITIONAL, SESSIONS, USERS, FETCH, OURS],
}

PERSONALIZE = {"TRUSTED_PROXIES": ["127.0.0.0/8"], "CACHE_TTL": 1, "CACHE_STALE_TTL": 2}
"""Answers get stale while visitors browse, and the test client is a trusted proxy that names the address."""

SOURCE = "{% load moe_personalize %}{% experience 'hero-banner' as hero %}{{ hero.Asked }}{% endexperience %}"


def take_users(get_response: Any) -> Any:
    """Set the user from a header, in place of a site's authentication."""

    def middleware(request: HttpRequest) -> HttpResponse:
        name = request.headers.get("X-User")
        request.user = SimpleNamespace(is_authenticated=bool(name), pk=name)  # type: ignore[assignment]
        return get_response(request)

    return middleware


def echo(request: Request) -> Response:
    asked = json.loads(request.body or b"{}")
    context = dict.fromkeys(("cid", "experience", "moe_locale_id", "moe_variation_id"), "x")
    context |= {"audience_name": json.dumps(asked.get("identifiers")), "audience_id": "x"}
    payload = {"Asked": {"value": json.dumps(asked), "data_type": "string"}}
    answer = {"payload": payload, "experience_context": context}
    experiences = dict.fromkeys(asked.get("experience_key", []), answer)
    return Response(200, {}, json.dumps({"experiences": experiences}).encode())


def read(request: HttpRequest) -> HttpResponse:
    hero = request.personalization.get("hero-banner")  # type: ignore[attr-defined]
    return HttpResponse(hero["Asked"] if hero else "default")


async def aread(request: HttpRequest) -> HttpResponse:
    hero = await request.personalization.aget("hero-banner")  # type: ignore[attr-defined]
    return HttpResponse(hero["Asked"] if hero else "default")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        yield b"<html>"
        yield read(request).content

    async def aparts() -> Any:
        for part in parts():
            yield part

    return StreamingHttpResponse(aparts() if hasattr(request, "scope") else parts())


def respond(request: HttpRequest) -> TemplateResponse:
    return TemplateResponse(request, engines["django"].from_string(SOURCE))


def fail(request: HttpRequest) -> HttpResponse:
    return HttpResponse(read(request).content, status=404)


declared = personalize("hero-banner")
urlpatterns = [
    path("moe/", include("django_moe_personalize.urls")),
    path("read/", read),
    path("aread/", declared(aread)),
    path("respond/", declared(respond)),
    path("stream/", declared(stream)),
    path("fail/", fail),
    path("inner/", declared(cache_page(60)(read))),
    path("outer/", cache_page(60)(declared(read))),
]
PAGES = [f"/{pattern.pattern}" for pattern in urlpatterns[1:]]


class Visitor:
    """A browser of a customer, or without ``user`` of an anonymous visitor. It keeps all answers."""

    def __init__(self, name: str, number: int, *, user: bool, mode: str) -> None:
        address = f"9.9.{number}.{number}"
        self.traits = {f"{name}-laptop", f"{name}-campaign", address}
        self.headers = {"User-Agent": f"Mozilla/5.0 (X11; {name}-laptop) Firefox/140.0", "X-Forwarded-For": address}
        if user:
            self.headers["X-User"] = f"{name}-user"
            self.traits.add(f"{name}-user")
        self.client: Any = (Client if mode == "sync" else AsyncClient)(raise_request_exception=False)
        self.name = name
        self.received: list[str] = []
        self.own = 0
        self.etag = ""

    def choose(self, chance: random.Random, number: int) -> tuple[str, str, dict[str, Any]]:
        """Return method, path and options of the next request. The first request is from a campaign."""
        method = "head" if chance.random() < 0.1 else "get"
        headers = self.headers | ({"If-None-Match": self.etag} if self.etag and chance.random() < 0.3 else {})
        page = "/read/?utm_source=" + f"{self.name}-campaign" if number == 0 else chance.choice(PAGES)
        return method, page, {"headers": headers}

    def take(self, response: Any, body: bytes) -> None:
        assert response.status_code in (200, 304, 404), response.status_code
        self.etag = response.headers.get("ETag", self.etag)
        text = body.decode()
        self.own += f"{self.name}-laptop" in text
        self.received.append(f"{response.headers}{response.cookies.output()}{text}")


def browse(visitors: Sequence[Visitor], requests: int, *, mode: str, seed: int) -> None:
    """Let all visitors browse at the same time, with ``requests`` in all."""
    share = requests // len(visitors)
    if mode == "sync":
        with ThreadPoolExecutor(len(visitors)) as pool:
            list(pool.map(lambda visitor: _browse(visitor, share, seed), visitors))
    else:
        async_to_sync(_gather)(visitors, share, seed)


async def _gather(visitors: Sequence[Visitor], share: int, seed: int) -> None:
    # Wait for all. If a sync middleware is canceled before its inner half begins, asgiref waits for it forever.
    outcomes = await asyncio.gather(*(_abrowse(visitor, share, seed) for visitor in visitors), return_exceptions=True)
    for failure in filter(None, outcomes):
        raise failure


def _browse(visitor: Visitor, share: int, seed: int) -> None:
    chance = random.Random(f"{seed}{visitor.name}")
    for number in range(share):
        method, page, options = visitor.choose(chance, number)
        response = getattr(visitor.client, method)(page, **options)
        visitor.take(response, b"".join(response) if response.streaming else response.content)


async def _abrowse(visitor: Visitor, share: int, seed: int) -> None:
    chance = random.Random(f"{seed}{visitor.name}")
    for number in range(share):
        method, page, options = visitor.choose(chance, number)
        response = await getattr(visitor.client, method)(page, **options)
        if not response.streaming:
            body = response.content
        else:
            # For HEAD the test client replaces the body with an empty list, which is not an async stream.
            body = b"" if method == "head" else b"".join([part async for part in response])
        visitor.take(response, body)


def experiment(upstream: Any, settings: Any, stack: str, mode: str, requests: int) -> list[Visitor]:
    """Let two customers and two anonymous visitors browse a site whose content is the request for it."""
    upstream.answer = echo
    settings.ROOT_URLCONF = "tests.security.canaries"
    # No database: threads share none in memory.
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    settings.MIDDLEWARE = STACKS[stack]
    names = [("ada", True), ("grace", True), ("alan", False), ("edsger", False)]
    visitors = [Visitor(name, number, user=user, mode=mode) for number, (name, user) in enumerate(names, start=11)]
    with override_personalize(**PERSONALIZE):
        browse(visitors, requests, mode=mode, seed=7)
    return visitors


def count_foreign(visitors: Sequence[Visitor]) -> int:
    """Return how many answers have data of another visitor, or the id in another visitor's cookie."""
    found = 0
    for visitor in visitors:
        others = {trait for other in visitors if other is not visitor for trait in _collect_traits(other)}
        found += sum(any(trait in text for trait in others) for text in visitor.received)
    return found


def _collect_traits(visitor: Visitor) -> set[str]:
    cookie = visitor.client.cookies.get("moe_id")
    return visitor.traits | ({cookie.value.partition(":")[0]} if cookie and cookie.value else set())
