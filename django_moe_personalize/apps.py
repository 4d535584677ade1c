"""The Django app."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, register


class MoePersonalizeConfig(AppConfig):
    """Register the app under its label, its checks and receivers; everything else starts when it is first used."""

    name = "django_moe_personalize"
    label = "moe_personalize"
    verbose_name = "MoEngage Personalize"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks, and what happens when a visitor signs in or out."""
        # Imported here: a module that needs models cannot be imported before the apps are there.
        from django_moe_personalize import receivers, runtime  # noqa: F401 - they connect their receivers

        register(check_site, "moe_personalize")


def check_site(**kwargs: Any) -> list[CheckMessage]:
    """Run every check of checks.py."""
    # Imported here: a server runs no checks, and should not start later for them.
    from django_moe_personalize.checks.settings import CHECKS

    return [message for check in CHECKS for message in check(**kwargs)]
