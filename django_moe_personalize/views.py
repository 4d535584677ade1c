"""The two endpoints a page reports to: the click redirect and the beacon."""

from __future__ import annotations

import json
import time
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import BadRequest, SuspiciousOperation
from django.core.signing import BadSignature
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect
from django.http.multipartparser import MultiPartParserError
from django.http.request import UnreadablePostError
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST, require_safe

from django_moe_personalize import render, track
from django_moe_personalize.conf import get_settings
from django_moe_personalize.consent import get_consent
from django_moe_personalize.coordination import add_to_count
from django_moe_personalize.identity import get_identity
from django_moe_personalize.moengage.types import Event

MAX_BEACON_BYTES = 16 * 1024

MAX_BEACON_REPORTS = 100

MAX_BEACONS_A_MINUTE = 120
"""Of one visitor, counted by all processes that share a cache. The script sends one a second, and one a click."""

_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
_UNREADABLE = (ValueError, RecursionError, BadRequest, SuspiciousOperation, MultiPartParserError, UnreadablePostError)


@login_not_required
@never_cache
@require_safe
def click(request: HttpRequest, token: str) -> HttpResponse:
    """Count the click that ``token`` stands for and redirect to its destination; 400 for a bad token.

    A token of an old page, of another visitor or without consent still redirects, and counts nothing.
    """
    try:
        found = track.read_token(token)
    except BadSignature:
        return HttpResponseBadRequest("This link is not valid.", content_type="text/plain")
    hosts = render.get_allowed_hosts(request, found.host)
    if not found.destination or not render.is_safe_url(found.destination, hosts):
        return HttpResponseBadRequest("This link is not valid.", content_type="text/plain")
    if track.is_counted(request) and (customer_id := _find_visitor(request, found)):
        track.record([found.build_event(customer_id)])
    return HttpResponseRedirect(found.destination)


@login_not_required
@never_cache
@csrf_exempt
@require_POST
def beacon(request: HttpRequest) -> HttpResponse:
    """Count what a page reports: ``{"events": [[kind, token, element], …]}``. Answers 204 whatever comes.

    ``kind`` is ``"impression"`` or ``"click"``. The body is JSON of whatever type, or a form whose
    field ``events`` is the list. The token in it stands for the CSRF token: it is signed and bound
    to the visitor.
    """
    if request.headers.get("Sec-Fetch-Site") != "cross-site" and track.is_counted(request):
        events = [event for report in _read_reports(request) if (event := _build_event(request, report))]
        if events and _is_within_limit(events[0].customer_id):
            track.record(list({event.event_uuid: event for event in events}.values()))
    return HttpResponse(status=204)


def _read_reports(request: HttpRequest) -> list[Any]:
    try:
        # The length is checked before the body is read; without one there is nothing to read.
        if not 0 < int(request.headers.get("Content-Length") or 0) <= MAX_BEACON_BYTES:
            return []
        if request.content_type in _FORMS:
            reports = json.loads(request.POST.get("events", ""))
        else:
            body = json.loads(request.body)
            reports = body.get("events") if isinstance(body, dict) else None
    except _UNREADABLE:
        return []
    return reports[:MAX_BEACON_REPORTS] if isinstance(reports, list) else []


def _is_within_limit(customer_id: str) -> bool:
    """Return whether a visitor has sent no more beacons in this minute than a person does.

    Without a cache that processes share, or with one that fails, there is no limit.
    """
    minute = int(time.time()) // 60
    sent = add_to_count(f"beacons/{minute}/{customer_id}", 1, 60.0)
    return sent is None or sent <= MAX_BEACONS_A_MINUTE


def _build_event(request: HttpRequest, report: object) -> Event | None:
    match report:
        case ["impression", str(text)]:
            element = None
        case ["click", str(text), str(element)]:
            pass
        case _:
            return None
    try:
        token = track.read_token(text)
    except BadSignature:
        return None
    customer_id = _find_visitor(request, token)
    if customer_id is None or (element is not None and element not in token.elements):
        return None
    return token.build_event(customer_id) if element is None else token.build_click(customer_id, element)


def _find_visitor(request: HttpRequest, token: track.Token) -> str | None:
    """Return the visitor's id if the token was made for this visitor, is in time, and may be counted."""
    if token.expired or not get_settings().enabled:
        return None
    consent = get_consent(request)
    identity = get_identity(request, consent) if consent.track else None
    customer_id = None if identity is None else identity.customer_id
    return customer_id if customer_id and token.belongs_to(customer_id) else None
