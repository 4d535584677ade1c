"""What a visitor allows: fetching experiences, being identified, being counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from django.http import HttpRequest

from django_moe_personalize.conf import get_settings
from django_moe_personalize.runtime import log_once
from django_moe_personalize.visitor.hooks import HookError, acall, call


@dataclass(frozen=True, slots=True)
class Consent:
    """The purposes that a visitor allows.

    ``fetch``: ask MoEngage for experiences.
    ``identify``: use the customer id, the user identifiers, the anonymous cookie and the whole IP address,
    and remember query parameters in the session.
    ``track``: report impressions and clicks.
    """

    fetch: bool = True
    identify: bool = True
    track: bool = True


GRANTED: Final = Consent()
DENIED: Final = Consent(fetch=False, identify=False, track=False)

GPC: Final = Consent(identify=False, track=False)
"""The consent of a browser with Global Privacy Control, https://www.w3.org/TR/gpc/."""


def get_consent(request: HttpRequest) -> Consent:
    """Return the consent of the visitor. Never raises.

    The site's ``CONSENT`` function has the last word, even against Global Privacy Control. If the function
    raises an exception or returns anything but a Consent, everything is denied.
    """
    path = get_settings().consent
    try:
        return _accept(call(path, request, Consent)) if path else build_default_consent(request)
    except HookError as error:
        return _deny(error)


async def aget_consent(request: HttpRequest) -> Consent:
    """See get_consent()."""
    path = get_settings().consent
    try:
        return _accept(await acall(path, request, Consent)) if path else build_default_consent(request)
    except HookError as error:
        return _deny(error)


def build_default_consent(request: HttpRequest) -> Consent:
    """Return the consent that applies without a ``CONSENT`` function; such a function can start from it.

    Everything is granted. A request with ``Sec-GPC: 1`` denies ``identify`` and ``track``.
    """
    return GPC if request.META.get("HTTP_SEC_GPC", "").strip() == "1" else GRANTED


def _accept(consent: Consent) -> Consent:
    # A site may pass "no" or None instead of False. Only True grants a purpose.
    return Consent(fetch=consent.fetch is True, identify=consent.identify is True, track=consent.track is True)


def _deny(error: HookError) -> Consent:
    log_once(("consent", str(error)), "CONSENT failed (%s), so fetching, identifying and tracking are denied.", error)
    return DENIED
