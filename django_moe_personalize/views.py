"""The endpoints for browsers: the click redirect and the beacon count, and the islands show experiences."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from contextlib import nullcontext, suppress
from io import BytesIO
from typing import Any, Final, NamedTuple

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import BadRequest, SuspiciousOperation
from django.core.signing import BadSignature
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect, JsonResponse, QueryDict
from django.http.multipartparser import MultiPartParser, MultiPartParserError
from django.http.request import UnreadablePostError
from django.template import TemplateDoesNotExist
from django.template.loader import get_template
from django.utils import translation
from django.utils.cache import patch_vary_headers
from django.utils.encoding import iri_to_uri
from django.utils.html import format_html
from django.utils.translation import gettext
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_POST, require_safe

from django_moe_personalize import planning, tracking
from django_moe_personalize.browser.islands import read_island
from django_moe_personalize.conf import ConfigurationError, get_settings
from django_moe_personalize.context import get_page, give_id, switch_workspace
from django_moe_personalize.fetching.shared import add_to_count
from django_moe_personalize.moengage.types import Event
from django_moe_personalize.runtime import Runtime, get_runtime, log_once, part, use_workspace
from django_moe_personalize.tracking import destinations
from django_moe_personalize.tracking.watchdog import get_watchdog
from django_moe_personalize.visitor import MINTED
from django_moe_personalize.visitor.identity import get_consent, get_identity

MAX_BEACON_BYTES: Final = 16 * 1024
MAX_BEACON_REPORTS: Final = 100

MAX_BEACON_PARTS: Final = 20
"""Parts of a multipart form. Django takes 50 µs for each part."""

MAX_REPORTS_A_MINUTE: Final = 120
"""The most beacons of one visitor that count, and the most clicks on links. The script sends one beacon a second."""

MAX_ISLANDS: Final = 25
"""Islands that one request may ask for. The script asks for more in several requests."""

MAX_PATH_LENGTH: Final = 2048

MISSING_SDK: Final = ["missing", "web_sdk"]
"""The report of a page for which MoEngage's Web SDK never came. It has no token, because it names no visitor."""

MAX_VISITORS_A_MINUTE: Final = 10_000
"""Visitors whose reports a process counts if the processes share no cache. One more visitor resets the counters."""

LIBRARY_HEADERS: Final = ("HX-Request", "X-Up-Version", "X-Turbo-Request-Id", "X-PJAX", "X-Requested-With")
"""The headers by which htmx, Unpoly, Turbo, pjax and other libraries say that they ask in place of the browser."""

_OPENED = "opened"
"""The query parameter of a link that the browser itself opens, even if a service worker changes its headers."""

_UNREADABLE = (ValueError, RecursionError, BadRequest, SuspiciousOperation, MultiPartParserError, UnreadablePostError)


@login_not_required
@never_cache
@require_safe
@sensitive_variables()
def click(request: HttpRequest, token: str) -> HttpResponse:
    """Count the click of ``token`` and redirect to its destination. The response to a bad token is a 400.

    The token of an old page, of another visitor, or of a visitor without consent redirects too, but doesn't count. A
    request that isn't a person's click, or whose script couldn't follow the redirect, gets another response.
    """
    found = _read_token(token)
    with use_workspace(found and found.workspace):
        hosts = destinations.get_allowed_hosts(request, found.host) if found else ()
    if found is None or not found.destination or not destinations.is_safe_url(found.destination, hosts):
        return HttpResponseBadRequest(gettext("This link is not valid."), content_type="text/plain; charset=utf-8")
    response = _answer_script(request, found.destination)
    if response is None or "HX-Redirect" in response:
        _count_click(request, found)
    response = response or HttpResponseRedirect(found.destination)
    patch_vary_headers(response, [*tracking.SPECULATIVE_HEADERS, *LIBRARY_HEADERS, "Sec-Fetch-Mode"])
    return response


