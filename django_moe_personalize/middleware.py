"""Attach ``request.personalization``, start the page's fetch early, and seal the response."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import FileResponse, HttpRequest
from django.http.response import HttpResponseBase
from django.template import Template, TemplateDoesNotExist, TemplateSyntaxError
from django.template.response import SimpleTemplateResponse

from django_moe_personalize import tracking
from django_moe_personalize.client import get_client, is_embedded
from django_moe_personalize.conf import ConfigurationError, get_settings, list_workspaces
from django_moe_personalize.conf.settings import NO_WORKSPACE
from django_moe_personalize.context import Personalization, WorkspacePersonalization, agive_id
from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.page import Page
from django_moe_personalize.planning import READER, find_template_keys, get_plan
from django_moe_personalize.runtime import Runtime, get_runtime, protect_transactions
from django_moe_personalize.visitor.identity import HookError, acall, call

GetResponse = Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]


class PersonalizeMiddleware:
    """List this middleware directly below the authentication middleware, and above all middleware that renders pages.

    The middleware changes only the responses of pages that use personalization. It raises ConfigurationError at
    start-up, because some servers don't run system checks.
    """

    sync_capable = True
    async_capable = True

    _call_instead: Callable[[HttpRequest], Any] | None = None
    _personalization = Personalization
    """Both are chosen when a server builds the middleware, so a site with one workspace pays nothing for this."""

    def __init__(self, get_response: GetResponse) -> None:
        path = get_settings().workspace
        for name in list_workspaces():
            _prepare(get_runtime(name))
        # The first calls take up to 90 ms, to import requests, and to load the CA bundle and the list of robots. A
        # server builds its middleware before it serves pages, so no page waits.
        tracking.is_robot("-")
        self.get_response: Callable[[HttpRequest], Any] = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)
            # Django would run the class's sync method in a thread. The instance's attribute hides that method.
            self.process_view = self.aprocess_view  # type: ignore[method-assign, assignment]
            # A sync site doesn't need this method: there, the first tag may wait for all keys of the template.
            self.process_template_response = self.aprocess_template_response
            self._call_instead = self.__acall__
        if path:
            self._personalization = WorkspacePersonalization
            call_in_workspace = _acall_in_workspace if self.is_async else _call_in_workspace
            self._call_instead = partial(call_in_workspace, path, self._call_instead or copy.copy(self))

    def __call__(self, request: HttpRequest) -> Any:
        if self._call_instead is not None:
            return self._call_instead(request)
        personalization = request.personalization = self._personalization(request)  # type: ignore[attr-defined]
        page = personalization._page
        try:
            response = self.get_response(request)
        except BaseException:
            # For example, the server stops this worker. The page will have no response.
            page.release()
            raise
        if events := page.seal(response):
            tracking.record(events, page.runtime, request)
        return response

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        personalization = request.personalization = self._personalization(request)  # type: ignore[attr-defined]
        page = personalization._page
        try:
            response: HttpResponseBase = await self.get_response(request)
            if page.is_id_due:
                await agive_id(page)
            elif page.is_read and page._evidence:
                # seal() can't call the site's functions in an event loop.
                await page.aconfirm()
        except BaseException:
            # The server cancels the page, because the browser has closed the connection.
            page.release()
            raise
        if events := page.seal(response):
            await tracking.arecord(events, page.runtime, request)
        return response

    def process_view(self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Start to fetch the experiences that the page is known to need. The view runs at the same time."""
        page: Page = request.personalization._page  # type: ignore[attr-defined]
        plan = page.plan = get_plan(request, view, page.runtime)
        if plan.keys and (keys := plan.get_early_keys(request, page.runtime)):
            if plan.is_async:
                # Under WSGI, sync code in an async view can't wait later, so wait here.
                page.load(*keys)
            else:
                page.start(keys)

    async def aprocess_view(self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """See process_view(). For an async view, wait for the fetch, because tags in an event loop can't wait."""
        page: Page = request.personalization._page  # type: ignore[attr-defined]
        # A function of the site may block: it may read the page from the database.
        is_quick = isinstance(get_settings().learn_routes, bool)
        arguments = request, view, page.runtime
        plan = page.plan = get_plan(*arguments) if is_quick else await sync_to_async(get_plan)(*arguments)
        if plan.keys and (keys := plan.get_early_keys(request, page.runtime)):
            await (page.aload if plan.is_async else page.aprefetch)(*keys)

    async def aprocess_template_response(
        self, request: HttpRequest, response: SimpleTemplateResponse
    ) -> SimpleTemplateResponse:
        """Fetch the keys of the template. A tag that waits would block the one thread that all sync code shares."""
        # If the template is missing or broken, Django raises the error when it renders the template.
        with suppress(TemplateDoesNotExist, TemplateSyntaxError):
            template = getattr(response.resolve_template(response.template_name), "template", None)
            # The templates of other engines can't be searched for keys.
            if (isinstance(template, Template) or hasattr(template, READER)) and (keys := find_template_keys(template)):
                page: Page = request.personalization._page  # type: ignore[attr-defined]
                await page.aconfirm()
                await page.aload(*keys)
        return response


def _prepare(runtime: Runtime) -> None:
    """Build what a page needs first. Raises ConfigurationError for wrong settings."""
    get_delivery(runtime)
    if runtime.settings.enabled and not is_embedded(runtime.settings):
        # If the client can't be built, the pages log the reason and show their fallbacks.
        with suppress(Exception):
            get_client(runtime)


# A site with several workspaces.


def _call_in_workspace(path: str, respond: Callable[[HttpRequest], Any], request: HttpRequest) -> HttpResponseBase:
    """Let ``respond(request)`` work for the workspace that the site's function at ``path`` chooses."""
    try:
        with protect_transactions():
            runtime = _find(call(path, request, str))
    except (HookError, ConfigurationError) as error:
        runtime = _report_no_workspace(path, error)
    with runtime.use():
        response: HttpResponseBase = respond(request)
    return _stream_in_workspace(response, runtime)


async def _acall_in_workspace(
    path: str, respond: Callable[[HttpRequest], Any], request: HttpRequest
) -> HttpResponseBase:
    """See _call_in_workspace(). A sync function of the site runs in the thread of the site's sync code."""
    try:
        runtime = _find(await acall(path, request, str))
    except (HookError, ConfigurationError) as error:
        runtime = _report_no_workspace(path, error)
    with runtime.use():
        response: HttpResponseBase = await respond(request)
    return _stream_in_workspace(response, runtime)


def _find(name: str) -> Runtime:
    # An empty name would be the current workspace.
    return get_runtime(name or "?")


def _report_no_workspace(path: str, error: Exception) -> Runtime:
    """Log why the request has no workspace, and return the runtime of its page: one that fetches and counts nothing."""
    runtime = get_runtime(NO_WORKSPACE)
    # The name may come from the visitor's host, so no line has it.
    why = str(error) if isinstance(error, HookError) else f"{path} returned a name that WORKSPACES doesn't have"
    fix = f"Return {' or '.join(map(repr, list_workspaces()))}."
    with runtime.use():
        runtime.log_once(("workspace", why), "WORKSPACE failed (%s), so the page shows its fallbacks. %s", why, fix)
    return runtime


_END: Final = object()


def _stream_in_workspace(response: HttpResponseBase, runtime: Runtime) -> HttpResponseBase:
    """Let a streamed response work for the workspace too: the server asks for its content after the middleware."""

    def stream(content: Any) -> Iterator[bytes]:
        pieces = iter(content)
        while True:
            with runtime.use():
                piece: Any = next(pieces, _END)
            if piece is _END:
                return
            yield piece

    async def astream(content: Any) -> AsyncIterator[bytes]:
        pieces = aiter(content)
        while True:
            with runtime.use():
                piece: Any = await anext(pieces, _END)
            if piece is _END:
                return
            yield piece

    # A wrapped FileResponse would lose the server's fast way to send files.
    if response.streaming and not isinstance(response, FileResponse):
        content = response.streaming_content  # type: ignore[attr-defined]
        response.streaming_content = (astream if response.is_async else stream)(content)  # type: ignore[attr-defined]
    return response
