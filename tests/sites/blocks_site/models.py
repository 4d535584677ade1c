"""A page of experience blocks: in the stream, in a list, in a struct, in a fallback, and of a subclass."""

from wagtail.admin.panels import FieldPanel
from wagtail.blocks import ListBlock, RawHTMLBlock, StreamBlock, StructBlock
from wagtail.fields import StreamField
from wagtail.models import Page

from django_moe_personalize.contrib.wagtail import ExperienceBlock
from tests.sites.blocks_site.streams import OFFERS


class HTMLBlock(ExperienceBlock):
    """A block whose fallback is HTML, and which Wagtail shows to an editor who is about to add it."""

    fallback = StreamBlock([("html", RawHTMLBlock())], required=False)

    class Meta:
        preview_value = {"experience_key": "hero-banner", "fallback": []}
        preview_template = "block_preview.html"


class PromoBlock(ExperienceBlock):
    """A block with a template of its own and a default experience."""

    class Meta:
        default = {"experience_key": "promo-strip"}
        template = "promo.html"


class Row(StructBlock):
    cells = ListBlock(HTMLBlock())

    class Meta:
        template = "row.html"


class OwnBlock(StructBlock):
    """A block with a tag in its template, as the documentation shows it."""

    class Meta:
        template = "own.html"
        preview_template = "block_preview.html"

    def get_preview_context(self, value, parent_context=None):
        parent_context["request"].is_preview = True
        return super().get_preview_context(value, parent_context)


class BlocksPage(Page):
    body = StreamField([("experience", HTMLBlock()), ("promo", PromoBlock()), ("row", Row()), ("own", OwnBlock())])
    offers = StreamField(OFFERS, blank=True)
    content_panels = [*Page.content_panels, FieldPanel("body")]
