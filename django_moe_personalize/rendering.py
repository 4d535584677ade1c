"""Rendering: turn experiences into safe HTML, links and marks, and set the headers of personalized responses.

Content is text, and is escaped unless a template asks for HTML.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from html import unescape
from importlib import import_module
from typing import Any, Final, Protocol
from urllib.parse import urljoin

from django.conf import settings as django_settings
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.templatetags.static import static
from django.urls import NoReverseMatch, reverse
from django.utils.cache import patch_vary_headers
from django.utils.html import conditional_escape, escape, format_html
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.safestring import SafeString, mark_safe

from django_moe_personalize.conf import Settings, get_settings
from django_moe_personalize.moengage.types import Experience, Offering
from django_moe_personalize.runtime import log_once

HTML_TAGS: Final = frozenset(
    {"a", "abbr", "b", "blockquote", "br", "code", "del", "em", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "ins"}
    | {"li", "mark", "ol", "p", "s", "small", "span", "strong", "sub", "sup", "u", "ul"}
)
"""Elements that render_html() keeps. Of other elements it keeps the text, but not of scripts and styles."""

HTML_ATTRIBUTES: Final = {
    "a": {"href", "title"},
    "abbr": {"title"},
    "img": {"src", "alt", "width", "height"},
    "*": {"class"},
}

NOWHERE: Final = "#"
"""The URL that replaces an unsafe destination."""

_CLICK_MARK = re.compile(r"""\bdata-moe-click\b(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+)))?""")
_MAX_REMEMBERED_TEXT: Final = 2048
_MARK_END = mark_safe("<template data-moe-end></template>")


class Tracker(Protocol):
    """The part of ``tracking.PageTracker`` that rendering uses."""

    def add_rendered(self, experience: Experience) -> None:
        """Note that the page shows the experience."""

    def get_impression(self, experience: Experience) -> object | None:
        """Return the impression of this page view, or ``None`` when nothing may be counted."""

    def sign_mark(self, experience: Experience, elements: Sequence[str]) -> str | None:
        """Return the token of a mark."""

    def sign_click(
        self, experience: Experience, destination: str, *, element: str, offering: Offering | None, host: str
    ) -> str | None:
        """Return the token of a link."""


def render_experience(tracker: Tracker, experience: Experience, body: SafeString) -> SafeString:
    """Note that the page shows the experience, and return its rendered ``body``, with marks if the browser reports.

    The browser reports clicks on ``data-moe-click`` elements, and impressions in the modes ``visible`` and
    ``web_sdk``. Marks are empty ``template`` elements, which don't change the layout, even in tables and lists.
    """
    tracker.add_rendered(experience)
    mode = get_settings().impressions
    # Unescaped, because the browser reports the value of an attribute without entities.
    elements = tuple({unescape("".join(match)): None for match in _CLICK_MARK.findall(body)})
    if (elements or mode in ("visible", "web_sdk")) and (mark := _build_mark(tracker, experience, elements, mode)):
        return mark + body + _MARK_END
    return body


def render_value(tracker: Tracker, experience: Experience, value: Any) -> str:
    """Note that the page shows the experience, and return one value of its payload, escaped.

    A value may stand inside an attribute, where no mark can be. So in the modes ``visible`` and ``web_sdk`` a value
    alone counts nothing.
    """
    tracker.add_rendered(experience)
    # Only str itself: a SafeString is equal to the same str, but is not escaped.
    if value.__class__ is str and len(value) <= _MAX_REMEMBERED_TEXT:
        return _escape(value)
    return conditional_escape(value)


# Pages show the same values again and again. Remembered: 0.1 µs and 5 bytecodes. Escaped: 1.2 µs and 95 bytecodes, in
# a page with three values that renders in 17 µs.
@functools.lru_cache(maxsize=1024)
def _escape(text: str) -> SafeString:
    return escape(text)


def _build_mark(tracker: Tracker, experience: Experience, elements: Sequence[str], mode: str) -> SafeString | None:
    if mode == "web_sdk":
        if tracker.get_impression(experience) is None:
            return None
        context = json.dumps(dict(experience.experience_context))
        return format_html('<template data-moe-context="{}"></template>', context)
    token = tracker.sign_mark(experience, elements)
    if token is None:
        return None
    watch = mark_safe(" data-moe-watch") if mode == "visible" else ""
    return format_html('<template data-moe-experience="{}"{}></template>', token, watch)


def build_click_url(
    request: HttpRequest | None,
    tracker: Tracker | None,
    experience: Experience | None,
    destination: str,
    *,
    element: str = "",
    offering: Offering | None = None,
    trusted: bool = False,
) -> str:
    """Return the URL that counts a click on ``experience`` and then leads to ``destination``.

    A destination may lead to the site itself and to CONTENT_HOSTS. If it is ``trusted``, because the template's
    author wrote it, it may lead to any http(s) host. Every other destination becomes ``#``.

    If there is nothing to count, the result is the plain destination: without an experience, consent or an id,
    without the package's URLs, or for a place on the page itself.
    """
    if destination.startswith("#"):
        return destination
    if request is not None:
        # Relative to this page, and not to the click endpoint. The check below refuses text that urljoin() can't read.
        with suppress(ValueError):
            destination = urljoin(request.get_full_path(), destination)
    host = find_host(destination) if trusted else ""
    if not is_safe_url(destination, get_allowed_hosts(request, host)):
        message = "A link leads neither to this site nor to CONTENT_HOSTS, so it is #. Add its host to CONTENT_HOSTS."
        log_once("destination", message)
        return NOWHERE
    # In the mode "web_sdk" MoEngage's script counts clicks too, on links with data-moe-click.
    if experience is None or tracker is None or get_settings().impressions == "web_sdk":
        return destination
    token = tracker.sign_click(experience, destination, element=element, offering=offering, host=host)
    return destination if token is None else _reverse("click", token) or destination


def _reverse(name: str, *args: str) -> str | None:
    try:
        return reverse(f"moe_personalize:{name}", args=args)
    except NoReverseMatch:
        message = (
            "The package's URLs are missing, so clicks and views in the browser are not counted. "
            'Add path("moe/", include("django_moe_personalize.urls")) to your URLs.'
        )
        log_once("urls", message)
        return None


def find_host(url: str) -> str:
    """Return the host and port of an absolute http(s) URL, or ``""`` for every other URL."""
    match = re.match(r"https?://([^/?#\\@]+)", url, re.IGNORECASE)
    return match[1] if match else ""


def get_allowed_hosts(request: HttpRequest | None, *more: str) -> set[str]:
    """Return the hosts that links may lead to: the site's own, CONTENT_HOSTS and ``more``."""
    hosts = {*get_settings().content_hosts, *more}
    # Raised for a Host header that ALLOWED_HOSTS refuses. Links may not lead to such a host.
    with suppress(DisallowedHost):
        hosts.add("" if request is None else request.get_host())
    return hosts - {""}


