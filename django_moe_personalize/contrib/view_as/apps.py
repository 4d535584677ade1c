"""The Django app, for its templates and static files."""

from django.apps import AppConfig


class ViewAsConfig(AppConfig):
    """The app of the preview. Its permission belongs to the app ``moe_personalize``."""

    name = "django_moe_personalize.contrib.view_as"
    label = "moe_personalize_view_as"
