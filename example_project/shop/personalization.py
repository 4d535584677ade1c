"""What this shop tells MoEngage about a page, besides what the package collects by itself."""

from __future__ import annotations

from django.http import HttpRequest

from shop.cart import Cart
from shop.catalogue import PRODUCTS


def cart(request: HttpRequest) -> dict[str, str]:
    """Return the value of the bag, so that an audience may ask for it; an empty bag says nothing."""
    value = Cart(request).value
    return {"cart_value": str(value)} if value else {}


def page(request: HttpRequest) -> dict[str, str]:
    """Return which page this is and, on a category or a product, which shelf the visitor looks at."""
    match = request.resolver_match
    if match is None or match.url_name is None:
        return {}
    slug = match.kwargs.get("slug", "")
    shelf = PRODUCTS[slug].category if slug in PRODUCTS else slug
    return {"current_page": match.url_name} | ({"product_category": shelf} if shelf else {})
