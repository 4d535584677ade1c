"""The switch for faults: the usual faults by one button each, and all faults of the sandbox in a form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from django import forms
from django.forms.renderers import DjangoTemplates

from django_moe_personalize.sandbox.faults import Faults


@dataclass(frozen=True, slots=True)
class Preset:
    """A button of the switch."""

    label: str
    text: str
    faults: Faults


PRESETS: Final[Mapping[str, Preset]] = {
    "off": Preset("No faults", "Every call is answered at once.", Faults()),
    "slow": Preset("Slow", "Each answer comes after 2 seconds.", Faults(latency=2)),
    "hang": Preset("Hang", "No answer comes for 10 minutes.", Faults(latency=600)),
    "drip": Preset("Drip", "The body takes 10 seconds to arrive, bit by bit.", Faults(drip=10)),
    "5xx": Preset("5xx", "Each answer is a 503. No call is handled.", Faults(error_rate=1, error_status=503)),
    "429": Preset(
        "429",
        "Each answer is a 429 with “Retry-After: 30”.",
        Faults(error_rate=1, error_status=429, retry_after=30),
    ),
    "refuse": Preset("Refuse", "The connection is reset. The call is handled, the answer is lost.", Faults(reset=1)),
    "malformed": Preset("Malformed", "Each answer is cut in half, so it isn't JSON.", Faults(malformed=1)),
}


class FaultForm(forms.Form):
    """All faults of the sandbox, with the names that ``PUT /_sandbox/faults`` takes."""

    default_renderer = DjangoTemplates()
    latency = forms.FloatField(help_text="Seconds before an answer.")
    drip = forms.FloatField(help_text="Seconds that the body takes to arrive.")
    error_rate = forms.FloatField(help_text="The share of calls, 0 to 1, that get error_status and aren't handled.")
    error_status = forms.IntegerField(help_text="400 to 599.")
    retry_after = forms.IntegerField(required=False, help_text="Seconds for the header Retry-After of an error.")
    reset = forms.FloatField(help_text="The share of calls, 0 to 1, after which the connection breaks.")
    malformed = forms.FloatField(help_text="The share of calls, 0 to 1, that get half an answer.")
    seed = forms.IntegerField(required=False, help_text="An integer that makes the random choices repeatable.")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Label the fields by the names of the faults."""
        super().__init__(*args, **kwargs)
        for name, field in self.fields.items():
            field.label = name

    def clean(self) -> dict[str, Any]:
        """Require values that the sandbox accepts."""
        data = super().clean() or self.cleaned_data
        if not self.errors:
            try:
                Faults(**data)
            except ValueError as error:
                self.add_error(str(error).partition(" ")[0], f"{error}.")
        return data


def describe_faults(faults: Faults) -> str:
    """Return the faults that differ from the default, in words, or ``""`` without faults."""
    default = Faults()
    changed = {name: value for name, value in dataclasses.asdict(faults).items() if value != getattr(default, name)}
    return ", ".join(f"{name} {value:g}" for name, value in changed.items())
