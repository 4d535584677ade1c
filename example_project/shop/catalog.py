"""The products of Fernweh, as plain data: the database has only sessions and users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A shelf of the shop."""

    slug: str
    name: str
    text: str

    @property
    def short(self) -> str:
        """Return the first word of the name."""
        return self.name.partition(" ")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product; ``category`` is a slug, ``price`` is in euros."""

    slug: str
    name: str
    category: str
    price: Decimal
    text: str
    details: tuple[str, ...]

    @property
    def image(self) -> str:
        """Return the path of the illustration in the static files."""
        return f"shop/{self.slug}.svg"

    @property
    def shelf(self) -> Category:
        """Return the category of the product."""
        return CATEGORIES[self.category]


CATEGORIES: Final[Mapping[str, Category]] = MappingProxyType(
    {
        category.slug: category
        for category in (
            Category(slug="packs", name="Packs & bags", text="For people who carry it themselves, and like to."),
            Category(slug="clothing", name="Clothing", text="Layers that have met worse weather than you will."),
            Category(slug="camp", name="Camp", text="A roof, a flame, a blanket. The rest is optional."),
            Category(slug="tools", name="Tools", text="Small things that get you there, and back."),
        )
    }
)

PRODUCTS: Final[Mapping[str, Product]] = MappingProxyType(
    {
        product.slug: product
        for product in (
            Product(
                slug="trail-pack-40",
                name="Trail Pack 40",
                category="packs",
                price=Decimal("149.00"),
                text="Forty liters is a long weekend: one tent, two sweaters, three books you will not read.",
                details=("40 liters, 1,180 grams", "Back length adjustable in ten seconds", "Rain cover in the lid"),
            ),
            Product(
                slug="dry-bag-20",
                name="Dry Bag 20",
                category="packs",
                price=Decimal("24.00"),
                text="Three folds and a click, and the river may have the rest.",
                details=("20 liters, 96 grams", "Welded seams", "Floats when it has to"),
            ),
            Product(
                slug="merino-base-layer",
                name="Merino Base Layer",
                category="clothing",
                price=Decimal("79.00"),
                text="Warm when wet, quiet when worn for a week. The sheep were asked nicely.",
                details=(
                    "190 g/m² merino from mulesing-free farms",
                    "Flat seams under the straps",
                    "Repaired for free",
                ),
            ),
            Product(
                slug="down-jacket",
                name="Down Jacket",
                category="clothing",
                price=Decimal("229.00"),
                text="Packs to the size of a loaf and warms like the oven it came from.",
                details=("800 fill power, traceable down", "340 grams in size M", "Stows in its own pocket"),
            ),
            Product(
                slug="alpine-tent-2",
                name="Alpine Tent 2",
                category="camp",
                price=Decimal("389.00"),
                text="Stands in four minutes, and keeps standing in a forty-knot wind. Sleeps two who get along.",
                details=("2 people, 1.9 kilograms", "5,000 mm floor", "Two doors, so nobody climbs over anybody"),
            ),
            Product(
                slug="camp-stove",
                name="Camp Stove",
                category="camp",
                price=Decimal("64.00"),
                text="Boils half a liter before you have found the spoon.",
                details=("2.6 kW, 85 grams without the can", "Simmers, honestly", "Lights in the wind"),
            ),
            Product(
                slug="wool-blanket",
                name="Wool Blanket",
                category="camp",
                price=Decimal("95.00"),
                text="One for the fire, and for the sofa afterwards. Sparks do not impress it.",
                details=(
                    "140 × 200 cm of recycled wool",
                    "Woven in the Harz",
                    "Smells of smoke only if you want it to",
                ),
            ),
            Product(
                slug="titanium-mug",
                name="Titanium Mug",
                category="camp",
                price=Decimal("34.00"),
                text="Seventy-four grams of good mornings. Goes on the flame, outlives the kitchen.",
                details=("450 ml, 74 grams", "Marks at 100, 200 and 300 ml", "Handle folds flat"),
            ),
            Product(
                slug="headlamp-400",
                name="Headlamp 400",
                category="tools",
                price=Decimal("49.00"),
                text="Four hundred lumens for the path and a red light for the map.",
                details=("400 lumens, 82 grams", "Charges over USB-C in an hour", "Remembers the red light"),
            ),
            Product(
                slug="trekking-poles",
                name="Trekking Poles",
                category="tools",
                price=Decimal("89.00"),
                text="Your knees asked us to stock these.",
                details=("Carbon, 410 grams the pair", "Cork grips that fit sooner or later", "Fold to 38 cm"),
            ),
            Product(
                slug="field-notebook",
                name="Field Notebook",
                category="tools",
                price=Decimal("14.00"),
                text="Paper that does not mind the rain, for thoughts that come with it.",
                details=("96 waterproof pages", "A ruler inside the cover", "The pencil is included, the view is not"),
            ),
            Product(
                slug="compass-classic",
                name="Compass Classic",
                category="tools",
                price=Decimal("39.00"),
                text="No battery, no signal, no problem.",
                details=("Brass, 62 grams", "Damped needle, settles in two seconds", "Declination to set by hand"),
            ),
        )
    }
)
