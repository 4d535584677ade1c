"""The doctor: find out whether personalization works on this site and, if not, how to fix it.

``report`` runs all parts for ``manage.py moe_doctor``, ``vendor`` asks MoEngage, ``site`` tries the cache, the delivery
and the environment.
"""

from django_moe_personalize.doctor.report import diagnose

__all__ = ["diagnose"]
