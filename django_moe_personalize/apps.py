"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig


class MoePersonalizeConfig(AppConfig):
    """Register the app under its label, and its checks; everything else starts when it is first used."""

    name = "django_moe_personalize"
    label = "moe_personalize"
    verbose_name = "MoEngage Personalize"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks."""
        # Imported here: a module that needs models cannot be imported before the apps are there.
        from django_moe_personalize.checks import register_checks

        register_checks()
