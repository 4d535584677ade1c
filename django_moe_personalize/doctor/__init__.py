"""The doctor: find out whether personalization works on this site and, if not, how to fix it."""

from django_moe_personalize.doctor.report import diagnose

__all__ = ["diagnose"]
