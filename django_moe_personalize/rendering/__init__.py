"""Rendering: turn experiences into safe HTML, links and marks, and set the headers of personalized responses.

``experience`` renders content, click URLs and the script tag; it also decides which HTML and which hosts are safe.
``headers`` sets ``Cache-Control``, ``Vary`` and ``Server-Timing``.
"""

from django_moe_personalize.rendering.experience import (
    HTML_TAGS,
    NOWHERE,
    build_click_url,
    find_host,
    get_allowed_hosts,
    is_safe_url,
    render_experience,
    render_html,
    render_scripts,
    render_value,
)

__all__ = [
    "HTML_TAGS",
    "NOWHERE",
    "build_click_url",
    "find_host",
    "get_allowed_hosts",
    "is_safe_url",
    "render_experience",
    "render_html",
    "render_scripts",
    "render_value",
]
