"""What a visitor allows: to fetch, to say who asks, to report what happened."""

from __future__ import annotations

from typing import NamedTuple

from django.http import HttpRequest

from django_moe_personalize.conf import get_settings
from django_moe_personalize.runtime import log_once
from django_moe_personalize.visitor.hooks import CallableError, acall, call


class Consent(NamedTuple):
    """The purposes a visitor has agreed to.

    ``fetch``: experiences may be asked for. ``identify``: the customer's id, identifiers, the
    anonymous cookie, the whole IP address and a memory in the session may be used. ``track``:
    impressions and clicks may be reported.
    """

    fetch: bool = True
    identify: bool = True
    track: bool = True


GRANTED = Consent()
DENIED = Consent(fetch=False, identify=False, track=False)
GPC = Consent(identify=False, track=False)
"""What is left under Global Privacy Control, https://www.w3.org/TR/gpc/."""


def get_consent(request: HttpRequest) -> Consent:
    """Return what the visitor allows; never raises.

    The answer of the site's ``CONSENT`` is final, also over ``Sec-GPC: 1``, which denies identify
    and track where the site says nothing. A ``CONSENT`` that raises or answers something else than
    a Consent denies everything.
    """
    path = get_settings().consent
    if not path:
        return build_default_consent(request)
    try:
        return _accept(call(path, request, Consent))
    except CallableError as error:
        return _deny(error)


async def aget_consent(request: HttpRequest) -> Consent:
    """See get_consent()."""
    path = get_settings().consent
    if not path:
        return build_default_consent(request)
    try:
        return _accept(await acall(path, request, Consent))
    except CallableError as error:
        return _deny(error)


def build_default_consent(request: HttpRequest) -> Consent:
    """Return everything granted, or what Global Privacy Control leaves of it.

    A site's own ``CONSENT`` may start from it.
    """
    return GPC if request.META.get("HTTP_SEC_GPC", "").strip() == "1" else GRANTED


def _accept(consent: Consent) -> Consent:
    # "no" or None in place of False must not read as a yes further on.
    return Consent(fetch=consent.fetch is True, identify=consent.identify is True, track=consent.track is True)


def _deny(error: CallableError) -> Consent:
    log_once(("consent", str(error)), "CONSENT gave no answer, so everything is denied: %s.", error)
    return DENIED
