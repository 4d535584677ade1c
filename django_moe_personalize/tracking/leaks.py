"""The leak detector: find another page view's tokens in a response, where a cache put them.

A token or mark starts with the stamp of its page view. So a stamp of another page view shows that some cache stored a
page or a fragment: a cache of the site's own code, of a CMS, or of another package.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, cycle, repeat
from typing import Any, Final
from urllib.parse import unquote_plus

from django.conf import settings as django_settings
from django.http import FileResponse, HttpRequest
from django.http.response import HttpResponseBase
from django.urls import Resolver404, resolve

from django_moe_personalize.exceptions import LeakError
from django_moe_personalize.runtime import ALWAYS, Runtime, part
from django_moe_personalize.tracking.tokens import STAMP
from django_moe_personalize.visitor.identity import COOKIE_NAMES, QUERY_COOKIE

MAX_LOOKED_AT: Final = 4 * 1024 * 1024
"""The detector looks at so many bytes of a response. Looking takes about 1 ms for each MiB."""

FIRST_PAGES: Final = 10
ONE_IN: Final = 97
"""The detector looks at the first pages of a route, and then at one page of this number.

The number is a prime. So if visitors open two addresses of a route in turn, the detector sees both.
"""

MAX_ROUTES: Final = 1000

# The beginnings of the names, because each workspace has cookies of its own.
_COOKIES = (*COOKIE_NAMES, QUERY_COOKIE)
_PREFIX = STAMP.encode()
_STAMPS = re.compile(rb"moe\.[0-9a-f]{12}")

_LEAK = (
    "A response of the route %s has a token, mark or cookie of another page view, so a cache shows one visitor's "
    "content to other visitors. Find the cache in the view, its templates or the middleware, and put it around HTML "
    "without personalization tags."
)
_SEALED = " The package made this response private, and looks at each page of this route from now on."


@part
def is_strict(runtime: Runtime) -> bool:
    """Return whether a leak raises LeakError: with DEBUG, and in tests.

    In tests means: between Django's setup_test_environment(), which pytest-django calls too, and its end.
    """
    environment = getattr(sys.modules.get("django.test.utils"), "_TestState", None)
    return bool(django_settings.DEBUG) or hasattr(environment, "saved_data")


def find_leak(runtime: Runtime, request: HttpRequest, response: HttpResponseBase, get_stamp: Callable[[], str]) -> bool:
    """Return whether ``response`` has tokens, marks or cookies of another page view, and so must be private.

    ``get_stamp`` returns the stamp of this page view, or ``""``. The first leak of a route logs an error. In strict
    mode, each leak raises LeakError. A stream is searched while the server sends it, and can't become private then.
    After a leak in a stream, all streams of its route are private.

    A compressed response can't be searched. An address or form of the request that the page repeats isn't a leak, and
    the pages of the debug toolbar show earlier requests.
    """
    match = request.resolver_match
    if match is not None:
        if "djdt" in match.app_names:
            return False
        _remember_route(runtime, match.view_name)
    report = partial(_report, runtime, request, response.status_code)
    if _drop_cookies(response):
        return report()
    search = partial(_search, request, get_stamp, report)
    if response.streaming:
        _search_stream(response, search)
        return match is not None and runtime.samples.get(match.view_name) is ALWAYS
    is_readable = getattr(response, "is_rendered", True) and not response.has_header("Content-Encoding")
    return is_readable and search(response.content)  # type: ignore[attr-defined]


def _remember_route(runtime: Runtime, route: str) -> None:
    if route not in runtime.samples and not is_strict(runtime):
        if len(runtime.samples) >= MAX_ROUTES:
            runtime.samples.clear()
        # This is the first page.
        samples = chain(repeat(True, FIRST_PAGES - 1), cycle([*repeat(False, ONE_IN - 1), True]))
        _set_samples(runtime, route, samples)


def _set_samples(runtime: Runtime, route: str, samples: Iterator[bool]) -> None:
    runtime.samples[route] = samples
    runtime.plans.clear()


def _drop_cookies(response: HttpResponseBase) -> bool:
    """Drop the package's cookies, and return whether there are any.

    A view may return one response object again and again, with the cookies that the package set for its first visitor.
    An empty cookie is from delete_anonymous_cookie().
    """
    foreign = [name for name, cookie in response.cookies.items() if name.startswith(_COOKIES) and cookie.value]
    for name in foreign:
        del response.cookies[name]
    return bool(foreign)


def _search(request: HttpRequest, get_stamp: Callable[[], str], report: Callable[[], bool], content: bytes) -> bool:
    """Return whether ``content`` has a stamp of another page view, and report it."""
    own = get_stamp().encode()
    # Most pages have no stamps, or only their own. Counting takes a fifth of the time of the regular expression.
    if content.count(_PREFIX, 0, MAX_LOOKED_AT) == (content.count(own, 0, MAX_LOOKED_AT) if own else 0):
        return False
    # The fields of a form that the view has read already.
    repeated = f"{unquote_plus(request.get_full_path())} {request.__dict__.get('_post', '')}"
    known = {own, *_STAMPS.findall(repeated.encode("utf-8", "surrogatepass"))}
    if known.issuperset(_STAMPS.findall(content, 0, MAX_LOOKED_AT)):
        return False
    return report()


def _report(runtime: Runtime, request: HttpRequest, status: int) -> bool:
    """Log an error once for each route, and raise LeakError in strict mode. Otherwise return ``True``."""
    route = _find_route(request)
    _set_samples(runtime, route, ALWAYS)
    runtime.log_once(("leak", route), _LEAK + _SEALED, route, level=logging.ERROR)
    # LeakError would hide the exception of an error page.
    if is_strict(runtime) and status < 500:
        raise LeakError(_LEAK % route)
    return True


def _find_route(request: HttpRequest) -> str:
    """Return the name of the route. A cache in the middleware may have responded before Django looked for the route."""
    match = request.resolver_match
    with suppress(Resolver404):
        match = match or resolve(request.path_info, getattr(request, "urlconf", None))
    return "(none)" if match is None else match.view_name


def _search_stream(response: Any, search: Callable[[bytes], bool]) -> None:
    # A wrapped FileResponse would lose the server's fast way to send files.
    if isinstance(response, FileResponse) or response.has_header("Content-Encoding"):
        return

    def stream(content: Any) -> Iterator[bytes]:
        end = b""
        for piece in content:
            end = _search_piece(end + piece, search)
            yield piece

    async def astream(content: Any) -> AsyncIterator[bytes]:
        end = b""
        async for piece in content:
            end = _search_piece(end + piece, search)
            yield piece

    response.streaming_content = (astream if response.is_async else stream)(response.streaming_content)


def _search_piece(piece: bytes, search: Callable[[bytes], bool]) -> bytes:
    """Search a piece of a stream, and return its end, where a stamp may begin."""
    search(piece)
    return piece[-len(STAMP) - 11 :]
