"""The doctor: whether personalization works on this site and, if not, what to fix. ``manage.py moe_doctor``."""

from django_moe_personalize.doctor.report import diagnose

__all__ = ["diagnose"]
