"""The two endpoints a page reports to: the click redirect and the beacon."""

from __future__ import annotations

import json
import time
from io import BytesIO
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import BadRequest, SuspiciousOperation
from django.core.signing import BadSignature
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect, QueryDict
from django.http.multipartparser import MultiPartParser, MultiPartParserError
from django.http.request import UnreadablePostError
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_POST, require_safe

from django_moe_personalize import rendering, tracking
from django_moe_personalize.conf import get_settings
from django_moe_personalize.fetching.shared import add_to_count
from django_moe_personalize.moengage.types import Event
from django_moe_personalize.runtime import Runtime, part
from django_moe_personalize.visitor.consent import get_consent
from django_moe_personalize.visitor.identity import get_identity

MAX_BEACON_BYTES = 16 * 1024

MAX_BEACON_REPORTS = 100

MAX_BEACON_PARTS = 20
"""Of a multipart form, which cost Django fifty microseconds each."""

MAX_REPORTS_A_MINUTE = 120
"""Beacons of one visitor, and as many clicks on links. The script sends one a second, and one a click."""

MAX_VISITORS_A_MINUTE = 10_000
"""Whose reports a process counts where no cache is shared; one more, and it starts anew."""

_URL_ENCODED = "application/x-www-form-urlencoded"
_MULTIPART = "multipart/form-data"
_UNREADABLE = (ValueError, RecursionError, BadRequest, SuspiciousOperation, MultiPartParserError, UnreadablePostError)


@login_not_required
@never_cache
@require_safe
@sensitive_variables()
def click(request: HttpRequest, token: str) -> HttpResponse:
    """Count the click that ``token`` stands for and redirect to its destination; 400 for a bad token.

    A token of an old page, of another visitor or without consent still redirects, and counts nothing.
    """
    try:
        found = tracking.read_token(token)
    except BadSignature:
        return HttpResponseBadRequest("This link is not valid.", content_type="text/plain")
    hosts = rendering.get_allowed_hosts(request, found.host)
    if not found.destination or not rendering.is_safe_url(found.destination, hosts):
        return HttpResponseBadRequest("This link is not valid.", content_type="text/plain")
    if tracking.is_counted(request) and not found.expired:
        customer_id = _find_visitor(request)
        if customer_id and found.belongs_to(customer_id) and _is_within_limit("clicks", customer_id):
            tracking.record([found.build_event(customer_id)])
    return HttpResponseRedirect(found.destination)


@login_not_required
@never_cache
@csrf_exempt
@require_POST
@sensitive_variables()
def beacon(request: HttpRequest) -> HttpResponse:
    """Count what a page reports: ``{"events": [[kind, token, element], …]}``. Answers 204 whatever comes.

    ``kind`` is ``"impression"`` or ``"click"``. The body is JSON of whatever type, or a form whose
    field ``events`` is the list. The token in it stands for the CSRF token: it is signed and bound
    to the visitor.
    """
    if request.headers.get("Sec-Fetch-Site") != "cross-site" and tracking.is_counted(request):
        reports = [found for report in _read_reports(request) if (found := _read_report(report))]
        # Asked once, however many reports: the answer may cost the site a query.
        customer_id = _find_visitor(request) if reports else None
        events = [] if customer_id is None else _build_events(reports, customer_id)
        if customer_id and events and _is_within_limit("beacons", customer_id):
            tracking.record(events)
    return HttpResponse(status=204)


def _read_reports(request: HttpRequest) -> list[Any]:
    try:
        # The length is checked before the body is read; without one there is nothing to read.
        if not 0 < int(request.headers.get("Content-Length") or 0) <= MAX_BEACON_BYTES:
            return []
        # Not every server holds a client to it: what is longer is cut, and broken by that.
        reports = _parse(request, request.read(MAX_BEACON_BYTES))
    except _UNREADABLE:
        return []
    return reports[:MAX_BEACON_REPORTS] if isinstance(reports, list) else []


def _parse(request: HttpRequest, body: bytes) -> Any:
    """Return the list of reports in a body, or something else where it has none.

    Not by ``request.POST``, which takes the client's word for the encoding: Python has some that
    are for no text, or that take long.
    """
    if request.content_type == _URL_ENCODED:
        return json.loads(QueryDict(body, encoding="utf-8").get("events", ""))
    if request.content_type == _MULTIPART:
        if body.count(b"\n--") > MAX_BEACON_PARTS:
            return None
        # A middleware of the site may have read the form before: then there is nothing left to read.
        fields = request.POST if hasattr(request, "_post") else _parse_parts(request, body)
        return json.loads(fields.get("events", ""))
    data = json.loads(body)
    return data.get("events") if isinstance(data, dict) else None


def _parse_parts(request: HttpRequest, body: bytes) -> QueryDict:
    fields, _ = MultiPartParser(request.META, BytesIO(body), request.upload_handlers, "utf-8").parse()
    return fields


Report = tuple[tracking.Token, str | None]
"""A token, and which element was clicked; ``None`` for an impression."""


def _read_report(report: object) -> Report | None:
    match report:
        case ["impression", str(text)]:
            element = None
        case ["click", str(text), str(element)]:
            pass
        case _:
            return None
    try:
        token = tracking.read_token(text)
    except BadSignature:
        return None
    return None if token.expired or (element is not None and element not in token.elements) else (token, element)


def _build_events(reports: list[Report], customer_id: str) -> list[Event]:
    """Return the events of the reports that are this visitor's own, each once."""
    events: dict[str, Event] = {}
    for token, element in reports:
        if token.belongs_to(customer_id):
            event = token.build_event(customer_id) if element is None else token.build_click(customer_id, element)
            events[event.event_uuid] = event
    return list(events.values())


def _find_visitor(request: HttpRequest) -> str | None:
    """Return the id of who reports, if that may be counted."""
    if not get_settings().enabled:
        return None
    consent = get_consent(request)
    identity = get_identity(request, consent) if consent.track else None
    return None if identity is None else identity.customer_id or None


def _is_within_limit(kind: str, customer_id: str) -> bool:
    """Return whether a visitor has sent no more reports of a kind in this minute than a person does.

    A replay counts nothing at MoEngage, but takes a place in the delivery. Counted by all processes
    that share a cache; without one, or with one that fails, by each for itself.
    """
    minute = int(time.time()) // 60
    sent = add_to_count(f"{kind}/{minute}/{customer_id}", 1, 60.0)
    return (_get_counter().add(minute, kind, customer_id) if sent is None else sent) <= MAX_REPORTS_A_MINUTE


class _Counter:
    """Counts the reports of this minute in this process; threads at the same moment may count one too few."""

    def __init__(self) -> None:
        self._minute = 0
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, minute: int, kind: str, customer_id: str) -> int:
        """Count one more and return how many that makes."""
        if minute != self._minute or len(self._counts) >= MAX_VISITORS_A_MINUTE:
            self._minute, self._counts = minute, {}
        count = self._counts[kind, customer_id] = self._counts.get((kind, customer_id), 0) + 1
        return count


@part
def _get_counter(runtime: Runtime) -> _Counter:
    return _Counter()