def _count_click(request: HttpRequest, token: tracking.Token) -> None:
    if tracking.is_counted(request) and not token.expired:
        with use_workspace(token.workspace):
            customer_id = _find_customer_id(request)
            if customer_id and token.belongs_to(customer_id) and is_within_limit("clicks", customer_id):
                tracking.record([token.build_event(customer_id)], None, request)


def _answer_script(request: HttpRequest, destination: str) -> HttpResponse | None:
    """Return the response to a request that a script or a browser makes, or ``None`` to redirect a person.

    - The visitor hasn't clicked yet: 503. So the browser drops this response, and asks again after a click.
    - htmx can't follow a redirect to another host, but lets the browser open the address in HX-Redirect.
    - Turbo, Unpoly and other libraries can't follow it either, and get a page that leads the browser back to this link.
    - Any other script gets the same page, because the script may ask without a click.
    """
    if tracking.is_speculative(request):
        response = _build_step(request, destination, status=503)
        # Django would log an error, and send it to the admins.
        response._has_been_logged = True  # type: ignore[attr-defined]
        return response
    mode = request.headers.get("Sec-Fetch-Mode", "")
    # The browsers inside of Android's apps send X-Requested-With too.
    if mode == "navigate" or _OPENED in request.GET:
        return None
    if any(name in request.headers for name in LIBRARY_HEADERS):
        if destinations.is_same_origin(request, destination):
            return None
        if "HX-Request" in request.headers:
            return HttpResponse(headers={"HX-Redirect": iri_to_uri(destination)})
        return _build_step(request, destination)
    return _build_step(request, destination) if mode else None


def _build_step(request: HttpRequest, destination: str, *, status: int = 200) -> HttpResponse:
    """Return a page that leads to the same link, which then gets a request of the browser itself.

    Turbo loads this page again, because of the first ``meta`` element. Unpoly replaces the body. In both cases, and if
    another script shows the page, the browser obeys the second ``meta`` element.
    """
    return HttpResponse(
        format_html(
            '<!DOCTYPE html><html><head><meta name="turbo-visit-control" content="reload"><title>{name}</title></head>'
            '<body><meta http-equiv="refresh" content="0;url={url}"><a href="{url}">{name}</a></body></html>',
            name=destination,
            url=f"{request.path}?{_OPENED}=1",
        ),
        status=status,
        headers={"X-Up-Target": "body"},
    )


@login_not_required
@never_cache
@csrf_exempt
@require_POST
@sensitive_variables()
def beacon(request: HttpRequest) -> HttpResponse:
    """Count the reports of a page: ``{"events": [[kind, token, element], …]}``. The response is always a 204.

    ``kind`` is ``"impression"`` or ``"click"``. Only a click has an element. In the mode "web_sdk" the only report is
    MISSING_SDK. The body is JSON with any content type, or a form with the list in its field ``events``. The beacon
    needs no CSRF token, because each report has a signed token of the visitor.
    """
    if request.headers.get("Sec-Fetch-Site") != "cross-site" and tracking.is_counted(request):
        listed = _read_reports(request)
        if MISSING_SDK in listed:
            _count_missing_sdk()
        reports = [found for report in listed if (found := _read_report(report))]
        for workspace in dict.fromkeys(token.workspace for token, _ in reports):
            with use_workspace(workspace):
                _record_reports(request, [report for report in reports if report[0].workspace == workspace])
    return HttpResponse(status=204)


def _record_reports(request: HttpRequest, reports: list[Report]) -> None:
    """Record the reports of one workspace."""
    # The id is read once for all reports, because reading it may need a query.
    customer_id = _find_customer_id(request)
    events = [] if customer_id is None else _build_events(reports, customer_id)
    if customer_id and events and is_within_limit("beacons", customer_id):
        tracking.record(events, None, request)


