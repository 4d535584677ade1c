"""A stream with a default experience, in a module of its own."""

from wagtail.blocks import StreamBlock

from django_moe_personalize.contrib.wagtail import ExperienceBlock

OFFERS = StreamBlock([("offer", ExperienceBlock(default={"experience_key": "gone-banner"}))], required=False)
