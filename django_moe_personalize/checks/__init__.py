"""System checks: report mistakes in the settings and the templates of a site before its first visitor comes."""

from django_moe_personalize.checks.settings import check_site

__all__ = ["check_site"]
