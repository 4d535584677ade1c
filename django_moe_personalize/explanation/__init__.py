"""Explain a page: collect facts of the page and its process for developers. Pages never run this code by themselves."""

from django_moe_personalize.explanation.explain import explain_page
from django_moe_personalize.explanation.recording import RecordedPage

__all__ = ["RecordedPage", "explain_page"]
