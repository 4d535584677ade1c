"""The pages of the shop, with three ways to declare the experiences of a page.

``EXPERIENCES`` in the settings declares those of ``home``, and with ``"shop:*"`` the strip on every page;
``@personalize`` declares those of ``cart``, ``PersonalizeMixin`` those of the product page. So each page
makes only one call.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from django.contrib import messages
from django.contrib.auth import login, logout
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST
from django.views.generic import TemplateView

from django_moe_personalize.decorators import personalize
from django_moe_personalize.mixins import PersonalizeMixin
from shop.cart import Cart
from shop.catalog import CATEGORIES, PRODUCTS, Product
from shop.experiences import CartUpsell
from shop.people import PEOPLE, get_user

BESTSELLERS = (
    "trail-pack-40",
    "alpine-tent-2",
    "down-jacket",
    "camp-stove",
    "wool-blanket",
    "headlamp-400",
    "merino-base-layer",
    "compass-classic",
)


def home(request: HttpRequest) -> HttpResponse:
    """Show the front page; the template has the fallback content of its experiences."""
    return render(request, "shop/home.html", {"bestsellers": [PRODUCTS[slug] for slug in BESTSELLERS]})


class CategoryView(TemplateView):
    """Show one shelf."""

    template_name = "shop/category.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Add the shelf and its products."""
        category = CATEGORIES.get(kwargs["slug"])
        if category is None:
            raise Http404
        products = [product for product in PRODUCTS.values() if product.category == category.slug]
        return super().get_context_data(category=category, products=products, **kwargs)


class ProductView(PersonalizeMixin, TemplateView):
    """Show one product and MoEngage's recommendations."""

    template_name = "shop/product.html"
    experiences = ("recommendations",)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Add the product, and other products of its category for visitors without recommendations."""
        product = get_product(kwargs["slug"])
        neighbors = [other for other in PRODUCTS.values() if other.category == product.category and other != product]
        return super().get_context_data(product=product, neighbors=neighbors, **kwargs)


@personalize("cart-upsell")
def cart(request: HttpRequest) -> HttpResponse:
    """Show the bag."""
    return render(request, "shop/cart.html")


@require_POST
def add_to_cart(request: HttpRequest, slug: str) -> HttpResponse:
    """Put one piece of a product into the bag."""
    product = get_product(slug)
    Cart(request).add(product)
    messages.success(request, f"{product.name} is in your bag.")
    return redirect(get_next(request))


@require_POST
def remove_from_cart(request: HttpRequest, slug: str) -> HttpResponse:
    """Take a product out of the bag."""
    Cart(request).remove(get_product(slug))
    return redirect("shop:cart")


@require_POST
@personalize(CartUpsell)
def take_offer(request: HttpRequest) -> HttpResponse:
    """Put the product of the upsell into the bag, at the price of the experience and not of the form."""
    upsell = request.personalization.get(CartUpsell)
    product = PRODUCTS.get(upsell.Product) if upsell else None
    if upsell is None or product is None:
        messages.info(request, "That offer has ended.")
        return redirect("shop:cart")
    Cart(request).add(product, price=read_price(upsell.Price, product))
    messages.success(request, f"{product.name} is in your bag.")
    return redirect("shop:cart")


@require_POST
def place_order(request: HttpRequest) -> HttpResponse:
    """Order what is in the bag, and report the order to MoEngage. The workbench shows the conversion rates."""
    bag = Cart(request)
    if bag.count:
        order = {"total": bag.total, "pieces": bag.count, "products": [line.product.slug for line in bag.lines]}
        request.personalization.track_event("Order placed", order)
        bag.clear()
        messages.success(request, "Thank you for your order.")
    return redirect("shop:cart")


class SignInView(TemplateView):
    """Sign in as one of the demo users, without a password. Don't copy this into a real shop."""

    template_name = "shop/sign_in.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        """Add the people to choose from."""
        return super().get_context_data(people=PEOPLE, **kwargs)

    def post(self, request: HttpRequest) -> HttpResponse:
        """Sign in and go back to the page that the visitor came from."""
        person = next((person for person in PEOPLE if person.username == request.POST.get("username")), None)
        if person is None:
            raise Http404
        login(request, get_user(person))
        return redirect(get_next(request))


@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    """Sign out and go back to the page that the visitor came from."""
    logout(request)
    return redirect(get_next(request))


def get_product(slug: str) -> Product:
    """Return a product; raises Http404."""
    if slug not in PRODUCTS:
        raise Http404
    return PRODUCTS[slug]


def get_next(request: HttpRequest) -> str:
    """Return the URL in the form if it is on this site, else the front page."""
    url = request.POST.get("next", "")
    return url if url_has_allowed_host_and_scheme(url, allowed_hosts={request.get_host()}) else "/"


def read_price(value: object, product: Product) -> Decimal:
    """Return the price in an experience; if it isn't a price below the shop's, return the shop's."""
    try:
        price = Decimal(str(value)).quantize(Decimal("0.01"))
        return price if 0 < price < product.price else product.price
    except InvalidOperation:
        return product.price
