"""Find the page and the experience of a template. It isn't a tag library."""

from __future__ import annotations

from django.http import HttpRequest
from django.template import Context

from django_moe_personalize.context import Personalization, get_page, read_typed
from django_moe_personalize.moengage.types import Experience
from django_moe_personalize.page import Page
from django_moe_personalize.runtime import log_once
from django_moe_personalize.schemas import find_schema


def find_request(context: Context) -> HttpRequest | None:
    """Return the request of a template's context, or ``None``, for example in an email."""
    request: HttpRequest | None = getattr(context, "request", None) or context.get("request")
    return request


def find_page(context: Context) -> Page | None:
    """Return the page of a template's request, or ``None`` if the request didn't pass the middleware."""
    page = get_page(find_request(context))
    if page is None:
        message = (
            "A template with personalization tags has no request that passed PersonalizeMiddleware, so it shows its "
            "fallbacks. Render it with render(request, …), and put the middleware into MIDDLEWARE, above all "
            "middleware that renders pages."
        )
        log_once("request", message)
    elif page._is_closed:
        message = (
            "A template with personalization tags was rendered after PersonalizeMiddleware, so it shows its fallbacks. "
            "In MIDDLEWARE, move PersonalizeMiddleware above the middleware that renders this template."
        )
        log_once("late", message)
    return page


def find_experience(context: Context, key: object) -> tuple[Page | None, Experience | None]:
    """Return the page and its experience. The first call fetches all experiences that the template needs."""
    personalization = getattr(getattr(context, "request", None), "personalization", None)
    # Without the calls of find_page() most tags save 30 bytecodes.
    page = personalization._page if personalization.__class__ is Personalization else find_page(context)
    if page is None or not isinstance(key, str):
        return page, None
    if page._is_closed:
        find_page(context)
    return page, page.read(key) if key in page._answers else page.find(key, context.template)


def find_typed(context: Context, key: object) -> tuple[Page | None, Experience | None]:
    """See find_experience(). If the key has a schema, return the experience with the defaults of the schema."""
    page, experience = find_experience(context, key)
    return page, experience if page is None else give_type(page, key, experience)


def give_type(page: Page, key: object, experience: Experience | None) -> Experience | None:
    """Return an experience that the page has read, with the defaults of the schema if its key has a schema."""
    schema = None if experience is None else find_schema(key)
    return experience if schema is None else read_typed(page, schema)