def is_safe_url(url: str, hosts: Iterable[str]) -> bool:
    """Return whether ``url`` is relative, or http(s) with one of ``hosts``, and can be sent in a header."""
    try:
        url.encode()
    except UnicodeEncodeError:
        return False
    return url_has_allowed_host_and_scheme(url, allowed_hosts=set(hosts))


def render_html(value: object) -> SafeString:
    """Return the HTML of marketers with HTML_TAGS and HTML_ATTRIBUTES alone, and with links to allowed hosts alone.

    nh3 cleans it (``pip install django-moe-personalize[html]``). Without nh3 it is escaped.
    """
    try:
        nh3 = import_module("nh3")
    except ImportError:
        message = "nh3 is not installed, so |experience_html escapes content. Install django-moe-personalize[html]."
        log_once("nh3", message)
        return escape(value)
    hosts = get_allowed_hosts(None)

    def keep(tag: str, attribute: str, text: str) -> str | None:
        return None if attribute in ("href", "src") and not is_safe_url(text, hosts) else text

    clean = nh3.clean(
        str(value),
        tags=set(HTML_TAGS),
        attributes=HTML_ATTRIBUTES,
        attribute_filter=keep,
        url_schemes={"http", "https"},
        link_rel="noopener noreferrer",
    )
    return SafeString(clean)


def render_scripts(request: HttpRequest | None) -> SafeString:
    """Return the tag of the script that reports clicks and views, with the page's CSP nonce if there is one."""
    beacon = _reverse("beacon")
    if beacon is None:
        return SafeString("")
    source, nonce = static("moe_personalize/personalize.js"), SafeString("")
    # Django's own nonce (6.0 and later), or the one of django-csp.
    for name in ("_csp_nonce", "csp_nonce"):
        if (found := getattr(request, name, None)) is not None:
            # Both are lazy: reading the nonce adds it to the policy's header.
            nonce = format_html(' nonce="{}"', str(found))
            break
    return format_html('<script src="{}" data-beacon="{}"{} defer></script>', source, beacon, nonce)


# Response headers.


def seal_response(response: HttpResponseBase, settings: Settings) -> None:
    """Mark a page that read an experience, so that no shared cache stores it.

    ``Cache-Control`` is replaced as a whole: the view's ``public`` or ``max-age`` was meant for a page that is the
    same for all visitors.
    """
    response.headers["Cache-Control"] = settings.cache_control
    for name in ("Expires", "CDN-Cache-Control", "Surrogate-Control"):
        response.headers.pop(name, None)
    if "Vary" in response.headers:
        patch_vary_headers(response, ("Cookie",))
    else:
        # patch_vary_headers() would take 90 bytecodes and 1.5 µs more. Few pages have another Vary.
        response.headers["Vary"] = "Cookie"


def keep_out_of_site_cache(request: HttpRequest) -> None:
    """Tell Django's own cache middleware not to store this page. Call it for every read of an experience.

    ``UpdateCacheMiddleware`` outside of our middleware and ``cache_page`` around the view look at this attribute
    before our headers are set. ``FetchFromCacheMiddleware`` resets the attribute when it starts.
    """
    request._cache_update_cache = False  # type: ignore[attr-defined]


def add_server_timing(
    request: HttpRequest, response: HttpResponseBase, *, describe: Callable[[], str], waited: float
) -> None:
    """Show staff, and everyone with DEBUG on, what the page asked for and how many seconds it waited.

    Browsers show it in their network panel: https://www.w3.org/TR/server-timing/
    """
    # Only a user that this request has loaded already: loading one could block.
    known = request.__dict__
    user = known.get("_cached_user") or known.get("_acached_user")
    if django_settings.DEBUG or getattr(user, "is_staff", False):
        entry = f'moe;desc="{describe()}";dur={waited * 1000:.1f}'
        existing = response.headers.get("Server-Timing")
        response.headers["Server-Timing"] = f"{existing}, {entry}" if existing else entry
