"""What may stand in ``MOE_PERSONALIZE``: one typed dataclass, resolved and checked in this package alone.

``settings`` has the table of settings, ``readers`` the kinds of values, ``backends`` imports dotted paths.
"""

from django_moe_personalize.conf.readers import Backend
from django_moe_personalize.conf.settings import (
    DELIVERY,
    SETTING,
    ConfigurationError,
    Problem,
    Settings,
    find_problems,
    get_settings,
)

__all__ = [
    "DELIVERY",
    "SETTING",
    "Backend",
    "ConfigurationError",
    "Problem",
    "Settings",
    "find_problems",
    "get_settings",
]
