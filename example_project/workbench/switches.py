"""Switches: the visitor of the demonstration chooses device, day and hour, kept in a signed cookie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from django import forms
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from django_moe_personalize.visitor.attributes import DAYS
from django_moe_personalize.conf import get_settings
from shop.people import PEOPLE

COOKIE: Final = "workbench"
SALT: Final = "workbench.switches"

USER_AGENTS: Final = {
    "desktop": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
    "phone": (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
        "Version/18.5 Mobile/15E148 Safari/604.1"
    ),
    "tablet": (
        "Mozilla/5.0 (iPad; CPU OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
        "Version/18.5 Safari/604.1"
    ),
}
MEDIUMS: Final = ("email", "cpc", "social")


class SwitchForm(forms.Form):
    """All switches of the panel; an empty value leaves things as they are in reality."""

    device = forms.ChoiceField(
        required=False, choices=[("", "My own"), *((name, name.capitalize()) for name in USER_AGENTS)]
    )
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
    """What was chosen; the defaults change nothing."""

    device: str = ""
    hour: int | None = None
    day: str = ""

    def build_moment(self, now: datetime) -> datetime | None:
        """Return the chosen day and hour, nearest after ``now``'s own midnight; ``None`` if neither was chosen."""
        if self.hour is None and not self.day:
            return None
        local = now.astimezone(get_settings().time_zone)
        days = (DAYS.index(self.day) - local.weekday()) % 7 if self.day else 0
        return (local + timedelta(days=days)).replace(hour=local.hour if self.hour is None else self.hour)


def read_switches(request: HttpRequest) -> Switches:
    """Return what the cookie says; a cookie that is not ours, or of another version, says nothing."""
    text = request.get_signed_cookie(COOKIE, default="", salt=SALT)
    form = SwitchForm(dict(zip(("device", "hour", "day"), text.split("|"), strict=False)))
    if not form.is_valid():
        return Switches()
    return Switches(form.cleaned_data["device"], form.cleaned_data["hour"], form.cleaned_data["day"])


def write_switches(response: HttpResponse, switches: Switches) -> None:
    """Keep ``switches`` for the browser's session."""
    hour = "" if switches.hour is None else switches.hour
    value = f"{switches.device}|{hour}|{switches.day}"
    response.set_signed_cookie(COOKIE, value, salt=SALT, httponly=True, samesite="Lax")


class SwitchesMiddleware:
    """Make the request look as chosen. Stands after PersonalizeMiddleware, which asks only once views are known."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Set the user agent and the moment of the page."""
        switches = read_switches(request)
        if switches.device:
            request.META["HTTP_USER_AGENT"] = USER_AGENTS[switches.device]
        request.personalization.now = switches.build_moment(timezone.now())
        request.switches = switches
        return self.get_response(request)
