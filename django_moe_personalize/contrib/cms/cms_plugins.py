"""The plugin of django CMS in which an editor chooses an experience. The plugins inside are its fallback."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from cms.plugin_base import CMSPluginBase
from cms.plugin_pool import plugin_pool
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from django_moe_personalize.contrib.cms.models import ExperiencePluginModel
from django_moe_personalize.contrib.editing import ExperienceKeyInput, list_templates, start_fetch, warn_of_unknown
from django_moe_personalize.templatetags.pages import find_request


@plugin_pool.register_plugin
class ExperiencePlugin(CMSPluginBase):  # type: ignore[misc]
    """An experience, and the plugins that visitors without this experience see.

    A subclass may have a ``render_template`` of its own, in which the tag is
    ``{% experience instance.experience_key as experience %}``.
    """

    name = _("Experience")
    model = ExperiencePluginModel
    render_template = "moe_personalize/experience_plugin.html"
    allow_children = True
    # django CMS then stores neither the placeholder nor the page.
    cache = False

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """Return the form, which offers the experiences of the workspace."""
        kwargs["widgets"] = {
            "experience_key": ExperienceKeyInput({"class": "vTextField"}),
            **(kwargs.get("widgets") or {}),
        }
        return super().get_form(request, obj, change, **kwargs)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Save the plugin, and warn the editor if the key is unknown."""
        super().save_model(request, obj, form, change)
        warn_of_unknown(request, [obj.experience_key])

    def render(self, context: Any, instance: Any, placeholder: Any) -> Any:
        """Return the context of the template. The first plugin of a page fetches the experiences of all plugins."""
        context = super().render(context, instance, placeholder)
        request = find_request(context)
        if request is not None:
            keys, template = _look_around(request)
            start_fetch(request, [*keys, instance.experience_key], template)
        context["experience_templates"] = list_templates(instance.experience_key)
        return context


def _look_around(request: HttpRequest) -> tuple[list[str], Any]:
    """Return the keys of the plugins that django CMS has loaded for this page, and the page's template. Do no query."""
    # If one of these names changes, each plugin fetches its own experience.
    with suppress(AttributeError):
        pages = request.toolbar.content_renderer._placeholders_by_page_cache.values()  # type: ignore[attr-defined]
        loaded = [placeholder for placeholders in pages for placeholder in placeholders.values()]
        plugins = [plugin for placeholder in loaded for plugin in getattr(placeholder, "_all_plugins_cache", ())]
        keys = [plugin.experience_key for plugin in plugins if isinstance(plugin, ExperiencePluginModel)]
        return keys, loaded[0].page.get_template() if loaded else ()
    return [], ()
