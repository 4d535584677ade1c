"""The form for a visitor, and the fetch that a site would send for this visitor."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from django import forms
from django.forms.renderers import DjangoTemplates

from django_moe_personalize.moengage.frames import FETCH_FIELDS
from django_moe_personalize.sandbox.audiences import DAYS

USER_AGENTS: Final = {
    "Desktop": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
    "Mobile": (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
        "Version/18.5 Mobile/15E148 Safari/604.1"
    ),
    "Tablet": (
        "Mozilla/5.0 (iPad; CPU OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
        "Version/18.5 Safari/604.1"
    ),
}
"""A user agent for each device."""

UTM: Final = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")

FIELDS: Final = {
    "day": "DAY_OF_THE_WEEK",
    "hour": "TIME_OF_THE_DAY",
    "user_agent": "USER_AGENT",
    "address": "USER_IP_ADDRESS",
    **{name: name for name in UTM},
}
"""The fields of the form that are in-session attributes, and the names of these attributes."""


class PairsField(forms.CharField):
    """Lines of ``name=value``, as a dict."""

    widget = forms.Textarea(attrs={"rows": 3, "spellcheck": "false"})

    def to_python(self, value: str | None) -> dict[str, str]:  # type: ignore[override]
        """Return the pairs. Raises ValidationError for a line without a name."""
        pairs = {}
        for line in (value or "").splitlines():
            name, equals, text = (part.strip() for part in line.partition("="))
            if not equals or not name or name in FETCH_FIELDS:
                raise forms.ValidationError(f"“{line}” can't be sent. Write name=value.")
            pairs[name] = text
        return pairs


class VisitorForm(forms.Form):
    """Describe a visitor. An empty field is an attribute that the site doesn't send."""

    default_renderer = DjangoTemplates()
    customer_id = forms.CharField(
        required=False, label="Customer id", widget=forms.TextInput(attrs={"list": "wb-customers"})
    )
    identifiers = PairsField(required=False, label="Other identifiers", help_text="One name=value on each line.")
    as_of = forms.CharField(
        required=False,
        label="As of (UTC)",
        help_text="For schedules, day and hour. Empty: now.",
        widget=forms.TextInput(attrs={"type": "datetime-local"}),
    )
    day = forms.ChoiceField(required=False, choices=[("", "From the time"), *((day, day) for day in DAYS)])
    hour = forms.ChoiceField(
        required=False, choices=[("", "From the time"), *((f"{n:02}", f"{n:02}:00") for n in range(24))]
    )
    user_agent = forms.CharField(
        required=False, label="User agent", widget=forms.TextInput(attrs={"list": "wb-agents", "spellcheck": "false"})
    )
    address = forms.GenericIPAddressField(required=False, label="IP address")
    utm_source = forms.CharField(required=False, label="utm_source")
    utm_medium = forms.CharField(required=False, label="utm_medium")
    utm_campaign = forms.CharField(required=False, label="utm_campaign")
    utm_term = forms.CharField(required=False, label="utm_term")
    utm_content = forms.CharField(required=False, label="utm_content")
    attributes = PairsField(
        required=False, label="Custom attributes", help_text="One name=value on each line, such as cart_value=120."
    )

    def clean_as_of(self) -> datetime | None:
        """Return the moment. Without a zone it is in UTC."""
        text = self.cleaned_data["as_of"]
        if not text:
            return None
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise forms.ValidationError("Write a time such as 2026-12-24T18:00.") from None
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

    def build_fetch(self, now: float) -> tuple[dict[str, Any], float]:
        """Return the body of the fetch without keys, and its Unix time. The form must be valid."""
        data = self.cleaned_data
        moment = data["as_of"] or datetime.fromtimestamp(now, UTC)
        session = {"DAY_OF_THE_WEEK": DAYS[moment.weekday()], "TIME_OF_THE_DAY": f"{moment:%H}"}
        session |= {name: data[field] for field, name in FIELDS.items() if data[field]}
        identifiers = {"customer_id": data["customer_id"], "user_identifiers": data["identifiers"]}
        given = {name: value for name, value in identifiers.items() if value}
        return {"identifiers": given, **session, **data["attributes"]}, moment.timestamp()
