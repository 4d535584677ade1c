"""What the integrations of content management systems share: the field of an experience key, and the early fetch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

from django import forms
from django.contrib import messages
from django.core.signals import request_started
from django.http import HttpRequest
from django.template import Template, TemplateDoesNotExist, TemplateSyntaxError
from django.template.loader import select_template
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from django_moe_personalize.conf import ConfigurationError, get_settings
from django_moe_personalize.context import get_page
from django_moe_personalize.fetching.metadata import get_metadata_store
from django_moe_personalize.moengage.types import ExperienceMeta, ExperienceStatus
from django_moe_personalize.planning import READER, find_template_keys, get_route_memory

MAX_LENGTH: Final = 255
"""Characters of an experience key in the CMS. MoEngage's dashboard makes keys of at most 50 (contract §2)."""

MAX_CHOICES: Final = 1000
"""Experiences that the field offers. An editor can type the key of any other experience."""

_STATUSES: Final = {ExperienceStatus.PAUSED: _("paused"), ExperienceStatus.SCHEDULED: _("scheduled")}
_NAME = re.compile(r"[\w-]+")


def list_experiences() -> Sequence[ExperienceMeta]:
    """Return the experiences that this process knows. This starts a read in the background if they are old."""
    return get_metadata_store().list_known() if get_settings().enabled else ()


class ExperienceKeyInput(forms.TextInput):
    """A text field that offers the experiences of the workspace, as far as this process knows them.

    A form never waits for MoEngage. While the experiences aren't known, an editor types the key.
    """

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> SafeString:
        """Return the field and the list of experiences. Browsers show the list without a script."""
        place = f"{(attrs or {}).get('id') or name}-experiences"
        attrs = {**(attrs or {}), "list": place, "autocomplete": "off", "spellcheck": "false"}
        named = [(each, _STATUSES.get(each.status)) for each in list_experiences()[:MAX_CHOICES]]
        texts = (
            (e.experience_key, f"{e.experience_name} ({status})" if status else e.experience_name)
            for e, status in named
        )
        options = format_html_join("", '<option value="{}">{}</option>', texts)
        field = super().render(name, value, attrs, renderer)
        return format_html('{}<datalist id="{}">{}</datalist>', field, place, options)


def warn_of_unknown(request: HttpRequest, experience_keys: Iterable[str]) -> None:
    """Tell an editor which keys the workspace doesn't have, as far as this process knows. The editor may keep them."""
    known = {each.experience_key for each in list_experiences()}
    for key in dict.fromkeys(experience_keys) if known else ():
        if key not in known:
            message = _("MoEngage has no experience “%(key)s”, so visitors see the fallback. Check the key.")
            messages.warning(request, message % {"key": key}, fail_silently=True)


def read_early(**kwargs: Any) -> None:
    """Read the experiences in the background at the first request of this process, so that the first form has them."""
    request_started.disconnect(dispatch_uid=__name__)
    # The checks and the middleware report a mistake in the settings.
    with suppress(ConfigurationError):
        list_experiences()


def prepare_forms() -> None:
    """Prepare the forms of editors. Each app of a CMS calls this function when it is ready."""
    request_started.connect(read_early, dispatch_uid=__name__)


def list_templates(experience_key: str) -> list[str]:
    """Return the names of the templates for the content of an experience. The first that exists counts."""
    names = ["moe_personalize/experience.html", "moe_personalize/default_experience.html"]
    # An editor may type any text. A part such as ".." must not lead to another template.
    return [f"moe_personalize/experiences/{experience_key}.html"] * bool(_NAME.fullmatch(experience_key)) + names


def start_fetch(request: HttpRequest, experience_keys: Sequence[str], template_name: Any) -> None:
    """Fetch the keys of a page's content and of its template in one call. The page renders at the same time."""
    page = get_page(request)
    asked = () if page is None else page.experience_keys
    wanted = [key for key in experience_keys if key and key not in asked]
    if page is None or not wanted:
        return
    keys: tuple[str, ...] = ()
    # If the template is missing or broken, rendering the page raises the same exception.
    with suppress(TemplateDoesNotExist, TemplateSyntaxError):
        names = [template_name] if isinstance(template_name, str) else template_name
        template = getattr(select_template(names), "template", None)
        if isinstance(template, Template) or hasattr(template, READER):
            keys = find_template_keys(template)
    # The next page like this one starts the call before its view, also for the keys that this visitor doesn't get.
    get_route_memory(page.runtime).split(request)
    page._learn(*wanted, *keys)
    page.prefetch(*wanted, *keys)
