"""System checks: what a site should know of its settings and templates before its first visitor does."""

from django_moe_personalize.checks.settings import CHECKS

__all__ = ["CHECKS"]
