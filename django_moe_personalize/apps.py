"""The Django app."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, register


class MoePersonalizeConfig(AppConfig):
    """Register the app with its checks and signal receivers. Everything else starts on its first use."""

    name = "django_moe_personalize"
    label = "moe_personalize"
    verbose_name = "MoEngage Personalize"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Connect the signal receivers and register the system checks."""
        # Imported here: some of these modules need models, which can't be imported earlier.
        from django_moe_personalize import receivers, runtime  # noqa: F401 - they connect their receivers

        register(check_site, "moe_personalize")


def check_site(**kwargs: Any) -> list[CheckMessage]:
    """Run all system checks of this package."""
    # Imported here: a server runs no checks, and shouldn't load them.
    from django_moe_personalize.checks import settings

    return settings.check_site()
