"""The table of the plugin."""

from __future__ import annotations

from cms.models import CMSPlugin
from django.db import models
from django.utils.translation import gettext_lazy as _

from django_moe_personalize.contrib.editing import MAX_LENGTH


class ExperiencePluginModel(CMSPlugin):  # type: ignore[misc]
    """An experience that an editor has chosen. The plugins inside are the fallback."""

    experience_key = models.CharField(
        _("Experience"),
        max_length=MAX_LENGTH,
        help_text=_("Choose an experience, or type its key. Visitors without it see the plugins inside."),
    )

    class Meta:
        verbose_name = _("Experience")
        verbose_name_plural = _("Experiences")

    def __str__(self) -> str:
        return self.experience_key
