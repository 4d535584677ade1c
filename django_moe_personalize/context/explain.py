"""Explain a page as a dict of JSON values, without a call to MoEngage, the site's cache or the database.

If ATTRIBUTES names several functions, they are called again, because only they know their attributes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from django.http import HttpRequest

from django_moe_personalize.client import get_engine
from django_moe_personalize.conf import get_settings
from django_moe_personalize.context.recording import RecordedPage
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.fetching.cache import get_cache
from django_moe_personalize.fetching.metadata import get_metadata_store
from django_moe_personalize.fetching.switch import get_switch
from django_moe_personalize.fetching.upstream import get_breaker, get_outage
from django_moe_personalize.moengage.types import DataSource, Event, Experience, ExperienceStatus, FailureReason
from django_moe_personalize.page import Page
from django_moe_personalize.runtime import Runtime, protect_transactions
from django_moe_personalize.sandbox.responses import RefusedError
from django_moe_personalize.visitor import MINTED, NO_VISITOR, Visitor, is_in_event_loop
from django_moe_personalize.visitor.identity import QUERY_COOKIE, call

MAX_DESCRIBED, MAX_DESCRIPTION = 10, 100
"""Keys and characters in the header Server-Timing. nginx gives all headers of a response 4 KiB."""

_UNQUOTABLE = re.compile(r"[^ !#-\[\]-~]")

ORIGINS = {
    "USER_AGENT": "the header User-Agent",
    "USER_IP_ADDRESS": "the address of the connection, or the header of a trusted proxy",
    "DAY_OF_THE_WEEK": "the clock, in the TIME_ZONE of the settings",
    "TIME_OF_THE_DAY": "the clock, in the TIME_ZONE of the settings",
}

_SENTENCES = {
    FailureReason.INVALID_EXPERIENCE_KEY: "The workspace has no experience with this key.",
    FailureReason.EXPERIENCE_NOT_ACTIVE: "The experience is paused or scheduled.",
    FailureReason.USER_NOT_IN_SEGMENT: (
        "MoEngage has no experience for this visitor: the visitor is in none of its audiences, or in a control group."
    ),
}


_FAILED = "The fetch failed. The log has the reason."


def explain_page(page: Page) -> dict[str, Any]:
    """Return the facts of the page so far. A page that knows its visitor becomes private."""
    # Tools such as the debug toolbar call this outside of the request's workspace.
    with page.runtime.use():
        return _explain_page(page)


def _explain_page(page: Page) -> dict[str, Any]:
    request, visitor, settings = page._request(), page._visitor, page.runtime.settings
    if request is not None and visitor is not None and not page._is_closed:
        page.mark_read(request)
    breaker = get_breaker(page.runtime)
    return {
        "workspace": page.runtime.name,
        "enabled": settings.enabled,
        "upstream": "sandbox" if get_engine.find(page.runtime) is not None else "MoEngage",
        "visitor": _explain_visitor(request, visitor),
        "attributes": _explain_attributes(request, visitor, settings.query_parameters, settings.attributes),
        "experiences": [_explain_experience(page, key) for key in page.planned_keys],
        "waited": settings.deadline - page._get_budget(),
        "deadline": settings.deadline,
        "counted": _explain_events(page),
        "breaker": {"state": breaker.state, "reason": breaker.reason, "fetches_fail": get_outage(page.runtime).is_on},
        "cache": {"alias": settings.cache, "ttl": settings.cache_ttl, "stale_ttl": settings.cache_stale_ttl},
        "delivery": _explain_delivery(page.runtime),
        "switched_off": get_switch(page.runtime).list_off(),
        "timeline": [list(step) for step in page.timeline] if isinstance(page, RecordedPage) else [],
    }


def describe_page(page: Page) -> str:
    """Return the facts in short, as entries of the header Server-Timing. They have no personal data."""
    found = [_explain_experience(page, key) for key in page.planned_keys]
    came = [each for each in found if each["state"] == "came"]
    cached = sum(each["source"] == DataSource.CACHE.value for each in came)
    waited = (page.runtime.settings.deadline - page._get_budget()) * 1000
    entries = [("moe", f"{len(page.experience_keys)} asked, {len(came)} came, {cached} from the cache")]
    for number, each in enumerate(found[:MAX_DESCRIBED], 1):
        outcome = [
            each["source"] or each["state"],
            each["reason"],
            each["variation"] and f"variation {each['variation']}",
        ]
        entries.append((f"moe-key{number}", f"{each['key']}: {', '.join(filter(None, outcome))}"))
    entries.append(("moe-sent", ", ".join((page._visitor or NO_VISITOR).attributes)))
    entries.append(("moe-counted", f"{len(_explain_events(page))} counted"))
    entries.append(("moe-breaker", get_breaker(page.runtime).state))
    texts = [f'{name};desc="{_UNQUOTABLE.sub("?", text)[:MAX_DESCRIPTION]}"' for name, text in entries]
    return f"{texts[0]};dur={waited:.1f}, {', '.join(texts[1:])}"


def _explain_visitor(request: HttpRequest | None, visitor: Visitor | None) -> dict[str, Any]:
    if visitor is None:
        return {"kind": "not known yet", "customer_id": None, "user_identifiers": {}, "consent": None}
    identity, consent = visitor.identity, visitor.consent
    kind = "customer" if identity.customer_id is not None or identity.user_identifiers else "unknown"
    if identity.anonymous:
        kind = "new anonymous browser" if request and MINTED in request.__dict__ else "anonymous browser"
    return {
        "kind": kind,
        "customer_id": identity.customer_id,
        "user_identifiers": dict(identity.user_identifiers),
        "consent": {name: getattr(consent, name) for name in ("fetch", "identify", "track")},
    }


def _explain_attributes(
    request: HttpRequest | None, visitor: Visitor | None, parameters: Iterable[str], functions: Sequence[str]
) -> list[dict[str, str]]:
    if visitor is None:
        return []
    name_of_cookie = QUERY_COOKIE + get_settings().suffix
    cookie = "" if request is None else request.COOKIES.get(name_of_cookie, "")
    owners = _find_owners(request, functions)
    found = []
    for name, value in visitor.attributes.items():
        origin = ORIGINS.get(name) or f"ATTRIBUTES: {owners.get(name) or ' or '.join(functions)}"
        if name in parameters and request is not None and name in request.GET:
            origin = "the query string"
        elif name in parameters and f"{name}:" in cookie:
            origin = f"the cookie {name_of_cookie}, from an earlier page of the session"
        found.append({"name": name, "value": value, "origin": origin})
    return found


def _find_owners(request: HttpRequest | None, functions: Sequence[str]) -> dict[str, str]:
    """Return the function of the site for each attribute, by calling the functions again. They may block."""
    owners: dict[str, str] = {}
    if request is not None and len(functions) > 1 and not is_in_event_loop():
        for path in functions:
            # A function that fails has no attributes, and the log has its error already.
            with suppress(Exception), protect_transactions():
                owners |= dict.fromkeys(call(path, request, Mapping), path)
    return owners


def _explain_experience(page: Page, key: str) -> dict[str, Any]:
    experience = page._answers.get(key)
    found: dict[str, Any] = {"key": key, "state": "came", "reason": "", "sentence": "", "source": "", "variation": ""}
    if key in getattr(page, "forced", ()):
        state = "absent" if experience is None else "came"
        found |= {"state": state, "reason": "FORCED", "sentence": "The preview forces this."}
    elif experience is None:
        found["state"], found["reason"], found["sentence"] = _find_reason(page, key)
    else:
        found["source"] = experience.source.value
        found["variation"] = str(experience.experience_context.get("moe_variation_id", ""))
        upstream = "the sandbox" if get_engine.find(page.runtime) is not None else "MoEngage"
        found["sentence"] = f"From {'the cache' if experience.source is DataSource.CACHE else upstream}."
    return found


def _find_reason(page: Page, key: str) -> tuple[str, str, str]:
    """Return the state of a key without an experience, the reason as a word, and a sentence."""
    visitor, runtime, settings = page._visitor, page.runtime, page.runtime.settings
    if not settings.enabled:
        return "absent", "ENABLED", "The setting ENABLED is off."
    if (entry := get_switch(runtime).find(key)) is not None:
        return "absent", "SWITCHED_OFF", entry.describe()
    if visitor is NO_VISITOR:
        return "absent", "CONSENT", "The visitor doesn't allow a fetch, or the identity of the visitor can't be read."
    if visitor is None or key not in page.experience_keys:
        return "not asked", "", "The page hasn't asked for this key."
    if (has_failed := getattr(page, "has_failed", None)) is not None:
        # A preview uses neither the cache nor the circuit breaker.
        return ("absent", "FAILED", _FAILED) if has_failed else ("absent", *_find_decision(runtime, visitor, key))
    breaker, flights = get_breaker(runtime), [each for each in page._flights if key in each.question.keys]
    cached = get_cache(runtime).peek(visitor.digest, (key,)).answers
    store = get_metadata_store.find(runtime)
    # Pages don't ask for keys that no visitor can get.
    if key not in cached and not (store and store.find_unavailable((key,))):
        if breaker.state != "closed":
            return "absent", "BREAKER", f"The circuit breaker is {breaker.state}: {breaker.reason}."
        # The call's deadline began before the page's wait, so a page that waited in vain has some time left.
        is_late = page._get_budget() <= settings.deadline / 20
        if is_late or not all(flight.done() for flight in flights):
            is_over = is_late or page._is_closed
            return ("absent", "DEADLINE", "The answer came too late.") if is_over else ("waiting", "", "Not here yet.")
        # MoEngage's answers are in the cache, also those without an experience.
        if get_outage(runtime).is_on or settings.cache_stale_ttl:
            return "absent", "FAILED", _FAILED
    elif cached.get(key) is not None:
        return "absent", "DEADLINE", "The answer came too late for this page. It is in the cache now."
    return "absent", *_find_decision(runtime, visitor, key)


def _find_decision(runtime: Runtime, visitor: Visitor, key: str) -> tuple[str, str]:
    """Return why MoEngage, or the sandbox in this process, has no experience for the visitor."""
    reason = FailureReason.USER_NOT_IN_SEGMENT
    if (engine := get_engine.find(runtime)) is not None:
        identity = visitor.identity
        identifiers = {"customer_id": identity.customer_id, "user_identifiers": dict(identity.user_identifiers)}
        body = {"identifiers": {name: value for name, value in identifiers.items() if value}}
        try:
            (decision,) = engine.explain({**body, "experience_key": [key], **visitor.attributes})
        except RefusedError:
            return reason.value, "The sandbox refuses the question, as MoEngage would."
        return (decision.reason or reason).value, decision.sentence
    store = get_metadata_store.find(runtime)
    if (statuses := store.statuses if store else None) is not None:
        if key not in statuses:
            reason = FailureReason.INVALID_EXPERIENCE_KEY
        elif statuses[key] is not ExperienceStatus.ACTIVE:
            reason = FailureReason.EXPERIENCE_NOT_ACTIVE
    return reason.value, _SENTENCES[reason]


def _explain_events(page: Page) -> list[dict[str, str]]:
    """Return the events of the page: those that it has reported, or will report if its response is a success."""
    recorded = page.counted if isinstance(page, RecordedPage) else None
    events = recorded
    if events is None:
        events = [*page._clicks, *(page._tracker.build_impressions() if page._tracker else ())]
    return [
        {
            "action": event.action.value,
            "experience_key": _find_key(page._answers, event),
            "element": str(event.attributes.get("b_id", "")),
        }
        for event in events
    ]


def _find_key(answers: Mapping[str, Experience | None], event: Event) -> str:
    # An event has the name of its experience and no key.
    name = event.attributes.get("experience", "")
    named = [key for key, each in answers.items() if each and each.experience_context.get("experience") == name]
    return named[0] if named else str(name)


def _explain_delivery(runtime: Runtime) -> dict[str, Any]:
    delivery = get_delivery(runtime)
    found: dict[str, Any] = {"backend": type(delivery).__name__}
    if not delivery.counts_in_database:
        counts = delivery.counts()
        found |= {"accepted": counts.accepted, "delivered": counts.delivered, "pending": counts.pending}
    return found
