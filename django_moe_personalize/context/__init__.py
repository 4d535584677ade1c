"""Context: ``request.personalization``, the mapping experience key → ``Experience`` of one request."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

from django.core.exceptions import SynchronousOnlyOperation
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from django_moe_personalize import tracking
from django_moe_personalize.conf import list_workspaces
from django_moe_personalize.conf.settings import used_runtime
from django_moe_personalize.moengage.data_api import build_conversion
from django_moe_personalize.moengage.types import Event, Experience, Offering
from django_moe_personalize.page import Page
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.visitor import MINTED, Consent, Identity, is_in_event_loop, may_be_new

if TYPE_CHECKING:
    from django_moe_personalize.schemas import ExperienceSchema

T = TypeVar("T")
S = TypeVar("S", bound="ExperienceSchema")


class Personalization(Mapping[str, Experience]):
    """The experiences of one request's visitor.

    ``get(key)`` returns the experience, or ``None`` if this visitor has no experience of that key. In async code,
    use ``await aget(key)``. The first read fetches all keys that the page is known to need, in one call. All
    reads of a page together wait at most DEADLINE seconds. Iteration, ``len()`` and ``items()`` cover the keys that
    the page has read or is known to need.

    In place of a key, a read takes a schema (``personalization[HeroBanner]``) and returns the experience as this class.
    """

    __slots__ = ("_page",)

    def __init__(self, request: HttpRequest) -> None:
        self._page = Page(request)

    @overload
    def __getitem__(self, experience_key: type[S]) -> S: ...
    @overload
    def __getitem__(self, experience_key: str) -> Experience: ...
    def __getitem__(self, experience_key: Any) -> Any:
        experience = self._page.read(experience_key)
        if experience is None:
            experience = None if isinstance(experience_key, str) else _read_schema(self._page, experience_key)
            if experience is None:
                raise KeyError(experience_key)
        return experience

    @overload
    def get(self, key: type[S], /) -> S | None: ...
    @overload
    def get(self, key: type[S], /, default: T) -> S | T: ...
    @overload
    def get(self, key: str, /) -> Experience | None: ...
    @overload
    def get(self, key: str, /, default: Experience) -> Experience: ...
    @overload
    def get(self, key: str, /, default: T) -> Experience | T: ...
    def get(self, key: Any, /, default: Any = None) -> Any:
        """Return the experience, or ``default`` if this visitor has no experience of that key."""
        page = self._page
        # Most reads need no more than this look-up: the user is the same, and so is all else that tells the visitor.
        if (
            page.known.get("user") is page.user
            and (page._evidence is None or len(page.known) == page._evidence.size)
            and key in page._answers
        ):
            experience = page._answers[key]
        else:
            experience = page.read(key)
        if experience is not None:
            return experience
        # The page has no answer for a schema. So a read by key costs nothing more, unless the experience is absent.
        return default if isinstance(key, str) else _read_schema(page, key) or default

    @overload
    async def aget(self, key: type[S], /) -> S | None: ...
    @overload
    async def aget(self, key: type[S], /, default: T) -> S | T: ...
    @overload
    async def aget(self, key: str, /) -> Experience | None: ...
    @overload
    async def aget(self, key: str, /, default: T) -> Experience | T: ...
    async def aget(self, key: Any, /, default: Any = None) -> Any:
        """See get()."""
        experience = await self._page.aread(key)
        if experience is not None:
            return experience
        if isinstance(key, str):
            return default
        await self._page.aread(getattr(key, "key", ""))
        return _read_schema(self._page, key) or default

    def __contains__(self, experience_key: object) -> bool:
        if isinstance(experience_key, str):
            return self._page.read(experience_key) is not None
        return _read_schema(self._page, experience_key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter([key for key in self._page.planned_keys if self._page.read(key) is not None])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Personalization of {', '.join(self._page.experience_keys) or 'no experiences yet'}>"

    # Without this method, Sentry iterates over the mapping and so fetches experiences during an error report.
    __sentry_repr__ = __repr__

    @property
    def now(self) -> datetime | None:
        """The package sends the weekday and hour of this time to MoEngage. ``None`` means the current time.

        Set it before the first read.
        """
        return self._page.now

    @now.setter
    def now(self, moment: datetime | None) -> None:
        self._page.now = moment

    def prefetch(self, *experience_keys: str) -> None:
        """Start to fetch the keys in one call, and return immediately. The first read waits for the call."""
        self._page.prefetch(*experience_keys)

    async def aprefetch(self, *experience_keys: str) -> None:
        """See prefetch()."""
        await self._page.aprefetch(*experience_keys)

    def load(self, *experience_keys: str) -> None:
        """Fetch the keys and wait for the answers, at most until the page's deadline. Never raises.

        Without keys, wait for all fetches of this page.
        """
        self._page.confirm(again=True)
        self._page.load(*experience_keys)

    async def aload(self, *experience_keys: str) -> None:
        """See load(). In a task (``asyncio.create_task()``), the call runs during the view's other awaits.

        Without keys, this method also finds out who the visitor is, because sync code in an event loop can't wait.
        """
        await self._page.aconfirm(again=True)
        await self._page.aload(*experience_keys)
        if not experience_keys and self._page.runtime.settings.enabled:
            await self._page._agather()

    @property
    def identity(self) -> Identity:
        """The visitor's known ids. A visitor who doesn't allow identification has no ids here."""
        return self._page.visitor.identity

    @property
    def consent(self) -> Consent:
        """The visitor's consent."""
        return self._page.visitor.consent

    @property
    def attributes(self) -> Mapping[str, str]:
        """The in-session attributes that the page sends to MoEngage."""
        return self._page.visitor.attributes

    def explain(self) -> dict[str, Any]:
        """Return why this page has its experiences, as a dict of JSON values. It has this visitor's personal data."""
        # Most processes never explain a page.
        from django_moe_personalize.context.explain import explain_page

        return explain_page(self._page)

    def _describe(self) -> str:
        """Return the facts of explain() for the header Server-Timing. Pages call this for developers and staff only."""
        from django_moe_personalize.context.explain import describe_page

        return describe_page(self._page)

    def track_impression(self, experience_key: str) -> None:
        """Report that the page shows an experience. Several calls on one page count once."""
        if (experience := self.get(experience_key)) is not None:
            (self._page._tracker or self._page.tracker).show(experience)

    def track_click(self, experience_key: str, *, element: str = "", offering: Offering | None = None) -> None:
        """Report that this request is a click on ``element`` (``b_id``) or on ``offering`` of an experience."""
        if (experience := self._page.read(experience_key)) is not None:
            self._page.tracker.click(experience, element=element, offering=offering)

    def track_event(
        self, name: str, attributes: Mapping[str, Any] | None = None, *, at: datetime | None = None
    ) -> None:
        """Report an event of the visitor's own, such as an order, to MoEngage's Data API. See api.track_event().

        Reports it immediately, in your transaction if the delivery is an outbox. Nothing counts for a robot, in a
        preview, or without the visitor's consent to ``track``. Raises ValueError as api.track_event() does, and
        SynchronousOnlyOperation in an event loop.
        """
        if is_in_event_loop():
            raise SynchronousOnlyOperation("Write await request.personalization.atrack_event(…) in async code.")
        build_conversion(CHECKED, name, attributes, at=at)
        self._page.confirm()
        if (customer_id := find_converting_id(self._page)) is not None:
            tracking.record_conversions([build_conversion(customer_id, name, attributes, at=at)], self._page.runtime)

    async def atrack_event(
        self, name: str, attributes: Mapping[str, Any] | None = None, *, at: datetime | None = None
    ) -> None:
        """See track_event()."""
        build_conversion(CHECKED, name, attributes, at=at)
        if self._page.runtime.settings.enabled:
            await self._page.aconfirm()
            await self._page._agather()
        if (customer_id := find_converting_id(self._page)) is not None:
            conversions = [build_conversion(customer_id, name, attributes, at=at)]
            await tracking.arecord_conversions(conversions, self._page.runtime)


