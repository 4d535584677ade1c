"""Read and check the settings of a site, ``MOE_PERSONALIZE``. Other packages call ``get_settings()``.

``settings`` has the table of settings with their defaults, and imports the classes and functions that a setting names.
``readers`` checks the values of the settings.
"""

from django_moe_personalize.conf.readers import Backend
from django_moe_personalize.conf.settings import (
    DEFAULT,
    DELIVERY,
    SETTING,
    ConfigurationError,
    Settings,
    find_problems,
    get_settings,
    get_settings_of,
    list_workspaces,
)
