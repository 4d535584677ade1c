"""Render: payload → safe HTML, links and tracking marks. Content is text unless a template asks for HTML."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from html import unescape
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import urljoin

from django.core.exceptions import DisallowedHost
from django.http import HttpRequest
from django.templatetags.static import static
from django.urls import NoReverseMatch, reverse
from django.utils.html import conditional_escape, escape, format_html
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.safestring import SafeString, mark_safe

from django_moe_personalize.conf import get_settings
from django_moe_personalize.moengage.types import Experience, Offering
from django_moe_personalize.runtime import log_once

HTML_TAGS = frozenset(
    {"a", "abbr", "b", "blockquote", "br", "code", "del", "em", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "ins"}
    | {"li", "mark", "ol", "p", "s", "small", "span", "strong", "sub", "sup", "u", "ul"}
)
"""What marketers' HTML may hold; everything else is taken out, its text kept."""

HTML_ATTRIBUTES = {"a": {"href", "title"}, "abbr": {"title"}, "img": {"src", "alt", "width", "height"}, "*": {"class"}}

NOWHERE = "#"
"""Where a link goes whose destination is not safe."""

_CLICK_MARK = re.compile(r"""\bdata-moe-click\b(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+)))?""")

_MAX_REMEMBERED_TEXT = 2048

_MARK_END = mark_safe("<template data-moe-end></template>")


class Tracker(Protocol):
    """What of ``track.PageTracker`` rendering needs."""

    def show(self, experience: Experience) -> None:
        """Count the impression."""

    def notice(self, experience: Experience) -> None:
        """Remember that the browser is to count one."""

    def get_impression(self, experience: Experience) -> object | None:
        """Return the impression of this page view, ``None`` when nothing may be counted."""

    def sign_mark(self, experience: Experience, elements: Sequence[str]) -> str | None:
        """Return the token of a mark."""

    def sign_click(
        self, experience: Experience, destination: str, *, element: str, offering: Offering | None, host: str
    ) -> str | None:
        """Return the token of a link."""


def render_experience(tracker: Tracker, experience: Experience, body: SafeString) -> SafeString:
    """Return the rendered ``body`` of an experience: counted as shown, or marked for the browser to count.

    Marks are empty ``template`` elements before and after the body; they take part in no layout and
    may stand anywhere. They are there only when the browser has something to report: clicks on
    ``data-moe-click`` elements, or impressions in the modes ``visible`` and ``web_sdk``.
    """
    mode = get_settings().impressions
    if mode == "render":
        tracker.show(experience)
    elif mode == "visible":
        tracker.notice(experience)
    # As the browser reads an attribute's value, so that what it reports is what was signed.
    elements = tuple({unescape("".join(match)): None for match in _CLICK_MARK.findall(body)})
    if (elements or mode in ("visible", "web_sdk")) and (mark := _build_mark(tracker, experience, elements, mode)):
        return mark + body + _MARK_END
    return body


def render_value(tracker: Tracker, experience: Experience, value: Any) -> str:
    """Return one payload value, escaped, and count its experience as shown.

    It may stand inside an attribute, where no mark can: in the modes in which the browser counts,
    a value on its own counts nothing.
    """
    mode = get_settings().impressions
    if mode == "render":
        tracker.show(experience)
    elif mode == "visible":
        tracker.notice(experience)
    # An exact str: what knows by itself how to be HTML must be asked, and equals one that does not.
    if value.__class__ is str and len(value) <= _MAX_REMEMBERED_TEXT:
        return _escape(value)
    return conditional_escape(value)


@functools.lru_cache(maxsize=1024)
def _escape(text: str) -> SafeString:
    """Escape a text of an experience, which pages show again and again."""
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
    """Return the URL that counts a click on ``experience`` and then goes to ``destination``.

    A destination from content goes to the site itself or to CONTENT_HOSTS, one the template's
    author wrote (``trusted``) to any http(s) host; others become ``#``. The plain destination is
    returned when there is nothing to count: no experience, no consent, no id, URLs not included, or
    a place on the page itself.
    """
    if destination.startswith("#"):
        return destination
    if request is not None:
        # Relative to this page, not to the endpoint that a click passes through. What is no URL at all
        # ("https://[x") raises; it stays what it is, and is not safe.
        with suppress(ValueError):
            destination = urljoin(request.get_full_path(), destination)
    host = find_host(destination) if trusted else ""
    if not is_safe_url(destination, get_allowed_hosts(request, host)):
        log_once("destination", "A link's destination is not of this site nor of CONTENT_HOSTS; it goes nowhere.")
        return NOWHERE
    # With "web_sdk" the vendor's script counts clicks too: data-moe-click on the link tells it.
    if experience is None or tracker is None or get_settings().impressions == "web_sdk":
        return destination
    token = tracker.sign_click(experience, destination, element=element, offering=offering, host=host)
    return destination if token is None else _reverse("click", token) or destination


def _reverse(name: str, *args: str) -> str | None:
    try:
        return reverse(f"moe_personalize:{name}", args=args)
    except NoReverseMatch:
        log_once("urls", 'Clicks are not tracked: add path("moe/", include("django_moe_personalize.urls")).')
        return None


def find_host(url: str) -> str:
    """Return the host and port of an absolute URL, ``""`` for others."""
    match = re.match(r"https?://([^/?#\\@]+)", url, re.IGNORECASE)
    return match[1] if match else ""


def get_allowed_hosts(request: HttpRequest | None, *more: str) -> set[str]:
    """Return the hosts that links may lead to: the site's own, CONTENT_HOSTS and ``more``."""
    hosts = {*get_settings().content_hosts, *more}
    # A site that lets any Host header in has no host of its own.
    with suppress(DisallowedHost):
        hosts.add("" if request is None else request.get_host())
    return hosts - {""}


def is_safe_url(url: str, hosts: Iterable[str]) -> bool:
    """Return whether ``url`` is relative or http(s) to one of ``hosts``, and can be sent at all."""
    try:
        url.encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, with which a redirect would fail.
        return False
    return url_has_allowed_host_and_scheme(url, allowed_hosts=set(hosts))


def render_html(value: object) -> SafeString:
    """Return marketers' HTML with only HTML_TAGS and HTML_ATTRIBUTES, links and images of allowed hosts.

    nh3 cleans it (``pip install django-moe-personalize[html]``); without nh3 it is escaped.
    """
    try:
        nh3 = import_module("nh3")
    except ImportError:
        log_once("nh3", "Content is escaped: install django-moe-personalize[html] to show it as HTML.")
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
    """Return the tag of the static script that reports clicks and views; with the page's CSP nonce if any."""
    beacon = _reverse("beacon")
    if beacon is None:
        return SafeString("")
    source = static("moe_personalize/personalize.js")
    nonce = get_nonce(request)
    if nonce is None:
        return format_html('<script src="{}" data-beacon="{}" defer></script>', source, beacon)
    return format_html('<script src="{}" data-beacon="{}" nonce="{}" defer></script>', source, beacon, nonce)


def get_nonce(request: HttpRequest | None) -> str | None:
    """Return the request's CSP nonce: Django's own (6.0 and later) or django-csp's; ``None`` without one."""
    for name in ("_csp_nonce", "csp_nonce"):
        if (nonce := getattr(request, name, None)) is not None:
            # Both are lazy: reading one puts it into the policy's header.
            return str(nonce)
    return None
