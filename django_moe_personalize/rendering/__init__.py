"""Rendering: experiences become safe HTML, links and marks, and the response gets its headers.

``experience`` renders content and links, ``headers`` marks a response as one visitor's own.
"""

from django_moe_personalize.rendering.experience import (
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
