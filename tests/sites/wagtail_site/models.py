"""The pages: a home page whose body is a StreamField, and an article that is the same for everyone."""

from django.db import models
from wagtail.admin.panels import FieldPanel
from wagtail.blocks import CharBlock, StructBlock
from wagtail.fields import StreamField
from wagtail.models import Page
from wagtailcache.cache import WagtailCacheMixin

from django_moe_personalize.contrib.wagtail import ExperienceBlock


class BannerBlock(StructBlock):
    """A banner whose content is an experience. The editor writes the fallback."""

    fallback = CharBlock()

    class Meta:
        template = "wagtail_site/banner.html"


class HomePage(WagtailCacheMixin, Page):
    """A page with blocks."""

    body = StreamField([("banner", BannerBlock()), ("text", CharBlock()), ("experience", ExperienceBlock())])
    content_panels = [*Page.content_panels, FieldPanel("body")]


class ArticlePage(Page):
    """A page without experiences."""

    intro = models.TextField()
    content_panels = [*Page.content_panels, FieldPanel("intro")]