CHECKED: Final = "checked"
"""An id with which the arguments of track_event() are checked, even if nothing counts for the visitor."""


def find_converting_id(page: Page) -> str | None:
    """Return the id of the visitor, for whom an event counts now, or ``None``. The page becomes private."""
    request, customer_id = page._request(), page.tracker.customer_id
    if request is None or page._is_closed:
        return None
    page.mark_read(request)
    return customer_id if tracking.may_convert(request, customer_id, page.runtime) else None


def _in_workspace(member: Any) -> Any:
    """Let a sync method or a property of a Personalization work for the workspace of its page."""
    if isinstance(member, property):
        return property(_in_workspace(member.fget), member.fset, doc=member.__doc__)
    if not inspect.isfunction(member) or inspect.iscoroutinefunction(member):
        return member

    @wraps(member)
    def call(self: Personalization, *args: Any, **kwargs: Any) -> Any:
        with self._page.runtime.use():
            return member(self, *args, **kwargs)

    return call


class WorkspacePersonalization(Personalization):
    """The experiences of one request's visitor, on a site with several workspaces.

    A thread of the site's own code, as in a ThreadPoolExecutor, doesn't have the context of the request. There the
    package would take the request for one of the default workspace.
    """

    __slots__ = ()


for _name, _member in vars(Personalization).items():
    if _name not in ("__init__", "__bool__", "_page"):
        _wrapped = _in_workspace(_member)
        if _wrapped is not _member:
            setattr(WorkspacePersonalization, _name, _wrapped)


