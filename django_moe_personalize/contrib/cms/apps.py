"""The Django app, for its plugin, its table and its templates."""

from collections.abc import Iterable
from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, register

from django_moe_personalize.checks.finders import Usage, register_finder


class CMSConfig(AppConfig):
    """The app of the plugin."""

    name = "django_moe_personalize.contrib.cms"
    label = "moe_personalize_cms"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Prepare the editors' forms, register the checks, and let the drift commands read the pages."""
        from django_moe_personalize.contrib import editing

        editing.prepare_forms()
        register(check_plugins, "moe_personalize")
        register_finder(find_in_cms)


def check_plugins(**kwargs: Any) -> list[CheckMessage]:
    """Run the checks of the plugins."""
    # A server process runs no checks, so it shouldn't import them. The same is true of the search for usages.
    from django_moe_personalize.contrib.cms import content

    return list(content.check_plugins())


def find_in_cms() -> Iterable[Usage]:
    """Return the keys in the plugins of all pages."""
    from django_moe_personalize.contrib.cms import content

    return content.find_in_cms()
