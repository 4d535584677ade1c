"""Decide which experiences and variations a visitor gets, and say why."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django_moe_personalize.moengage.types import FailureReason
from django_moe_personalize.sandbox.audiences import Audience, Visitor, as_text
from django_moe_personalize.sandbox.workspace import Content, Definition, State, Variation, Workspace


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision on one experience key.

    If the visitor gets the experience, ``entry`` is its JSON for the response. Otherwise ``reason`` says why not.
    ``checks`` has a sentence for each audience that was checked.
    """

    experience_key: str
    sentence: str
    reason: FailureReason | None = None
    audience: str = ""
    variation_id: str = ""
    checks: tuple[str, ...] = ()
    entry: Mapping[str, Any] | None = field(default=None, repr=False)

    @property
    def served(self) -> bool:
        """Whether the visitor gets the experience."""
        return self.entry is not None


def bucket(*parts: str) -> float:
    """Return a number from 0.0 to below 1.0. The same ``parts`` always give the same number. Numbers spread evenly."""
    # The length of each part makes ("ab", "c") and ("a", "bc") differ.
    joined = "".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "replace")
    return (int.from_bytes(hashlib.sha256(joined).digest()[:8], "big") >> 11) / 2.0**53


def decide(workspace: Workspace, key: str, visitor: Visitor, *, now: float, everyone_only: bool = False) -> Decision:
    """Return the decision on one key at Unix time ``now``.

    ``everyone_only`` skips content whose audience has a rule. Fetches without keys and without a customer use it.
    """
    definition = workspace.definitions.get(key)
    if definition is None:
        return Decision(key, "The workspace has no experience with this key.", FailureReason.INVALID_EXPERIENCE_KEY)
    absent = _absent_for_all(definition, now)
    if absent is not None:
        return absent
    share = bucket(workspace.workspace_id, "global control group", visitor.identity)
    if share * 100 < workspace.global_control_group:
        sentence = f"The visitor is in the global control group ({workspace.global_control_group:g} %)."
        return Decision(key, sentence, FailureReason.USER_IN_GLOBAL_CONTROL_GROUP)
    checks: list[str] = []
    for content in definition.contents:
        matched, sentence = _check(content.audience, visitor, everyone_only=everyone_only)
        checks.append(sentence)
        if matched:
            return _decide_content(workspace, definition, content, visitor, tuple(checks))
    sentence = f"The visitor is in none of its audiences: {'; '.join(checks)}."
    return Decision(key, sentence, FailureReason.USER_NOT_IN_SEGMENT, checks=tuple(checks))


def _absent_for_all(definition: Definition, now: float) -> Decision | None:
    state = definition.state(now)
    if state is State.ACTIVE:
        return None
    if state is State.EXPIRED:
        sentence = f"It ended at {definition.end}."
        return Decision(definition.key, sentence, FailureReason.EXPERIENCE_EXPIRED)
    start = "" if definition.start is None or state is State.PAUSED else f" and starts at {definition.start}"
    sentence = f"It is {state.value.lower()}{start}."
    return Decision(definition.key, sentence, FailureReason.EXPERIENCE_NOT_ACTIVE)


def _check(audience: Audience, visitor: Visitor, *, everyone_only: bool) -> tuple[bool, str]:
    if audience.rule is None:
        return True, f"audience “{audience.name}” → matched"
    if everyone_only:
        return False, f"audience “{audience.name}”: the fetch has neither keys nor a customer → skipped"
    finding = audience.rule(visitor)
    outcome = "matched" if finding.matched else "not matched"
    return finding.matched, f"audience “{audience.name}”: {finding.sentence} → {outcome}"


def _decide_content(
    workspace: Workspace, definition: Definition, content: Content, visitor: Visitor, checks: tuple[str, ...]
) -> Decision:
    control = bucket(workspace.workspace_id, definition.key, "control group", visitor.identity)
    if control * 100 < definition.control_group:
        sentence = f"{checks[-1]}, but the visitor is in its control group ({definition.control_group:g} %)."
        reason = FailureReason.USER_IN_CAMPAIGN_CONTROL_GROUP
        return Decision(definition.key, sentence, reason, content.audience.name, checks=checks)
    variation = _choose(workspace, definition, content, visitor)
    locale, locale_id = _choose_locale(workspace, variation, visitor)
    named = f" “{variation.name}”" if variation.name else ""
    how = "by weight" if len(content.variations) > 1 else "(the only one)"
    words = f"; locale {locale}" if locale else ""
    return Decision(
        definition.key,
        f"{checks[-1]}; variation {variation.variation_id}{named} {how}{words}.",
        audience=content.audience.name,
        variation_id=variation.variation_id,
        checks=checks,
        entry={
            "payload": variation.payloads[locale],
            "experience_context": _context(workspace, definition, content.audience, variation, locale_id),
        },
    )


def _choose(workspace: Workspace, definition: Definition, content: Content, visitor: Visitor) -> Variation:
    total = sum(variation.weight for variation in content.variations)
    left = bucket(workspace.workspace_id, definition.key, "variation", visitor.identity) * total
    for variation in content.variations[:-1]:
        left -= variation.weight
        if left < 0:
            return variation
    return content.variations[-1]


def _choose_locale(workspace: Workspace, variation: Variation, visitor: Visitor) -> tuple[str, str]:
    """Return the locale of the content and its id. The session's locale comes first, then the customer's."""
    wanted = visitor.session.get("locale") or as_text(visitor.customer.get("locale", ""))
    code = wanted.lower().replace("_", "-")
    for locale in (code, code.partition("-")[0]):
        if locale and locale in variation.payloads:
            return locale, str(workspace.locales.index(locale) + 1)
    return "", "0"


def campaign_id(workspace: Workspace, key: str) -> str:
    """Return the part of a ``cid`` that identifies the experience."""
    return hashlib.sha256(f"{workspace.workspace_id}:{key}".encode("utf-8", "replace")).hexdigest()[:24]


def _context(
    workspace: Workspace, definition: Definition, audience: Audience, variation: Variation, locale_id: str
) -> dict[str, str]:
    campaign = campaign_id(workspace, definition.key)
    return {
        "cid": f"{campaign}_F_T_WP_AB_{variation.variation_id}_P_0_AU_{audience.audience_id}",
        "experience": definition.name,
        "moe_locale_id": locale_id,
        "moe_variation_id": variation.variation_id,
        "audience_name": audience.name,
        "audience_id": audience.audience_id,
        "type": "Web Personalization",
        "experience_type": "API based Experience",
    }
