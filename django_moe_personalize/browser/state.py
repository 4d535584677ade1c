"""The state of a page: what the server showed, as JSON for scripts, so that no script asks MoEngage again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from django.utils.html import json_script
from django.utils.safestring import SafeString

from django_moe_personalize import rendering
from django_moe_personalize.conf import get_settings
from django_moe_personalize.moengage.types import Experience
from django_moe_personalize.page import Page

ELEMENT_ID: Final = "moe-state"


def serialize(
    page: Page | None, experience: Experience, elements: Sequence[str] | None = None, *, impressions: str = "render"
) -> dict[str, Any]:
    """Return an experience with the token of its impression and of the clicks on ``elements``.

    By default, the elements are the variables of the payload and the ids of the offerings. The token is ``None`` if
    nothing counts, for example without the visitor's consent. With ``impressions="web_sdk"`` the token has the calls
    of MoEngage's script.
    """
    if elements is None:
        elements = [*experience.payload, *(offering.offering_id for offering in experience.offerings)]
    plain, token = experience.to_dict(), None
    if page is not None:
        token = rendering.build_token(page.tracker, experience, list(dict.fromkeys(elements)), impressions)
    # The contexts have the names of campaigns and audiences. The token is all that the client needs of them.
    return {
        "experience_key": plain["experience_key"],
        "variation_id": plain["experience_context"].get("moe_variation_id"),
        "payload": plain["payload"],
        "offerings": [{"offering_id": each["offering_id"], "content": each["content"]} for each in plain["offerings"]],
        "token": token,
    }


def render_state(page: Page | None, experiences: Mapping[str, Experience | None]) -> SafeString:
    """Return the experiences as JSON in a ``<script>`` that doesn't run. An experience that is ``None`` is ``null``."""
    mode = get_settings().impressions
    found = {key: each and serialize(page, each, impressions=mode) for key, each in experiences.items()}
    return json_script({"experiences": found, "beacon": rendering.find_endpoint("beacon")}, ELEMENT_ID)
