"""Request: attach ``request.personalization``, start early what the page is known to need, seal the response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.template import Template, TemplateDoesNotExist, TemplateSyntaxError
from django.template.response import SimpleTemplateResponse

from django_moe_personalize import tracking
from django_moe_personalize.conf import get_settings
from django_moe_personalize.context import Personalization, release_unread
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.planning import find_template_keys

GetResponse = Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]


class PersonalizeMiddleware:
    """Put after sessions and authentication. A page that reads no experience passes untouched.

    Raises ConfigurationError at start-up, also under servers that run no system checks.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        get_settings()
        get_delivery()
        self.get_response: Callable[[HttpRequest], Any] = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)
            # Django would run a sync hook in a thread; an instance's own attribute wins over the class's.
            self.process_view = self.aprocess_view  # type: ignore[method-assign, assignment]
            # Where threads may wait, the first tag finds out by itself what the template needs.
            self.process_template_response = self.aprocess_template_response

    def __call__(self, request: HttpRequest) -> Any:
        if self.is_async:
            return self.__acall__(request)
        personalization = request.personalization = Personalization(request)  # type: ignore[attr-defined]
        try:
            response = self.get_response(request)
        except BaseException:
            # The server ends this worker: there is no page to seal.
            release_unread(personalization)
            raise
        if events := personalization.seal(response):
            tracking.record(events)
        return response

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        personalization = request.personalization = Personalization(request)  # type: ignore[attr-defined]
        try:
            response: HttpResponseBase = await self.get_response(request)
        except BaseException:
            # The visitor has gone, which cancels the page.
            release_unread(personalization)
            raise
        if events := personalization.seal(response):
            await tracking.arecord(events)
        return response

    def process_view(self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Start asking for what the page is known to need, beside its view; before it, if it is async."""
        personalization: Personalization = request.personalization  # type: ignore[attr-defined]
        if keys := personalization.plan(view):
            personalization.prefetch(*keys)
            if iscoroutinefunction(view):
                personalization.join()

    async def aprocess_view(self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """See process_view(). An async view's template cannot wait, so its experiences come first."""
        personalization: Personalization = request.personalization  # type: ignore[attr-defined]
        if keys := personalization.plan(view):
            await (personalization.aprefetch if iscoroutinefunction(view) else personalization.astart)(*keys)

    async def aprocess_template_response(
        self, request: HttpRequest, response: SimpleTemplateResponse
    ) -> SimpleTemplateResponse:
        """Ask for what the template needs before it is rendered where nothing can wait."""
        # A template that is not there, or is broken, is the page's own failure, in its own time.
        with suppress(TemplateDoesNotExist, TemplateSyntaxError):
            template = getattr(response.resolve_template(response.template_name), "template", None)
            # Jinja2's has no nodes to look through.
            if isinstance(template, Template):
                personalization: Personalization = request.personalization  # type: ignore[attr-defined]
                await personalization.aprefetch(*find_template_keys(template))
        return response
