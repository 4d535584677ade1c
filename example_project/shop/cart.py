"""The shopping bag: slugs, quantities and prices in the session."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.http import HttpRequest

from shop.catalog import CATEGORIES, PRODUCTS, Product

SESSION_KEY = "cart"
FREE_DELIVERY_FROM = Decimal(150)
DELIVERY = Decimal("4.90")


@dataclass(frozen=True, slots=True)
class Line:
    """One product in the bag; ``price`` is for one piece."""

    product: Product
    quantity: int
    price: Decimal

    @property
    def total(self) -> Decimal:
        """Return the price of all pieces."""
        return self.price * self.quantity

    @property
    def is_reduced(self) -> bool:
        """Return whether an offer reduced the price."""
        return self.price < self.product.price


class Cart:
    """The bag of one visitor. It doesn't read the session before a property or method needs it."""

    def __init__(self, request: HttpRequest) -> None:
        self._session = request.session

    @property
    def lines(self) -> list[Line]:
        """Return the lines, in the order in which the products were added."""
        stored = self._session.get(SESSION_KEY, {})
        return [
            Line(PRODUCTS[slug], entry["quantity"], Decimal(entry["price"]))
            for slug, entry in stored.items()
            if slug in PRODUCTS
        ]

    @property
    def count(self) -> int:
        """Return the number of pieces."""
        return sum(line.quantity for line in self.lines)

    @property
    def value(self) -> Decimal:
        """Return the price of all lines, without delivery."""
        return sum((line.total for line in self.lines), Decimal(0))

    @property
    def delivery(self) -> Decimal:
        """Return the price of delivery; it is free from FREE_DELIVERY_FROM on and for an empty bag."""
        return DELIVERY if 0 < self.value < FREE_DELIVERY_FROM else Decimal(0)

    @property
    def total(self) -> Decimal:
        """Return the price of all lines with delivery."""
        return self.value + self.delivery

    @property
    def missing(self) -> Decimal:
        """Return the amount that is missing for free delivery."""
        return max(FREE_DELIVERY_FROM - self.value, Decimal(0))

    def add(self, product: Product, *, price: Decimal | None = None) -> None:
        """Add one piece; the ``price`` of an offer then applies to all pieces of the product."""
        stored = self._session.setdefault(SESSION_KEY, {})
        entry = stored.setdefault(product.slug, {"quantity": 0, "price": str(product.price)})
        entry["quantity"] += 1
        if price is not None:
            entry["price"] = str(price)
        self._session.modified = True

    def clear(self) -> None:
        """Empty the bag."""
        self._session.pop(SESSION_KEY, None)

    def remove(self, product: Product) -> None:
        """Remove all pieces of a product, if there are any."""
        if self._session.get(SESSION_KEY, {}).pop(product.slug, None) is not None:
            self._session.modified = True


def context(request: HttpRequest) -> dict[str, Any]:
    """Add the shelves and the bag to every template, for its header (a context processor)."""
    return {"shelves": CATEGORIES.values(), "cart": Cart(request)}