def _read_reports(request: HttpRequest) -> list[Any]:
    try:
        # Check the length before reading the body. A body without a length counts as empty.
        if not 0 < int(request.headers.get("Content-Length") or 0) <= MAX_BEACON_BYTES:
            return []
        # Some servers pass a body that is longer than Content-Length. Such a body is cut here, and parsing it fails.
        reports = _parse(request, request.read(MAX_BEACON_BYTES))
    except _UNREADABLE:
        return []
    return reports[:MAX_BEACON_REPORTS] if isinstance(reports, list) else []


def _parse(request: HttpRequest, body: bytes) -> Any:
    """Return the list of reports in the body. A body without a list gives any other value.

    ``request.POST`` isn't used, because it decodes with any encoding of Python that the client names. Some of these
    encodings aren't for text, and some are slow.
    """
    if request.content_type == "application/x-www-form-urlencoded":
        return json.loads(QueryDict(body, encoding="utf-8").get("events", ""))
    if request.content_type == "multipart/form-data":
        if body.count(b"\n--") > MAX_BEACON_PARTS:
            return None
        # If a middleware of the site has read the form already, the body is consumed.
        if hasattr(request, "_post"):
            return json.loads(request.POST.get("events", ""))
        fields, _ = MultiPartParser(request.META, BytesIO(body), request.upload_handlers, "utf-8").parse()
        return json.loads(fields.get("events", ""))
    data = json.loads(body)
    return data.get("events") if isinstance(data, dict) else None


def _read_token(text: str) -> tracking.Token | None:
    # The site may have removed a workspace since it signed the token.
    with suppress(BadSignature, ConfigurationError):
        token = tracking.read_token(text)
        get_runtime(token.workspace)
        return token
    return None


Report = tuple[tracking.Token, str | None]
"""A token and the clicked element. In the report of an impression the element is ``None``."""


def _read_report(report: object) -> Report | None:
    match report:
        case ["impression", str(text)] if (token := _read_token(text)) and not token.expired:
            return token, None
        case ["click", str(text), str(element)] if (token := _read_token(text)) and not token.expired:
            return (token, element) if element in token.elements else None
    return None


def _build_events(reports: list[Report], customer_id: str) -> list[Event]:
    """Return the events of this visitor's reports. Each event is there once."""
    events: dict[str, Event] = {}
    for token, element in reports:
        if token.belongs_to(customer_id):
            event = token.build_event(customer_id) if element is None else token.build_click(customer_id, element)
            events[event.event_uuid] = event
    return list(events.values())


def _find_customer_id(request: HttpRequest) -> str | None:
    """Return the id of the visitor who sent the request, or ``None`` without an id or without consent to track."""
    if not get_settings().enabled:
        return None
    consent = get_consent(request)
    identity = get_identity(request, consent) if consent.track else None
    return None if identity is None else identity.customer_id or None


def _count_missing_sdk() -> None:
    # The report has no token, so anyone can send it. The limit is that of the process, for all visitors together.
    minute = int(time.time()) // 60
    if get_settings().impressions == "web_sdk" and _count_alone(minute, "web_sdk") <= MAX_REPORTS_A_MINUTE:
        get_watchdog().add_page_without_sdk()


def is_within_limit(kind: str, customer_id: str) -> bool:
    """Count one report of this kind, and return whether the visitor has sent at most MAX_REPORTS_A_MINUTE.

    MoEngage ignores a repeated event, but the event still takes a place in the delivery. Processes that share a cache
    count together. Without a shared cache, or if the cache fails, each process counts alone.
    """
    minute = int(time.time()) // 60
    sent = add_to_count(f"{kind}/{minute}/{customer_id}", 1, 60.0)
    return (_count_alone(minute, kind, customer_id) if sent is None else sent) <= MAX_REPORTS_A_MINUTE


def _count_alone(minute: int, *report: str) -> int:
    minutes = _get_reports()
    counts = minutes.get(minute)
    if counts is None or len(counts) >= MAX_VISITORS_A_MINUTE:
        minutes.clear()
        counts = minutes[minute] = Counter()
    # Without a lock, threads may count one report too few.
    counts[report] += 1
    return counts[report]


