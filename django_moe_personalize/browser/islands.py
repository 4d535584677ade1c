"""Islands: the places in a page for all visitors that one private request fills with the visitor's experiences."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlencode

from django.core.signing import BadSignature, Signer
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import get_language

from django_moe_personalize import rendering
from django_moe_personalize.conf import DEFAULT, get_settings
from django_moe_personalize.conf.settings import NO_WORKSPACE
from django_moe_personalize.runtime import Runtime, log_once, part

SCRIPT: Final = "moe_personalize/islands.js"
TEMPLATES: Final = "moe_personalize/islands"

HAS_ISLANDS: Final = "_moe_has_islands"
"""The attribute of a request whose page has an island."""

MAX_KNOWN: Final = 1024

_SALT: Final = "django_moe_personalize.islands"
_NAME = re.compile(r"[\w-]+")


def sign_island(experience_key: str, template_name: str) -> str:
    """Return the token of an island. It names no visitor and doesn't expire, because caches keep the page."""
    content, workspace = [experience_key, template_name, get_language() or ""], get_settings().name
    return Signer(salt=_SALT).sign_object(content if workspace == DEFAULT else [*content, workspace])


def read_island(token: str) -> tuple[str, str, str, str] | None:
    """Return the key, template, language and workspace of an island, or ``None`` if the site didn't sign the token."""
    known = _get_known()
    # To check a signature takes 500 bytecodes, and a page has few islands.
    if (found := known.get(token)) is None:
        try:
            key, template_name, language, *workspace = Signer(salt=_SALT).unsign_object(token)
        except BadSignature:
            return None
        if len(known) >= MAX_KNOWN:
            known.clear()
        found = known[token] = key, template_name, language, *(workspace or [DEFAULT])
    return found


@part
def _get_known(runtime: Runtime) -> dict[str, tuple[str, str, str, str]]:
    """Return the tokens that this process has checked."""
    return {}


def render_island(
    request: HttpRequest | None, experience_key: str, fallback: SafeString, template_name: str = "", css_class: str = ""
) -> SafeString:
    """Return the island around ``fallback``, and the script that fills the island. Or ``<esi:include>`` for a proxy."""
    if request is not None:
        request.__dict__[HAS_ISLANDS] = True
    settings = get_settings()
    if settings.name == NO_WORKSPACE and request is not None:
        # A cache must not keep an island that belongs to no workspace.
        request.personalization._page.mark_read(request)  # type: ignore[attr-defined]
        return fallback
    if not template_name and not _NAME.fullmatch(experience_key):
        # An editor may type any text. A part such as ".." must not lead to another template.
        log_once(("island", experience_key), _NO_TEMPLATE, experience_key)
        return fallback
    token = sign_island(experience_key, template_name or f"{TEMPLATES}/{experience_key}.html")
    url = rendering.reverse_endpoint("islands") if settings.enabled else None
    if url is None:
        return fallback
    begin = format_html('<div class="{}" data-moe-island="{}">', css_class, token)
    if settings.islands == "esi":
        page = "" if request is None else "?" + urlencode({"page": request.path})
        include = format_html('<esi:include src="{}{}"/>', rendering.reverse_endpoint("island", token), page)
        return format_html("{}{}<esi:remove>{}</esi:remove></div>", begin, include, fallback)
    if not (source := rendering.find_source(SCRIPT)):
        return fallback
    names = " ".join(settings.query_parameters)
    script = format_html('<script src="{}" data-url="{}" data-names="{}" defer></script>', source, url, names)
    return format_html("{}{}</div>{}", begin, fallback, script)


_NO_TEMPLATE: Final = (
    "The key %r of an island can't be the name of a template, so the page shows the fallback. Write "
    '{%% experience_island key template="…" %%}.'
)
