"""The schemas of the shop: the variables that its templates and views expect from the dashboard."""

from typing import Literal

from django_moe_personalize.schemas import ExperienceSchema, Url


class HeroBanner(ExperienceSchema):
    """The banner of the front page."""

    key = "hero-banner"
    Title: str
    Text: str
    CtaLabel: str = "Discover more"
    CtaUrl: Url = "/"
    Theme: Literal["gold", "dusk", "dawn", "email", "noon", "night"] = "noon"


class CartUpsell(ExperienceSchema):
    """The offer in the bag."""

    key = "cart-upsell"
    Title: str
    Product: str
    Price: float | None = None