@part
def _get_reports(runtime: Runtime) -> dict[int, Counter[tuple[str, ...]]]:
    """Return the number of reports in this process by kind and visitor, for the current minute."""
    return {}


# Islands


@login_not_required
@never_cache
@require_safe
def islands(request: HttpRequest) -> JsonResponse:
    """Return the HTML of each island in ``?island=<token>&…``, or ``null`` where the page keeps its fallback.

    ``page`` is the path of the page around the islands. Relative links of the islands start there.
    """
    tokens = list(dict.fromkeys(request.GET.getlist("island")))[:MAX_ISLANDS]
    _stand_in_page(request)
    found = _load_islands(request, [_find_island(token) for token in tokens])
    drawn = [island and island.render(request, has_fallback=True) for island in found]
    return JsonResponse({"islands": dict(zip(tokens, drawn, strict=True))})


@login_not_required
@never_cache
@require_safe
def island(request: HttpRequest, token: str) -> HttpResponse:
    """Return the HTML of one island for ``<esi:include>``. A bad token gets an empty response.

    ``page`` is the path of the page around the island, as in islands().
    """
    _stand_in_page(request)
    [found] = _load_islands(request, [_find_island(token)])
    html = found.render(request) if found else ""
    if MINTED in request.__dict__ and (page := get_page(request)) is not None:
        # The proxy drops the cookie with the new id, so an event would make a profile for each island.
        page._tracker = None
    return HttpResponse(html)


def _stand_in_page(request: HttpRequest) -> None:
    """Give the request the path of the page around the islands, and only the parameters of the page."""
    path, query = request.GET.get("page", ""), QueryDict(mutable=True)
    for name, values in request.GET.lists():
        if name not in ("page", "island"):
            query.setlist(name, values)
    if path.startswith("/") and len(path) <= MAX_PATH_LENGTH and destinations.is_safe_url(path):
        request.path = path
    request.GET = query  # type: ignore[assignment]
    request.META["QUERY_STRING"] = query.urlencode()


class _Island(NamedTuple):
    """An island that a page has asked for."""

    experience_key: str
    template: Any
    language: str
    workspace: str

    def render(self, request: HttpRequest, *, has_fallback: bool = False) -> str | None:
        """Return the HTML. If the page has a fallback, return ``None`` for a visitor without the experience."""
        page = get_page(request)
        if has_fallback and (page is None or page.read(self.experience_key) is None):
            return None
        is_same = self.language == (translation.get_language() or "")
        with nullcontext() if is_same else translation.override(self.language or None):
            html: str = self.template.render({"experience_key": self.experience_key}, request)
        return html


def _find_island(token: str) -> _Island | None:
    if (signed := read_island(token)) is None:
        return None
    key, name, language, workspace = signed
    try:
        return _Island(key, get_template(name), language, workspace)
    except TemplateDoesNotExist:
        # A cache may still have a page of a version of the site that had the template.
        log_once(("island", name), "The template %r of an island doesn't exist, so pages show the fallback.", name)
        return None


def _load_islands(request: HttpRequest, found: list[_Island | None]) -> list[_Island | None]:
    """Fetch what all islands of a page need in one call, and give a new visitor an id.

    Return the islands without those that the request can't show: all of them must belong to one workspace.
    """
    asked = [each for each in found if each]
    if (page := get_page(request)) is None or not asked:
        return found
    workspace = asked[0].workspace
    if not switch_workspace(page, workspace):
        return [None] * len(found)
    asked = [each for each in asked if each.workspace == workspace]
    needed = [[each.experience_key, *planning.find_template_keys(each.template.template)] for each in asked]
    page.load(*dict.fromkeys(itertools.chain.from_iterable(needed)))
    give_id(page)
    return [each if each in asked else None for each in found]
