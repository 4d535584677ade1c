"""The form of a view."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from django import forms
from django.utils.dates import WEEKDAYS
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from django_moe_personalize.client import get_engine
from django_moe_personalize.contrib.view_as.view import View
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.sandbox.payloads import read_payload
from django_moe_personalize.sandbox.reading import Problems, Value, WorkspaceError
from django_moe_personalize.visitor.attributes import DAYS, MAX_VALUE_LENGTH, accept_custom, clean_text

MAX_FILE: Final = 64 * 1024

WHO: Final = [
    ("self", pgettext_lazy("view as", "Myself")),
    ("anonymous", pgettext_lazy("view as", "A new anonymous visitor")),
    ("customer", pgettext_lazy("view as", "A customer")),
]

DAY_CHOICES: Final = [("", pgettext_lazy("view as", "Today")), *zip(DAYS, WEEKDAYS.values(), strict=True)]

FIELDS: Final = {"device": "USER_AGENT", "address": "USER_IP_ADDRESS", "day": "DAY_OF_THE_WEEK"}
OTHER_FIELDS: Final = {"hour": "TIME_OF_THE_DAY", "campaign": "utm_campaign"}


def _build_area() -> forms.Textarea:
    return forms.Textarea(attrs={"rows": 3, "spellcheck": "false"})


class ViewForm(forms.Form):
    """Describe the visitor and the experiences. An empty field leaves the value of the real visitor."""

    who = forms.ChoiceField(label=_("View as"), choices=WHO, initial="self")
    customer_id = forms.CharField(label=_("Customer id"), required=False, max_length=256)
    device = forms.CharField(label=_("User agent"), required=False, max_length=512)
    day = forms.ChoiceField(label=pgettext_lazy("view as", "Day"), required=False, choices=DAY_CHOICES)
    hour = forms.IntegerField(label=_("Hour (0 to 23)"), required=False, min_value=0, max_value=23)
    campaign = forms.CharField(label="utm_campaign", required=False, max_length=MAX_VALUE_LENGTH)
    address = forms.GenericIPAddressField(label=_("IP address"), required=False)
    attributes = forms.CharField(label=_("Attributes (a JSON object)"), widget=_build_area(), required=False)
    forced = forms.CharField(
        label=_("Experiences (a JSON object)"),
        widget=_build_area(),
        required=False,
        help_text=_("For each key: a payload, null for no experience, or the id of a variation of the sandbox."),
    )
    file = forms.FileField(label=_("Experiences from a file"), required=False)

    def clean_attributes(self) -> dict[str, str]:
        """Return the attributes that the package would accept from ATTRIBUTES."""
        found = _load(self.cleaned_data["attributes"])
        if not isinstance(found, dict) or len(accepted := accept_custom("View as", found)) < len(found):
            raise forms.ValidationError(
                _("Write a JSON object with attributes that MoEngage accepts. All values are texts.")
            )
        return accepted

    def clean_forced(self) -> dict[str, Any]:
        """Return payloads by key."""
        return _read_forced(_load(self.cleaned_data["forced"]))

    def clean_file(self) -> dict[str, Any]:
        """Return the payloads of the file. It may be a recorded answer of MoEngage."""
        file = self.cleaned_data["file"]
        if not file:
            return {}
        if file.size > MAX_FILE:
            raise forms.ValidationError(_("The file is larger than 64 KiB. Keep only the experiences of this page."))
        return _read_forced(_load(file.read(), _("The file has no JSON object. Choose another file.")))

    def clean(self) -> dict[str, Any]:
        """Require the id of a customer."""
        data = super().clean() or self.cleaned_data
        if data.get("who") == "customer" and not data.get("customer_id"):
            self.add_error("customer_id", _("Enter the id of the customer."))
        return data

    def build_view(self, issuer: str) -> View:
        """Return the view of a valid form."""
        data = self.cleaned_data
        named = {name: clean_text(data[field], 512) for field, name in FIELDS.items() if data[field]}
        if data["hour"] is not None:
            named["TIME_OF_THE_DAY"] = f"{data['hour']:02d}"
        if data["campaign"]:
            named["utm_campaign"] = clean_text(data["campaign"], MAX_VALUE_LENGTH)
        return View(
            issuer=issuer,
            customer_id=data["customer_id"] if data["who"] == "customer" else "",
            anonymous=data["who"] == "anonymous",
            attributes=named | data["attributes"],
            forced=data["file"] | data["forced"],
        )


def build_initial(view: View) -> dict[str, Any]:
    """Return the values of the fields that describe a view."""
    names = {name: field for field, name in {**FIELDS, **OTHER_FIELDS}.items()}
    more = {name: value for name, value in view.attributes.items() if name not in names}
    texts = {"attributes": more, "forced": view.forced}
    return {
        "who": "customer" if view.customer_id else "anonymous" if view.anonymous else "self",
        "customer_id": view.customer_id,
        **{names[name]: value for name, value in view.attributes.items() if name in names},
        **{field: json.dumps(data, ensure_ascii=False) for field, data in texts.items() if data},
    }


def _load(text: str | bytes, message: Any = forms.JSONField.default_error_messages["invalid"]) -> Any:
    """Return the data of a JSON text, or an empty object for no text. Raises ValidationError."""
    try:
        found = json.loads(text or "{}")
        # A page can't show half of a character (\ud800), and JSON has no infinity.
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise forms.ValidationError(message) from None
    return {} if found is None else found


def _read_forced(data: object) -> dict[str, Any]:
    """Return payloads in the form of MoEngage. Raises ValidationError."""
    if isinstance(data, dict) and isinstance(data.get("experiences"), dict):
        data = data["experiences"]
    problems = Problems("experiences")
    if not isinstance(data, dict):
        raise forms.ValidationError(_("Write a JSON object that has a payload for each experience key."))
    found = {key: _read_one(key, value, problems) for key, value in data.items()}
    try:
        problems.raise_any()
    except WorkspaceError as error:
        raise forms.ValidationError(str(error)) from None
    return found


def _read_one(key: str, value: object, problems: Problems) -> Mapping[str, Any] | None:
    if value in (None, "absent"):
        return None
    if isinstance(value, str):
        return _find_variation(key, value, problems)
    if isinstance(value, dict) and isinstance(value.get("payload"), dict) and "experience_context" in value:
        value = value["payload"]
    return read_payload(Value(value, key, problems), {})


def _find_variation(key: str, name: str, problems: Problems) -> Mapping[str, Any] | None:
    engine = get_engine(get_runtime())
    definition = engine.workspace.definitions.get(key) if engine else None
    known = [each for content in (definition.contents if definition else ()) for each in content.variations]
    for variation in known:
        if name in (variation.variation_id, variation.name):
            return variation.payloads[""]
    names = [f"{each.variation_id!r} ({each.name})" if each.name else repr(each.variation_id) for each in known]
    fix = f"Write one of: {', '.join(names)}." if names else "Write a payload, or null for no experience."
    problems.add(key, f"the sandbox has no variation {name!r}. {fix}")
    return None
