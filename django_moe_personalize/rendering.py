"""Rendering: turn experiences into safe HTML, links and marks, and set headers (Cache-Control) of personalized pages.

Content is text. It is escaped, unless a template asks for HTML with ``|experience_html``.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from types import FrameType
from typing import Any, Final
from urllib.parse import quote, urljoin

from django.conf import settings as django_settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.templatetags.static import static
from django.urls import NoReverseMatch, URLResolver, get_resolver, get_urlconf, reverse
from django.utils.cache import patch_vary_headers
from django.utils.html import conditional_escape, escape, format_html
from django.utils.safestring import SafeString

from django_moe_personalize.conf import Settings, get_settings
from django_moe_personalize.moengage.types import Experience, Offering
from django_moe_personalize.runtime import log_once
from django_moe_personalize.tracking import PageTracker, marks
from django_moe_personalize.tracking.destinations import find_target, get_allowed_hosts, is_safe_url, quote_url

HTML_TAGS: Final = frozenset(
    {"a", "abbr", "b", "blockquote", "br", "code", "del", "em", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "ins"}
    | {"li", "mark", "ol", "p", "s", "small", "span", "strong", "sub", "sup", "u", "ul"}
)
"""Elements that render_html() keeps. It removes the tags of other elements, and the text of scripts and styles."""

HTML_ATTRIBUTES: Final = {
    "a": {"href", "title"},
    "abbr": {"title"},
    "img": {"src", "alt", "width", "height"},
    "*": {"class"},
}

NOWHERE: Final = "#"
"""The URL that replaces an unsafe destination."""

SCRIPT: Final = "moe_personalize/personalize.js"
SCRIPT_HINT: Final = "Set STATIC_URL, run `manage.py collectstatic`, and restart the site."

MAX_REMEMBERED_TEXT: Final = 2048


def render_experience(
    tracker: PageTracker, experience: Experience, body: SafeString, *, is_streamed: bool = False
) -> SafeString:
    """Record that the page shows the experience. Return its ``body``, with a mark if the browser must report.

    The browser reports clicks on ``data-moe-click`` elements. In the modes ``visible`` and ``web_sdk`` the browser also
    reports impressions. In the mode ``render`` it reports those of a page that it loads before a person opens the page,
    because a library may show only a part of the page, without the tokens of the script's tag. A streamed page has no
    marks that are comments, because seal_response() can't remove them.
    """
    tracker.rendered.setdefault(experience.experience_key, experience)
    mode = get_settings().impressions
    elements = marks.find_clickable(body)
    is_watched = mode == "visible" or (tracker.is_early and mode == "render")
    if not elements and not is_watched and mode != "web_sdk":
        return body
    token = build_token(tracker, experience, elements, mode)
    if token is None:
        return body
    return SafeString(marks.add_mark(body, token, is_watched=is_watched, has_comments=not is_streamed))


def render_value(value: Any) -> str:
    """Return one value of a payload, escaped.

    The value has no marks, because it may be inside an HTML attribute. So in the modes ``visible`` and ``web_sdk`` the
    browser doesn't report it.
    """
    # The cache of _escape() takes a SafeString for the equal plain str, so only a plain str may go in.
    if value.__class__ is str and len(value) <= MAX_REMEMBERED_TEXT:
        return _escape(value)
    return conditional_escape(value)


# Pages show the same values again and again. A cache hit takes 0.1 µs and 5 bytecodes, a miss 1.2 µs and 95 bytecodes.
# A page with three values renders in 17 µs.
@functools.lru_cache(maxsize=1024)
def _escape(text: str) -> SafeString:
    return escape(text)


def build_token(tracker: PageTracker, experience: Experience, elements: Sequence[str], mode: str) -> str | None:
    """Return the token of a mark: signed for the beacon, or in the mode "web_sdk" the calls of MoEngage's script."""
    if mode != "web_sdk":
        return tracker.sign_mark(experience, elements)
    if tracker.get_impression(experience) is None:
        return None
    return quote(json.dumps([tracker.get_stamp(), *_list_sdk_calls(experience, elements)]), safe="")


def _list_sdk_calls(experience: Experience, elements: Sequence[str]) -> tuple[list[Any], dict[str, list[Any]]]:
    """Return the calls of MoEngage's script for the impression, and for the click on each element (contract §6).

    An element that is named like an offering is the offering's. Its click is a click on the experience too, which
    ``offeringClicked`` would count again if it got the experience's context.
    """
    context = dict(experience.experience_context)
    offerings = {offering.offering_id: dict(offering.context) for offering in experience.offerings}
    shown = [["trackImpression", context], *(["offeringShown", offering] for offering in offerings.values())]
    clicked = {name: [["trackClick", context, {"button_id": name}]] for name in elements}
    for name in clicked.keys() & offerings:
        clicked[name].append(["offeringClicked", offerings[name]])
    return shown, clicked


