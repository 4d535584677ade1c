"""The Django app, for its templates and its hooks."""

from collections.abc import Iterable

from django.apps import AppConfig

from django_moe_personalize.checks.finders import Usage, register_finder


class WagtailConfig(AppConfig):
    """The app of the block."""

    name = "django_moe_personalize.contrib.wagtail"
    label = "moe_personalize_wagtail"

    def ready(self) -> None:
        """Prepare the editors' forms, and let the drift commands read the pages."""
        from django_moe_personalize.contrib import editing

        editing.prepare_forms()
        register_finder(find_in_wagtail)


def find_in_wagtail() -> Iterable[Usage]:
    """Return the keys in the blocks and in the pages."""
    # Only the commands need this module.
    from django_moe_personalize.contrib.wagtail import content

    return content.find_in_wagtail()
