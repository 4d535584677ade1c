"""The panel on every page: the attributes sent, the experiences received and why, and the switches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest

from django_moe_personalize.context import get_page
from django_moe_personalize.moengage.types import DataSource, Experience
from django_moe_personalize.workbench import Answer, build_answer
from shop.people import PEOPLE
from workbench import sandbox
from workbench.switches import Switches, SwitchForm

OPEN_COOKIE = "panel"
"""panel.js sets this cookie. The server reads it, so that an open panel is open from the first paint."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One experience key of the page: its experience, and the sandbox's decision on it."""

    experience_key: str
    experience: Experience | None
    answer: Answer | None

    @property
    def variation(self) -> str:
        """Return the id of the variation."""
        return str(self.experience.experience_context.get("moe_variation_id", "")) if self.experience else ""

    @property
    def audience(self) -> str:
        """Return the name of the audience."""
        return str(self.experience.experience_context.get("audience_name", "")) if self.experience else ""

    @property
    def source(self) -> str:
        """Return the source of the experience, in words."""
        if self.experience is None:
            return ""
        return "from the cache" if self.experience.source is DataSource.CACHE else "from the network"

    @property
    def is_late(self) -> bool:
        """Return whether the sandbox serves the experience, but the page didn't get it in time."""
        return self.experience is None and self.answer is not None and self.answer.decision.served


@dataclass(frozen=True, slots=True)
class Panel:
    """All that the panel shows."""

    who: str
    attributes: Mapping[str, str]
    findings: tuple[Finding, ...]
    source: str
    form: SwitchForm
    is_open: bool
    trouble: str = ""

    @property
    def came(self) -> int:
        """Return how many experiences the page got."""
        return sum(finding.experience is not None for finding in self.findings)


def build_panel(request: HttpRequest) -> Panel:
    """Return the panel of a page. Call it at the end of the page, when all keys are known."""
    personalization = request.personalization
    keys = get_page(request).experience_keys
    answers: dict[str, Answer] = {}
    trouble = ""
    try:
        decisions = sandbox.explain(build_body(request, keys)) if keys else []
        answers = {decision.experience_key: build_answer(decision) for decision in decisions}
    except sandbox.SandboxUnreachableError as error:
        trouble = str(error)
    return Panel(
        who=describe_visitor(request),
        attributes=personalization.attributes,
        findings=tuple(Finding(key, personalization.get(key), answers.get(key)) for key in keys),
        source=sandbox.describe(),
        form=build_form(request),
        is_open=request.COOKIES.get(OPEN_COOKIE) == "open",
        trouble=trouble,
    )


def build_body(request: HttpRequest, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the body of the fetch that this page made."""
    identity = request.personalization.identity
    identifiers: dict[str, Any] = {}
    if identity.customer_id is not None:
        identifiers["customer_id"] = identity.customer_id
    if identity.user_identifiers:
        identifiers["user_identifiers"] = dict(identity.user_identifiers)
    return {"identifiers": identifiers, "experience_key": list(keys), **request.personalization.attributes}


def describe_visitor(request: HttpRequest) -> str:
    """Return who the visitor is, in words."""
    identity = request.personalization.identity
    if identity.anonymous:
        return f"an anonymous browser, {str(identity.customer_id)[:11]}…"
    if identity.customer_id is None:
        return "an unknown visitor"
    name = next((person.name for person in PEOPLE if str(person.pk) == identity.customer_id), "customer")
    return f"{name}, customer {identity.customer_id}"


def build_form(request: HttpRequest) -> SwitchForm:
    """Return the form with the current choices."""
    switches: Switches = request.switches
    user = request.user.get_username() if request.user.is_authenticated else ""
    return SwitchForm(
        initial={
            "device": switches.device,
            "hour": "" if switches.hour is None else switches.hour,
            "day": switches.day,
            "medium": request.personalization.attributes.get("utm_medium", ""),
            "user": user,
        },
        auto_id="switch-%s",
    )
