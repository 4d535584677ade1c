"""The shopping bag: slugs, quantities and granted prices in the session."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.http import HttpRequest

from shop.catalogue import CATEGORIES, PRODUCTS, Product

SESSION_KEY = "cart"
FREE_DELIVERY_FROM = Decimal(150)
DELIVERY = Decimal("4.90")


@dataclass(frozen=True, slots=True)
class Line:
    """One product in the bag at the price of one piece."""

    product: Product
    quantity: int
    price: Decimal

    @property
    def total(self) -> Decimal:
        """Return the price of all pieces."""
        return self.price * self.quantity

    @property
    def is_reduced(self) -> bool:
        """Return whether an offer made it cheaper."""
        return self.price < self.product.price


class Cart:
    """The bag of one visitor; reads the session when it is first asked, and not before."""

    def __init__(self, request: HttpRequest) -> None:
        self._session = request.session

    @property
    def lines(self) -> list[Line]:
        """Return what is in the bag, in the order it went in."""
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
        """Return the price of everything in the bag, without delivery."""
        return sum((line.total for line in self.lines), Decimal(0))

    @property
    def delivery(self) -> Decimal:
        """Return what delivery costs: nothing from FREE_DELIVERY_FROM, or for an empty bag."""
        return DELIVERY if 0 < self.value < FREE_DELIVERY_FROM else Decimal(0)

    @property
    def total(self) -> Decimal:
        """Return what there is to pay."""
        return self.value + self.delivery

    @property
    def missing(self) -> Decimal:
        """Return how much more makes delivery free."""
        return max(FREE_DELIVERY_FROM - self.value, Decimal(0))

    def add(self, product: Product, *, price: Decimal | None = None) -> None:
        """Put one more piece in; ``price`` is an offer's, and then holds for the pieces already there."""
        stored = self._session.setdefault(SESSION_KEY, {})
        entry = stored.setdefault(product.slug, {"quantity": 0, "price": str(product.price)})
        entry["quantity"] += 1
        if price is not None:
            entry["price"] = str(price)
        self._session.modified = True

    def remove(self, product: Product) -> None:
        """Take all pieces of a product out; without one in the bag nothing happens."""
        if self._session.get(SESSION_KEY, {}).pop(product.slug, None) is not None:
            self._session.modified = True


def context(request: HttpRequest) -> dict[str, Any]:
    """Give every template what its header shows: the shelves and the bag (a context processor)."""
    return {"shelves": CATEGORIES.values(), "cart": Cart(request)}
