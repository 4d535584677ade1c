"""The block of a StreamField in which an editor chooses an experience and writes its fallback."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, Error, Warning
from django.db.models import Model
from django.template import Node, Template, TemplateDoesNotExist, TemplateSyntaxError
from django.template.loader import get_template
from django.template.loader_tags import ExtendsNode, IncludeNode
from django.utils.translation import gettext_lazy as _
from wagtail.blocks import CharBlock, RichTextBlock, StreamBlock, StructBlock

from django_moe_personalize.contrib.editing import MAX_LENGTH, ExperienceKeyInput, list_templates, start_fetch
from django_moe_personalize.runtime import log_once
from django_moe_personalize.templatetags.moe_personalize import ExperienceNode, ExperienceValueNode
from django_moe_personalize.templatetags.pages import find_request

APP = "django_moe_personalize.contrib.wagtail"
BLOCK_PREVIEW = "wagtailadmin_block_preview"
"""The view that shows one block to an editor who is about to add it."""


class ExperienceKeyBlock(CharBlock):  # type: ignore[misc]
    """A text block that offers the experiences of the workspace."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            **{
                "help_text": _("Choose an experience, or type its key."),
                "max_length": MAX_LENGTH,
                # The site search should not find a page by its keys.
                "search_index": False,
                **kwargs,
            }
        )
        self.field.widget = ExperienceKeyInput({"maxlength": MAX_LENGTH})

    def deconstruct(self) -> Any:
        """Let migrations have a plain text block, so that a site can remove this package."""
        return ("wagtail.blocks.CharBlock", *super().deconstruct()[1:])


class ExperienceBlock(StructBlock):  # type: ignore[misc]
    """An experience that the editor chooses, and the fallback that the editor writes.

    A subclass may have another ``fallback``, more blocks, or a ``template`` of its own, in which the tag is
    ``{% experience self.experience_key as experience %}``.
    """

    experience_key = ExperienceKeyBlock(label=_("Experience"))
    fallback = StreamBlock(
        [("text", RichTextBlock(label=_("Text")))],
        required=False,
        label=_("Fallback"),
        help_text=_("Visitors without the experience see this."),
    )

    class Meta:
        label = _("Experience")
        icon = "group"
        template = "moe_personalize/experience_block.html"

    def get_context(self, value: Any, parent_context: Any = None) -> Any:
        """Return the context of the template, with the templates for the content of the experience."""
        context = super().get_context(value, parent_context)
        request = find_request(context)
        if request is None:
            message = (
                "An experience block has no request, so it shows its fallback. In the template, write "
                "{% include_block page.body %} instead of {{ page.body }}."
            )
            # The tag would log a hint for templates outside of Wagtail, under the same key.
            log_once("request", message)
        elif request.resolver_match is not None and request.resolver_match.view_name == BLOCK_PREVIEW:
            # Wagtail marks the previews of pages in this way, but not those of blocks.
            request.is_preview = True  # type: ignore[attr-defined]
        elif getattr(request, "is_preview", False) and isinstance(page := context.get("page"), Model):
            # The hook for pages doesn't run in a preview. One call for each block could take longer than DEADLINE.
            from django_moe_personalize.contrib.wagtail.content import find_stored_keys

            start_fetch(request, find_stored_keys(page), ())
        context["experience_templates"] = list_templates(value.get("experience_key") or "")
        return context

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Find an app that isn't installed, and a template without the tag."""
        place = kwargs.get("field", self)
        found: list[CheckMessage] = super().check(**kwargs)
        if not apps.is_installed(APP):
            message = "A StreamField has an ExperienceBlock, but the app of the block isn't installed."
            return [*found, Error(message, f"Add {APP!r} to INSTALLED_APPS.", place, "moe_personalize.E030")]
        name = self.meta.template
        if isinstance(name, str) and not _may_show_experience(name):
            message = f"The template {name!r} of {type(self).__name__} doesn't show the experience."
            hint = (
                "Write {% experience self.experience_key as experience %}…{% fallback %}"
                "{% include_block self.fallback %}{% endexperience %} into the template."
            )
            found.append(Warning(message, hint, place, "moe_personalize.W030"))
        return found


def _may_show_experience(template_name: str) -> bool:
    """Return whether a template has one of the tags, or uses other templates, or belongs to another engine."""
    try:
        template: Any = getattr(get_template(template_name), "template", None)
    except TemplateDoesNotExist:
        return False
    except TemplateSyntaxError:
        # Rendering the block raises the same exception.
        return True
    nodes = template.nodelist.get_nodes_by_type(Node) if isinstance(template, Template) else None
    return nodes is None or any(
        isinstance(node, ExperienceNode | ExperienceValueNode | IncludeNode | ExtendsNode) for node in nodes
    )
