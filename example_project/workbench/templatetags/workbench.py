"""The tag ``{% workbench_panel %}`` for the end of a page."""

from __future__ import annotations

from django import template
from django.template.context import Context

from workbench.panel import Panel, build_panel

register = template.Library()


@register.inclusion_tag("workbench/panel.html", takes_context=True)
def workbench_panel(context: Context) -> dict[str, Panel | object]:
    """Render the panel, or nothing on a page that didn't pass the middleware, such as an error page."""
    request = context.get("request")
    panel = build_panel(request) if hasattr(request, "personalization") else None
    return {"panel": panel, "request": request}
