"""The Django app."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.core.checks import CheckMessage, register
from django.utils.module_loading import autodiscover_modules
from django.utils.translation import gettext_lazy as _


class MoePersonalizeConfig(AppConfig):
    """The app. At start-up it registers checks and signal receivers, and imports the site's schemas."""

    name = "django_moe_personalize"
    label = "moe_personalize"
    verbose_name = _("MoEngage Personalize")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Connect the signal receivers and register the system checks."""
        # The schemas of the site are in the file experiences.py of its apps.
        autodiscover_modules("experiences")
        # It may import models, which Django can't do before ready().
        from django_moe_personalize import receivers  # noqa: F401 - it connects its receivers

        register(check_site, "moe_personalize")
        register(check_deployment, "moe_personalize", deploy=True)


def check_site(**kwargs: Any) -> list[CheckMessage]:
    """Run all system checks of this package."""
    # A server process runs no checks, so it shouldn't import them.
    from django_moe_personalize.checks import settings

    return settings.check_site()


def check_deployment(**kwargs: Any) -> list[CheckMessage]:
    """Run the system checks for ``check --deploy``."""
    from django_moe_personalize.checks import settings

    return settings.check_deployment()
