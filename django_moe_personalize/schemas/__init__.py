"""Schemas: the variables of an experience as a class, in the file ``experiences.py`` of a site's app.

``declaration`` has the class that a site inherits from. ``kinds`` tells which values an annotation allows.
"""

from django_moe_personalize.schemas.declaration import (
    ExperienceSchema,
    find_schema,
    get_classes,
    get_schemas,
    is_schema,
)
from django_moe_personalize.schemas.kinds import Url

__all__ = ["ExperienceSchema", "Url", "find_schema", "get_classes", "get_schemas", "is_schema"]
