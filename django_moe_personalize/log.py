"""The logger of the package. In ``LOGGING``, the name of the logger is ``django_moe_personalize``."""

from __future__ import annotations

import logging

logger = logging.getLogger("django_moe_personalize")
