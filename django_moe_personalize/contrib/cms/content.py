"""Find the experience keys in the plugins of pages, and plugins that django CMS may store for all visitors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from cms.plugin_pool import plugin_pool
from django.core.checks import CheckMessage, Warning
from django.db import DatabaseError
from django.template import Node, Template
from django.template.loader import get_template

from django_moe_personalize.checks.finders import Usage
from django_moe_personalize.contrib.cms.models import ExperiencePluginModel
from django_moe_personalize.planning import find_template_keys
from django_moe_personalize.templatetags.moe_personalize import ExperienceNode, ExperienceValueNode


def check_plugins() -> Iterator[CheckMessage]:
    """Yield W031 for a plugin that shows experiences and that django CMS may store."""
    for plugin in plugin_pool.plugins.values() if plugin_pool.discover_plugins() is None else ():
        if plugin.cache and (issubclass(plugin.model, ExperiencePluginModel) or _shows_experience(plugin)):
            yield Warning(
                f"django CMS may store the plugin {plugin.__name__}, which shows one visitor's content.",
                f"Write `cache = False` into {plugin.__module__}.{plugin.__name__}.",
                plugin,
                "moe_personalize.W031",
            )


def _shows_experience(plugin: Any) -> bool:
    # A missing or broken template shows nothing, and a plugin may choose its template for each page.
    with suppress(Exception):
        template = getattr(get_template(plugin.render_template), "template", None)
        nodes = template.nodelist.get_nodes_by_type(Node) if isinstance(template, Template) else []
        is_tag = any(isinstance(node, ExperienceNode | ExperienceValueNode) for node in nodes)
        return is_tag or bool(find_template_keys(template))
    return False


def find_in_cms() -> Iterator[Usage]:
    """Yield the keys of the plugins, with the page of each plugin. The clipboard doesn't count."""
    # A database that doesn't exist yet, for example in CI, has no content.
    with suppress(DatabaseError):
        for plugin in ExperiencePluginModel.objects.exclude(experience_key="").select_related("placeholder"):
            source = plugin.placeholder and plugin.placeholder.source
            # With djangocms-versioning, the default manager has only what is published.
            if source is not None and type(source)._default_manager.filter(pk=source.pk).exists():
                place = f'{source._meta.verbose_name} {source.pk} "{source}"'
                if (page := getattr(source, "page", None)) is not None:
                    place = f'page {page.pk} "{source.title}" {page.get_absolute_url(plugin.language)}'
                yield Usage(plugin.experience_key, "cms", place, 0)
