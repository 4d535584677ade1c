"""Experiences in Wagtail: editors choose an experience and write its fallback, in a block of a StreamField."""

from typing import Any

__all__ = ["ExperienceBlock"]


def __getattr__(name: str) -> Any:
    # Django imports this package before it knows the models, and Wagtail's blocks need the settings.
    if name == "ExperienceBlock":
        from django_moe_personalize.contrib.wagtail.blocks import ExperienceBlock

        return ExperienceBlock
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