def build_click_url(
    request: HttpRequest | None,
    tracker: PageTracker | None,
    experience: Experience | None,
    destination: str,
    *,
    element: str = "",
    offering: Offering | None = None,
    written: str = "",
) -> str:
    """Return the URL that counts a click on ``experience`` and then leads to ``destination``.

    A destination may lead to the site itself, to CONTENT_HOSTS, and to the host or the app (``tel:``) that the
    template's author has ``written``. Every other destination becomes ``#``.

    The result is the plain destination if the click can't be counted. This is so without an experience, without consent
    or an id, without the package's URLs, for an app, and for a destination such as ``#top`` on the page itself.
    """
    host, scheme = find_target(written)
    if destination.startswith("#") or (scheme and find_target(destination)[1] == scheme):
        return quote_url(destination)
    if request is not None:
        # The destination is relative to this page, and not to the click endpoint. If urljoin() can't read the text, the
        # check below refuses it.
        with suppress(ValueError):
            destination = urljoin(request.get_full_path(), destination)
    host = host if host and host == find_target(destination)[0] else ""
    # Most links are relative. Finding the hosts first would take 40 bytecodes more on a warm page.
    if not (is_safe_url(destination) or is_safe_url(destination, get_allowed_hosts(request, host))):
        message = "A link leads neither to this site nor to CONTENT_HOSTS, so it is #. Add its host to CONTENT_HOSTS."
        log_once("destination", message)
        return NOWHERE
    destination = quote_url(destination)
    # In the mode "web_sdk" MoEngage's own script counts the clicks on links with data-moe-click.
    if experience is None or tracker is None or get_settings().impressions == "web_sdk":
        return destination
    token = tracker.sign_click(experience, destination, element=element, offering=offering, host=host)
    return destination if token is None else reverse_endpoint("click", token) or destination


def reverse_endpoint(name: str, *args: str) -> str | None:
    """Return the URL of one of the package's views, or ``None`` with a line in the log."""
    try:
        return reverse(f"moe_personalize:{name}", args=args)
    except NoReverseMatch:
        url = find_endpoint(name, *args)
    if url is None:
        message = (
            "The package's URLs are missing, so clicks and views in the browser are not counted. "
            'Add path("moe/", include("django_moe_personalize.urls")) to your URLs.'
        )
        log_once("urls", message)
    return url


def find_endpoint(name: str, *args: str) -> str | None:
    """Return the URL of a view such as ``beacon``, or ``None`` if the site doesn't include the package's URLs.

    The site may include them in any namespace, or several times. The first that needs no other arguments counts.
    """
    for route in find_endpoint_names(get_resolver(get_urlconf()), name):
        with suppress(NoReverseMatch):
            return reverse(route, args=args)
    return None


@functools.lru_cache(maxsize=64)
def find_endpoint_names(resolver: URLResolver, name: str, prefix: str = "") -> tuple[str, ...]:
    """Return the names of the URLs, with their namespaces, that lead to the view ``click`` or ``beacon``."""
    found: list[str] = []
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLResolver):
            inner = f"{prefix}{pattern.namespace}:" if pattern.namespace else prefix
            found += find_endpoint_names.__wrapped__(pattern, name, inner)
        elif pattern.name and pattern.lookup_str == f"django_moe_personalize.views.{name}":
            found.append(f"{prefix}{pattern.name}")
    return tuple(found)


def render_html(value: object) -> SafeString:
    """Return HTML from the dashboard with only HTML_TAGS, HTML_ATTRIBUTES and links to allowed hosts.

    The library nh3 cleans the HTML (``pip install nh3``). Without nh3 the HTML is escaped.
    """
    try:
        nh3 = import_module("nh3")
    except ImportError:
        message = "nh3 is not installed, so |experience_html escapes content. Run `pip install nh3`."
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


def render_scripts(request: HttpRequest | None, shown: Iterable[str] = ()) -> SafeString:
    """Return the tag of the script that reports clicks and views, with the page's CSP nonce if there is one.

    The browser loads this page in advance if there are tokens in ``shown``. The script reports these impressions once
    a person opens the page.
    """
    beacon = reverse_endpoint("beacon") if get_settings().enabled else None
    if beacon is None:
        return SafeString("")
    source = find_source(SCRIPT)
    if not source:
        return SafeString("")
    tokens = " ".join(shown)
    waiting = format_html(' data-moe-shown="{}"', tokens) if tokens else ""
    nonce = render_nonce(request)
    return format_html('<script src="{}" data-beacon="{}"{}{} defer></script>', source, beacon, waiting, nonce)


def render_nonce(request: HttpRequest | None) -> SafeString:
    """Return the attribute with the CSP nonce of the page, or "" if the page has no nonce."""
    # The nonce of Django (6.0 and later), or the nonce of django-csp.
    for name in ("_csp_nonce", "csp_nonce"):
        if (found := getattr(request, name, None)) is not None:
            # str() reads the lazy nonce, which adds the nonce to the header of the policy.
            return format_html(' nonce="{}"', str(found))
    return SafeString("")


