"""A decision of the sandbox as a page shows it: the variation or the reason, and each audience that was checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from django_moe_personalize.moengage.types import FailureReason
from django_moe_personalize.sandbox.decisions import Decision
from django_moe_personalize.sandbox.workspace import Content, Definition, Variation

REASONS: Final[Mapping[FailureReason | None, str]] = {
    FailureReason.USER_IN_CAMPAIGN_CONTROL_GROUP: "Control group",
    FailureReason.USER_IN_GLOBAL_CONTROL_GROUP: "Global control group",
    FailureReason.USER_NOT_IN_SEGMENT: "No audience matches",
    FailureReason.EXPERIENCE_NOT_ACTIVE: "Not active",
    FailureReason.EXPERIENCE_EXPIRED: "Expired",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One audience that the sandbox checked, and what it found."""

    sentence: str
    outcome: str

    @property
    def matched(self) -> bool:
        """Whether the visitor is in the audience."""
        return self.outcome == "matched"


@dataclass(frozen=True, slots=True)
class Share:
    """A variation and the share of its audience that gets it, in percent."""

    variation: Variation
    percent: float
    is_chosen: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The decision on one experience key."""

    decision: Decision
    headline: str
    sentence: str
    checks: Sequence[Check]
    shares: Sequence[Share] = ()
    payload: str = ""


def build_answer(decision: Decision, definition: Definition | None = None) -> Answer:
    """Return a decision for a page. With ``definition``, the answer has the shares of the variations too."""
    checks = tuple(_build_check(check) for check in decision.checks)
    headline = f"Variation {decision.variation_id}" if decision.served else REASONS.get(decision.reason, "Absent")
    payload = {name: each["value"] for name, each in decision.entry["payload"].items()} if decision.entry else None
    shares: Sequence[Share] = ()
    for content in definition.contents if definition and decision.served else ():
        if any(each.variation_id == decision.variation_id for each in content.variations):
            shares = list_shares(content, decision.variation_id)
    text = "" if payload is None else json.dumps(payload, indent=2, ensure_ascii=False)
    sentence = decision.sentence
    if decision.reason is FailureReason.USER_NOT_IN_SEGMENT:
        # The rest of the sentence is the list of the checks.
        sentence = f"{sentence.partition(':')[0]}."
    return Answer(decision, headline, sentence, checks, shares, text)


def list_shares(content: Content, chosen: str = "") -> Sequence[Share]:
    """Return the variations of a content with their shares. ``chosen`` is the id of the visitor's variation."""
    total = sum(variation.weight for variation in content.variations)
    return [Share(each, 100 * each.weight / total, each.variation_id == chosen) for each in content.variations]


def _build_check(text: str) -> Check:
    sentence, _, outcome = text.rpartition(" → ")
    return Check(sentence.removeprefix("audience "), outcome)
