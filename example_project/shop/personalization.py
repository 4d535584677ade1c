"""The attributes that this shop sends to MoEngage in addition to those that the package collects."""

from __future__ import annotations

from django.http import HttpRequest

from shop.cart import Cart
from shop.catalog import PRODUCTS


def cart(request: HttpRequest) -> dict[str, str]:
    """Return the value of the bag for audiences such as "Free delivery reached"; an empty bag has no attribute."""
    value = Cart(request).value
    return {"cart_value": str(value)} if value else {}


def page(request: HttpRequest) -> dict[str, str]:
    """Return the name of the page and, on the page of a category or product, the category."""
    match = request.resolver_match
    if match is None or match.url_name is None:
        return {}
    slug = match.kwargs.get("slug", "")
    shelf = PRODUCTS[slug].category if slug in PRODUCTS else slug
    return {"current_page": match.url_name} | ({"product_category": shelf} if shelf else {})
