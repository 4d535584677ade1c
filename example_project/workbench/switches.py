"""Switches: the visitor of the demonstration chooses device, day and hour; a signed cookie keeps the choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django import forms
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from django_moe_personalize.conf import get_settings
from django_moe_personalize.visitor.attributes import DAYS
from django_moe_personalize.workbench import USER_AGENTS
from shop.people import PEOPLE

COOKIE: Final = "workbench"
SALT: Final = "workbench.switches"

MEDIUMS: Final = ("email", "cpc", "social")


class SwitchForm(forms.Form):
    """The switches of the panel; an empty value changes nothing."""

    device = forms.ChoiceField(required=False, choices=[("", "My own"), *((name, name) for name in USER_AGENTS)])
    hour = forms.TypedChoiceField(
        required=False, coerce=int, empty_value=None, choices=[("", "Now"), *((n, f"{n:02d}:00") for n in range(24))]
    )
    day = forms.ChoiceField(required=False, choices=[("", "Today"), *((day, day) for day in DAYS)])
    medium = forms.ChoiceField(
        required=False, label="Came by", choices=[("", "No campaign"), *((name, name) for name in MEDIUMS)]
    )
    user = forms.ChoiceField(
        required=False, choices=[("", "Anonymous"), *((person.username, person.name) for person in PEOPLE)]
    )


@dataclass(frozen=True, slots=True)
class Switches:
    """The choices; the defaults change nothing."""

    device: str = ""
    hour: int | None = None
    day: str = ""

    def build_moment(self, now: datetime) -> datetime | None:
        """Return the next moment, today included, with the chosen day and hour; ``None`` without a choice."""
        if self.hour is None and not self.day:
            return None
        local = now.astimezone(get_settings().time_zone)
        days = (DAYS.index(self.day) - local.weekday()) % 7 if self.day else 0
        return (local + timedelta(days=days)).replace(hour=local.hour if self.hour is None else self.hour)


def read_switches(request: HttpRequest) -> Switches:
    """Return the choices in the cookie, or no choices if the cookie is invalid."""
    text = request.get_signed_cookie(COOKIE, default="", salt=SALT)
    form = SwitchForm(dict(zip(("device", "hour", "day"), text.split("|"), strict=False)))
    if not form.is_valid():
        return Switches()
    return Switches(form.cleaned_data["device"], form.cleaned_data["hour"], form.cleaned_data["day"])


def write_switches(response: HttpResponse, switches: Switches) -> None:
    """Set the cookie, for the session of the browser."""
    hour = "" if switches.hour is None else switches.hour
    value = f"{switches.device}|{hour}|{switches.day}"
    response.set_signed_cookie(COOKIE, value, salt=SALT, httponly=True, samesite="Lax")


class SwitchesMiddleware:
    """Change the request as chosen. It follows PersonalizeMiddleware, which reads the request later, for the view."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Set the user agent and the time of the page."""
        switches = read_switches(request)
        if switches.device:
            request.META["HTTP_USER_AGENT"] = USER_AGENTS[switches.device]
        request.personalization.now = switches.build_moment(timezone.now())
        request.switches = switches
        return self.get_response(request)