def _read_schema(page: Page, schema: Any) -> Experience | None:
    """Return the experience as an object of ``schema``, or ``None`` for anything but a schema."""
    # A site without schemas doesn't import them.
    from django_moe_personalize.schemas import is_schema

    return read_typed(page, schema) if is_schema(schema) else None


def read_typed(page: Page, schema: type[S]) -> S | None:
    """Return the experience as an object of ``schema``, if the visitor has it and it fits."""
    typed = schema.parse(page.read(schema.key))
    if typed is not None:
        # The tracker counts the page's own objects.
        page._answers[schema.key] = typed
    return typed


def get_page(request: HttpRequest | None) -> Page | None:
    """Return the page of a request that passed the middleware, else ``None``."""
    personalization = getattr(request, "personalization", None)
    return personalization._page if isinstance(personalization, Personalization) else None


def switch_workspace(page: Page, name: str) -> bool:
    """Let the rest of the request work for another workspace, whose token came with the request.

    Return False if the page has read something for its own workspace already, or if the site has no such workspace.
    """
    if page.runtime.name == name:
        return True
    if page._is_used or name not in list_workspaces():
        return False
    page.runtime = get_runtime(name)
    # The middleware's context ends it.
    used_runtime.set(page.runtime)
    return True


def give_id(page: Page) -> None:
    """Let the response set the cookie of a new anonymous visitor, so that parts that the page loads share the id.

    In an event loop this happens after the view, because gathering the visitor may block.
    """
    request = page._request()
    if request is None or page._is_closed or not page.runtime.settings.enabled or not may_be_new(request):
        return
    if page._visitor is None and is_in_event_loop():
        # Under WSGI, seal() does this. A check in seal() would cost every page of the site 3 bytecodes.
        page.is_id_due, page.seal = True, partial(_give_id_and_seal, page)  # type: ignore[method-assign]
    elif (
        page.confirm()
        and (visitor := page._find_visitor())
        and visitor.identity.anonymous
        and MINTED in request.__dict__
    ):
        page.mark_read(request)


async def agive_id(page: Page) -> None:
    """See give_id(). The async middleware calls this function if ``page.is_id_due`` is true."""
    await page.aconfirm()
    await page._agather()
    give_id(page)


def _give_id_and_seal(page: Page, response: HttpResponseBase) -> Sequence[Event]:
    del page.seal
    give_id(page)
    return Page.seal(page, response)