def find_script(name: str = SCRIPT) -> tuple[str, str]:
    """Return the URL of a script, and the problem if Django's static files have no URL for it.

    With a problem, the URL is the one without a hash, or ``""`` if the site has no STATIC_URL.
    """
    try:
        url = static(name)
    except Exception as error:
        # A manifest may lack the file, and the storage of another library may raise anything.
        base = django_settings.STATIC_URL
        return urljoin(base, name) if base else "", type(error).__name__
    # Without STATIC_URL, Django returns a path that browsers would look for below the page.
    return ("", "STATIC_URL is not set") if url == name else (url, "")


def find_source(name: str) -> str:
    """Return the URL of a script, or "". Log a problem once."""
    source, problem = find_script(name)
    if problem:
        message = "The static file %s has no URL (%s), so it may not load in pages. %s"
        log_once(("script", name), message, name, problem, SCRIPT_HINT)
    return source


# Response headers.

_OUTRANKING = re.compile("expires|x-accel-expires|surrogate-control|edge-control|.+-cache-control", re.IGNORECASE)
"""Headers that nginx, Akamai or other CDNs obey instead of Cache-Control, with all targeted fields (RFC 9213)."""


def seal_response(response: HttpResponseBase, settings: Settings) -> None:
    """Set the headers of a page that read an experience, so that no proxy or CDN stores the page. Check its marks.

    Replace the view's ``Cache-Control``, because its ``public`` or ``max-age`` is for a page that all visitors share.
    """
    # The mapping below Django's headers, by lower-case names. The public way would take 200 bytecodes and 4 µs more.
    headers = response.headers._store
    names = " ".join(headers)
    # Few views set such a header.
    if "control" in names or "expires" in names:
        for name in [name for name in headers if _OUTRANKING.fullmatch(name)]:
            del headers[name]
    headers["cache-control"] = ("Cache-Control", settings.cache_control)
    if "vary" in headers:
        patch_vary_headers(response, ("Cookie",))
    else:
        headers["vary"] = ("Vary", "Cookie")
    # A middleware may have returned a TemplateResponse that Django hasn't rendered.
    has_content = not response.streaming and getattr(response, "is_rendered", True)
    if has_content and marks.TRACE in response.content:  # type: ignore[attr-defined]
        marks.remove_misplaced(response)


@functools.cache
def _build_private_class(request_class: type[HttpRequest]) -> type[HttpRequest]:
    """Return a subclass whose requests keep ``_cache_update_cache`` false, and that wagtail-cache skips.

    Django's ``cache_page`` and FetchFromCacheMiddleware set this attribute to True when they start. A middleware or
    decorator may have read an experience before that.
    """
    never = property(lambda request: False, lambda request, value: None)
    return type(request_class.__name__, (request_class,), {"_cache_update_cache": never, "_wagtailcache_skip": True})


def _find_rendered_placeholders() -> Iterator[Any]:
    """Yield the placeholders that django CMS is rendering now. It asks them again before it stores them.

    Placeholders come from a page, another page, another model or an alias. Only the callers' frames have all of them.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "render_placeholder" and (placeholder := frame.f_locals.get("placeholder")):
            yield placeholder
        frame = frame.f_back


def keep_out_of_caches(request: HttpRequest) -> None:
    """Tell the caches of Django, and of wagtail-cache and django CMS if the site has them, not to store this page.

    They can store a page before the package sets the headers: ``cache_page`` of Django or wagtail-cache after the view,
    and django CMS as soon as the page is rendered. django CMS also stores each placeholder.
    """
    request_class: Any = request.__class__
    request.__class__ = _build_private_class(request_class)
    if (toolbar := request.__dict__.get("toolbar")) is not None:
        # django CMS has no public way. If one of these names changes, the leak detector finds the stored content.
        with suppress(Exception):
            toolbar._cache_disabled = True
            toolbar.content_renderer.placeholder_cache_is_enabled = lambda: False
            for placeholder in _find_rendered_placeholders():
                placeholder.cache_placeholder = False


def add_server_timing(request: HttpRequest, response: HttpResponseBase) -> None:
    """Add the facts of ``explain()`` as a short header.

    Only staff get the header, or with DEBUG all visitors. Browsers show the header in their network panel:
    https://www.w3.org/TR/server-timing/
    """
    # Use only a user that this request has already loaded, because loading a user could block.
    known = request.__dict__
    user = known.get("_cached_user") or known.get("_acached_user")
    is_shown = django_settings.DEBUG
    # The field may be deferred, or a property of the site. A query of the property fails in an event loop.
    with suppress(Exception):
        is_shown = is_shown or getattr(user, "is_staff", False)
    # A mistake in a description must not cost the page its cookie and its events.
    with suppress(Exception):
        if is_shown:
            entries = request.personalization._describe()  # type: ignore[attr-defined]
            existing = response.headers.get("Server-Timing")
            response.headers["Server-Timing"] = f"{existing}, {entries}" if existing else entries
