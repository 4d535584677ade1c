"""The package's logger: configure it in ``LOGGING`` under the name ``django_moe_personalize``."""

from __future__ import annotations

import logging

logger = logging.getLogger("django_moe_personalize")
