"""Check for what gets into a value by copying it, or by writing it into an env file: quotes, spaces, placeholders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final

from django.conf import settings as django_settings

from django_moe_personalize.conf import SETTING, Settings

NAMES: Final = ("WORKSPACE_ID", "API_KEY", "BASE_URL")

_QUOTES = "\"'`"
_PLACEHOLDER = re.compile(
    r"<.*>|\[.*\]|\{.*\}|%.*%|[.*_-]{3,}|x{3,}|none|null|undefined|to-?do|tbd|placeholder|dummy|example([_-].*)?"
    r"|change[_-]?(me|it|this)|(your|my|the|insert|enter|replace|put)[_-].*"
    r"|((api|secret|moengage)[_-]?)?(key|secret)([_-]?here)?|workspace([_-]?id)?([_-]?here)?",
    re.IGNORECASE,
)


def check_pasted_text(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield E015 for a credential or a URL in quotes, W013 for one with outer whitespace or for a placeholder."""
    for place, value in _find_texts(settings) if settings.enabled else ():
        text = value.strip() if isinstance(value, str) else ""
        if text.strip(_QUOTES) != text:
            hint = "Remove them. Docker, for example, passes the quotation marks in an env file on with the value."
            yield "E015", f"{place} has quotation marks around the value.", hint
        elif "OPTIONS" not in place and _PLACEHOLDER.fullmatch(text):
            yield "W013", f"{place} looks like a placeholder.", "Write the value from your MoEngage dashboard."
        elif text and text != value:
            yield "W013", f"{place} has spaces or a line break around the value.", "Remove them."


def _find_texts(settings: Settings) -> Iterator[tuple[str, object]]:
    """Yield each credential and each option of a backend as it is in the settings, with its place."""
    given = getattr(django_settings, SETTING, {})
    for name in NAMES:
        if given.get(name) is not None:
            yield f'{SETTING}["{name}"]', given[name]
        else:
            yield f"{SETTING}_{name}", os.environ.get(f"{SETTING}_{name}")
    for name, backend in (("TRANSPORT", settings.transport), ("DELIVERY", settings.delivery)):
        for option, value in backend.options.items():
            yield f'{SETTING}["{name}"]["OPTIONS"]["{option}"]', value
